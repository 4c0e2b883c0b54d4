"""No cell of a table is cut: it is as wide as it is, or wrapped, or a line of its own."""

import random

from textual.content import Content

from tui.chat.markdown.blocks import Document
from tui.chat.markdown.lines import Frame, Margin
from tui.chat.markdown.tables import GAP, fitting_widths, table_lines


def shown(text, width):
    (table,) = Document(text).body.blocks
    return [line.make().plain.rstrip() for line in table_lines(table, Frame(width))]


NARROW = "| animal | h |\n|---|--:|\n| fox | 10 |\n| owl | 5 |"
WIDE = (
    "| option | what it does | default |\n|---|---|---|\n"
    "| temperature | how freely tokens are drawn, from none to all | 0.7 |\n| seed | where chance begins | random |"
)


def test_a_table_is_as_wide_as_it_is_with_one_rule():
    """Narrow tables were stretched, and every row cost a rule."""
    assert shown(NARROW, 60) == ["animal   h", "──────  ──", "fox     10", "owl      5"]


def test_cells_are_wrapped_where_there_is_no_room():
    """They were cut to `N...`."""
    assert shown(WIDE, 48) == [
        "option       what it does                default",
        "───────────  ──────────────────────────  ───────",
        "temperature  how freely tokens are       0.7",
        "             drawn, from none to all",
        "seed         where chance begins         random",
    ]


def test_a_table_with_no_room_at_all_has_a_line_for_each_cell():
    assert shown(WIDE, 22) == [
        "option: temperature",
        "what it does: how",
        "freely tokens are",
        "drawn, from none to",
        "all",
        "default: 0.7",
        "",
        "option: seed",
        "what it does: where",
        "chance begins",
        "default: random",
    ]


def test_nothing_is_cut_at_any_width():
    source = random.Random(0)
    for _ in range(150):
        num_columns = source.randint(1, 7)
        words = [["w" * source.randint(1, 30) for _ in range(source.randint(0, 5))] for _ in range(4 * num_columns)]
        rows = [" | ".join(map(" ".join, words[start::4])) for start in range(4)]
        text = "\n".join([f"| {rows[0]} |", "|" + "---|" * num_columns, *(f"| {row} |" for row in rows[1:])])
        for width in (16, 40, 80, 200):
            lines = shown(text, width)
            assert sum(line.count("w") for line in lines) >= sum(row.count("w") for row in rows[1:]), (text, width)
            assert max(map(len, lines)) <= width


def test_the_widest_columns_give_way_first():
    columns = [[Content("a " * 20)], [Content("b")], [Content("c " * 50)]]
    assert fitting_widths([39, 1, 99], columns, 60) == (28, 1, 27)
    assert fitting_widths([39, 1, 99], columns, 150) == (39, 1, 99)
    assert fitting_widths([39, 1, 99], columns, 12) is None


def test_rows_that_have_not_changed_are_the_same_lines():
    document = Document(NARROW)
    (table,) = document.body.blocks
    before = list(table_lines(table, Frame(60)))
    document.append("\n| cat | 12 |")
    after = list(table_lines(table, Frame(60)))
    assert [line for line in after if line in before] == before[2:3]
    document.append("\n| hippopotamus | 12 |")
    assert not set(before) & set(table_lines(table, Frame(60)))


def test_a_table_stands_behind_what_is_left_of_it():
    (table,) = Document(NARROW).body.blocks
    bar = Margin((("▌ ", ".bar"),), "> ")
    assert {line.margin for line in table_lines(table, Frame(60).inside(bar, bar))} == {bar}
    assert len(GAP) == 2
