"""The models to choose from, with what each would be like here as far as that is known yet. Knows no widget.

What is typed filters the list by name; if it is none of the names it may itself be a folder or a hub name.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from offload.units import format_bytes
from tui.chat.fit_estimates import FitEstimate
from tui.chat.machine.drawing import fit_text, rate_text
from tui.terminal_text import one_line

_RECENT = " (recent)"
_SIZE_WIDTH, _FIT_WIDTH, _GAP = 8, 24, "  "


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One row."""

    target: str
    """What a session is opened on: a folder or a hub name; empty is the demo model."""
    name: str
    """For a person."""
    weight_bytes: int | None = None
    """Of its files; None where that is not known."""
    is_recent: bool = False
    """Whether it was used before."""


def merged_models(recent: Iterable[str], local: Iterable[ListedModel]) -> tuple[ListedModel, ...]:
    """Every model once: the recent ones, the last used first, with what is known of them, then the others."""
    by_target = {model.target: model for model in local}
    rows = []
    for target in dict.fromkeys(recent):
        known = by_target.pop(target, ListedModel(target, target))
        rows.append(ListedModel(target, known.name, known.weight_bytes, is_recent=True))
    return (*rows, *by_target.values())


def matching_models(models: Sequence[ListedModel], typed: str) -> tuple[ListedModel, ...]:
    """Those whose name or folder holds every word; what was typed itself comes last if it names none of them."""
    words = typed.lower().split()
    found = [model for model in models if all(word in f"{model.name} {model.target}".lower() for word in words)]
    wanted = typed.strip()
    if wanted and not any(wanted in (model.name, model.target) for model in found):
        found.append(ListedModel(wanted, f"{wanted} (as typed)"))
    return tuple(found)


def model_row(model: ListedModel, estimate: FitEstimate | None, *, width: int, is_waiting: bool) -> str:
    """`name   3.09 GB  streams, 0.6 s/token`, exactly `width` cells where there is room for that."""
    size = "" if model.weight_bytes is None else format_bytes(model.weight_bytes)
    fit = fit_words(estimate) if estimate else "…" if is_waiting else ""
    tail = f"{size:>{_SIZE_WIDTH}}{_GAP}{fit_text(fit, _FIT_WIDTH):<{_FIT_WIDTH}}"
    room = width - len(tail) - len(_GAP)
    if room < 8:
        return fit_text(one_line(model.name), width)
    name = fit_text(one_line(model.name), room)
    if model.is_recent and cell_len(name) + len(_RECENT) <= room:
        name += _RECENT
    return name + " " * (room - cell_len(name)) + _GAP + tail


def fit_words(estimate: FitEstimate) -> str:
    """A few words: `resident, 12.0 tok/s`, `streams, 0.6 s/token`, `does not fit`."""
    seconds = estimate.seconds_per_token
    if not seconds:
        return estimate.fit
    return f"{estimate.fit}, " + (f"{rate_text(1 / seconds)} tok/s" if seconds < 1 else f"{seconds:.1f} s/token")


def model_sentence(model: ListedModel, estimates: Mapping[str, FitEstimate], *, is_waiting: bool) -> str:
    """All that is known of one, for the foot of the list."""
    estimate = estimates.get(model.target)
    if estimate is not None:
        return one_line(f"{model.name}: {estimate.sentence}")
    if is_waiting:
        return one_line(f"{model.name}: the planner is asked how it would fit…")
    return one_line(f"{model.target or model.name}: Enter loads it, from a folder or by its hub name")
