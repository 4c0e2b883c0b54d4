"""Shows the machine at work beside or below the conversation: layers, ring, speed, tree, acceptance and memory.

Each section is a title and rows of text for a given width; it is drawn again only when they change, and not while the
panel is hidden. The panel can be focused and scrolled with the keys, since not all of it fits a small terminal.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from offload.units import format_bytes
from tui.chat.engine.state import EngineState
from tui.chat.machine.drawing import (
    ACCEPTED_SIGNS,
    CURRENT,
    IN_SLOT,
    LEGEND,
    RESIDENT,
    STREAMED,
    column_chart,
    draw_tree,
    fit_text,
    layer_signs,
    level_columns,
    num_levels,
    rate_text,
    share_bar,
    slots_text,
    spark_line,
    wrap_layers,
)
from tui.chat.machine.figures import link_utilization, tokens_per_second
from tui.terminal_text import one_line

_CHART_HEIGHT = 3
_NUM_MEMORY_ROWS = 5
_SIGN_STYLES: Mapping[str, str] = {
    f"▁▂▃▄▅▆▇▏▎▍▌▋▊▉{RESIDENT}": "$text-primary",
    ACCEPTED_SIGNS: "bold $text-success",
    STREAMED: "$text-muted",
    IN_SLOT: "$text-accent",
    CURRENT: "bold $text-warning",
}


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the panel."""

    title: str
    """Stands in the first row."""
    rows: tuple[str, ...]
    """Stand below, none wider than was asked for."""
    tooltip: str
    """Says what it shows, and how to read it."""


class SectionView(Static):
    """One section, drawn for the width that it has."""

    def __init__(self, section_of: Callable[[EngineState, int], Section], *, id: str) -> None:
        super().__init__(id=id)
        self._section_of = section_of
        self._state = EngineState()
        self._section: Section | None = None

    def show(self, state: EngineState) -> None:
        """Show that state; redraw if its text differs."""
        self._state = state
        width = self.content_size.width
        if width <= 0:
            return
        section = self._section_of(state, width)
        if section == self._section:
            return
        is_same_height = self._section is not None and len(section.rows) == len(self._section.rows)
        self._section = section
        self.tooltip = section.tooltip
        self.update(_painted(section), layout=not is_same_height)

    def on_resize(self) -> None:
        self.show(self._state)


class MachinePanel(VerticalScroll):
    """All sections: one column beside the conversation, or in a `-narrow` screen two below it."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.border_title = "Machine"

    def compose(self) -> ComposeResult:
        with Vertical(id="machine-left"):
            yield SectionView(layers_section, id="machine-layers")
            yield SectionView(speed_section, id="machine-speed")
        with Vertical(id="machine-right"):
            yield SectionView(self._tree_section, id="machine-tree")
            yield SectionView(acceptance_section, id="machine-acceptance")
            yield SectionView(memory_section, id="machine-memory")

    def show(self, state: EngineState) -> None:
        """Show that state, unless nobody sees the panel."""
        if self.display:
            for section in self.query(SectionView):
                section.show(state)

    def _tree_section(self, state: EngineState, width: int) -> Section:
        return tree_section(state, width, height=4 if self.screen.has_class("-narrow") else 8)


def _painted(section: Section) -> Content:
    """Return the text with a bold title, and with every sign in the colour that it has everywhere."""
    text = Content("\n".join((section.title, *section.rows))).stylize("bold", 0, len(section.title))
    for signs, style in _SIGN_STYLES.items():
        text = text.highlight_regex(f"[{signs}]+", style=style)
    return text


def layers_section(state: EngineState, width: int) -> Section:
    """Say where each layer lies, which computes now, and what is in the ring."""
    tooltip = (
        f"One sign per layer of the target: {LEGEND}. The others' weights cross the link in every pass, through the "
        "slots of the ring."
    )
    model = state.model
    if model is None:
        return _section("Layers", ("no model",), tooltip, width)
    in_slots, num_done = state.running.layers_in_slots, state.running.num_done_layers
    is_running = 0 < num_done < model.num_layers
    signs = layer_signs(
        model.num_layers,
        resident=model.resident_layers,
        in_slots=in_slots,
        current=num_done if is_running else None,
    )
    done = f"{num_done}/{model.num_layers}" if is_running else f"{model.num_layers}"
    num_streamed = model.num_layers - model.num_resident_layers
    ring = f"ring {slots_text(in_slots, model.num_ring_slots)}  {format_bytes(model.bytes_per_pass)} a pass"
    rows = (*wrap_layers(signs, width), LEGEND, ring if num_streamed else "nothing streams")
    return _section(f"Layers {done}, {num_streamed} streamed", rows, tooltip, width)


def speed_section(state: EngineState, width: int) -> Section:
    """Compare measured with predicted speed, and draw the last rounds as curves."""
    figures = state.figures
    measured, predicted = figures.tokens_per_second, state.predicted_tokens_per_second
    top = max(measured or 0.0, predicted or 0.0)
    rates = [_rate_row("measured", measured, top, width), _rate_row("predicted", predicted, top, width)]
    speeds = [tokens_per_second([each]) or 0.0 for each in figures.rounds]
    emitted = [float(each.num_emitted) for each in figures.rounds]
    busy = [link_utilization([each]) or 0.0 for each in figures.rounds]
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
    return _section("Speed (tok/s)", (*rates, *curves), tooltip, width)


def memory_section(state: EngineState, width: int) -> Section:
    """Say how much memory the runtime holds, by what for."""
    tooltip = "What the runtime holds on the device, the largest first, and what the engine's process takes altogether."
    if state.model is None:
        return _section("Memory", (), tooltip, width)
    entries = sorted(state.model.memory.items(), key=lambda entry: -entry[1])
    shown, others = entries[:_NUM_MEMORY_ROWS], entries[_NUM_MEMORY_ROWS:]
    if others:
        shown.append(("other", sum(num_bytes for _, num_bytes in others)))
    title = f"Memory: device {format_bytes(state.model.device_bytes)}"
    if state.session.process_bytes:
        title += f", host {format_bytes(state.session.process_bytes)}"
    rows = tuple(_pair_row(one_line(label), format_bytes(num_bytes), width) for label, num_bytes in shown)
    return _section(title, rows, tooltip, width)


def tree_section(state: EngineState, width: int, *, height: int) -> Section:
    """Draw the last tree with the accepted path."""
    last = state.figures.last
    tooltip = (
        "The tree of the last round, from its root at the left; the likeliest child stands in its parent's row. ● is "
        "the accepted path. Of a large tree, a cell shows how many nodes share it: · one, : two or three, ▪ more."
    )
    if last is None or last.num_nodes <= 1:
        words = "no round yet" if last is None else "no tree: every pass brings one token"
        return _section("Tree", (words, *[""] * (height - 1)), tooltip, width)
    title = f"Tree {last.num_nodes} nodes, {num_levels(last.parents)} levels, {len(last.path) - 1} accepted"
    return _section(title, draw_tree(last.parents, last.path, width=width, height=height), tooltip, width)


def acceptance_section(state: EngineState, width: int) -> Section:
    """Draw how often a drafted token was accepted, by depth, each column below its level of the tree."""
    acceptance, last = state.figures.acceptance, state.figures.last
    tooltip = "How often one of the children was accepted where the walk came so far, by depth."
    if last is None or not acceptance:
        return _section("Acceptance by depth", ("",) * (_CHART_HEIGHT + 1), tooltip, width)
    spelled = ", ".join(f"{depth}: {share:.0%}" for depth, share in enumerate(acceptance, start=1))
    levels = max(len(acceptance) + 1, num_levels(last.parents))
    step = level_columns(levels, width)
    chart = column_chart(acceptance, height=_CHART_HEIGHT, step=step, width=width - step)
    labels = "".join(str(depth % 10).ljust(step) for depth in range(1, len(acceptance) + 1))
    rows = tuple((" " * step + row).rstrip() for row in (*chart, labels))
    title = f"Acceptance by depth, first {acceptance[0]:.0%}"
    return _section(title, rows, f"{tooltip} {spelled}.", width)


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


def _section(title: str, rows: Sequence[str], tooltip: str, width: int) -> Section:
    return Section(fit_text(title, width), tuple(fit_text(row, width) for row in rows), tooltip)
