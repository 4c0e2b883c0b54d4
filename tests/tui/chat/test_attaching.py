"""Stories of what goes along with a prompt: chosen with @, pasted, taken out, kept, sent, and folded when it was."""

from textual import events

from tests.support.chat_fakes import endless
from tests.support.chat_stories import tell, telling
from tests.support.screen_text import screen_text
from tests.support.widget_screens import resize
from tui.attachments import Attachment, pasted, with_attachments
from tui.chat.engine.messages import Answer

NOTES = Attachment("Foxes sleep.\nOwls do not.", "notes.txt")
LONG = "line\n" * 40


def work_in(tmp_path, monkeypatch):
    folder = tmp_path / "work"
    (folder / "sub").mkdir(parents=True)
    (folder / "notes.txt").write_text(NOTES.text + "\n")
    (folder / "sub/numbers.csv").write_text("1,2\n")
    (folder / "program").write_bytes(b"\x7fELF\0\0\xff")
    monkeypatch.chdir(folder)


def attached(teller):
    return teller.chat.prompt.attached.attachments


async def paste(teller, text):
    teller.app.post_message(events.Paste(text))
    await teller.pilot.pause()


def sent_texts(teller):
    return [each.prompt.messages[-1].content for each in teller.engine.requests if isinstance(each, Answer)]


def test_a_file_is_chosen_with_at_sent_with_the_prompt_and_folded_in_the_conversation(tmp_path, monkeypatch):
    work_in(tmp_path, monkeypatch)

    async def story():
        async with telling(tmp_path) as teller:
            await teller.press("@")
            await teller.until(lambda: teller.chat.completions.option_count == 3, "the files")
            await teller.press("n", "t", "s")
            await teller.until(lambda: teller.chat.completions.option_count == 1, "fewer")
            assert attached(teller) == ()
            await teller.press("enter")
            await teller.until(lambda: attached(teller) == (NOTES,), "the attachment")
            assert teller.chat.prompt.text == "" and not teller.chat.completions.display
            assert "+ notes.txt, 2 lines" in screen_text(teller.app)
            await teller.ask("Who sleeps?")
            message = with_attachments("Who sleeps?", [NOTES])
            assert sent_texts(teller) == [message] and teller.contents[0] == message
            assert attached(teller) == () and not teller.chat.prompt.attached.display
            assert "Who sleeps?  #1" in screen_text(teller.app)
            assert "▸ notes.txt, 2 lines" in screen_text(teller.app) and "Owls" not in screen_text(teller.app)
            await teller.click("notes.txt")
            await teller.until(lambda: "Owls do not." in screen_text(teller.app), "the text")
            await teller.command("/attached")
            await teller.until(lambda: "Owls do not." not in screen_text(teller.app), "the fold")

    tell(story)


def test_at_takes_a_file_by_tab_or_click_within_a_sentence_and_esc_leaves_the_sign_alone(tmp_path, monkeypatch):
    work_in(tmp_path, monkeypatch)

    async def story():
        async with telling(tmp_path) as teller:
            await teller.type("see @num")
            await teller.until(lambda: teller.chat.completions.option_count == 1)
            await teller.press("tab")
            await teller.until(lambda: [each.name for each in attached(teller)] == ["sub/numbers.csv"])
            assert teller.chat.prompt.text == "see "
            await teller.press("@")
            await teller.click("notes.txt")
            await teller.until(lambda: len(attached(teller)) == 2)
            assert teller.chat.prompt.text == "see " and teller.chat.prompt.has_focus
            await teller.press("@")
            await teller.until(lambda: teller.chat.completions.display)
            await teller.press("escape")
            assert not teller.chat.completions.display and teller.chat.prompt.text == "see @"
            await teller.press("enter")
            await teller.until(lambda: teller.num_requests("Answer") == 1)
            assert sent_texts(teller)[0].endswith("\n\nsee @")

    tell(story)


def test_a_path_that_was_typed_whole_is_attached_and_one_that_cannot_be_keeps_the_prompt(tmp_path, monkeypatch):
    work_in(tmp_path, monkeypatch)

    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("What does @notes.txt say?")
            assert sent_texts(teller) == [with_attachments("What does notes.txt say?", [NOTES])]
            await teller.type("And @program here?")
            await teller.press("enter")
            await teller.hears("program is no text in UTF-8, so it cannot be attached")
            assert teller.chat.prompt.text == "And @program here?" and len(sent_texts(teller)) == 1
            await teller.press("ctrl+u")
            await teller.command("/attach program")
            await teller.hears("program is no text")
            await teller.command("/attach notes.txt")
            await teller.until(lambda: attached(teller) == (NOTES,))

    tell(story)


def test_a_long_paste_is_a_line_and_a_short_one_is_text(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await paste(teller, "short\nlines")
            assert teller.chat.prompt.text == "short\nlines"
            await paste(teller, "x\r\n" * 214)
            await teller.until(lambda: attached(teller) == (pasted("x\n" * 214),))
            assert "pasted text, 214 lines" in screen_text(teller.app)
            assert teller.chat.prompt.text == "short\nlines"
            await teller.press("enter")
            await teller.until(lambda: len(sent_texts(teller)) == 1)
            assert sent_texts(teller)[0] == with_attachments("short\nlines", [pasted("x\n" * 214)])
            await paste(teller, LONG)
            await teller.press("enter")
            await teller.until(lambda: len(sent_texts(teller)) == 2, "a message without words of its own")
            assert sent_texts(teller)[1] == pasted(LONG).block

    tell(story)


def test_what_is_taken_out_is_brought_back_and_a_command_takes_nothing_along(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await paste(teller, LONG)
            await teller.command("/set seed 3")
            await teller.until(lambda: teller.services_settings.seed == 3)
            await teller.command("/nosuch")
            await teller.hears("there is no command /nosuch")
            assert attached(teller) == (pasted(LONG),) and teller.chat.prompt.text == "/nosuch"
            await teller.press("ctrl+u", "shift+tab", "delete")
            await teller.hears("pasted text, 40 lines: taken out; /attach brings it back")
            assert attached(teller) == () and teller.chat.prompt.has_focus
            await teller.command("/attach")
            await teller.until(lambda: attached(teller) == (pasted(LONG),))
            await teller.press("shift+tab", "down", "k")
            assert teller.chat.prompt.has_focus and teller.chat.prompt.text == "k"

    tell(story)


def test_what_is_attached_stays_with_its_conversation_and_comes_back_after_the_next_start(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("About foxes")
            await paste(teller, LONG)
            await teller.until(lambda: teller.store.draft(1).text == pasted(LONG).block, "the save")
            await teller.press("ctrl+n")
            await teller.until(lambda: attached(teller) == ())
            await teller.press("f3", "enter")
            await teller.until(lambda: attached(teller) == (pasted(LONG),))
            await teller.type("more")
            await teller.press("ctrl+q")
        async with telling(tmp_path, conversation_id=1) as teller:
            assert attached(teller) == (pasted(LONG),) and teller.chat.prompt.text == "more"

    tell(story)


def test_earlier_prompts_edits_and_prompts_that_wait_keep_what_goes_along(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await paste(teller, LONG)
            await teller.ask("One?")
            await teller.type("draft")
            await teller.press("ctrl+o")
            await teller.until(lambda: attached(teller) == (pasted(LONG),) and teller.chat.prompt.text == "One?")
            await teller.press("escape")
            await teller.until(lambda: attached(teller) == () and teller.chat.prompt.text == "draft")
            await teller.press("ctrl+u", "up")
            assert attached(teller) == (pasted(LONG),) and teller.chat.prompt.text == "One?"
            teller.engine.script = endless
            await teller.press("enter")
            await teller.until(lambda: teller.dialogue.is_answering)
            await paste(teller, LONG)
            await teller.type("Two?")
            await teller.press("enter")
            await teller.until(lambda: "1. waits: [pasted text, 40 lines] Two?" in screen_text(teller.app))
            await teller.type("Three?")
            await teller.press("enter")
            await teller.until(lambda: len(teller.dialogue.waiting) == 2)
            await teller.press("escape", "escape")
            await teller.until(lambda: teller.chat.prompt.text == "Two?\nThree?")
            assert attached(teller) == (pasted(LONG),)

    tell(story)


def test_the_smallest_terminal_shows_prompt_and_attachments(tmp_path):
    async def story():
        async with telling(tmp_path, size=(40, 10)) as teller:
            await paste(teller, LONG)
            await paste(teller, LONG * 2)
            await paste(teller, LONG * 3)
            await resize(teller.pilot, 40, 10)
            await teller.type("words")
            assert "+ pasted text, 80 lines" in screen_text(teller.app) and "words" in screen_text(teller.app)
            await teller.press("shift+tab", "up", "up")
            await teller.until(lambda: "+ pasted text, 40 lines" in screen_text(teller.app))

    tell(story)
