"""From the names in an `EngineConfig` to folders on this machine: the demo model, a local folder, or a hub name.

Yields what it is about to do before each long step, and how far a download is. Prints nothing and does not look into
the folders.
"""

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

from offload.checkpoint.checkpoint import find_model_folder, resolve_model_folder
from offload.checkpoint.hub_download import watch_download
from profiles.steps import relabel
from runtime.engine.demo_model import obtain_demo_model
from runtime.engine_config import EngineConfig
from runtime.events import LoadProgress


def model_name(folder: Path) -> str:
    """Return what people call the model in a folder: owner/name for a snapshot of the hub, else the folder's name."""
    folder = folder.absolute()
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return folder.name or str(folder)


def locate_models(config: EngineConfig, *, cache_folder: Path) -> Generator[str, None, tuple[Path, Path | None]]:
    """Return the target's folder and that of a separate draft (None for `none` and `substitute`).

    The hub's own bars show downloads on stderr.

    Raises:
        CheckpointError: a name is neither a folder nor a model that the hub delivers.
        DemoModelError: the demo model could not be obtained below `cache_folder`.
    """
    if config.target is None:
        target = yield from obtain_demo_model(cache_folder)
    else:
        yield f"looking for the target {config.target}"
        target = resolve_model_folder(config.target)
    if config.draft in ("none", "substitute"):
        return target, None
    yield f"looking for the draft {config.draft}"
    return target, resolve_model_folder(config.draft)


def locate_models_in_sight(
    config: EngineConfig, *, cache_folder: Path
) -> Generator[str | LoadProgress, None, tuple[Path, Path | None]]:
    """The same for whoever shows downloads: yields their progress too. Raises what `locate_models` does."""
    downloaded: dict[str, Any] = {}
    for role in ("target", "draft"):
        name = getattr(config, role)
        if name not in (None, "none", "substitute") and find_model_folder(name) is None:
            yield f"looking for the {role} {name}"
            downloaded[role] = str((yield from _download_in_sight(name)))
    return (yield from locate_models(replace(config, **downloaded), cache_folder=cache_folder))


def _download_in_sight(name: str) -> Generator[LoadProgress, None, Path]:
    return relabel(watch_download(name), lambda sizes: LoadProgress(f"downloading {name}", *sizes))
