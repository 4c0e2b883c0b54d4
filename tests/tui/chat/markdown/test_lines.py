"""Text breaks where there is a space, and each piece knows what of the text it is."""

from textual.content import Content

from tui.chat.markdown.lines import MIN_WIDTH, Frame, Line, Margin, text_of, wrapped


def test_pieces_of_a_wrapped_text_are_the_text():
    for text in ("one two  three four", "x" * 50, "a\n\nb  ", " lead", "日本語の文章です", "tab\there"):
        lines = list(wrapped(Content(text), Frame(8)))
        joined = "".join(("" if line.is_continued else "\n") + text_of(line) for line in lines).removeprefix("\n")
        assert joined == text.expandtabs(4)
        assert all(line.make().cell_length <= 8 for line in lines)


def test_only_the_first_line_has_the_mark():
    frame = Frame(30).inside(Margin((("• ", ".bullet"),), "- "), Margin((("  ", ""),), "  "))
    assert [line.margin.written for line in wrapped(Content("word " * 12), frame)] == ["- ", "  ", "  "]
    assert frame.below.first == frame.rest


def test_there_is_room_for_text_however_deep_it_stands():
    mark = Margin((("▌ ", ""),), "> ")
    frame = Frame(40)
    for _ in range(30):
        frame = frame.inside(mark, mark)
    assert frame.width >= 1 and frame.rest.width <= 40 - MIN_WIDTH


def test_a_line_is_copied_as_it_is_shown_unless_it_says_otherwise():
    assert text_of(Line(Margin(), Content("a  "))) == "a"
    assert text_of(Line(Margin(), lambda: Content("a"), copied="\ta")) == "\ta"
