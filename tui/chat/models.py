"""Lists the models that are on this machine: what the picker chooses from.

Models lie in the hub's cache, in our own cache, and where they were used before. Listing looks at names and sizes
only, so that dozens take a moment; whether one can be used is for a plan to say. Loads nothing and asks nothing of
the network.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from runtime.engine.demo_model import DEMO_MODEL_NAME
from runtime.engine.model_folders import model_name
from tui.environment import cache_folder

DEMO_TARGET = ""
"""What the settings say for the demo model."""


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One row of the list."""

    target: str
    """What a session is opened on: a folder or a hub name; DEMO_TARGET is the demo model."""
    name: str
    """What a person calls it."""
    folder: str = ""
    """Where it lies on this machine; empty where that is not known."""
    weight_bytes: int = 0
    """Size of its safetensors files, if it lies here."""
    is_recent: bool = False
    """Whether it was used before."""


def find_models(
    recent: Sequence[str], *, own_cache: Path | None = None, hub_cache: Path | None = None
) -> tuple[ListedModel, ...]:
    """Return every model once: those of the targets `recent`, in order, then those of the caches by name.

    The demo model is always there. Without `hub_cache` the hub's library says where its cache is. What is missing or
    may not be read is left out.
    """
    own_cache = own_cache or cache_folder()
    cached = [*_own_models(own_cache), *_hub_models(hub_cache)]
    models: dict[str, ListedModel] = {}  # by their folders, whatever links lead there
    for model in sorted(cached, key=lambda each: (each.name.lower(), each.folder)):
        models.setdefault(os.path.realpath(model.folder), model)
    demo_folder = own_cache / DEMO_MODEL_NAME
    demo = models.get(os.path.realpath(demo_folder), ListedModel(DEMO_TARGET, DEMO_MODEL_NAME))
    word = "demo" if demo.folder else "demo, fetched once"
    models[os.path.realpath(demo_folder)] = replace(demo, target=DEMO_TARGET, name=f"{demo.name} ({word})")
    by_name = {model.name: folder for folder, model in models.items()}
    used = []
    for target in dict.fromkeys(recent):
        folder = demo_folder if target == DEMO_TARGET else Path(os.path.expanduser(target))  # noqa: PTH111 - as in actions
        known = models.pop(os.path.realpath(folder), None) or _model_of(folder)
        known = known or models.pop(by_name.get(target, ""), None) or ListedModel(target, target)
        used.append(replace(known, target=target, is_recent=True))
    return (*used, *models.values())


def _own_models(own_cache: Path) -> Iterator[ListedModel]:
    for folder in own_cache.glob("*"):
        if ".partial-" not in folder.name and (model := _model_of(folder)) is not None:
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
    try:
        sizes = [file.stat().st_size for file in folder.glob("*.safetensors")]  # of what the hub's links point to
        is_model = bool(sizes) and (folder / "config.json").exists()
    except OSError:  # not ours to read, or a link to a file that was deleted
        return None
    return ListedModel(str(folder), model_name(folder), str(folder), sum(sizes)) if is_model else None
