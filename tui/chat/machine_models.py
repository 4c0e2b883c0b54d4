"""The models of this machine for the picker: recent ones, those in the caches, and those beside recent folders.

Folders are listed in a thread, and the planner works in a process of its own. Loads nothing.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

from tui.chat.fit_estimates import FitEstimate, estimate_fits
from tui.chat.local_models import hub_cache_folder, list_local_models
from tui.chat.model_list import ListedModel, merged_models
from tui.chat.remembered_settings import RememberedSettings

DEMO = ListedModel("", "demo model (fetched once, 0.5 GB)")


class MachineModels:
    """A `ModelSource` over the folders of this machine."""

    def __init__(
        self,
        settings: RememberedSettings,
        *,
        own_cache: Path,
        hub_cache: Callable[[], Path] = hub_cache_folder,
        estimate: Callable[..., AsyncGenerator[FitEstimate, None]] = estimate_fits,  # type: ignore[assignment]
    ) -> None:
        self._settings = settings
        self._own_cache = own_cache
        self._hub_cache = hub_cache
        self._estimate = estimate

    async def models(self) -> Sequence[ListedModel]:
        """All there is to choose from: recent ones, then the others by name, the demo model last."""
        recent = self._settings.settings.recent_targets
        local = await asyncio.to_thread(self._local, recent)
        return (*merged_models(recent, local), DEMO)

    async def estimates(self, targets: Sequence[str], *, draft: str) -> AsyncGenerator[FitEstimate, None]:
        """What to expect of each that is a folder; hub names and the demo model are not fetched for this."""
        folders = [target for target in targets if target and Path(target).is_dir()]
        if not folders:
            return
        config: dict[str, Any] = self._settings.config() | {"draft": draft}
        async for estimate in self._estimate(folders, config):
            yield estimate

    def _local(self, recent: Sequence[str]) -> list[ListedModel]:
        named = [parent for target in recent if (parent := Path(target).expanduser().parent).is_absolute()]
        found = list_local_models(
            hub_cache=self._hub_cache(), own_cache=self._own_cache, named_folders=dict.fromkeys(named)
        )
        return [ListedModel(str(model.folder), model.name, model.weight_bytes) for model in found]
