"""Draws a verified tree from left to right in a few rows, the accepted path heavy: it reads without colour.

●━●━●─○      One column per level, the likeliest child in its parent's row. A tree with more leaves than rows is
│ ╰─○        drawn as a map: a cell says how many nodes share it, and only the path has lines.
╰─○─○
"""

from collections import Counter
from collections.abc import Sequence

from tui.chat.machine.running_figures import VerifiedTree

ACCEPTED_SIGNS = "●━┃┗"
"""All signs of the path, and no others."""
_MORE = "…"


def draw_tree(tree: VerifiedTree, *, width: int, height: int) -> tuple[str, ...]:
    """`height` rows of at most `width` characters; empty rows for no tree."""
    num_levels = max(tree.depths, default=-1) + 1
    if not num_levels or width < 1 or height < 1:
        return ("",) * max(0, height)
    step = 2 if 2 * num_levels - 1 <= width else 1
    grid = [[" "] * (step * num_levels) for _ in range(height)]
    leaf_rows = _first_leaves(tree.parents)
    num_leaves = len(tree.parents) - len(set(tree.parents) - {-1})
    if num_leaves <= height:
        rows = leaf_rows
        _draw_branches(grid, tree, rows, step)
    else:
        rows = [leaf * height // num_leaves for leaf in leaf_rows]
        _draw_map(grid, tree, rows, step)
    _draw_path(grid, tree, rows, step)
    return tuple(_cut("".join(row).rstrip(), width) for row in grid)


def level_columns(num_levels: int, width: int) -> int:
    """Characters from one level to the next in a drawing that wide."""
    return 2 if 2 * num_levels - 1 <= width else 1


def _first_leaves(parents: Sequence[int]) -> list[int]:
    """(N,) number of the first leaf below each node, leaves counted depth first."""
    num_leaves = [0] * len(parents)
    inner = set(parents)
    for node in reversed(range(len(parents))):
        num_leaves[node] += node not in inner
        if node:
            num_leaves[parents[node]] += num_leaves[node]
    first = [0] * len(parents)
    following = [0] * len(parents)  # of each parent: the first leaf of its next child
    for node in range(1, len(parents)):
        parent = parents[node]
        first[node] = first[parent] + following[parent]
        following[parent] += num_leaves[node]
    return first


def _draw_branches(grid: list[list[str]], tree: VerifiedTree, rows: Sequence[int], step: int) -> None:
    depths = tree.depths
    last_children = {parent: node for node, parent in enumerate(tree.parents)}
    for node, parent in enumerate(tree.parents):
        row, column = rows[node], step * depths[node]
        grid[row][column] = "○"
        if parent >= 0 and step > 1:
            grid[row][column - 1] = "─"
            if row > rows[parent]:
                grid[row][column - 2] = "╰" if last_children[parent] == node else "├"
    if step > 1:
        _draw_stems(grid, tree, rows, step)


def _draw_stems(grid: list[list[str]], tree: VerifiedTree, rows: Sequence[int], step: int) -> None:
    depths = tree.depths
    for node, parent in enumerate(tree.parents):
        if parent < 0:
            continue
        column = step * depths[parent]
        for row in range(rows[parent] + 1, rows[node]):
            if grid[row][column] == " ":
                grid[row][column] = "│"


def _draw_map(grid: list[list[str]], tree: VerifiedTree, rows: Sequence[int], step: int) -> None:
    cells = Counter(zip(rows, tree.depths, strict=True))
    for (row, depth), num_nodes in cells.items():
        grid[row][step * depth] = "·" if num_nodes == 1 else ":" if num_nodes < 4 else "▪"


def _draw_path(grid: list[list[str]], tree: VerifiedTree, rows: Sequence[int], step: int) -> None:
    depths = tree.depths
    for before, node in zip(tree.path, tree.path[1:], strict=False):
        column = step * depths[before]
        for row in range(rows[before] + 1, rows[node]):
            grid[row][column] = "┃"
        if rows[node] > rows[before]:
            grid[rows[node]][column] = "┗"
        for between in range(column + 1, step * depths[node]):
            grid[rows[node]][between] = "━"
    for node in tree.path:
        grid[rows[node]][step * depths[node]] = "●"


def _cut(row: str, width: int) -> str:
    return row if len(row) <= width else row[: width - 1] + _MORE
