"""What the machine panel says, section by section, as rows of text for a given width. Knows no widget."""

from collections.abc import Sequence
from dataclasses import dataclass

from offload.units import format_bytes
from tui.chat.engine.engine_state import EngineState
from tui.chat.machine.layer_bar import LEGEND, layer_signs, slots_text, wrap_layers
from tui.chat.machine.running_figures import MAX_DEPTH
from tui.chat.machine.status_figures import fit_text, rate_text
from tui.chat.machine.tree_drawing import draw_tree, level_columns
from tui.chat.widgets.text_bars import column_chart, share_bar, spark_line
from tui.terminal_text import one_line

_CHART_HEIGHT = 3
_NUM_MEMORY_ROWS = 5


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the panel."""

    title: str
    """Its first row."""
    rows: tuple[str, ...]
    """The rows below, each as wide as was asked for at most."""
    tooltip: str
    """What it shows, and how to read it."""


def layers_section(state: EngineState, width: int) -> Section:
    """Where each layer lies, which computes now, and what is in the ring."""
    tooltip = (
        f"One sign per layer of the target: {LEGEND}. The others' weights cross the link in every pass, through the "
        "slots of the ring."
    )
    model = state.model
    if model is None:
        return _fitted(Section("Layers", ("no model",), tooltip), width)
    is_running = 0 < state.num_done_layers < model.num_layers
    signs = layer_signs(
        model.num_layers,
        resident=model.resident_layers,
        in_slots=state.layers_in_slots,
        current=state.num_done_layers if is_running else None,
    )
    done = f"{state.num_done_layers}/{model.num_layers}" if is_running else f"{model.num_layers}"
    num_streamed = model.num_layers - model.num_resident_layers
    ring = f"ring {slots_text(state.layers_in_slots, model.num_ring_slots)}" if num_streamed else "nothing streams"
    per_pass = f"{format_bytes(model.bytes_per_pass)} a pass"
    rows = (*wrap_layers(signs, width), LEGEND, f"{ring}  {per_pass}" if num_streamed else ring)
    title = f"Layers {done}, {num_streamed} streamed"
    return _fitted(Section(title, rows, tooltip), width)


def speed_section(state: EngineState, width: int) -> Section:
    """Measured against predicted, and the last rounds as curves."""
    figures = state.figures
    measured, predicted = figures.tokens_per_second, state.predicted_tokens_per_second
    top = max(measured or 0.0, predicted or 0.0)
    rates = [_rate_row("measured", measured, top, width), _rate_row("predicted", predicted, top, width)]
    speeds = [each.tokens_per_second for each in figures.rounds]
    emitted = [float(each.num_emitted) for each in figures.rounds]
    busy = [each.link_utilization for each in figures.rounds]
    share = figures.link_utilization
    curves = [
        _curve_row("tok/s", speeds, "" if measured is None else rate_text(measured), width),
        _curve_row(
            "tok/pass", emitted, "" if figures.tokens_per_pass is None else f"{figures.tokens_per_pass:.1f}", width
        ),
        _curve_row("link", busy, "" if share is None else f"{share:.0%}", width, top=1.0),
    ]
    tooltip = (
        "Tokens per second over the last rounds against what the planner expects of such rounds; below, each round's "
        "tokens per second and per pass, and the share of its time in which the link carried bytes, the latest right."
    )
    return _fitted(Section("Speed (tok/s)", (*rates, *curves), tooltip), width)


def memory_section(state: EngineState, width: int) -> Section:
    """What the runtime and its process hold."""
    tooltip = "What the runtime holds on the device, the largest first, and what the engine's process takes altogether."
    if state.model is None:
        return _fitted(Section("Memory", (), tooltip), width)
    entries = sorted(state.model.memory.items(), key=lambda entry: -entry[1])
    shown, others = entries[:_NUM_MEMORY_ROWS], entries[_NUM_MEMORY_ROWS:]
    if others:
        shown.append(("other", sum(num_bytes for _, num_bytes in others)))
    device_bytes = state.figures.device_bytes or sum(state.model.memory.values())
    title = f"Memory: device {format_bytes(device_bytes)}"
    if state.figures.process_bytes:
        title += f", host {format_bytes(state.figures.process_bytes)}"
    rows = tuple(_pair_row(one_line(label), format_bytes(num_bytes), width) for label, num_bytes in shown)
    return _fitted(Section(title, rows, tooltip), width)


def tree_section(state: EngineState, width: int, *, height: int) -> Section:
    """The last tree with the accepted path."""
    tree = state.figures.tree
    tooltip = (
        "The tree of the last round, from its root at the left; the likeliest child stands in its parent's row. ● is "
        "the accepted path. Of a large tree, a cell shows how many nodes share it: · one, : two or three, ▪ more."
    )
    if len(tree.parents) <= 1:
        words = "no tree: every pass brings one token" if tree.parents else "no round yet"
        return _fitted(Section("Tree", (words, *[""] * (height - 1)), tooltip), width)
    num_accepted, num_levels = len(tree.path) - 1, max(tree.depths) + 1
    title = f"Tree {len(tree.parents)} nodes, {num_levels} levels, {num_accepted} accepted"
    return _fitted(Section(title, draw_tree(tree, width=width, height=height), tooltip), width)


def acceptance_section(state: EngineState, width: int) -> Section:
    """How often a drafted token was accepted, by depth, below the levels of the tree."""
    acceptance = state.figures.acceptance
    spelled = ", ".join(f"{depth}: {_percent(share)}" for depth, share in enumerate(acceptance, start=1))
    tooltip = "How often one of the children was accepted where the walk came so far, by depth"
    if not acceptance:
        return _fitted(Section("Acceptance by depth", ("",) * (_CHART_HEIGHT + 1), f"{tooltip}."), width)
    num_levels = max(len(acceptance) + 1, max(state.figures.tree.depths, default=0) + 1)
    step = level_columns(num_levels, width)
    chart = column_chart(acceptance, height=_CHART_HEIGHT, step=step, width=width - step)
    labels = "".join(str(depth % 10).ljust(step) for depth in range(1, min(len(acceptance), MAX_DEPTH) + 1))
    rows = tuple((" " * step + row).rstrip() for row in (*chart, labels))
    title = f"Acceptance by depth, first {_percent(acceptance[0])}"
    return _fitted(Section(title, rows, f"{tooltip}. {spelled}."), width)


def _rate_row(what: str, rate: float | None, top: float, width: int) -> str:
    if rate is None:
        return f"{what:<9} not known yet"
    head = f"{what:<9} {rate_text(rate):>5} "
    return head + share_bar(rate / top if top else 0.0, max(0, width - len(head)))


def _curve_row(what: str, values: Sequence[float], latest: str, width: int, *, top: float | None = None) -> str:
    head = f"{what:<9} {latest:>5} "
    return head + spark_line(values, max(0, width - len(head)), top=top)


def _pair_row(label: str, size: str, width: int) -> str:
    room = width - len(size) - 1
    return f"{fit_text(label, room).ljust(room)} {size}" if room > 0 else size


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _fitted(section: Section, width: int) -> Section:
    rows = tuple(fit_text(row, width) for row in section.rows)
    return Section(fit_text(section.title, width), rows, section.tooltip)
