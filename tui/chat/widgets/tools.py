"""The servers of tools: how they stand and what they can do, each to be switched on and off."""

from collections.abc import Callable
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from profiles.errors import OverstoryError
from tui.chat.commands.keymap import bind, key_now
from tui.chat.engine.messages import Loaded
from tui.chat.tools.servers import ServerState, Tool, ToolServers
from tui.chat.tools.settings import ServerSettings
from tui.environment import config_folder
from tui.terminal_text import one_line

_NONE = (
    "no server of tools is named. In {file}, for example:\n\n"
    "[mcp.files]\n"
    'command = "npx"\n'
    'args = ["-y", "@modelcontextprotocol/server-filesystem", "/some/folder"]\n\n'
    "and start the chat again."
)


class ToolsScreen(ModalScreen[None]):
    """Lists servers, each with its tools below it; Enter switches one on or off."""

    BINDINGS: ClassVar[list[BindingType]] = [
        bind("tools_close", "close", "Close", show=True, tooltip="Go back to the conversation"),
    ]

    def __init__(
        self,
        servers: ToolServers,
        *,
        keep: Callable[[ServerSettings], None],
        model: Callable[[], Loaded | None] = lambda: None,
    ) -> None:
        """`keep` remembers what is on and off; `model` is the one that is open."""
        super().__init__()
        self._servers, self._keep, self._model = servers, keep, model
        self._rows: list[ServerState | Tool] = []
        self._trouble = ""  # with what was switched last

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog"):
            yield Static("Tools", classes="dialog-title")
            yield OptionList(id="tools", compact=True, markup=False)
            yield Static(markup=False, classes="dialog-hint")

    def on_mount(self) -> None:
        self._list()
        self.query_one(OptionList if self._rows else VerticalScroll).focus()

    def refresh_rows(self) -> None:
        """Show them as they stand now."""
        if self.is_mounted:
            self._list()

    def _list(self) -> None:
        rows = self.query_one(OptionList)
        before = rows.highlighted or 0
        self._rows = []
        for state in self._servers.states:
            self._rows += [state, *state.tools]
        rows.clear_options().add_options(Option(_line(each)) for each in self._rows)
        rows.display = bool(self._rows)
        rows.highlighted = min(before, len(self._rows) - 1) if self._rows else None
        self._say()

    @on(OptionList.OptionSelected)
    def switch(self, event: OptionList.OptionSelected) -> None:
        """Switch a server or a tool on or off, and remember it."""
        row = self._rows[event.option_index]
        if isinstance(row, Tool):
            settings = self._servers.switch_tool(row)
        else:
            settings = self._servers.switch_server(row.settings.name, may_start=not self._hindrance())
        self._trouble = ""
        try:
            self._keep(settings)
        except OverstoryError as error:
            self._trouble = one_line(str(error))
        self._list()

    def action_close(self) -> None:
        self.dismiss(None)

    def _say(self) -> None:
        close = f"{key_now(self, 'tools_close')} closes"
        if not self._rows:
            words = f"{close}; {_NONE.format(file=one_line(str(config_folder() / 'settings.toml')))}"
        else:
            parts = ("Enter switches on or off", "every call asks you first", self._hindrance(), close)
            words = " · ".join(filter(None, (self._trouble, self._why(), *parts)))
        self.query_one(".dialog-hint", Static).update(words)

    def _why(self) -> str:
        """Return why the server with the cursor failed, which its line may be too short for."""
        index = self.query_one(OptionList).highlighted
        row = None if index is None else self._rows[index]
        return one_line(row.reason) if isinstance(row, ServerState) else ""

    @on(OptionList.OptionHighlighted)
    def _explain(self) -> None:
        self._say()

    def _hindrance(self) -> str:
        """Return why nothing of this is sent; empty where the model that is open was made for tools."""
        model = self._model()
        if model is None:
            return "servers start once a model is open that was made for tools"
        return "" if model.knows_tools else f"{one_line(model.target)} was not made for tools, so none are sent"


def _line(row: ServerState | Tool) -> Content:
    if isinstance(row, Tool):
        mark = "●" if row.is_on else "○"
        about = one_line(str(row.function.get("description", "")))
        words = f" {'on' if row.is_on else 'off'}  {about}"
        return Content.assemble(f"  {mark} {one_line(row.own_name)}", Content(words).stylize("$text-muted"))
    return Content.assemble(Content(one_line(row.settings.name)).stylize("bold"), f"  {one_line(row.words)}")
