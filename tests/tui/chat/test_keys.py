"""Stories of keys that a person has chosen in the settings file: what they do, and where they are written."""

from tests.support.chat_stories import tell, telling
from tests.support.screen_text import screen_rows, screen_text
from tui.chat.commands.keymap import make_keymap


def chosen(**choices):
    return {"keys": make_keymap(choices)}


def test_a_chosen_key_does_it_and_the_usual_one_does_no_more(tmp_path):
    async def story():
        async with telling(tmp_path, **chosen(new="ctrl+w", undo="alt+u", search="ctrl+k")) as teller:
            await teller.ask("One?")
            await teller.press("ctrl+n")
            assert teller.contents == ["One?", "Hello there."]
            await teller.press("ctrl+w")  # with which a text area deletes a word
            await teller.until(lambda: teller.dialogue.conversation_id is None)
            await teller.ask("Two?")
            await teller.command("/clear")
            await teller.press("alt+u")
            await teller.hears("what was cleared is back")
            await teller.type("one two")
            await teller.press("home", "ctrl+k")  # with which a text area deletes to the end of the line
            assert teller.chat.side.display and teller.chat.prompt.text == "one two"

    tell(story)


def test_letters_and_a_chosen_key_come_in_the_order_in_which_they_are_typed(tmp_path):
    async def story():
        async with telling(tmp_path, **chosen(send="f11", new_line="enter")) as teller:
            await teller.press("h", "enter", "i", "f11")
            await teller.until(lambda: teller.contents == ["h\ni", "Hello there."])

    tell(story)


def test_up_still_moves_the_cursor_where_earlier_prompts_have_another_key(tmp_path):
    async def story():
        async with telling(tmp_path, **chosen(older="alt+up")) as teller:
            await teller.ask("Earlier.")
            await teller.press("a", "ctrl+j", "b", "up", "x")
            assert teller.chat.prompt.text == "ax\nb"
            await teller.press("up", "alt+up")
            assert teller.chat.prompt.text == "Earlier."

    tell(story)


def test_footer_help_palette_and_hints_name_the_keys_that_hold(tmp_path):
    async def story():
        keys = chosen(help="f12", new="none", stats="f11", quit="ctrl+x", **{"continue": "f10"})
        async with telling(tmp_path, size=(100, 40), **keys) as teller:
            footer = screen_rows(teller.app)[-1]
            assert "f12 Help" in footer and "^x Quit" in footer and "New" not in footer and "f11 Machine" in footer
            assert "F12 all keys" in screen_text(teller.app)
            await teller.press("f1")
            assert teller.app.screen is teller.screen
            await teller.press("f12")
            await teller.until(lambda: teller.app.screen is not teller.screen)
            assert "/continue             F10" in screen_text(teller.app)
            await teller.press("end")
            await teller.until(lambda: "(page_up)" in screen_text(teller.app))
            await teller.press("escape")
            titles = [each.title for each in teller.app.get_system_commands(teller.screen)]
            assert "Help  /help /?  F12" in titles and "New conversation  /new" in titles

    tell(story)


def test_what_is_wrong_with_keys_is_told_at_the_start_and_in_the_settings(tmp_path):
    keys = make_keymap({"nwe": "f11", "copy": "f10"})

    async def story():
        async with telling(tmp_path, keys=keys, notices=keys.problems) as teller:
            assert "nothing is called nwe; did you mean new" in teller.chat.notice.sentence
            await teller.ask("One?")
            await teller.press("f10")
            await teller.hears("answer copied")
            await teller.press("f5")
            await teller.until(lambda: teller.app.screen is not teller.screen)
            notes = [str(each.content) for each in teller.app.screen.query(".setting-note")]
            assert any("nothing is called nwe" in note for note in notes)
            await teller.press("escape")

    tell(story)


def test_a_letter_may_be_a_key_where_nothing_is_typed(tmp_path):
    async def story():
        async with telling(tmp_path, **chosen(list_rename="e")) as teller:
            await teller.ask("One?")
            await teller.press("f3")
            await teller.press("e")
            await teller.until(lambda: teller.app.screen is not teller.screen)
            await teller.press("escape", "r")  # which is written again, since it does nothing in the list
            await teller.until(lambda: teller.chat.prompt.text == "r")

    tell(story)


def test_dialogs_and_quitting_follow_the_chosen_keys(tmp_path):
    async def story():
        async with telling(
            tmp_path, **chosen(keep="f11", cancel="f8", copy="f9", code="none", quit="ctrl+x")
        ) as teller:
            await teller.command("/system")
            await teller.until(lambda: teller.app.screen is not teller.screen)
            assert "F11 keeps it, F8 does not" in screen_text(teller.app)
            await teller.type("Be brief.")
            await teller.press("f11")
            await teller.until(lambda: teller.dialogue.system_prompt() == "Be brief.")
            await teller.command("/system")
            await teller.until(lambda: teller.app.screen is not teller.screen)
            await teller.press("x", "f8")
            await teller.until(lambda: teller.app.screen is teller.screen)
            assert teller.dialogue.system_prompt() == "Be brief."
            await teller.press("ctrl+q")
            assert teller.app.is_running and not teller.engine.is_closed
            await teller.press("ctrl+x")
            await teller.until(lambda: teller.engine.is_closed)

    tell(story)
