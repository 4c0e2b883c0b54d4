"""Seconds per token over the size of the tree, a curve for each depth: in the terminal, or in a file.

plotext draws in the terminal, matplotlib, which is optional, in files.
"""

import importlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from tui.commands.plot_file import save_figure
from tui.terminal_text import one_line

if TYPE_CHECKING:
    from runtime.fit.plan_report import PlanReport

_HEIGHT = 22
_WIDTH = 100
_LEAST_WIDTH = 40
_LEGEND_MARGIN = 8
"""Columns that ruler and frame take."""
_NUM_MARKS = 5
_TICKS = (1, 4, 16, 64, 256, 1024, 4096)
_MARKERS = ("1", "2", "3", "4", "5", "6")
_DEPTHS = (2, 4, 8, 16, 32)
_INCHES = (8.0, 5.0)


@dataclass(frozen=True, slots=True)
class Curve:
    """The best trees within one number of levels."""

    num_levels: int
    """The limit, root included."""
    sizes: tuple[int, ...]
    """Nodes, ascending."""
    seconds_per_token: tuple[float, ...]
    """Predicted, for each size."""


def curves_of(report: "PlanReport") -> list[Curve]:
    """A curve for each of several depths and for that of the best tree, the shallowest first; none without trees."""
    ranking = report.main.ranking
    limit = len(ranking.seconds_per_token)
    depths = {depth for depth in _DEPTHS if depth <= limit} | {ranking.best.num_levels}
    curves = []
    for depth in sorted(depths - {1}):
        seconds = ranking.seconds_per_token[depth - 1]
        sizes = np.unique(np.geomspace(1, len(seconds), 60).astype(int))
        sizes = sizes[np.isfinite(seconds[sizes - 1])]
        curves.append(Curve(depth, tuple(map(int, sizes)), tuple(map(float, seconds[sizes - 1]))))
    return curves


def draw_curves(report: "PlanReport", out: Console) -> None:
    """Draw into the terminal, as wide as it is, without colours where NO_COLOR or a pipe says so."""
    curves = curves_of(report)
    if not curves:
        out.print("plain decoding has no curve: there is no tree to draw", markup=False)
        return
    plotext: Any = importlib.import_module("plotext")
    chart, width = plotext.figure, max(_LEAST_WIDTH, min(out.width, _WIDTH))
    chart.clear()
    chart.theme("simple")
    chart.plot_size(width, _HEIGHT)
    chart.title(_title(report))
    chart.label("nodes of the tree", "x")
    chart.label("s/token", "y")
    # Logarithms are taken here: plotext's own logarithmic ruler loses its range once it is given ticks.
    largest = max(curve.sizes[-1] for curve in curves)
    nodes = [size for size in _TICKS if size <= largest]
    chart.ruler("x").ticks([math.log(size) for size in nodes], [str(size) for size in nodes])
    every = [seconds for curve in curves for seconds in curve.seconds_per_token]
    marks = np.geomspace(min(every), max(every), _NUM_MARKS)
    chart.ruler("y").ticks([math.log(mark) for mark in marks], [f"{mark:.2g}" for mark in marks])
    for curve, marker in reversed(list(zip(curves, _MARKERS, strict=False))):  # where curves meet, the shallowest shows
        points = [[math.log(value) for value in values] for values in (curve.sizes, curve.seconds_per_token)]
        chart.draw(chart.signal(*points, marker=marker).lines().label(f"{curve.num_levels} levels"))
    chart.legend(x=width - _LEGEND_MARGIN, ha="right")
    text = chart.build().string()
    chart.clear()
    has_colors = out.color_system is not None and not out.no_color
    out.file.write((text if has_colors else plotext.uncolorize(text)).rstrip("\n") + "\n")


def write_plot(report: "PlanReport", path: Path) -> None:
    """Draw into a file, which is there complete or not at all. Raises OptionError."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.add_subplot()
    for curve in curves_of(report):
        axes.loglog(curve.sizes, curve.seconds_per_token, label=f"{curve.num_levels} levels")
    tree = report.main.tree
    axes.plot(
        [tree.num_nodes], [tree.seconds_per_token], "o", color="black", label=f"{tree.num_nodes} x {tree.num_levels}"
    )
    axes.set(title=_title(report), xlabel="nodes of the tree", ylabel="seconds per token")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def _title(report: "PlanReport") -> str:
    return one_line(f"{report.question.target.name} in {report.main.format_name} on {report.machine.name}")
