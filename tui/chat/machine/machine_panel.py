"""The machine at work: layers, ring, tree, acceptance, speed and memory, beside or below the conversation.

Fed with an `EngineState`; draws a section again only when its text changes, and nothing while it is hidden. It can be
focused and scrolled with the keys, since not all of it fits a small terminal.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import Literal

from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from tui.chat.engine.engine_state import EngineState
from tui.chat.machine.layer_bar import CURRENT, IN_SLOT, RESIDENT, STREAMED
from tui.chat.machine.machine_sections import (
    Section,
    acceptance_section,
    layers_section,
    memory_section,
    speed_section,
    tree_section,
)
from tui.chat.machine.tree_drawing import ACCEPTED_SIGNS

Placement = Literal["side", "bottom"]
_SIDE_TREE_HEIGHT, _BOTTOM_TREE_HEIGHT = 8, 4
_SIGN_STYLES: Mapping[str, str] = {
    **dict.fromkeys("▁▂▃▄▅▆▇▏▎▍▌▋▊▉", "$text-primary"),
    **dict.fromkeys(ACCEPTED_SIGNS, "bold $text-success"),
    STREAMED: "$text-muted",
    RESIDENT: "$text-primary",
    IN_SLOT: "$text-accent",
    CURRENT: "bold $text-warning",
}


class SectionView(Static):
    """One section, drawn for the width that it has."""

    def __init__(self, section_of: Callable[[EngineState, int], Section], *, id: str) -> None:
        super().__init__(id=id)
        self._section_of = section_of
        self._state = EngineState()
        self._section: Section | None = None

    def show(self, state: EngineState) -> None:
        """Shows that state; redraws if its text differs."""
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
        """Draws for the new width."""
        self.show(self._state)


class MachinePanel(VerticalScroll):
    """All that the engine's reports say about the machine."""

    DEFAULT_CSS = """
    MachinePanel {
        background: $surface;
        border: round $border-blurred;
        border-title-color: $text-muted;
        padding: 0 1;
        scrollbar-size-vertical: 1;
        &:focus { border: heavy $border; }
        &.-side { width: 42; height: 1fr; }
        &.-bottom { width: 1fr; height: 12; layout: horizontal; }
        & > Vertical { height: auto; width: 1fr; }
        &.-bottom > #machine-left { margin-right: 3; }
        & SectionView { height: auto; min-height: 1; width: 1fr; }
        &.-side SectionView { margin-bottom: 1; }
    }
    """

    def __init__(self, *, placement: Placement = "side", id: str | None = None) -> None:
        super().__init__(id=id)
        self._state = EngineState()
        self.border_title = "Machine"
        self._tree_height = _SIDE_TREE_HEIGHT
        self.place(placement)

    def compose(self) -> ComposeResult:
        """Two columns; at the side, one below the other."""
        with Vertical(id="machine-left"):
            yield SectionView(layers_section, id="machine-layers")
            yield SectionView(speed_section, id="machine-speed")
        with Vertical(id="machine-right"):
            yield SectionView(self._tree_section, id="machine-tree")
            yield SectionView(acceptance_section, id="machine-acceptance")
            yield SectionView(memory_section, id="machine-memory")

    def show(self, state: EngineState) -> None:
        """Shows that state from now on."""
        self._state = state
        if self.display:
            self._draw()

    def place(self, placement: Placement) -> None:
        """Stands beside the conversation, or below it."""
        self._tree_height = _SIDE_TREE_HEIGHT if placement == "side" else _BOTTOM_TREE_HEIGHT
        self.set_class(placement == "side", "-side")
        self.set_class(placement == "bottom", "-bottom")
        self._draw()

    def on_show(self) -> None:
        """Draws what changed while it was hidden."""
        self._draw()

    def _draw(self) -> None:
        for section in self.query(SectionView):
            section.show(self._state)

    def _tree_section(self, state: EngineState, width: int) -> Section:
        return tree_section(state, width, height=self._tree_height)


def _painted(section: Section) -> Content:
    """The title bold, and every sign in the colour that it has everywhere."""
    rows = (Content.assemble(*map(_styled, groupby(row, key=_style))) for row in section.rows)
    return Content("\n").join([Content.styled(section.title, "bold"), *rows])


def _style(sign: str) -> str:
    return _SIGN_STYLES.get(sign, "")


def _styled(run: tuple[str, Iterator[str]]) -> tuple[str, str]:
    style, signs = run
    return "".join(signs), style
