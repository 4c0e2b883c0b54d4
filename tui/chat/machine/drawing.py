"""Draws with characters what the status line and the machine panel show: bars, curves, layers and trees.

Everything says the same without colour.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

from rich.cells import cell_len, set_cell_size

RESIDENT, STREAMED, IN_SLOT, CURRENT = "█", "░", "▒", "◆"
ACCEPTED_SIGNS = "●━┃┗"
"""The signs of the accepted path, which nothing else in a tree has."""
SIGN_STYLES: Mapping[str, str] = {
    f"▁▂▃▄▅▆▇▏▎▍▌▋▊▉{RESIDENT}": "$text-primary",
    ACCEPTED_SIGNS: "bold $text-success",
    STREAMED: "$text-muted",
    IN_SLOT: "$text-accent",
    CURRENT: "bold $text-warning",
}
"""The look of each sign, wherever it stands."""
_COLUMNS = "▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_MAX_LAYER_ROWS = 4


def fit_text(text: str, width: int) -> str:
    """Return the text in at most `width` cells, with an ellipsis where it was cut."""
    return text if cell_len(text) <= width else set_cell_size(text, max(0, width - 1)).rstrip() + "…" * (width > 0)


def rate_text(tokens_per_second: float) -> str:
    """Return `0.42`, `8.1` or `112`, without the unit."""
    num_decimals = 2 if tokens_per_second < 0.995 else 1 if tokens_per_second < 99.95 else 0
    return f"{tokens_per_second:.{num_decimals}f}"


def progress_bar(share: float, width: int) -> str:
    """Draw a heavy line on a light one, `width` characters long: `━━━━╸─────`."""
    halves = round(_within(share) * width * 2)
    full, half = divmod(halves, 2)
    return ("━" * full + "╸" * half).ljust(width, "─")


def share_bar(share: float, width: int) -> str:
    """Draw a block from the left in eighths of a character, padded to `width`: `████▌     `."""
    full, eighths = divmod(round(_within(share) * width * 8), 8)
    return ("█" * full + (_EIGHTHS[eighths] if eighths else "")).ljust(width)


def spark_line(values: Sequence[float], width: int, *, top: float | None = None) -> str:
    """Draw the last `width` values as columns from 0 to `top`, or to the largest of them; blank where there is none."""
    shown = list(values)[-width:]
    highest = top or max(shown, default=0.0) or 1.0
    (row,) = column_chart([value / highest for value in shown], height=1, step=1, width=width)
    return row.rjust(width)


def column_chart(values: Sequence[float], *, height: int, step: int, width: int) -> tuple[str, ...]:
    """Draw columns from 0 to 1, one every `step` characters, in `height` rows from the top."""
    rows = []
    for row in reversed(range(height)):
        signs = "".join(_block(value, row, height).ljust(step) for value in values)
        rows.append(signs[:width].rstrip())
    return tuple(rows)


def _block(value: float, row: int, height: int) -> str:
    eighths = round(_within(value) * height * 8) - row * 8
    lowest = 1 if row == 0 else 0  # so that a depth where nothing was ever accepted is seen to have been tried
    return (" " + _COLUMNS)[min(8, max(lowest, eighths))]


def _within(share: float) -> float:
    return min(1.0, max(0.0, share))


def layer_signs(num_layers: int, *, resident: Collection[int], in_slots: Collection[int], current: int | None) -> str:
    """Draw one sign per layer; `current` is the one that computes, None between passes."""
    at_home, in_ring = frozenset(resident), frozenset(in_slots)

    def sign(layer: int) -> str:
        if layer == current:
            return CURRENT
        return RESIDENT if layer in at_home else IN_SLOT if layer in in_ring else STREAMED

    return "".join(map(sign, range(num_layers)))


def wrap_layers(signs: str, width: int) -> tuple[str, ...]:
    """Break the signs into rows of nearly one length; several layers share a sign where they need too many rows."""
    if width < 1 or not signs:
        return ()
    room = width * _MAX_LAYER_ROWS
    per_sign = -(-len(signs) // room)
    shared = [_most_telling(signs[start : start + per_sign]) for start in range(0, len(signs), per_sign)]
    num_rows = -(-len(shared) // width)
    per_row = -(-len(shared) // num_rows)
    return tuple("".join(shared[start : start + per_row]) for start in range(0, len(shared), per_row))


def layer_strip(signs: str, width: int) -> str:
    """Draw all layers in `width` signs, as large a share of them resident as of the layers."""
    if len(signs) <= width:
        return signs
    strip = []
    for start, end in pairwise(len(signs) * place // width for place in range(width + 1)):
        moving = next((sign for sign in (CURRENT, IN_SLOT) if sign in signs[start:end]), "")
        before, with_these = (signs.count(RESIDENT, 0, bound) * width // len(signs) for bound in (start, end))
        strip.append(moving or (RESIDENT if with_these > before else STREAMED))
    return "".join(strip)


def path_strip(num_kept: int, num_levels: int, width: int) -> str:
    """Draw how far ahead the guesses went and how many of them were kept: `●●●○○`, several in a sign where needed."""
    if num_levels > width:
        num_kept, num_levels = round(num_kept * width / num_levels), width
    return ("●" * num_kept).ljust(num_levels, "○")


def _most_telling(signs: str) -> str:
    return next((sign for sign in (CURRENT, IN_SLOT) if sign in signs), max(signs, key=signs.count))


def draw_tree(parents: Sequence[int], path: Sequence[int], *, width: int, height: int) -> tuple[str, ...]:
    """Draw a tree from left to right in `height` rows of at most `width` characters, the accepted path heavy.

    ●━●━●━●─○      One column per level, the likeliest child in its parent's row. A tree with more leaves than rows is
    │ │ ╰─○        drawn as a map: a cell says how many nodes share it, and only the path has lines.
    ╰─○─○

    `parents` are (N,) breadth first, the root's -1; `path` are the accepted nodes from the root on.
    """
    if not parents or width < 1 or height < 1:
        return ("",) * max(0, height)
    step = level_columns(num_levels(parents), width)
    columns = [step * depth for depth in depths_of(parents)]
    grid = [[" "] * (max(columns) + step) for _ in range(height)]
    rows = _first_leaves(parents)
    num_leaves = len(parents) - len(set(parents) - {-1})
    if num_leaves <= height:
        _draw_branches(grid, parents, rows, columns, has_lines=step > 1)
    else:
        rows = [leaf * height // num_leaves for leaf in rows]
        _draw_map(grid, rows, columns)
    for before, node in pairwise(path):
        _draw_line(grid, (rows[before], columns[before]), (rows[node], columns[node]), signs=("┃", "┗", "━"))
    for node in path:
        grid[rows[node]][columns[node]] = "●"
    return tuple(_cut("".join(row).rstrip(), width) for row in grid)


def depths_of(parents: Sequence[int]) -> tuple[int, ...]:
    """Return (N,) the depth of each node; the root's is 0."""
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return tuple(depths)


def num_levels(parents: Sequence[int]) -> int:
    """Return how many levels a tree has, that of the root included."""
    return max(depths_of(parents), default=-1) + 1


def level_columns(levels: int, width: int) -> int:
    """Return how many characters there are from one level to the next in a drawing that wide."""
    return 2 if 2 * levels - 1 <= width else 1


def _first_leaves(parents: Sequence[int]) -> list[int]:
    """Return (N,) the number of the first leaf below each node, leaves counted depth first."""
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


def _draw_branches(
    grid: list[list[str]], parents: Sequence[int], rows: Sequence[int], columns: Sequence[int], *, has_lines: bool
) -> None:
    last_children = {parent: node for node, parent in enumerate(parents)}
    for node in reversed(range(len(parents))):  # a branch over the stem to the children below it
        parent = parents[node]
        grid[rows[node]][columns[node]] = "○"
        if parent >= 0 and has_lines:
            corner = "╰" if last_children[parent] == node else "├"
            _draw_line(grid, (rows[parent], columns[parent]), (rows[node], columns[node]), signs=("│", corner, "─"))


def _draw_line(
    grid: list[list[str]], start: tuple[int, int], end: tuple[int, int], *, signs: tuple[str, str, str]
) -> None:
    """Draw down from the start and then right to the end, with signs for down, for the corner and for right."""
    (row, column), (last_row, last_column) = start, end
    down, corner, right = signs
    for between in range(row + 1, last_row):
        grid[between][column] = down
    if last_row > row:
        grid[last_row][column] = corner
    for between in range(column + 1, last_column):
        grid[last_row][between] = right


def _draw_map(grid: list[list[str]], rows: Sequence[int], columns: Sequence[int]) -> None:
    for (row, column), num_nodes in Counter(zip(rows, columns, strict=True)).items():
        grid[row][column] = "·" if num_nodes == 1 else ":" if num_nodes < 4 else "▪"


def _cut(row: str, width: int) -> str:
    return row if len(row) <= width else row[: width - 1] + "…"
