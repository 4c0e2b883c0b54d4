"""Code that grows gets the colours of the whole, and only its last lines are looked at again."""

from textual.highlight import ANSIDarkHighlightTheme, HighlightTheme
from textual.style import Style

from tui.chat.markdown.code import LONGEST_LINE, WINDOW_LINES, GrowingCode, coloured, theme_for

SOURCE = '''\
def first(a: int) -> str:
    """Say
    a few
    things."""
    return f"{a}"  # so
''' + "".join(f"VALUE_{number} = [{number}, 'text']  # {number}\n" for number in range(70))


def test_a_growing_block_has_the_colours_of_the_whole():
    lines = SOURCE.splitlines()
    code = GrowingCode("python")
    for number in range(1, len(lines) + 1):
        code.line(lines[:number], number - 1, HighlightTheme)
        code.line(lines[:number], 0, HighlightTheme)
    whole = coloured(lines, "python", HighlightTheme)
    for index, line in enumerate(whole):
        shown = code.line(lines, index, HighlightTheme)
        assert (shown.plain, sorted(shown.spans)) == (line.plain, sorted(line.spans))


def test_each_line_costs_the_same_however_many_are_there():
    code, lines, work = GrowingCode("python"), [], []
    for number in range(400):
        lines.append(f"x = {number}")
        before = code.num_coloured
        code.line(lines, number, HighlightTheme)
        code.line(lines, 0, HighlightTheme)
        work.append(code.num_coloured - before)
    assert max(work) <= 3 * WINDOW_LINES


def test_inside_a_long_string_nothing_begins_anew():
    lines = ['x = """', *["for a in b: pass"] * 80, '"""', "y = 1"]
    code = GrowingCode("python")
    for number in range(1, len(lines) + 1):
        code.line(lines[:number], 0, HighlightTheme)
    whole = coloured(lines, "python", HighlightTheme)
    assert [sorted(code.line(lines, index, HighlightTheme).spans) for index in range(80)] == [
        sorted(line.spans) for line in whole[:80]
    ]


def test_other_colours_are_taken_for_another_terminal():
    code, lines = GrowingCode("python"), ["x = 1", "y = 2"]
    many = code.line(lines, 0, theme_for(is_ansi=False, is_dark=True))
    few = code.line(lines, 0, theme_for(is_ansi=True, is_dark=True))
    assert issubclass(theme_for(is_ansi=True, is_dark=True), ANSIDarkHighlightTheme)
    assert many.plain == few.plain and many.spans != few.spans


def test_the_sixteen_colours_have_names_that_are_known():
    for is_dark in (True, False):
        for style in theme_for(is_ansi=True, is_dark=is_dark).STYLES.values():
            Style.parse(style)


def test_a_language_that_nobody_knows_is_plain():
    assert [line.plain for line in coloured(["x = 1", ""], "no-such-language", HighlightTheme)] == ["x = 1", ""]
    assert not coloured(["x = 1"], "", HighlightTheme)[0].spans


def test_a_line_of_data_is_plain():
    assert not coloured(["x = 1" + "0" * LONGEST_LINE], "python", HighlightTheme)[0].spans
