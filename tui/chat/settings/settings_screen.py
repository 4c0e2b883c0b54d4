"""All settings in one form: what is wrong with a value stands below it is typed, in the runtime's words.

Returns the settings to hold from now on, or None if it was not wanted after all. Writes no file and loads no model.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.suggester import SuggestFromList
from textual.widget import Widget
from textual.widgets import Button, Input, Static, TextArea

from tui.chat.settings.chat_settings import ChatSettings, Setting
from tui.chat.settings.choice_field import ChoiceField
from tui.chat.settings.setting_words import TYPED_SETTINGS, find_setting, needs_reload, setting_label, suggested_values
from tui.chat.settings.settings_draft import SettingsDraft
from tui.terminal_text import one_line, show_terminal_escapes

_FIELD = "field-"
_AGAIN = "Waits for another load: "


class SettingRow(Vertical):
    """A label, a field, and below them what is wrong."""

    def __init__(self, setting: Setting, field: Widget) -> None:
        super().__init__(id=f"row-{setting.name}")
        self._setting, self._field = setting, field

    def compose(self) -> ComposeResult:
        """The label and the field beside each other."""
        with Horizontal():
            yield Static(setting_label(self._setting), classes="setting-label", markup=False)
            yield self._field
        yield Static("", classes="setting-problem", markup=False)

    def tell(self, problem: str | None) -> None:
        """Shows what is wrong, or that nothing is."""
        self.set_class(problem is not None, "-invalid")
        self.query_one(".setting-problem", Static).update("" if problem is None else f"✗ {one_line(problem)}")


class _Rows(VerticalScroll, inherit_bindings=False):
    """Scrolls with the focus: up and down are the screen's."""


class _SystemPrompt(TextArea):
    """Draws a sign for each character that a terminal would act on, so that the cursor stays where it belongs."""

    def get_line(self, line_index: int) -> Text:
        """A line as it is drawn."""
        line = "".join(show_terminal_escapes(character)[0] for character in self.document.get_line(line_index))
        return Text(line, end="", no_wrap=True)

    def action_cursor_up(self, select: bool = False) -> None:
        """In the first row: to the setting before."""
        if not select and self._row == 0:
            self.screen.focus_previous()
        else:
            super().action_cursor_up(select)

    def action_cursor_down(self, select: bool = False) -> None:
        """In the last row: to the next setting."""
        if not select and self._row == self.wrapped_document.height - 1:
            self.screen.focus_next()
        else:
            super().action_cursor_down(select)

    @property
    def _row(self) -> int:
        return self.wrapped_document.location_to_offset(self.cursor_location).y


class SettingsScreen(ModalScreen[ChatSettings | None]):
    """The form."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "keep", "Keep", tooltip="Let the settings hold from now on", priority=True),
        Binding("escape", "cancel", "Cancel", tooltip="Leave everything as it was"),
        Binding("down", "app.focus_next", "Next setting", show=False, tooltip="Go to the next setting"),
        Binding("up", "app.focus_previous", "Previous setting", show=False, tooltip="Go to the setting before"),
    ]
    DEFAULT_CSS = """
    SettingsScreen {
        align: center middle;
        background: $background 60%;
        & #settings-form {
            width: 78; max-width: 98%; height: 100%; max-height: 38;
            background: $surface; border: round $primary; padding: 0 1;
            border-title-style: bold;
        }
        & #settings-rows { height: 1fr; scrollbar-size-vertical: 1; scrollbar-gutter: stable; }
        & SettingRow { height: auto; }
        & SettingRow > Horizontal { height: auto; }
        & .setting-group { height: 1; color: $text-muted; text-style: italic; margin-top: 1; }
        & .setting-group.-first { margin-top: 0; }
        & .setting-label { width: 22; height: 1; padding: 0 1; }
        & .-current .setting-label { text-style: bold; color: $text-accent; }
        & .-current .setting-label:nocolor { text-style: reverse; }
        & .setting-problem { display: none; height: auto; padding-left: 2; color: $text-error; }
        & .-invalid .setting-problem { display: block; }
        & Input { background: $boost; }
        & TextArea { height: 3; background: $boost; padding: 0; }
        & #settings-help { height: 2; color: $text-muted; padding: 0 1; }
        & #settings-reload { height: 1; color: $text-warning; padding: 0 1; }
        & #settings-reload { text-wrap: nowrap; text-overflow: ellipsis; }
        & #settings-buttons { height: 1; }
        & Button { min-width: 10; width: auto; margin: 0 1; }
        & #settings-hint { width: 1fr; color: $text-muted; text-align: right; }
    }
    """

    def __init__(self, settings: ChatSettings, *, themes: Sequence[str] = (), first: str = "temperature") -> None:
        super().__init__()
        self.draft = SettingsDraft(settings)
        self._themes = tuple(themes)
        self._first = find_setting(first).name

    def compose(self) -> ComposeResult:
        """The rows by group, a sentence about the focused one, and how to leave."""
        with Vertical(id="settings-form") as form:
            form.border_title = "Settings"
            with _Rows(id="settings-rows", can_focus=False):
                yield from self._rows()
            yield Static(id="settings-help", markup=False)
            yield Static(id="settings-reload", markup=False)
            with Horizontal(id="settings-buttons"):
                yield Button("Keep", id="settings-keep", compact=True, variant="primary", tooltip="Ctrl+S")
                yield Button("Cancel", id="settings-cancel", compact=True, tooltip="Esc")
                yield Static("↑↓ move · ←→ choose · Ctrl+S keep · Esc cancel", id="settings-hint")

    def on_mount(self) -> None:
        """Begins at the setting that was asked for."""
        self.query_one(f"#{_FIELD}{self._first}").focus()

    def on_descendant_focus(self) -> None:
        """Says what the focused setting does, and marks its row."""
        name = self._name_of(self.focused)
        for row in self.query(SettingRow):
            row.set_class(row.id == f"row-{name}", "-current")
        text = "" if name is None else find_setting(name).help
        self.query_one("#settings-help", Static).update(text)

    @on(Input.Changed)
    def put_line(self, event: Input.Changed) -> None:
        """Judges what is typed."""
        self._put(event.input, event.value)

    @on(TextArea.Changed)
    def put_lines(self, event: TextArea.Changed) -> None:
        """Judges what is typed."""
        self._put(event.text_area, event.text_area.text)

    @on(ChoiceField.Changed)
    def put_choice(self, event: ChoiceField.Changed) -> None:
        """Takes what is chosen."""
        self._put(event.field, event.value)

    @on(Input.Submitted)
    def go_on(self) -> None:
        """Enter goes to the next setting."""
        self.focus_next()

    @on(Button.Pressed, "#settings-keep")
    def action_keep(self) -> None:
        """Hands the settings over; goes to the first that is not allowed, if there is one."""
        if self.draft.problems:
            self.query_one(f"#{_FIELD}{next(iter(self.draft.problems))}").focus()
            self.app.bell()
            return
        self.dismiss(self.draft.settings)

    @on(Button.Pressed, "#settings-cancel")
    def action_cancel(self) -> None:
        """Hands over nothing."""
        self.dismiss(None)

    def _rows(self) -> Iterator[Widget]:
        for index, (group, settings) in enumerate(groupby(TYPED_SETTINGS, key=lambda setting: setting.group)):
            members = list(settings)
            words = " (with the next load of the model)" if all(map(needs_reload, members)) else ""
            yield Static(f"{group}{words}", classes="setting-group" + ("" if index else " -first"), markup=False)
            for setting in members:
                yield SettingRow(setting, self._field(setting))

    def _field(self, setting: Setting) -> Widget:
        name, text = f"{_FIELD}{setting.name}", self.draft.settings.text_of(setting.name)
        values = self._themes if setting.name == "theme" else setting.choices
        if values:
            return ChoiceField(values, text, id=name, tooltip=setting.help)
        if setting.name == "system_prompt":
            area = _SystemPrompt(text, id=name, compact=True, tab_behavior="focus", tooltip=setting.help)
            area.highlight_cursor_line = False
            return area
        suggester = SuggestFromList(suggested_values(setting), case_sensitive=False)
        return Input(text, id=name, compact=True, suggester=suggester, tooltip=setting.help, select_on_focus=True)

    def _put(self, field: Widget, text: str) -> None:
        name = self._name_of(field)
        if name is None:
            return
        self.query_one(f"#row-{name}", SettingRow).tell(self.draft.put(name, text))
        reloading = ", ".join(setting_label(find_setting(each)) for each in self.draft.reloading)
        self.query_one("#settings-reload", Static).update(Content(f"{_AGAIN}{reloading}" if reloading else ""))

    @staticmethod
    def _name_of(field: Widget | None) -> str | None:
        is_field = field is not None and field.id is not None and field.id.startswith(_FIELD)
        return field.id.removeprefix(_FIELD) if is_field and field is not None and field.id is not None else None
