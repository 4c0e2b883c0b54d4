"""Blocks stand where they belong, at every width, and those that have not changed are not laid out again."""

from tui.chat.markdown.blocks import Document
from tui.chat.markdown.layout import lay_out
from tui.chat.markdown.lines import MIN_WIDTH, Frame, text_of

TEXT = """\
# Title
Words that are wrapped.

9. nine
10. ten
    - inner
      ```py
      x = 1
      ```
    - again
      1. deep

> quoted
>
> | a |
> |---|
> | b |

---
"""


def shown(text, width, **frame):
    lines = lay_out(Document(text).body, Frame(width, **frame))
    return ["".join(part for part, _ in line.margin.shown) + line.make().plain.rstrip() for line in lines]


def test_lists_quotes_code_and_tables_in_each_other():
    assert [line.rstrip() for line in shown(TEXT, 30)] == [
        "Title",
        "",
        "Words that are wrapped.",
        "",
        " 9. nine",
        "10. ten",
        "    • inner",
        "",
        "      py · 1 line       copy",
        "      x = 1",
        "    • again",
        "      1. deep",
        "",
        "▌ quoted",
        "▌",
        "▌ a",
        "▌ ─",
        "▌ b",
        "",
        "─" * 30,
    ]


def test_bullets_change_with_depth():
    assert shown("- a\n  - b\n    - c\n- d", 30) == ["• a", "  ▪ b", "    ‣ c", "• d"]


def test_text_is_wrapped_behind_its_mark():
    assert shown("- one two three four five", 18) == ["• one two three", "  four five"]
    assert shown("> one two three four five", 18) == ["▌ one two three", "▌ four five"]


def test_no_line_is_wider_than_the_screen_however_deep_it_stands():
    text = "".join("  " * depth + f"- item {depth} with words\n" for depth in range(9)) + "> " * 9 + "> quoted words\n"
    for width in (MIN_WIDTH, 20, 40):
        lines = lay_out(Document(text).body, Frame(width))
        assert all(line.margin.width + line.make().cell_length <= width for line in lines)


def test_long_lines_of_code_are_cut_with_a_sign_or_go_on_with_one():
    text = "```\n" + "0123456789" * 3 + "\n\tx\n```"
    assert shown(text, 16)[1:] == ["0123456789012…", "    x"]
    assert shown(text, 16, wraps_code=True)[1:] == ["01234567890123", "↪ 456789012345", "↪ 6789", "    x"]
    assert [line.is_continued for line in lay_out(Document(text).body, Frame(16, wraps_code=True))[1:]] == [
        False,
        True,
        True,
        False,
    ]


def test_wide_characters_are_not_cut_in_two():
    assert shown("```\n" + "日本" * 8 + "\n```", 16, wraps_code=True)[1:] == [
        "日本日本日本日",
        "↪ 本日本日本日",
        "↪ 本日本",
    ]


def test_the_head_of_code_says_how_to_see_all_of_it():
    text = "```python\n" + "x" * 40 + "\n```"
    assert shown(text, 30)[0].split() == ["python", "·", "1", "line", "wrap", "copy"]
    assert shown(text, 30, wraps_code=True)[0].split()[-2:] == ["unwrap", "copy"]
    assert shown(text, 60)[0].split()[-2:] == ["line", "copy"]


def test_what_is_copied_is_what_was_written():
    lines = lay_out(Document("- a b c d e f g h i j k l\n\n```\n\tx\n```").body, Frame(16))
    assert [text_of(line) for line in lines if not line.is_added] == ["a b c d e f g ", "h i j k l", "", "\tx"]


def test_blocks_that_have_not_changed_are_the_same_lines():
    document = Document("- a\n- b\n\n```py\nx = 1\ny = 2\n")
    before = lay_out(document.body, Frame(30))
    document.append("z = 3\n")
    after = lay_out(document.body, Frame(30))
    assert [old is new for old, new in zip(before, after, strict=False)] == [True, True, False, False, True, True]
    assert not set(before) & set(lay_out(document.body, Frame(31)))


def test_the_tenth_item_moves_the_others():
    document = Document("".join(f"{number}. x\n" for number in range(1, 10)))
    assert lay_out(document.body, Frame(30))[0].margin.shown[0][0] == "1. "
    document.append("10. x")
    assert lay_out(document.body, Frame(30))[0].margin.shown[0][0] == " 1. "
