"""From the names in an `EngineConfig` to folders on this machine: the demo model, a local folder, or a hub name.

Yields what it is about to do before each long step, and prints nothing. Does not look into the folders.
"""

from collections.abc import Generator
from pathlib import Path

from offload.checkpoint import resolve_model_folder
from runtime.demo_model import obtain_demo_model
from runtime.engine_config import EngineConfig


def locate_models(config: EngineConfig, *, cache_folder: Path) -> Generator[str, None, tuple[Path, Path | None]]:
    """Return the target's folder and that of a separate draft (None for `none` and `substitute`).

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
