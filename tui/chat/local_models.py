"""Lists the models that are on this machine: the hub's cache, our own cache, and folders that the user names.

Looks at names and sizes only, so that dozens take a moment; whether one can be used is for a plan to say. Needs no
torch and no hub library.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_HUB_PREFIX = "models--"


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A folder that looks like a model."""

    name: str
    """For a person: `owner/name` from the hub, otherwise the folder's own name."""
    folder: Path
    """What a session can be opened on."""
    weight_bytes: int
    """Of its safetensors files."""


def hub_cache_folder(environment: Mapping[str, str] | None = None) -> Path:
    """Where the hub's libraries keep downloads, by the variables that they look at; may not exist."""
    variables = os.environ if environment is None else environment
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if chosen := variables.get(name):
            return Path(chosen).expanduser()
    if home := variables.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    cache = variables.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "huggingface" / "hub"


def list_local_models(
    *, hub_cache: Path, own_cache: Path, named_folders: Iterable[str | Path] = ()
) -> tuple[LocalModel, ...]:
    """Every model once: those that the user named, then ours and the hub's by name.

    A named folder may be a model or hold models. What is missing or may not be read is left out.
    """
    named = [_expanded(Path(folder)) for folder in named_folders]
    found = [model for folder in named for model in _models_in(folder)]
    rest = [*_models_in(own_cache), *_hub_models(hub_cache)]
    found += sorted(rest, key=lambda model: model.name.lower())
    unique: dict[Path, LocalModel] = {}
    for model in found:
        unique.setdefault(_real(model.folder), model)
    return tuple(unique.values())


def model_name(folder: Path) -> str:
    """What to call the model in a folder: `owner/name` where it is a snapshot in the hub's cache."""
    parents = folder.absolute().parents
    if len(parents) > 1 and parents[0].name == "snapshots" and parents[1].name.startswith(_HUB_PREFIX):
        return parents[1].name.removeprefix(_HUB_PREFIX).replace("--", "/")
    return folder.absolute().name or str(folder)


def _models_in(folder: Path) -> Iterator[LocalModel]:
    """The folder itself if it is a model, otherwise those of its folders that are."""
    model = _model_of(folder)
    if model is not None:
        yield model
        return
    for child in _children(folder):
        if ".partial-" not in child.name and (model := _model_of(child)) is not None:
            yield model


def _hub_models(hub_cache: Path) -> Iterator[LocalModel]:
    for repository in _children(hub_cache):
        if not repository.name.startswith(_HUB_PREFIX):
            continue
        snapshots = [model for each in _children(repository / "snapshots") if (model := _model_of(each)) is not None]
        current = _current_revision(repository)
        snapshots.sort(key=lambda model: (model.folder.name == current, _changed(model.folder)))
        yield from snapshots[-1:]


def _current_revision(repository: Path) -> str | None:
    try:
        return (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _model_of(folder: Path) -> LocalModel | None:
    """The model in a folder with a config.json and weights, all of them there; None if it is none."""
    sizes: list[int] = []
    has_config = False
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                has_config = has_config or entry.name == "config.json"
                if entry.name.endswith(".safetensors"):
                    sizes.append(entry.stat().st_size)  # the target's, through the hub's links
    except OSError:  # no folder, not ours to read, or a link to a file that was deleted
        return None
    return LocalModel(model_name(folder), folder, sum(sizes)) if has_config and sizes else None


def _children(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir())
    except OSError:
        return []


def _changed(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _expanded(folder: Path) -> Path:
    try:
        return folder.expanduser()
    except RuntimeError:  # the home of an unknown user
        return folder


def _real(folder: Path) -> Path:
    try:
        return folder.resolve()
    except (OSError, RuntimeError):  # a link to itself
        return folder
