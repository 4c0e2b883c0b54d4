"""Bars, layers and trees as exact text."""

import random

import pytest

from tests.support.chat_states import PARENTS
from tui.chat.machine.drawing import (
    ACCEPTED_SIGNS,
    column_chart,
    depths_of,
    draw_tree,
    fit_text,
    layer_signs,
    layer_strip,
    num_levels,
    path_strip,
    progress_bar,
    rate_text,
    share_bar,
    spark_line,
    wrap_layers,
)


def test_a_text_is_cut_to_its_cells():
    assert fit_text("日本語", 5) == "日本…"
    assert fit_text("日本語", 6) == "日本語"
    assert fit_text("abc", 0) == ""


@pytest.mark.parametrize(("rate", "text"), [(0.416, "0.42"), (0.999, "1.0"), (8.06, "8.1"), (112.3, "112")])
def test_rates(rate, text):
    assert rate_text(rate) == text


@pytest.mark.parametrize(
    ("share", "bar"),
    [
        (-1, "──────────"),
        (0, "──────────"),
        (0.5, "━━━━━─────"),
        (0.55, "━━━━━╸────"),
        (1, "━━━━━━━━━━"),
        (7, "━━━━━━━━━━"),
    ],
)
def test_progress(share, bar):
    assert progress_bar(share, 10) == bar


@pytest.mark.parametrize(
    ("share", "bar"), [(0, "    "), (0.5, "██  "), (0.65625, "██▋ "), (0.999, "████"), (2, "████")]
)
def test_shares(share, bar):
    assert share_bar(share, 4) == bar


@pytest.mark.parametrize(
    ("values", "top", "line"),
    [
        ((), None, "     "),
        ((0, 0), None, "   ▁▁"),
        ((7,), None, "    █"),
        ((0, 1, 2, 4, 7), None, "▁▁▂▅█"),
        ((9, 9, 0, 1, 2, 4, 7), None, "▁▁▂▅█"),
        ((0.5, 1.0, 3.0), 1.0, "  ▄██"),
    ],
)
def test_curves(values, top, line):
    assert spark_line(values, 5, top=top) == line


def test_no_width_is_no_text():
    assert spark_line((1, 2), 0) == progress_bar(0.5, 0) == share_bar(0.5, 0) == ""


def test_columns():
    rows = column_chart((1.0, 0.75, 0.5, 0.1, 0.0), height=2, step=2, width=20)
    assert rows == ("█ ▄", "█ █ █ ▂ ▁")
    assert column_chart((1.0, 1.0, 1.0), height=1, step=2, width=3) == ("█ █",)


def test_every_layer_has_a_sign():
    signs = layer_signs(10, resident=(0, 3, 6, 9), in_slots=(4, 5), current=4)
    assert signs == "█░░█◆▒█░░█"
    assert layer_signs(3, resident=(), in_slots=(), current=None) == "░░░"


def test_a_resident_layer_that_computes_is_the_current_one():
    assert layer_signs(3, resident=(1,), in_slots=(), current=1) == "░◆░"


def test_rows_have_nearly_one_length():
    assert wrap_layers("░" * 28, 36) == ("░" * 28,)
    assert [len(row) for row in wrap_layers("░" * 80, 36)] == [27, 27, 26]


def test_very_many_layers_share_signs():
    rows = wrap_layers("░" * 50 + "◆▒" + "░" * 8 + "█" * 52, 10)
    assert rows == ("░" * 10, "░" * 6 + "◆▒░░", "█" * 10, "█" * 8)


def test_no_room_and_no_layers_are_no_rows():
    assert wrap_layers("░", 0) == wrap_layers("", 5) == ()


def test_a_strip_keeps_the_share_of_the_layers_that_stay_and_shows_what_moves():
    signs = layer_signs(80, resident=range(0, 80, 5), in_slots=(48, 49), current=47)
    assert layer_strip(layer_signs(80, resident=range(0, 80, 5), in_slots=(), current=None), 10).count("█") == 2
    assert [sign for sign in layer_strip(signs, 10) if sign in "◆▒"] == ["◆", "▒"]
    assert layer_strip("█░█", 10) == "█░█"
    assert {len(layer_strip("█" * number, 7)) for number in range(7, 99)} == {7}


@pytest.mark.parametrize(
    ("num_kept", "num_levels", "strip"),
    [(0, 3, "○○○"), (2, 5, "●●○○○"), (5, 5, "●●●●●"), (9, 18, "●●●○○○"), (18, 18, "●●●●●●"), (0, 0, "")],
)
def test_a_path_is_drawn_in_a_row(num_kept, num_levels, strip):
    assert path_strip(num_kept, num_levels, 6) == strip


def drawing(parents, path, *, width=36, height=6):
    return [row.rstrip() for row in draw_tree(parents, path, width=width, height=height)]


def random_tree(seed, num_nodes):
    """A breadth-first tree whose nodes have some four children, and a walk in it."""
    random_source = random.Random(seed)
    parents, parent = [-1], 0
    while len(parents) < num_nodes:
        parents += [parent] * min(random_source.choice([0, 1, 2, 9]), num_nodes - len(parents))
        parent = min(parent + 1, len(parents) - 1)
    path = [0]
    while children := [node for node, above in enumerate(parents) if above == path[-1]]:
        path.append(random_source.choice(children))
    return parents, path[: random_source.randint(1, len(path))]


def test_the_likeliest_path_runs_along_the_top():
    assert drawing(PARENTS, (0, 1, 4, 7)) == [
        "●━●━●━●─○",
        "│ │ ╰─○",
        "│ ╰─○",
        "├─○─○",
        "╰─○",
        "",
    ]


def test_another_path_turns_off():
    assert drawing(PARENTS, (0, 2, 6)) == [
        "●─○─○─○─○",
        "┃ │ ╰─○",
        "┃ ╰─○",
        "┗━●━●",
        "╰─○",
        "",
    ]


def test_a_tree_with_more_leaves_than_rows_is_a_map():
    assert drawing(PARENTS, (0, 2, 6), height=3) == ["● · · : ·", "┗━●━●", "  ·"]


def test_a_narrow_place_has_no_room_for_lines():
    assert drawing(PARENTS, (0, 1, 4, 7), width=7, height=3) == ["●●●●·", " ·:", " ·"]
    assert drawing(PARENTS, (0, 1, 4, 7), width=4, height=3) == ["●●●…", " ·:", " ·"]


def test_a_chain_and_a_root_alone():
    assert drawing((-1, 0, 1), (0, 1), height=1) == ["●━●─○"]
    assert drawing((-1,), (0,), height=2) == ["●", ""]


def test_no_tree_is_empty_rows():
    assert drawing((), (), height=2) == ["", ""]
    assert draw_tree(PARENTS, (0,), width=0, height=1) == ("",)


def test_depths_follow_from_parents():
    assert depths_of(PARENTS) == (0, 1, 1, 1, 2, 2, 2, 3, 3, 4)
    assert (num_levels(PARENTS), num_levels((-1,)), num_levels(())) == (5, 1, 0)


def test_every_tree_fits_and_shows_its_whole_path():
    for seed in range(30):
        parents, path = random_tree(seed, [1, 2, 17, 64, 512, 1024][seed % 6])
        width, height = random.Random(seed).choice([(38, 8), (38, 5), (20, 3)])
        rows = draw_tree(parents, path, width=width, height=height)
        assert len(rows) == height, seed
        assert max(map(len, rows)) <= width, seed
        shown = num_levels(parents) if num_levels(parents) <= width else width - 1
        assert sum(row.count("●") for row in rows) == min(len(path), shown), seed


def test_a_drawn_tree_shows_every_node():
    for seed in range(30):
        rows = draw_tree(*random_tree(seed, 12), width=80, height=12)
        assert sum(row.count("●") + row.count("○") for row in rows) == 12, seed
        assert not set("".join(rows)) - set(ACCEPTED_SIGNS) - set("○─│├╰ "), seed
