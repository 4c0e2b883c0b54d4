"""From the names in an `EngineConfig` to folders on this machine: the demo model, a local folder, or a hub name.

Imports no torch, so that a wrong name is told at once, and does not look into the folders.
"""

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

from offload.checkpoint.checkpoint import find_model_folder
from offload.checkpoint.hub_download import watch_download
from profiles.steps import relabel
from runtime.config import EngineConfig
from runtime.engine.demo_model import obtain_demo_model
from runtime.events import LoadProgress


def model_name(folder: Path) -> str:
    """Return what people call the model in a folder: owner/name for a snapshot of the hub, else the folder's name."""
    folder = folder.absolute()
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return folder.name or str(folder)


def locate_models(config: EngineConfig, *, cache_folder: Path) -> Generator[str | LoadProgress, None, EngineConfig]:
    """Return `config` with its models' folders in place of their names; what is missing is downloaded first.

    Yields what it is about to do before each long step, and how far a download is.

    Raises:
        CheckpointError: a name is neither a folder nor a model that the hub delivers.
        BadInputError: the demo model could not be obtained below `cache_folder`.
    """
    if config.target is None:
        target = str((yield from obtain_demo_model(cache_folder)))
    else:
        target = yield from locate_model("target", config.target)
    draft = config.draft
    if config.draft_model is not None:
        draft = yield from locate_model("draft", draft)
    return replace(config, target=target, draft=draft)


def locate_model(role: str, name: str) -> Generator[str | LoadProgress, None, str]:
    """Return the absolute path of one model's folder, as `locate_models` does."""
    yield f"looking for the {role} {name}"
    folder = find_model_folder(name)
    if folder is None:
        downloading = watch_download(name)
        folder = yield from relabel(downloading, lambda sizes: LoadProgress(f"downloading {name}", *sizes))
    return str(folder.absolute())  # a folder may be called "none"
