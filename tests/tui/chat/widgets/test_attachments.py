"""What is attached stands in lines, is taken out and brought back; what went along is folded, and opens in part."""

import pytest

from profiles.errors import BadInputError
from tests.support.screen_text import screen_text
from tests.support.widget_screens import WidgetApp, run
from tui.attachments import Attachment, pasted
from tui.chat.widgets import attachments
from tui.chat.widgets.attachments import AttachmentList, FoldedText, shown_part

NOTES, CODE, PASTE = Attachment("a\nb", "notes.txt"), Attachment("x", "code.py"), pasted("p\n" * 214)


def test_lines_say_what_is_attached_and_how_many_tokens_it_takes():
    listed = AttachmentList()

    async def story(pilot):
        assert not listed.display
        listed.add(NOTES)
        listed.add(PASTE)
        await pilot.pause()
        listed.show_tokens({PASTE: 1428})
        await pilot.pause()
        assert "+ notes.txt, 2 lines" in screen_text(pilot.app)
        assert "+ 1,428 tokens · pasted text, 214 lines" in screen_text(pilot.app)
        listed.add(Attachment("another", "notes.txt"))
        assert [each.text for each in listed.attachments] == [PASTE.text, "another"]

    run(WidgetApp(listed), story)


def test_what_is_taken_out_comes_back_in_turn():
    listed = AttachmentList()

    async def story(pilot):
        for each in (NOTES, CODE, PASTE):
            listed.add(each)
        listed.focus()
        await pilot.pause()
        await pilot.press("delete", "up", "backspace")
        assert listed.attachments == (CODE,)
        assert listed.bring_back() and listed.attachments == (CODE, NOTES)
        assert listed.bring_back() and not listed.bring_back()
        assert listed.attachments == (CODE, NOTES, PASTE)

    run(WidgetApp(listed), story)


def test_more_than_goes_along_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setattr(attachments, "MAX_CHARACTERS", 6)
    listed = AttachmentList()

    async def story(pilot):
        listed.add(Attachment("12345", "a.txt"))
        with pytest.raises(BadInputError, match=r"b.txt, 1 line: all that is attached .* more than 6 characters"):
            listed.add(Attachment("12", "b.txt"))
        assert len(listed.attachments) == 1

    run(WidgetApp(listed), story)


def test_a_folded_text_opens_and_closes_with_a_click():
    folded = FoldedText(Attachment("one\n\x1b[2Jtwo", "notes.txt"))

    async def story(pilot):
        assert "▸ notes.txt, 2 lines" in screen_text(pilot.app) and "one" not in screen_text(pilot.app)
        await pilot.click(folded)
        await pilot.pause()
        assert "▾ notes.txt, 2 lines" in screen_text(pilot.app) and "␛[2Jtwo" in screen_text(pilot.app)
        await pilot.click(folded)
        await pilot.pause()
        assert "two" not in screen_text(pilot.app)

    run(WidgetApp(folded), story)


def test_of_a_long_text_the_beginning_is_drawn():
    assert shown_part(NOTES) == "a\nb"
    long = shown_part(pasted("\n".join(map(str, range(1000)))))
    assert long.startswith("0\n1\n") and long.endswith("399\n… 600 more lines; the model reads all of it")
    assert shown_part(pasted("x" * 50_000)).endswith("x\n… more of this line; the model reads all of it")
