"""Stories of where typed words go: always to the prompt, whatever was clicked, resized or told; and back from there."""

from textual import events

from tests.support.chat_fakes import answer_reports, endless
from tests.support.chat_stories import tell, telling
from tests.support.widget_screens import resize
from tui.chat.engine.messages import Answer

CODE = "Here:\n\n```python\ndef f():\n    return 1\n```\n\nDone.\n"


def with_code(request):
    return answer_reports(request.answer_id, [CODE]) if isinstance(request, Answer) else endless(request)


async def takes_words(teller, word):
    """Keys and a paste arrive at the prompt, whose cursor can be seen."""
    teller.chat.prompt.put("")
    for character in word:
        teller.app.post_message(events.Key(character, character))
    await teller.until(lambda: teller.chat.prompt.text == word, f"typing {word}")
    assert teller.chat.prompt.has_focus


def test_a_click_into_the_conversation_leaves_the_keys_to_the_prompt(tmp_path):
    async def story():
        async with telling(tmp_path, script=with_code) as teller:
            await teller.ask("Code?")
            await teller.click("copy")
            await takes_words(teller, "typed")
            for selector in ("#conversation", ".prompt-text", "AnswerMarkdown", "#title-bar", "StatusLine"):
                await teller.pilot.click(teller.screen.query(selector).first())
                await takes_words(teller, "typed")
            await teller.press("f2")
            await teller.pilot.click(teller.chat.panel, offset=(3, 3))
            await takes_words(teller, "typed")

    tell(story)


def test_wherever_the_focus_is_a_letter_and_a_paste_belong_to_the_prompt(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.press("f2")
            for lose in (
                lambda: teller.screen.set_focus(None),
                lambda: teller.screen.set_focus(teller.chat.panel),
            ):
                lose()
                await takes_words(teller, "typed")
                lose()
                teller.app.post_message(events.Paste(" pasted"))
                await teller.until(lambda: teller.chat.prompt.text == "typed pasted", "the paste")
            teller.screen.set_focus(teller.chat.panel)
            await teller.press("escape")
            await teller.until(lambda: teller.chat.prompt.has_focus, "Esc's way back")

    tell(story)


def test_a_terminal_that_was_too_small_gives_the_keys_back_also_while_an_answer_is_written(tmp_path):
    async def story():
        async with telling(tmp_path, script=endless) as teller:
            await teller.ask("Tell.", is_awaited=False)
            for columns, rows in ((40, 8), (80, 24), (20, 5), (80, 24)):
                await resize(teller.pilot, columns, rows)
                await takes_words(teller, f"at{columns}")

    tell(story)


def test_an_error_leaves_the_focus_in_an_empty_prompt_so_that_enter_presses_nothing(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            teller.engine.die()
            await teller.until(lambda: teller.chat.notice.display, "the notice")
            assert teller.chat.prompt.has_focus
            await teller.press("enter")
            await teller.pilot.pause()
            assert teller.engine.num_starts == 1 and teller.chat.notice.display
            await teller.press("f6", "x")  # a letter is no choice
            assert teller.chat.prompt.text == "x" and teller.chat.prompt.has_focus
            await teller.press("f6", "enter")
            await teller.until(lambda: teller.engine.num_starts == 2, "the choice")

    tell(story)


def test_a_list_keeps_its_own_keys_and_gives_the_others_to_the_prompt(tmp_path):
    async def story():
        async with telling(tmp_path, size=(120, 30)) as teller:
            await teller.ask("About foxes")
            await teller.press("f3", "a")
            assert teller.chat.prompt.text == "a" and teller.chat.prompt.has_focus
            await teller.press("escape")  # closes the list from there, too
            await teller.until(lambda: not teller.chat.side.display)
            await teller.press("ctrl+f", "b")
            assert teller.chat.side.search_text == "b"
            await teller.press("escape")
            await teller.until(lambda: not teller.chat.side.display and teller.chat.prompt.has_focus)
            assert teller.chat.prompt.text == "a"

    tell(story)


def test_a_dialog_that_asks_for_text_keeps_what_is_typed(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("About foxes")
            await teller.command("/rename")
            await teller.until(lambda: teller.app.screen is not teller.screen, "the dialog")
            await teller.press("end", "!", "enter")
            await teller.until(lambda: teller.store.list_conversations()[0].title == "About foxes!")
            await teller.command("/import")
            await teller.until(lambda: teller.app.screen is not teller.screen, "the dialog")
            await teller.press("escape")
            await teller.until(lambda: teller.app.screen is teller.screen)
            assert teller.chat.prompt.text == ""

    tell(story)


def test_what_is_typed_after_a_key_belongs_to_what_the_key_opened(tmp_path):
    """Keys came in one piece, and the letters behind Ctrl+N once stood in the conversation before."""

    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("About foxes")
            for key, character in (("a", "a"), ("ctrl+n", None), ("b", "b")):
                teller.app.post_message(events.Key(key, character))
            await teller.until(lambda: teller.contents == [] and teller.chat.prompt.text == "b")
            assert teller.store.draft(1).text == "a"

    tell(story)


def test_enter_takes_the_highlighted_command_and_runs_it(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("One?")
            await teller.type("/regen")
            await teller.until(lambda: teller.chat.completions.display)
            await teller.press("enter")
            await teller.until(lambda: teller.num_requests("Answer") == 2)
            for key in ("/", "n", "e", "enter"):  # faster than the list
                teller.app.post_message(events.Key({"/": "slash"}.get(key, key), key if len(key) == 1 else "\r"))
            await teller.until(lambda: teller.contents == [])

    tell(story)


def test_up_in_a_new_conversation_walks_through_the_prompts_of_all(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            for text in ("About foxes", "About owls"):
                await teller.press("ctrl+n")
                await teller.ask(text)
            await teller.press("ctrl+n")
            await teller.until(lambda: teller.contents == [])
            await teller.press("d", "up")
            assert teller.chat.prompt.text == "About owls"
            await teller.press("up", "up")
            assert teller.chat.prompt.text == "About foxes"
            await teller.press("down", "down")
            assert teller.chat.prompt.text == "d"

    tell(story)
