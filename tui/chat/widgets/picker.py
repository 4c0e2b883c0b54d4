"""Lets a person choose a model and its draft: recent ones, those on this machine, or any folder or hub name.

The picker opens at once; the models, and then what each would be like here, arrive while it is used. What is typed
filters the list by name; if it is none of the names it may itself be a folder, whose models are listed as well, or a
hub name. Loads nothing.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import ClassVar

from rich.cells import cell_len
from textual import events, on, work
from textual.actions import SkipAction
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.suggester import Suggester
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from offload.units import format_bytes
from profiles.errors import OverstoryError
from runtime.config import EngineConfig
from tui.chat.commands.keymap import bind, key_now
from tui.chat.commands.slash import paths_from
from tui.chat.machine.drawing import fit_text, rate_text
from tui.chat.models import (
    DEMO_TARGET,
    FitEstimate,
    ListedModel,
    estimate_fits,
    find_models,
    is_path,
    models_below,
)
from tui.chat.widgets.choice import ChoiceField
from tui.terminal_text import one_line

OTHER_DRAFT = "another model"
_DRAFTS = ("auto", "substitute", "none", OTHER_DRAFT)
_DRAFT_WORDS: Mapping[str, str] = {
    "auto": "guesses ahead where layers stream in",
    "substitute": "guesses ahead with the model itself, made smaller",
    "none": "no guessing ahead: one token per pass",
}
_RECENT, _BASE = " (recent)", " (base)"
LOW_ROWS = 18
"""Below this many the parts stand without room between them."""
_SIZE_WIDTH, _FIT_WIDTH, _GAP = 8, 24, "  "


class ModelPicker(ModalScreen[tuple[str, str] | None]):
    """The list, a line to filter or to type another one, and the draft.

    Returns the target and the draft that were chosen: each a folder or hub name; an empty target is the demo model,
    and a draft may be `auto`, `substitute` or `none`.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        bind("model_after", "move(1)", "Next model", tooltip="Go to the next model"),
        bind("model_before", "move(-1)", "Model before", tooltip="Go to the model before"),
        bind("model_load", "choose", "Load", tooltip="Load the highlighted model"),
        bind("model_forget", "forget", "Forget", priority=True, tooltip="Take a recent model off the list"),
        bind("cancel", "dismiss", "Cancel", show=True, tooltip="Keep the model that is loaded"),
    ]
    forget: Callable[[str], object] | None = None
    """What takes a target off the recent ones."""

    def __init__(
        self,
        config: EngineConfig,
        recent: Sequence[str],
        *,
        find: Callable[[Sequence[str]], Sequence[ListedModel]] = find_models,
        estimate: Callable[[Sequence[str], EngineConfig], AsyncGenerator[FitEstimate, None]] = estimate_fits,
    ) -> None:
        """`recent` are the targets that were used before, the last one first."""
        super().__init__()
        self._config, self._recent = config, recent
        self._find, self._ask = find, estimate
        self._models: tuple[ListedModel, ...] | None = None
        self._below: tuple[ListedModel, ...] = ()
        self._shown: tuple[ListedModel, ...] = ()
        self._estimates: dict[str, FitEstimate | None] = {}  # by folder; None while it is waited for
        self._trouble = ""

    def compose(self) -> ComposeResult:
        is_other = self._config.draft not in _DRAFTS
        with Vertical(id="model-form") as form:
            form.border_title = "Model"
            with Horizontal(classes="model-line"):
                yield Static("find", classes="model-label")
                yield Input(
                    placeholder="part of a name, a folder, or owner/name on the hub",
                    id="model-filter",
                    compact=True,
                    suggester=PathSuggester(case_sensitive=True),
                    tooltip="Filters the list; a folder or hub name that is not in it can be loaded too",
                )
            yield OptionList(id="model-list", compact=True, markup=False)
            with Horizontal(classes="model-line"):
                yield Static("draft", classes="model-label")
                yield ChoiceField(
                    *(_DRAFTS, OTHER_DRAFT if is_other else self._config.draft),
                    id="model-draft-kind",
                    tooltip="substitute: the model itself, quantized; auto: that where layers stream; none: no draft",
                )
                line = Input(
                    self._config.draft if is_other else "",
                    placeholder="its folder or hub name",
                    id="model-draft",
                    compact=True,
                    tooltip="The draft; it must share the model's vocabulary",
                )
                line.display = is_other
                yield line
                yield Static(_DRAFT_WORDS.get(self._config.draft, ""), id="model-draft-words", markup=False)
            yield Static(id="model-sentence", markup=False)
            yield Static(self._hint(), id="model-hint", markup=False)

    def _hint(self) -> str:
        load, forget, back = (key_now(self, name) for name in ("model_load", "model_forget", "cancel"))
        return f"{load} load · ↑↓ choose · → complete · Tab draft · {forget} forget · {back} back"

    def on_mount(self) -> None:
        self.query_one("#model-filter").focus()
        self._find_models()

    def on_resize(self, event: events.Resize) -> None:
        self.set_class(event.size.height < LOW_ROWS, "-low")
        self.call_after_refresh(self._list)

    @on(Input.Changed, "#model-filter")
    def filter_models(self, event: Input.Changed) -> None:
        """Show what matches, the first of it highlighted."""
        self._list(first=True)
        self._look_below(event.value.strip())

    @work(group="below", exclusive=True)
    async def _look_below(self, typed: str) -> None:
        """List the models of a folder that is typed."""
        found = await asyncio.to_thread(models_below, typed)  # disks may be slow
        if found != self._below:
            self._below = found
            self._list(first=True)
            self._estimate()

    def action_forget(self) -> None:
        """Take the highlighted model off the recent ones; within a text the key deletes a character."""
        field = self.focused
        if isinstance(field, Input) and field.cursor_position < len(field.value):
            raise SkipAction
        model = self._highlighted
        if model is None or not model.is_recent or self.forget is None:
            return
        self.forget(model.target)
        self._recent = tuple(target for target in self._recent if target != model.target)
        self._find_models()

    @on(ChoiceField.Changed, "#model-draft-kind")
    def change_draft_kind(self, event: ChoiceField.Changed) -> None:
        """Ask for a name where it is another model, and how all would fit with that draft."""
        line = self.query_one("#model-draft", Input)
        line.display = event.value == OTHER_DRAFT
        self.query_one("#model-draft-words", Static).update(_DRAFT_WORDS.get(event.value, ""))
        if line.display:
            line.focus()
        else:
            self._estimate()

    @on(Input.Submitted)
    @on(OptionList.OptionSelected)
    def action_choose(self) -> None:
        """Return the highlighted model with the draft."""
        model = self._highlighted
        if model is None:
            return
        if not self.draft:
            self.query_one("#model-draft").focus()
            return
        self.dismiss((model.target, self.draft))

    def action_move(self, step: int) -> None:
        """Highlight the next one, or with -1 the one before."""
        rows = self.query_one(OptionList)
        if step > 0:
            rows.action_cursor_down()
        else:
            rows.action_cursor_up()

    @property
    def draft(self) -> str:
        """Return the draft that is chosen now; empty while another model is wanted and not named."""
        kind = self.query_one("#model-draft-kind", ChoiceField).value
        return self.query_one("#model-draft", Input).value.strip() if kind == OTHER_DRAFT else kind

    @property
    def _highlighted(self) -> ListedModel | None:
        index = self.query_one(OptionList).highlighted
        return None if index is None or index >= len(self._shown) else self._shown[index]

    @work(group="models", exclusive=True)
    async def _find_models(self) -> None:
        self._list()
        try:
            self._models = tuple(await asyncio.to_thread(self._find, self._recent))  # disks may be slow
        except (OSError, OverstoryError) as error:
            self._models, self._trouble = (), f"the models cannot be listed: {error}"
        self._list(first=True)
        self._estimate()

    @on(Input.Blurred, "#model-draft")
    @work(group="estimates", exclusive=True)
    async def _estimate(self) -> None:
        """Ask how all would fit with the draft."""
        folders = [model.folder for model in (*(self._models or ()), *self._below) if model.folder and self.draft]
        self._estimates = dict.fromkeys(folders)
        self._list()
        if not self._estimates:
            return
        try:
            async with aclosing(self._ask(folders, replace(self._config, draft=self.draft))) as estimates:
                async for estimate in estimates:
                    self._estimates[estimate.folder] = estimate
                    self._list()
        except (OSError, OverstoryError) as error:
            self._trouble = f"no estimates: {error}"
        self._estimates = {folder: estimate for folder, estimate in self._estimates.items() if estimate is not None}
        self._list()

    def _list(self, *, first: bool = False) -> None:
        """Write the rows; the highlight stays on its model, or goes to the first."""
        rows, before = self.query_one(OptionList), None if first else self._highlighted
        shown = matching_models(self._models or (), self.query_one("#model-filter", Input).value, below=self._below)
        texts = [Content(self._row(model, rows.scrollable_content_region.width)) for model in shown]
        if shown == self._shown and not first:
            for index, text in enumerate(texts):  # in place, so that nobody's scrolling is undone
                rows.replace_option_prompt_at_index(index, text)
        else:
            self._shown = shown
            rows.clear_options().add_options(map(Option, texts))
            rows.highlighted = (shown.index(before) if before in shown else 0) if shown else None
        self._tell()

    def _row(self, model: ListedModel, width: int) -> str:
        estimate = self._estimates.get(model.folder)
        fit = fit_words(estimate) if estimate else "…" if model.folder in self._estimates else ""
        return model_row(model, fit, width=width)

    @on(OptionList.OptionHighlighted)
    def _tell(self) -> None:
        model = self._highlighted
        if self._models is None:
            words = "looking for models…"
        elif model is None:
            words = "no model here; type a folder or a hub name"
        else:
            words = model_sentence(model, self._estimates)
        self.query_one("#model-sentence", Static).update(
            one_line(f"{self._trouble}; {words}" if self._trouble else words)
        )


class PathSuggester(Suggester):
    """Proposes how a path that is being typed goes on."""

    async def get_suggestion(self, value: str) -> str | None:
        """Return the first path that begins so."""
        found = await asyncio.to_thread(paths_from, value) if is_path(value) else ()
        return next((path for path in found if path != value), None)


def matching_models(
    models: Sequence[ListedModel], typed: str, *, below: Sequence[ListedModel] = ()
) -> tuple[ListedModel, ...]:
    """Return those whose name or folder holds every word, those `below` a folder that is typed, and last what was
    typed itself if it names none of them."""
    words = typed.lower().split()
    found = [model for model in models if all(word in f"{model.name} {model.target}".lower() for word in words)]
    folders = {model.folder for model in found if model.folder}
    found += [model for model in below if model.folder not in folders]
    wanted = typed.strip()
    if wanted and not any(wanted.rstrip("/") in (model.name, model.target) for model in found):
        found.append(ListedModel(wanted, f"{wanted} (as typed)"))
    return tuple(found)


def model_row(model: ListedModel, fit: str, *, width: int) -> str:
    """Return `name   3.09 GB  streams, 0.6 s/token`, exactly `width` cells where there is room for that."""
    size = format_bytes(model.weight_bytes) if model.folder else ""
    tail = f"{size:>{_SIZE_WIDTH}}{_GAP}{fit_text(fit, _FIT_WIDTH):<{_FIT_WIDTH}}"
    room = width - len(tail) - len(_GAP)
    if room < 8:
        return fit_text(one_line(model.name), width)
    name = fit_text(one_line(model.name), room)
    for is_so, word in ((model.is_recent, _RECENT), (not model.has_chat_template, _BASE)):
        if is_so and cell_len(name) + len(word) <= room:
            name += word
    return name + " " * (room - cell_len(name)) + _GAP + tail


def fit_words(estimate: FitEstimate) -> str:
    """Return a few words: `in memory, 12.0 tok/s`, `streams, 0.6 s/token`, `does not fit`."""
    seconds, fit = estimate.seconds_per_token, "in memory" if estimate.fit == "resident" else estimate.fit
    if not seconds:
        return fit
    return f"{fit}, " + (f"{rate_text(1 / seconds)} tok/s" if seconds < 1 else f"{seconds:.1f} s/token")


def model_sentence(model: ListedModel, estimates: Mapping[str, FitEstimate | None]) -> str:
    """Say all that is known of one, for the foot of the list."""
    kind = "" if model.has_chat_template else "no chat template: writes on from your text; "
    if model.folder in estimates:
        estimate = estimates[model.folder]
        return one_line(f"{model.name}: {kind}{estimate.sentence if estimate else 'looking how it would fit…'}")
    if model.target == DEMO_TARGET:
        return one_line(f"{model.name}: Enter downloads it once and loads it")
    return one_line(f"{model.target}: {kind}Enter loads it, from a folder or by its hub name")
