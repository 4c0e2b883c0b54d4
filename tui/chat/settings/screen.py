"""All settings in one form: what is wrong with a value stands below it while it is typed, in the runtime's words."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.suggester import SuggestFromList
from textual.widget import Widget
from textual.widgets import Button, Input, Static, TextArea

from profiles.errors import BadInputError
from tui.chat.commands.keymap import bind, key_now
from tui.chat.settings.settings import SETTINGS, TYPED_SETTINGS, ChatSettings, Setting, changes_that_reload
from tui.chat.widgets.choice import ChoiceField
from tui.chat.widgets.prompt import SafeTextArea
from tui.terminal_text import one_line

_FIELD = "field-"


class _Row(Vertical):
    def __init__(self, setting: Setting, field: Widget) -> None:
        super().__init__(id=f"row-{setting.name}", classes="setting-row")
        self._setting, self._field = setting, field

    def compose(self) -> ComposeResult:
        with Horizontal():
            yield Static(self._setting.label, classes="setting-label", markup=False)
            yield self._field
        yield Static("", classes="setting-problem", markup=False)

    def tell(self, problem: str | None) -> None:
        self.set_class(problem is not None, "-invalid")
        self.query_one(".setting-problem", Static).update("" if problem is None else f"✗ {one_line(problem)}")


class _Rows(VerticalScroll, inherit_bindings=False):
    """Scrolls with the focus: up and down are the screen's."""


class _SystemPrompt(SafeTextArea):
    def action_cursor_up(self, select: bool = False) -> None:
        if not select and self._row == 0:
            self.screen.focus_previous()
        else:
            super().action_cursor_up(select)

    def action_cursor_down(self, select: bool = False) -> None:
        if not select and self._row == self.wrapped_document.height - 1:
            self.screen.focus_next()
        else:
            super().action_cursor_down(select)

    @property
    def _row(self) -> int:
        return self.wrapped_document.location_to_offset(self.cursor_location).y


class SettingsScreen(ModalScreen[ChatSettings | None]):
    """The form; its result is the settings to hold from now on, or None if nothing is to change."""

    BINDINGS: ClassVar[list[BindingType]] = [
        bind("keep", "keep", "Keep", show=True, priority=True, tooltip="Let the settings hold from now on"),
        bind("cancel", "cancel", "Cancel", show=True, tooltip="Leave everything as it was"),
        bind("field_after", "app.focus_next", "Next setting", tooltip="Go to the next setting"),
        bind("field_before", "app.focus_previous", "Previous setting", tooltip="Go to the setting before"),
    ]

    def __init__(
        self,
        settings: ChatSettings,
        *,
        themes: Sequence[str] = (),
        now: Mapping[str, str] | None = None,
        key_problems: Sequence[str] = (),
    ) -> None:
        """`now`: what holds where the settings do not say it themselves, and where it comes from.

        `key_problems`: what of the keys in the file does not hold, a sentence each.
        """
        super().__init__()
        self._key_problems = key_problems
        self._now = now or {}
        self._before = self._settings = settings  # one with a problem is as it was before that text
        self._problems: dict[str, str] = {}  # a sentence for each whose text is not allowed
        self._themes = tuple(themes)

    def compose(self) -> ComposeResult:
        with Vertical(id="settings-form") as form:
            form.border_title = "Settings"
            with _Rows(id="settings-rows", can_focus=False):
                yield from self._rows()
            yield Static(id="settings-help", markup=False)
            yield Static(id="settings-reload", markup=False)
            with Horizontal(id="settings-buttons"):
                keep, cancel = key_now(self, "keep"), key_now(self, "cancel")
                yield Button("Keep", id="settings-keep", compact=True, variant="primary", tooltip=keep)
                yield Button("Cancel", id="settings-cancel", compact=True, tooltip=cancel)
                yield Static(f"↑↓ move · ←→ choose · {keep} keep · {cancel} cancel", id="settings-hint", markup=False)

    def on_mount(self) -> None:
        self.query_one(f"#{_FIELD}temperature").focus()

    def on_descendant_focus(self) -> None:
        """Say what the focused setting does, and mark its row."""
        name = self._name_of(self.focused)
        for row in self.query(_Row):
            row.set_class(row.id == f"row-{name}", "-current")
        text = "" if name is None else SETTINGS[name].help
        if name is not None and name in self._now:
            text += f" Now {one_line(self._now[name])}."
        self.query_one("#settings-help", Static).update(text)

    @on(Input.Changed)
    def _put_line(self, event: Input.Changed) -> None:
        self._put(event.input, event.value)

    @on(TextArea.Changed)
    def _put_lines(self, event: TextArea.Changed) -> None:
        self._put(event.text_area, event.text_area.text)

    @on(ChoiceField.Changed)
    def _put_choice(self, event: ChoiceField.Changed) -> None:
        self._put(event.field, event.value)

    @on(Input.Submitted)
    def _go_on(self) -> None:
        self.focus_next()

    @on(Button.Pressed, "#settings-keep")
    def action_keep(self) -> None:
        """Hand the settings over, or go to the first that is not allowed."""
        if self._problems:
            self.query_one(f"#{_FIELD}{next(iter(self._problems))}").focus()
            self.app.bell()
            return
        self.dismiss(self._settings)

    @on(Button.Pressed, "#settings-cancel")
    def action_cancel(self) -> None:
        self.dismiss(None)

    def _rows(self) -> Iterator[Widget]:
        for problem in self._key_problems:
            yield Static(f"✗ {one_line(problem)}", classes="setting-note -problem", markup=False)
        for index, (group, settings) in enumerate(groupby(TYPED_SETTINGS.values(), key=attrgetter("group"))):
            members = list(settings)
            words = " (with the next load of the model)" if all(setting.needs_reload for setting in members) else ""
            yield Static(f"{group}{words}", classes="setting-group" + ("" if index else " -first"), markup=False)
            if group == SETTINGS["theme"].group:  # above its field, to be in sight with it
                about = f"Keys: a table [keys] in the settings file; {key_now(self, 'help')} shows the names."
                yield Static(about, classes="setting-note", markup=False)
            for setting in members:
                yield _Row(setting, self._field(setting))

    def _field(self, setting: Setting) -> Widget:
        name, text = f"{_FIELD}{setting.name}", str(self._settings[setting.name])
        values = self._themes if setting.name == "theme" else setting.choices
        if values:
            return ChoiceField(values, text, id=name, tooltip=setting.help)
        if setting.name == "system_prompt":
            area = _SystemPrompt(text, id=name, compact=True, tab_behavior="focus", tooltip=setting.help)
            area.highlight_cursor_line = False
            return area
        suggester = SuggestFromList(setting.suggestions, case_sensitive=False)
        return Input(text, id=name, compact=True, suggester=suggester, tooltip=setting.help, select_on_focus=True)

    def _put(self, field: Widget, text: str) -> None:
        name = self._name_of(field)
        if name is None:
            return
        try:
            self._settings = self._settings.with_text(name, text)
            self._problems.pop(name, None)
        except BadInputError as error:
            self._problems[name] = str(error)
        self.query_one(f"#row-{name}", _Row).tell(self._problems.get(name))
        reloading = ", ".join(SETTINGS[each].label for each in changes_that_reload(self._before, self._settings))
        words = f"Waits for another load: {reloading}" if reloading else ""
        self.query_one("#settings-reload", Static).update(words)

    @staticmethod
    def _name_of(field: Widget | None) -> str | None:
        field_id = (field.id if field is not None else None) or ""
        return field_id.removeprefix(_FIELD) if field_id.startswith(_FIELD) else None
