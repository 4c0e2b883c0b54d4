"""From the names in an `EngineConfig` to models on this machine: the demo model, a local folder or GGUF file, or a hub
name.

Imports no torch, so that a wrong name is told at once, and does not look into the models.
"""

from collections.abc import Generator, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

from offload.checkpoint.gguf_file import PART_NAME, part_files
from offload.checkpoint.hub_download import watch_download
from offload.checkpoint.model_places import (
    FoundModel,
    HubModel,
    find_local,
    find_place,
    gguf_files,
    lm_studio_models,
    ollama_ignores,
    ollama_models,
)
from offload.errors import CheckpointError
from profiles.steps import relabel
from runtime.config import EngineConfig
from runtime.engine.demo_model import obtain_demo_model
from runtime.events import LoadProgress


def model_name(folder: Path) -> str:
    """Return what people call the model in a folder or GGUF file: owner/name of the hub, ollama:NAME, else its name."""
    folder = folder.absolute()
    is_file = folder.is_file()
    for place in (folder, *folder.parents):
        repository = place.parent.parent.name
        if place.parent.name == "snapshots" and repository.startswith("models--"):
            owned = repository.removeprefix("models--").replace("--", "/")
            return f"{owned}/{_file_name(folder)}" if is_file else owned
    if is_file and folder.parent.name == "blobs":
        return next((model.spelling for model in ollama_models() if model.file == folder), folder.name)
    return _file_name(folder) if is_file else folder.name or str(folder)


def _file_name(file: Path) -> str:
    part = PART_NAME.fullmatch(file.name)
    return file.stem if part is None else part["stem"]


def models_of_others() -> Iterator[FoundModel]:
    """Yield the GGUF models that other programs, ollama and LM Studio, hold on this machine."""
    return chain(ollama_models(), lm_studio_models())


def weight_files(place: Path) -> list[Path]:
    """Return the files that hold the weights of a model folder or GGUF file."""
    return list(part_files(place)) if place.is_file() else sorted(place.glob("*.safetensors"))


def gguf_file_of(place: Path) -> Path | None:
    """Return the GGUF model that a path is, or the only one of a folder that is no model itself; else None."""
    try:
        found = find_local(str(place))
    except CheckpointError:
        return None
    return found if found is not None and found.is_file() else None


def gguf_files_below(folder: Path) -> list[Path]:
    """Return the GGUF models in a folder and in the folders in it."""
    return [file for place in (folder, *sorted(filter(Path.is_dir, folder.iterdir()))) for file in gguf_files(place)]


def locate_models(config: EngineConfig, *, cache_folder: Path) -> Generator[str | LoadProgress, None, EngineConfig]:
    """Return `config` with its models' folders and files in place of their names; what is missing is downloaded first.

    Yields what it is about to do before each long step, and how far a download is.

    Raises:
        CheckpointError: a name is neither a model here nor one that the hub delivers.
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
    """Return the absolute path of one model's folder or GGUF file, as `locate_models` does."""
    yield f"looking for the {role} {name}"
    found = find_place(name)
    if isinstance(found, HubModel):
        downloading = watch_download(found.name, variant=found.variant)
        found = yield from relabel(downloading, lambda sizes: LoadProgress(f"downloading {name}", *sizes))
    elif (sentence := ollama_ignores(found)) is not None:
        yield sentence
    return str(found.absolute())  # a folder may be called "none"
