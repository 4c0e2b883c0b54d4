"""Shows the machine at work beside or below the conversation: layers, ring, speed, tree, acceptance and memory.

Each section is a title and rows of text for a given width; it is drawn again only when they change, and not while the
panel is hidden. The panel can be focused and scrolled with the keys, since not all of it fits a small terminal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from offload.units import format_bytes
from tui.chat.engine.messages import Loaded
from tui.chat.engine.state import EngineState
from tui.chat.machine.drawing import (
    CURRENT,
    IN_SLOT,
    RESIDENT,
    SIGN_STYLES,
    STREAMED,
    column_chart,
    draw_tree,
    fit_text,
    layer_signs,
    level_columns,
    num_levels,
    rate_text,
    share_bar,
    spark_line,
    wrap_layers,
)
from tui.chat.machine.figures import link_utilization, tokens_per_second
from tui.terminal_text import counted, one_line

_CHART_HEIGHT = 3
_NUM_MEMORY_ROWS = 5


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
    for signs, style in SIGN_STYLES.items():
        text = text.highlight_regex(f"[{signs}]+", style=style)
    return text


def layers_section(state: EngineState, width: int) -> Section:
    """Say where each layer lies, which computes now, and which are on their way."""
    model = state.model
    if model is None:
        return _section("Layers", ("no model is open",), "Shows the layers of the model that is open.", width)
    num_streamed = model.num_layers - model.num_resident_layers
    in_slots, num_done = state.running.layers_in_slots, state.running.num_done_layers
    is_running = 0 < num_done < model.num_layers
    signs = layer_signs(
        model.num_layers,
        resident=model.resident_layers,
        in_slots=in_slots,
        current=num_done if is_running else None,
    )
    legend = legend_of(model)
    rows = (*wrap_layers(signs, width), *fit_words(legend, width))
    tooltip = f"One sign per layer of the model: {', '.join(legend)}."
    if num_streamed:
        tooltip += " Layers that are not kept stream in during every pass, through a ring of slots that they share."
        rows = (*rows, _in_flight(in_slots), f"{format_bytes(model.bytes_per_pass)} stream in for every pass")
    done = f", computing {num_done + 1}" if is_running else ""
    return _section(f"{counted(model.num_layers, 'layer')}{done}", rows, tooltip, width)


def legend_of(model: Loaded) -> tuple[str, ...]:
    """Return what the signs of this model's layers mean: only those that it has."""
    num_streamed = model.num_layers - model.num_resident_layers
    is_host = model.device.startswith("cpu")
    num_from_disk = min(model.num_disk_layers, num_streamed)
    elsewhere = "over the link" if is_host else "from memory"
    source = "from disk" if num_from_disk == num_streamed else f"{elsewhere} or disk" if num_from_disk else elsewhere
    kept = f"{RESIDENT} {'in memory' if is_host else 'on the device'}"
    computing = f"{CURRENT} computing"
    return (kept, f"{STREAMED} {source}", f"{IN_SLOT} arriving", computing) if num_streamed else (kept, computing)


def _in_flight(layers: Sequence[int]) -> str:
    numbers = ", ".join(map(str, layers))
    return f"in flight: layer{'s' if len(layers) != 1 else ''} {numbers}" if layers else "in flight: none"


def speed_section(state: EngineState, width: int) -> Section:
    """Compare measured with predicted speed, and draw the last rounds as curves."""
    figures = state.figures
    measured, predicted = figures.tokens_per_second, state.predicted_tokens_per_second
    per_pass, share = figures.tokens_per_pass, figures.link_utilization
    top = max(measured or 0.0, predicted or 0.0)
    speeds = [tokens_per_second([each]) or 0.0 for each in figures.rounds]
    emitted = [float(each.num_emitted) for each in figures.rounds]
    busy = [link_utilization([each]) or 0.0 for each in figures.rounds]
    rows = [
        _rate_row("now", measured, top, width),
        _rate_row("expected", predicted, top, width),
    ]
    if measured is not None and per_pass is not None:
        rows.append(_curve_row("lately", speeds, rate_text(measured), width))
        rows.append(_curve_row("per pass", emitted, rate_text(per_pass), width))
    if share is not None:
        rows.append(_curve_row("link busy", busy, f"{share:.0%}", width, top=1.0))
    tooltip = (
        "Tokens per second over the last rounds against what the planner expects of such rounds; below, each round's "
        "tokens per second and tokens per pass of the model, the latest at the right. Without drafts a pass brings "
        "one token."
    )
    if share is not None:
        tooltip += " Link busy: the share of a round's time in which weights arrive."
    return _section("Speed (tokens per second)", (*rows, *_round_words(state)), tooltip, width)


def _round_words(state: EngineState) -> tuple[str, ...]:
    """Say what a pass brings and where a round's time goes, once there was a round."""
    figures, last = state.figures, state.figures.last
    if last is None or figures.tokens_per_pass is None:
        return ()
    per_pass = f"{rate_text(figures.tokens_per_pass)} tokens per pass (1 without drafts)"
    seconds = last.draft_seconds + last.verify_seconds
    if last.num_nodes <= 1 or seconds <= 0:
        return ("1 token per pass: no drafts",) if last.num_nodes <= 1 else (per_pass,)
    guessing = last.draft_seconds / seconds
    return (per_pass, f"guessing ahead {guessing:.0%}, checking {1 - guessing:.0%}")


def memory_section(state: EngineState, width: int) -> Section:
    """Say how much memory the runtime holds, by what for."""
    tooltip = "What the runtime holds on the device, the largest first, and what the engine's process takes altogether."
    if state.model is None:
        return _section("Memory", (), tooltip, width)
    entries = sorted(state.model.memory.items(), key=lambda entry: -entry[1])
    shown, others = entries[:_NUM_MEMORY_ROWS], entries[_NUM_MEMORY_ROWS:]
    if others:
        shown.append(("other", sum(num_bytes for _, num_bytes in others)))
    place = "" if state.model.device.startswith("cpu") else " on the device"
    title = f"Memory: {format_bytes(state.model.device_bytes)}{place}"
    if state.session.process_bytes:
        shown.append(("engine's process, all of it", state.session.process_bytes))
    rows = tuple(_pair_row(one_line(label), format_bytes(num_bytes), width) for label, num_bytes in shown)
    return _section(title, rows, tooltip, width)


def tree_section(state: EngineState, width: int, *, height: int) -> Section:
    """Draw the last tree with the accepted path; one row says why there is none."""
    last = state.figures.last
    tooltip = (
        "The tree of the last round: what the draft guessed could follow, from left to right; the likeliest guess "
        "stands in its parent's row. ● were kept (the accepted path). Of a large tree, a cell shows how many nodes "
        "share it: · one, : two or three, ▪ more."
    )
    if last is None or last.num_nodes <= 1:
        words = "none yet" if last is None else "none: every pass brings one token"
        return _section("Tree of guesses", (words,), tooltip, width)
    num_nodes, num_kept = counted(last.num_nodes, "node"), len(last.path) - 1
    title = f"Tree of guesses: {num_nodes}, {num_kept} kept"
    return _section(title, draw_tree(last.parents, last.path, width=width, height=height), tooltip, width)


def acceptance_section(state: EngineState, width: int) -> Section:
    """Draw how often a drafted token was accepted, by depth, each column below its level of the tree."""
    acceptance, last = state.figures.acceptance, state.figures.last
    tooltip = (
        "Acceptance by depth: how often one of the guesses at that place was kept, where the ones before it were kept."
    )
    if last is None or not acceptance:
        return _section("", (), tooltip, width)
    spelled = ", ".join(f"{depth}: {share:.0%}" for depth, share in enumerate(acceptance, start=1))
    levels = max(len(acceptance) + 1, num_levels(last.parents))
    step = level_columns(levels, width)
    chart = column_chart(acceptance, height=_CHART_HEIGHT, step=step, width=width - step)
    labels = "".join(str(depth % 10).ljust(step) for depth in range(1, len(acceptance) + 1))
    rows = tuple((" " * step + row).rstrip() for row in (*chart, labels))
    return _section("Guesses kept, by how far ahead", rows, f"{tooltip} {spelled}.", width)


def _rate_row(what: str, rate: float | None, top: float, width: int) -> str:
    if rate is None:
        return f"{what:<9} not known yet"
    head = f"{what:<9} {rate_text(rate):>5} "
    return head + share_bar(rate / top if top else 0.0, max(0, width - len(head)))


def _curve_row(what: str, values: Sequence[float], latest: str, width: int, *, top: float | None = None) -> str:
    head = f"{what:<9} {latest:>5} "
    return head + spark_line(values, max(0, width - len(head)), top=top)


def fit_words(words: Sequence[str], width: int) -> tuple[str, ...]:
    """Put words side by side with a gap between them, in as many rows as they need."""
    rows: list[str] = []
    for each in words:
        if rows and len(rows[-1]) + 2 + len(each) <= width:
            rows[-1] += f"  {each}"
        else:
            rows.append(each)
    return tuple(rows)


def _pair_row(label: str, size: str, width: int) -> str:
    room = width - len(size) - 1
    return f"{fit_text(label, room).ljust(room)} {size}" if room > 0 else size


def _section(title: str, rows: Sequence[str], tooltip: str, width: int) -> Section:
    return Section(fit_text(title, width), tuple(fit_text(row, width) for row in rows), tooltip)
