"""Lists the models that are on this machine, and asks the planner how each would fit: what the picker chooses from.

Models lie in the hub's cache, in our own cache, and in folders that the user names. Listing looks at names and sizes
only, so that dozens take a moment; whether one can be used is for a plan to say. Loads nothing and asks nothing of
the network.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

from runtime.config import EngineConfig
from runtime.engine.demo_model import DEMO_MODEL_NAME
from runtime.engine.model_folders import model_name
from tui.chat.fit_estimates import FitEstimate, estimate_fits
from tui.chat.widgets.picker import ListedModel, merged_models
from tui.environment import cache_folder

DEMO_TARGET = ""
"""What the settings say for the demo model."""


class LocalModelSource:
    """The models of this machine, as a `ModelSource`."""

    def __init__(
        self,
        config: EngineConfig,
        recent: Sequence[str],
        *,
        hub_cache: Path | None = None,
        own_cache: Path | None = None,
        ask: Callable[[Sequence[str], EngineConfig], AsyncGenerator[FitEstimate, None]] = estimate_fits,
    ) -> None:
        """`recent` are targets, the last used first; `ask` is the planner."""
        self._config = config
        self._recent = recent
        self._hub_cache = hub_cache
        self._own_cache = cache_folder() if own_cache is None else own_cache
        self._ask = ask
        self._folders: dict[str, str] = {}  # of each target that is here

    async def models(self) -> Sequence[ListedModel]:
        """Return the recent ones, then the others on this machine; the demo model is always there."""
        named = [target for target in self._recent if target]
        found = await asyncio.to_thread(  # since disks may be slow
            list_local_models, own_cache=self._own_cache, hub_cache=self._hub_cache, named_folders=named
        )
        rows = merged_models(self._recent, map(self._under_target, found))
        has_demo = any(row.target == DEMO_TARGET for row in rows)
        return rows if has_demo else (*rows, ListedModel(DEMO_TARGET, f"{DEMO_MODEL_NAME} (demo, fetched once)"))

    async def estimates(self, targets: Sequence[str], *, draft: str) -> AsyncGenerator[FitEstimate, None]:
        target_of = {self._folders[target]: target for target in targets if target in self._folders}
        async with aclosing(self._ask(list(target_of), replace(self._config, draft=draft))) as found:
            async for estimate in found:
                yield replace(estimate, folder=target_of[estimate.folder])

    def _under_target(self, model: ListedModel) -> ListedModel:
        """Return the model under the target that it is known by, and remember its folder."""
        folder = Path(model.target)
        is_demo = folder == self._own_cache / DEMO_MODEL_NAME
        target = DEMO_TARGET if is_demo else self._recent_target(model) or model.target
        self._folders[target] = model.target
        return replace(model, target=target, name=f"{model.name} (demo)" if is_demo else model.name)

    def _recent_target(self, model: ListedModel) -> str | None:
        """Return what this model was called when it was used: its hub name, or its folder however it was written."""
        folder = Path(model.target).absolute()
        for target in self._recent:
            if target and (target in (model.name, model.target) or _expanded(Path(target)).absolute() == folder):
                return target
        return None


def list_local_models(
    *, own_cache: Path, hub_cache: Path | None = None, named_folders: Iterable[str | Path] = ()
) -> tuple[ListedModel, ...]:
    """Return every model once, its folder as the target: those that the user named, then the caches' by name.

    A named folder may be a model or hold models. Without `hub_cache` the hub's library says where its cache is. What is
    missing or may not be read is left out.
    """
    found = [model for folder in named_folders for model in _models_in(_expanded(Path(folder)))]
    cached = [*_models_in(own_cache), *_hub_models(hub_cache)]
    unique: dict[Path, ListedModel] = {}
    for model in (*found, *sorted(cached, key=lambda model: model.name.lower())):
        unique.setdefault(Path(model.target).resolve(), model)
    return tuple(unique.values())


def _models_in(folder: Path) -> Iterator[ListedModel]:
    """Yield the folder itself if it is a model, otherwise those of its folders that are."""
    model = _model_of(folder)
    if model is not None:
        yield model
        return
    for child in _children(folder):
        if ".partial-" not in child.name and (model := _model_of(child)) is not None:
            yield model


def _hub_models(hub_cache: Path | None) -> Iterator[ListedModel]:
    """Yield each model of the hub's cache in the snapshot that `main` names, or in the last that changed."""
    from huggingface_hub import scan_cache_dir  # here, since it takes a moment and the picker is open by now
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(hub_cache).repos
    except (CacheNotFound, OSError, ValueError):  # none was made yet, it may not be read, or a file is in its place
        return
    for repository in repositories:
        if repository.repo_type != "model":
            continue
        by_age = sorted(repository.revisions, key=lambda each: ("main" in each.refs, each.last_modified))
        snapshots = [model for each in by_age if (model := _model_of(each.snapshot_path)) is not None]
        yield from snapshots[-1:]


def _model_of(folder: Path) -> ListedModel | None:
    """Return the model in a folder with a config.json and weights, all of them there; None if it is none."""
    sizes: list[int] = []
    has_config = False
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                has_config = has_config or entry.name == "config.json"
                if entry.name.endswith(".safetensors"):
                    sizes.append(entry.stat().st_size)  # of what the hub's links point to
    except OSError:  # no folder, not ours to read, or a link to a file that was deleted
        return None
    return ListedModel(str(folder), model_name(folder), sum(sizes)) if has_config and sizes else None


def _children(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir())
    except OSError:
        return []


def _expanded(folder: Path) -> Path:
    try:
        return folder.expanduser()
    except RuntimeError:  # the home of an unknown user
        return folder
