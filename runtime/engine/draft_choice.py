"""Which draft `--draft auto` takes where layers stream: a model on this machine, the target's own substitute, or none.

Looked for are model folders and GGUF files beside the target, in the hub's cache, and where ollama and LM Studio keep
theirs, offline, in about a second. Whatever is there may mean harm: it is read as every model is, none of its code is
run, and what cannot be used is passed over. What is found is priced by the planner, so that what does not fit is never
taken.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

from offload.checkpoint.border import MAX_SETTINGS_BYTES, check_small_file
from offload.checkpoint.gguf_file import part_files
from offload.checkpoint.hub_download import HuggingFaceHub
from offload.checkpoint.model_places import gguf_files
from offload.checkpoint.strict_json import read_json
from offload.errors import BudgetError, CheckpointError
from offload.units import format_bytes
from profiles.errors import BadInputError
from runtime.engine.model_folders import model_name, models_of_others
from runtime.fit.config_shape import shape_of_config
from runtime.fit.machine import Machine
from runtime.fit.models import find_shape, known_like, shape_of_folder, usual_draft
from runtime.fit.plan import priced
from runtime.fit.plan_question import PlanQuestion
from runtime.fit.shapes import ModelShape
from runtime.tokenizer.box import Tokenizer
from runtime.tokenizer.match import check_draft_tokenizer, have_equal_tokenizers

logger = logging.getLogger(__name__)

SCAN_SECONDS = 1.0
"""After which no further folder is looked into; 50 folders take a quarter of it."""
MAX_FOLDERS = 200
"""Folders beside the target that are looked into, and models of the hub's cache."""
MAX_ENTRIES = 1000
"""A folder of more files than that is no model folder."""
MAX_PRICED = 6
"""Sizes of drafts that are priced, some hundredths of a second each."""
MAX_TOKENIZERS = 3
"""Of the drafts that are tried, how many whose tokenizer has to be loaded to be compared."""
LARGEST_SHARE = 0.5
"""A draft has at most this share of the target's weights."""
MAX_PADDING = 2048
"""Rows by which embeddings of one tokenizer may differ: some are padded, Qwen2.5's by 128 from size to size."""
_Used = TypeVar("_Used")
_TIE = 1.02
"""Of drafts whose predicted times differ by less, the largest is taken: it keeps more of what is said of it."""
_WORTH_DOWNLOADING = 0.9
"""Share of the predicted time that a draft which is not here must stay below before it is spoken of."""


@dataclass(frozen=True, slots=True)
class FoundDraft:
    """A draft that fits, and what it is predicted to bring."""

    draft: str
    """As `EngineConfig.draft` says it: a folder, or `substitute`."""
    shape: ModelShape
    held: str
    seconds_per_token: float

    @property
    def is_substitute(self) -> bool:
        return self.draft == "substitute"


@dataclass(frozen=True, slots=True)
class DraftChoice:
    """The drafts to try, the best first, and what is known of the session without one."""

    found: tuple[FoundDraft, ...]
    plain_seconds: float | None
    """Predicted seconds per token without a draft; None where that does not fit either."""
    missing: FoundDraft | None
    """A known draft of the target's family that would be worth it, by its name on the hub; None where there is none."""
    substitute_bytes: int
    """What the target's own substitute would take at least."""
    is_missing_compared: bool = True
    """Whether somebody compared the missing draft's tokenizer with the target's."""
    is_gguf: bool = False
    """Whether the target is a GGUF file, so that its owner gets drafts as such files too."""

    def sentence(self, taken: FoundDraft | None) -> str | None:
        """Say which draft was taken and why, or which would be worth downloading; None where nothing is to be said."""
        words = []
        if taken is None:
            words.append(
                f"nothing drafts, since the model's own substitute takes {format_bytes(self.substitute_bytes)}, which "
                "does not fit or gains nothing, and no smaller model of its family was found here"
            )
        elif not taken.is_substitute:
            name = model_name(Path(taken.draft))
            words.append(f"drafting with {name} ({taken.held}), which was found on this machine{self._gain(taken)}")
        better = self.missing
        if better is not None and (
            taken is None or better.seconds_per_token < _WORTH_DOWNLOADING * taken.seconds_per_token
        ):
            size = format_bytes(_file_bytes(better.shape)) + (", less as a GGUF file" if self.is_gguf else "")
            doubt = "" if self.is_missing_compared else ", if its tokenizer turns out to be the same"
            words.append(
                f"overstory run --draft {better.draft} is worth downloading ({size}){doubt}{self._gain(better)}"
            )
        return "; ".join(words) or None

    def _gain(self, taken: FoundDraft) -> str:
        if self.plain_seconds is None:
            return ""
        times = self.plain_seconds / taken.seconds_per_token
        return f": {times:.1f} times the speed of plain streaming by the planner's estimate"


def choose_drafts(question: PlanQuestion, machine: Machine, shapes: Iterable[ModelShape]) -> DraftChoice:
    """Price the `shapes`, folders on this machine, and the target's substitute; `question` is of the plain target.

    A draft slower than plain streaming is left out, but for the substitute.
    """
    target = question.target
    plain_seconds = None
    with suppress(BudgetError):
        plain_seconds = priced(replace(question, draft=None, is_substitute=False), machine).seconds_per_token
    found = list(_priced(question, machine, shapes))
    found = [one for one in found if plain_seconds is None or one.seconds_per_token < plain_seconds]
    found += _priced(question, machine, [target])
    missing = list(_priced(question, machine, _usual_drafts(target)))
    substitute_bytes = min(target.held_bytes(held) for held in ("int8", "nf4"))
    best_missing = _best_first(missing)[0] if missing else None
    if best_missing is not None and plain_seconds is not None and best_missing.seconds_per_token >= plain_seconds:
        best_missing = None
    known = find_shape(target.name)
    return DraftChoice(
        tuple(_best_first(found)),
        plain_seconds,
        best_missing,
        substitute_bytes,
        is_missing_compared=known is not None and known.is_draft_compared,
        is_gguf=target.gguf_file is not None,
    )


def with_found_draft(question: PlanQuestion, machine: Machine, *, may_load_tokenizers: bool = True) -> PlanQuestion:
    """Return what `plan` is asked about a folder with the draft that `auto` takes there, as a session takes it.

    Without `may_load_tokenizers` only drafts count whose tokenizer is the target's byte for byte: the others take
    seconds. A model that is not here gets the first of its usual drafts that fits, else its substitute, else none.
    Questions with a draft of the user's come back as they are.
    """
    target = question.target
    if question.request.draft != "auto":
        return question
    if target.folder is None:
        return _with_usual_draft(question, machine)
    plain, own = (replace(question, draft=draft, is_substitute=draft is target) for draft in (None, target))
    with suppress(BudgetError):
        if question.request.tree == "auto" and not priced(plain, machine).streams:
            return own
    folder = target.folder
    tokenizer = (lambda: Tokenizer(folder)) if may_load_tokenizers else None
    draft, sentence = take_draft(plain, machine, lambda found: found.shape, tokenizer)
    notes = question.notes if sentence is None else (*question.notes, sentence)
    return replace(question, draft=draft, is_substitute=draft is target, notes=notes)


def _with_usual_draft(question: PlanQuestion, machine: Machine) -> PlanQuestion:
    target = question.target
    for draft in (*_usual_drafts(target), target):
        asked = replace(question, draft=draft, is_substitute=draft is target)
        with suppress(BudgetError):
            priced(asked, machine)
            return question if asked == question else asked
    note = "no draft that is known for it fits beside it, nor its own substitute"
    return replace(question, draft=None, is_substitute=False, notes=(*question.notes, note))


def take_draft(
    question: PlanQuestion,
    machine: Machine,
    use: Callable[[FoundDraft], _Used],
    tokenizer: Callable[[], Tokenizer] | None,
) -> tuple[_Used | None, str | None]:
    """Return what `use` makes of the best draft that can be had, None without one, and the sentence on the choice.

    `question` is of the plain target, in a folder. One that `use` raises BadInputError for is passed over; `tokenizer`
    as for `same_tokenizers`.
    """
    target = question.target
    assert target.folder is not None, "drafts are looked for beside a folder"
    choice = choose_drafts(question, machine, local_drafts(target))
    for found in same_tokenizers(choice.found, target.folder, tokenizer):
        try:
            return use(found), choice.sentence(found)
        except BadInputError as error:
            logger.debug("%s is not taken as a draft: %s", found.draft, error)
    return None, choice.sentence(None)


def same_tokenizers(
    found: Iterable[FoundDraft], target: Path, tokenizer: Callable[[], Tokenizer] | None
) -> Iterator[FoundDraft]:
    """Yield the substitute, and the drafts whose tokenizer is that of the folder `target`, in their order.

    `tokenizer` returns the target's, where a look at the files does not tell; None: those are left out.
    """
    num_loaded = 0
    for one in found:
        if not one.is_substitute and not have_equal_tokenizers(target, Path(one.draft)):
            num_loaded += 1
            if tokenizer is None or num_loaded > MAX_TOKENIZERS:
                continue
            try:
                check_draft_tokenizer(tokenizer(), target=target, draft=Path(one.draft))
            except BadInputError as error:
                logger.debug("%s is not taken as a draft: %s", one.draft, error)
                continue
        yield one


def local_drafts(target: ModelShape) -> list[ModelShape]:
    """Return the models on this machine that could draft for the one in `target.folder`, by their config.json.

    Their tokenizers have not been compared, and nobody has looked into their weights.
    """
    assert target.folder is not None
    begun = time.monotonic()
    found: dict[Path, ModelShape] = {}
    for place in _places(target.folder):
        if time.monotonic() - begun > SCAN_SECONDS:
            logger.debug("the search for a draft ended after %d models", len(found))
            break
        try:
            if (shape := _shape_of_draft(place, target)) is not None:
                found[place.resolve()] = replace(shape, name=model_name(place))
        except (CheckpointError, OSError, RuntimeError, ValueError) as error:
            logger.debug("%s drafts for nobody: %s", place, error)
    return [shape for shape in found.values() if shape.folder is not None]


def _places(target: Path) -> Iterator[Path]:
    """Yield the folders and GGUF files beside the target, in the hub's cache, and those of other programs."""
    is_file = target.is_file()
    own = {target.resolve(), *(part_files(target) if is_file else ())}
    for folder in _folders(target):
        models = [folder] if (folder / "config.json").is_file() else []
        for place in (*models, *gguf_files(folder)):
            if place.resolve() not in own and place not in own:
                yield place
    for model in islice(models_of_others(), MAX_FOLDERS):
        if model.file.resolve() not in own:
            yield model.file


def _folders(target: Path) -> Iterator[Path]:
    """Yield the folders in which there may be models: round the target, but for its own revisions, and of the cache."""
    here = target.absolute().parent if target.is_file() else target.resolve()
    if here.parent.name != "snapshots" and here.name != "blobs":
        for around in (here, here.parent) if target.is_file() else (here.parent,):
            yield around
            with suppress(OSError), os.scandir(around) as entries:
                for entry in islice(entries, MAX_FOLDERS):
                    if entry.is_dir() and Path(entry.path).resolve() != here:
                        yield Path(entry.path)
    yield from islice(_cached_snapshots(HuggingFaceHub().cache_folder()), MAX_FOLDERS)


def _cached_snapshots(hub_folder: Path) -> Iterator[Path]:
    """Yield the newest snapshot of each model in the hub's cache."""
    if not hub_folder.is_dir():
        return
    import huggingface_hub

    try:
        repositories = huggingface_hub.scan_cache_dir(hub_folder).repos
    except Exception as error:  # the hub's own errors, and those of the file system
        logger.debug("the hub's cache cannot be searched for a draft: %s", error)
        return
    for repository in sorted(repositories, key=lambda one: str(one.repo_id)):
        if repository.repo_type == "model" and repository.revisions:
            yield Path(max(repository.revisions, key=lambda one: one.last_modified).snapshot_path)


def _shape_of_draft(place: Path, target: ModelShape) -> ModelShape | None:
    """Return the sizes of the model there if it is much smaller and has as large a vocabulary; None if not."""
    if place.is_file():
        shape = shape_of_folder(place)
        return shape if _may_draft(shape, target) else None
    with os.scandir(place) as entries:
        if sum(1 for _ in islice(entries, MAX_ENTRIES + 1)) > MAX_ENTRIES:
            return None
    file = place / "config.json"
    check_small_file(file, max_bytes=MAX_SETTINGS_BYTES)
    shape = shape_of_config(read_json(file, max_bytes=MAX_SETTINGS_BYTES), name=place.name, where=str(file))
    return shape_of_folder(place) if _may_draft(shape, target) else None


def _may_draft(shape: ModelShape, target: ModelShape) -> bool:
    return (
        abs(shape.vocab_size - target.vocab_size) <= MAX_PADDING
        and shape.num_parameters <= LARGEST_SHARE * target.num_parameters
    )


def _usual_drafts(target: ModelShape) -> list[ModelShape]:
    """Return the known models that draft for this one, each the usual draft of the one before."""
    found: list[ModelShape] = []
    known = known_like(target)
    while known is not None and (known := usual_draft(known.name)) is not None and known not in found:
        found.append(known)
    return found


def _priced(question: PlanQuestion, machine: Machine, shapes: Iterable[ModelShape]) -> Iterator[FoundDraft]:
    """Yield the drafts that fit, as the planner prices them: one of each size, and its equals alike."""
    by_size: dict[tuple[int, str], list[ModelShape]] = {}
    for shape in shapes:
        by_size.setdefault((shape.num_parameters, shape.formats[0].name), []).append(shape)
    for size in sorted(by_size, reverse=True)[:MAX_PRICED]:
        equals = by_size[size]
        is_substitute = equals[0] is question.target
        try:
            option = priced(replace(question, draft=equals[0], is_substitute=is_substitute), machine)
        except BudgetError as error:
            logger.debug("%s does not fit as a draft: %s", equals[0].name, error)
            continue
        assert option.draft_held is not None
        for shape in equals:
            draft = "substitute" if is_substitute else str(shape.folder or shape.hub_name or shape.name)
            yield FoundDraft(draft, shape, option.draft_held, option.seconds_per_token)


def _best_first(drafts: Sequence[FoundDraft]) -> list[FoundDraft]:
    """Return the drafts by predicted time, of those that are as good as equal the largest first."""
    left, ordered = list(drafts), []
    while left:
        within = _TIE * min(one.seconds_per_token for one in left)
        equals = [one for one in left if one.seconds_per_token <= within]
        best = max(equals, key=lambda one: (not one.is_substitute, one.shape.num_parameters))
        ordered.append(best)
        left.remove(best)
    return ordered


def _file_bytes(shape: ModelShape) -> int:
    return shape.formats[0].total_bytes + shape.others_bytes
