"""`overstory plan`: will a model run on a machine, with which settings, how fast, and what would make it faster.

Text for people, at most 80 columns wide, or one JSON document on stdout; progress on stderr. The curves of seconds per
token over the size of the tree are drawn by plotext in the terminal, by matplotlib, which is optional, in files. torch
is imported only where this machine has to be measured.
"""

import importlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from offload.errors import BudgetError
from offload.units import format_bytes
from runtime.fit.request import ANSWER, MachineRequest, PlanRequest
from tui.commands.plot_file import check_plot_path, save_figure
from tui.environment import cache_folder
from tui.options import Quiet, with_option_groups
from tui.printing import announce, print_grid, progress_console
from tui.terminal_text import one_line, seconds_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.fit.plan_report import PlanOption, PlanReport
    from runtime.planner.tree_choice import TreeChoice

_WIDTH = 80
_BOUNDS = {
    "link": "the link to the device",
    "disk": "the disk",
    "compute": "the target's computation",
    "draft": "drafting",
}
_PLOT_HEIGHT = 22
_PLOT_WIDTHS = (40, 100)
_LEGEND_MARGIN = 8
"""Columns that ruler and frame take."""
_NUM_MARKS = 5
_TICKS = (1, 4, 16, 64, 256, 1024, 4096)
_DEPTHS = (2, 4, 8, 16, 32)


@with_option_groups
def plan(
    models: PlanRequest,
    where: MachineRequest,
    *,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Draw seconds per token over tree size and depth.", rich_help_panel=ANSWER),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the same into FILE.png or FILE.svg.", show_default="none", rich_help_panel=ANSWER),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of text.", rich_help_panel=ANSWER)
    ] = False,
    quiet: Quiet = False,
) -> int:
    """Say whether a model runs on a machine, with which settings and how fast; no weights are needed."""
    if plot is not None:
        check_plot_path(plot)
    from runtime.fit.startup import check_startup

    check_startup(None, is_measuring=True)
    from runtime.engine.draft_choice import with_found_draft
    from runtime.fit.plan import plan_with_profiles
    from runtime.fit.plan_question import find_machine, resolve_question

    question = resolve_question(models)
    finding = find_machine(where, cache_folder=cache_folder(), model_folder=question.target.folder)
    machine = announce(finding, progress_console(is_quiet=quiet))
    question = with_found_draft(question, machine)
    report = plan_with_profiles(question, machine, cache_folder=cache_folder())
    out = Console(file=sys.stderr if as_json else sys.stdout, highlight=False, emoji=False)
    if as_json:
        sys.stdout.write(json.dumps(report.to_record()) + "\n")
    else:
        print_plan(report, out)
    if explain:
        draw_curves(report, out)
    if plot is not None:
        write_plot(report, plot)
    return 0


def print_plan(report: "PlanReport", out: Console) -> None:
    """Write the plan."""
    out.width = min(out.width, _WIDTH)
    question = report.question
    kind = "greedy" if question.request.temperature == 0 else f"temperature {question.request.temperature:g}"
    title = f"{question.target.name} on {report.machine.name}, draft {question.draft_name}, "
    out.print(Text(one_line(f"{title}{question.context_tokens} tokens of context, {kind}"), "bold"))
    for sentence in report.verdicts:
        out.print(Text(one_line(sentence), "yellow"))
    out.print()
    print_rows(out, _plan_rows(report))
    out.print(Text("\nuntil an answer begins", "bold"))
    print_rows(out, _first_token_rows(report))
    if report.other_packing is not None:
        out.print(Text("\nlayers as stored" if report.main.is_packed else "\nlayers packed, bit for bit", "bold"))
        print_rows(out, [("--pack off" if report.main.is_packed else "--pack on", _other_text(report.other_packing))])
    if report.others:
        out.print(Text("\nother formats", "bold"))
        print_rows(out, ((name, _other_text(one)) for name, one in report.others.items()))
    if report.what_ifs:
        out.print(Text("\nwhat more would bring", "bold"))
        print_rows(out, _change_rows(report))
    out.print(Text("\nwhat this rests on", "bold"))
    print_rows(out, ((what, f"{basis}: {words}") for what, basis, words in report.basis_lines))
    for note in report.notes:
        out.print(Text(one_line(f"note: {note}"), "dim"))


def _plan_rows(report: "PlanReport") -> Iterator[tuple[str, str]]:
    main, placed = report.main, report.main.placement
    tree = main.tree
    num_prompts = report.question.request.num_prompts
    each = " for each prompt" if num_prompts > 1 else ""
    yield "speed", f"{_rate(main.seconds_per_token)}{each}; bound by {_BOUNDS[main.bound]}"
    if num_prompts > 1:
        yield "together", f"{num_prompts} prompts in each pass: {report.all_tokens_per_second:.3g} tokens/s in all"
    yield "settings", _settings(report)
    yield "tree", tree_text(main)
    parts = ", ".join(
        f"{name.replace('_', ' ')} {seconds_text(value)}" for name, value in main.part_seconds.items() if value
    )
    yield "round", f"{seconds_text(tree.round_seconds)}: {parts} (they overlap)"
    yield "layers", f"{main.format_name}{', packed' if main.is_packed else ''}: {tiers_text(main)}"
    if main.streams:
        ring = f"{format_bytes(placed.streamed_bytes)} move in every pass, through {placed.residency.num_slots} slots"
        yield "ring", f"{ring} ({format_bytes(placed.ring_bytes)})"
    if travelling := placed.residency.travelling:
        yield (
            "keys, values",
            f"{format_bytes(placed.cached_bytes)} on the device; those of {len(travelling)} layers wait in host memory "
            f"{'as int8 ' if placed.residency.widened_bytes else ''}and move with them, "
            f"{format_bytes(placed.travelling_bytes)} once the context is full",
        )
    yield "device", f"{format_bytes(placed.device_bytes)} of {format_bytes(placed.device_budget_bytes)}"
    best, second = main.ranking.best, main.ranking.second
    if report.question.tree_shape is not None or tree.is_dynamic:
        name = "best static" if report.question.tree_shape is None else "best tree"
        yield name, f"{_size(best)}: {_rate(best.seconds_per_token)}"
    elif second is not None:
        more = second.seconds_per_token / main.seconds_per_token - 1
        yield "second best", f"{_size(second)}: {_rate(second.seconds_per_token)} ({100 * more:+.1f} %)"
    if main.draft_held is not None:
        yield "plain", _plain_text(report)


def _first_token_rows(report: "PlanReport") -> Iterator[tuple[str, str]]:
    for num_tokens, found in report.first_tokens.items():
        name = f"a prompt of {num_tokens}"
        if isinstance(found, BudgetError):
            yield name, f"cannot be asked: {found}"
            continue
        num_passes = len(found.pass_tokens)
        parts = {"stream": found.stream_seconds, "compute": found.compute_seconds, "draft": found.draft_seconds}
        words = ", ".join(f"{part} {seconds_text(seconds)}" for part, seconds in parts.items() if seconds)
        context = (
            "" if found.context_tokens == report.question.context_tokens else f" (--context {found.context_tokens})"
        )
        passes = "1 pass" if num_passes == 1 else f"{num_passes} passes"
        yield name, f"{seconds_text(found.seconds)}, {passes}: {words}{context}"


def _change_rows(report: "PlanReport") -> Iterator[tuple[str, str]]:
    for change, seconds in report.what_ifs.items():
        more, share = seconds - report.main.seconds_per_token, report.saved_share(seconds)
        brought = (
            f"{-100 * share:+.1f} % ({'+' if more >= 0 else '-'}{seconds_text(abs(more))})" if share else "no change"
        )
        yield change, f"{seconds_text(seconds)}/token, {brought}"


def _settings(report: "PlanReport") -> str:
    """Return what to say to `run`; it fits its own tree, so one is given only where the user named it."""
    main, question = report.main, report.question
    draft = question.request.draft
    if draft == "auto" and question.draft is not None:
        source = str(question.draft.folder or question.draft.hub_name or question.draft.name)
        draft = "substitute" if question.is_substitute else source
    words = [f"--draft {draft}"]
    if main.draft_held is not None:
        words.append(f"--draft-format {main.draft_held}")
    if question.request.tree != "auto":
        words.append(f"--tree {question.request.tree}")
    if main.placement.residency.widened_bytes:
        words.append(f"--kv-format {question.request.kv_format}")
    if question.request.num_prompts > 1:
        words.append(f"--batch {question.request.num_prompts}")
    return " ".join([*words, f"--context {question.context_tokens}"])


def tree_text(option: "PlanOption") -> str:
    """Return the size of the tree and what it brings."""
    tree = option.tree
    if tree.num_nodes == 1:
        return "none: one token per pass"
    kind = ", shaped by context" if tree.is_dynamic else ""
    size = f"{tree.num_nodes} nodes x {tree.num_levels} levels{kind}"
    return f"{size}, {tree.expected_tokens:.2f} tokens expected per pass"


def tiers_text(option: "PlanOption") -> str:
    """Return how many layers lie where."""
    placed = option.placement
    tiers = (
        (placed.num_resident_layers, placed.resident_bytes, "on the device"),
        (placed.num_host_layers, placed.host_bytes - placed.travelling_bytes, "in pinned host memory"),
        (placed.num_disk_layers, placed.disk_bytes, "on disk"),
    )
    words = [f"{number} {where} ({format_bytes(size)})" for number, size, where in tiers if number]
    tables = [f"input embeddings in host memory ({format_bytes(placed.table_bytes)})"] if placed.table_bytes else []
    return ", ".join(words + tables)


def _plain_text(report: "PlanReport") -> str:
    plain = report.plain
    if isinstance(plain, BudgetError):
        return str(plain)
    ratio = plain.seconds_per_token / report.main.seconds_per_token
    resident = f"{plain.placement.num_resident_layers} layers on the device"
    return f"{_rate(plain.seconds_per_token)}, {ratio:.3g} times the time, with {resident}"


def _other_text(option: "PlanOption | BudgetError") -> str:
    if isinstance(option, BudgetError):
        return f"does not run: {option}"
    streamed = f"{format_bytes(option.placement.streamed_bytes)} a pass" if option.streams else "fits whole"
    return f"{_rate(option.seconds_per_token)}, {streamed}, {_size(option.tree)}, bound by {_BOUNDS[option.bound]}"


def print_rows(out: Console, rows: Iterable[tuple[str, str]]) -> None:
    """Print labels and texts in two columns."""
    print_grid(((Text(f"  {one_line(label)}"), Text(one_line(text))) for label, text in rows), out)


def _size(tree: "TreeChoice") -> str:
    return "no tree" if tree.num_nodes == 1 else f"{tree.num_nodes} x {tree.num_levels}"


def _rate(seconds_per_token: float) -> str:
    return f"{seconds_text(seconds_per_token)}/token ({1 / seconds_per_token:.3g} tokens/s)"


def curves_of(report: "PlanReport") -> "dict[int, NDArray[np.float64]]":
    """Return (2, S) sizes of trees and seconds per token by levels, the shallowest first; empty without trees.

    Of the best trees within several numbers of levels, that of the best tree among them.
    """
    import numpy as np

    ranking = report.main.ranking
    table = ranking.seconds_per_token  # (D, N)
    depths = {depth for depth in _DEPTHS if depth <= len(table)} | {ranking.best.num_levels}
    sizes = np.unique(np.geomspace(1, table.shape[1], 60).astype(int))
    curves = {depth: np.stack([sizes, table[depth - 1, sizes - 1]]) for depth in sorted(depths - {1})}
    return {depth: curve[:, np.isfinite(curve[1])] for depth, curve in curves.items()}


def draw_curves(report: "PlanReport", out: Console) -> None:
    """Draw into the terminal, as wide as it is, without colours where NO_COLOR or a pipe says so."""
    curves = curves_of(report)
    if not curves:
        out.print("plain decoding has no curve: there is no tree to draw", markup=False)
        return
    import numpy as np

    plotext: Any = importlib.import_module("plotext")
    least, most = _PLOT_WIDTHS
    chart, width = plotext.figure, max(least, min(out.width, most))
    chart.clear()
    chart.theme("simple")
    chart.plot_size(width, _PLOT_HEIGHT)
    chart.title(_title(report))
    chart.label("nodes of the tree", "x")
    chart.label("s/token", "y")
    # Logarithms are taken here: plotext's own logarithmic ruler loses its range once it is given ticks.
    sizes, seconds = np.concatenate(list(curves.values()), axis=1)
    nodes = [size for size in _TICKS if size <= sizes.max()]
    chart.ruler("x").ticks(np.log(nodes).tolist(), [str(size) for size in nodes])
    marks = np.geomspace(seconds.min(), seconds.max(), _NUM_MARKS)
    chart.ruler("y").ticks(np.log(marks).tolist(), [f"{mark:.2g}" for mark in marks])
    for (depth, curve), marker in reversed(list(zip(curves.items(), "123456", strict=False))):  # the shallowest on top
        chart.draw(chart.signal(*np.log(curve).tolist(), marker=marker).lines().label(f"{depth} levels"))
    chart.legend(x=width - _LEGEND_MARGIN, ha="right")
    text = chart.build().string()
    chart.clear()
    has_colors = out.color_system is not None and not out.no_color
    out.file.write((text if has_colors else plotext.uncolorize(text)).rstrip("\n") + "\n")


def write_plot(report: "PlanReport", path: Path) -> None:
    """Draw into a file, which is there complete or not at all. Raises OptionError."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    axes = figure.add_subplot()
    for depth, (sizes, seconds) in curves_of(report).items():
        axes.loglog(sizes, seconds, label=f"{depth} levels")
    tree = report.main.tree
    axes.plot([tree.num_nodes], [tree.seconds_per_token], "o", color="black", label=_size(tree))
    axes.set(title=_title(report), xlabel="nodes of the tree", ylabel="seconds per token")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def _title(report: "PlanReport") -> str:
    return one_line(f"{report.question.target.name} in {report.main.format_name} on {report.machine.name}")
