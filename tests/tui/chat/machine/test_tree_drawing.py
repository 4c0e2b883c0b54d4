"""Trees as exact text."""

import random

import pytest

from tests.support.chat_states import PARENTS
from tui.chat.machine.running_figures import VerifiedTree
from tui.chat.machine.tree_drawing import ACCEPTED_SIGNS, draw_tree


def drawing(parents, path, *, width=36, height=6):
    return [row.rstrip() for row in draw_tree(VerifiedTree(parents, path), width=width, height=height)]


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
    return VerifiedTree(tuple(parents), tuple(path[: random_source.randint(1, len(path))]))


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
    assert draw_tree(VerifiedTree(PARENTS, (0,)), width=0, height=1) == ("",)


@pytest.mark.parametrize("seed", range(30))
def test_every_tree_fits_and_shows_its_whole_path(seed):
    tree = random_tree(seed, [1, 2, 17, 64, 512, 1024][seed % 6])
    width, height = random.Random(seed).choice([(38, 8), (38, 5), (20, 3)])
    rows = draw_tree(tree, width=width, height=height)
    assert len(rows) == height
    assert max(map(len, rows)) <= width
    num_levels = max(tree.depths) + 1
    shown = num_levels if num_levels <= width else width - 1
    assert sum(row.count("●") for row in rows) == min(len(tree.path), shown)


@pytest.mark.parametrize("seed", range(30))
def test_a_drawn_tree_shows_every_node(seed):
    tree = random_tree(seed, 12)
    rows = draw_tree(tree, width=80, height=12)
    assert sum(row.count("●") + row.count("○") for row in rows) == 12
    assert not set("".join(rows)) - set(ACCEPTED_SIGNS) - set("○─│├╰ ")
