"""Models and estimates for the picker: the folders on this machine, the recent ones, and the planner in its process.

Disks may be slow, so that folders are listed in a thread. Loads nothing and asks nothing of the network.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.engine.demo_model import DEMO_MODEL_NAME
from tui.chat.fit_estimates import FitEstimate, estimate_fits
from tui.chat.local_models import LocalModel, hub_cache_folder, list_local_models
from tui.chat.widgets.model_list import ListedModel, merged_models
from tui.environment import cache_folder

DEMO_TARGET = ""
"""What the settings say for the demo model."""


class LocalModelSource:
    """Fits `ModelPicker`."""

    def __init__(
        self,
        config: Mapping[str, Any],
        recent: Sequence[str],
        *,
        hub_cache: Path | None = None,
        own_cache: Path | None = None,
        ask: Callable[[Sequence[str], Mapping[str, Any]], AsyncGenerator[FitEstimate, None]] = estimate_fits,
    ) -> None:
        """`config` are fields of `EngineConfig`; `recent` are targets, the last used first; `ask` is the planner."""
        self._config = config
        self._recent = recent
        self._hub_cache = hub_cache_folder() if hub_cache is None else hub_cache
        self._own_cache = cache_folder() if own_cache is None else own_cache
        self._ask = ask
        self._folders: dict[str, str] = {}  # of each target that is here

    async def models(self) -> Sequence[ListedModel]:
        """The recent ones, then the others on this machine; the demo model is always there."""
        local = [self._listed(model) for model in await asyncio.to_thread(self._list)]
        rows = merged_models(self._recent, local)
        has_demo = any(row.target == DEMO_TARGET for row in rows)
        return rows if has_demo else (*rows, ListedModel(DEMO_TARGET, f"{DEMO_MODEL_NAME} (demo, fetched once)"))

    async def estimates(self, targets: Sequence[str], *, draft: str) -> AsyncGenerator[FitEstimate, None]:
        """What the planner expects of each that is here, with that draft, as it answers."""
        target_of = {self._folders[target]: target for target in targets if target in self._folders}
        async with aclosing(self._ask(list(target_of), {**self._config, "draft": draft})) as found:
            async for estimate in found:
                yield replace(estimate, folder=target_of[estimate.folder])

    def _list(self) -> tuple[LocalModel, ...]:
        """In a thread."""
        named = [folder for target in self._recent if target and (folder := Path(target).expanduser()).is_dir()]
        return list_local_models(hub_cache=self._hub_cache, own_cache=self._own_cache, named_folders=named)

    def _listed(self, model: LocalModel) -> ListedModel:
        is_demo = model.folder == self._own_cache / DEMO_MODEL_NAME
        target = DEMO_TARGET if is_demo else self._recent_target(model) or str(model.folder)
        self._folders[target] = str(model.folder)
        return ListedModel(target, f"{model.name} (demo)" if is_demo else model.name, model.weight_bytes)

    def _recent_target(self, model: LocalModel) -> str | None:
        """What this model was called when it was used: its hub name, or its folder however it was written."""
        is_it = (
            target for target in self._recent if target in (model.name, str(model.folder)) or _is_at(target, model)
        )
        return next(is_it, None)


def _is_at(target: str, model: LocalModel) -> bool:
    return bool(target) and Path(target).expanduser().absolute() == model.folder.absolute()
