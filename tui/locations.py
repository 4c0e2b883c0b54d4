"""Every path that the program chooses itself: the cache, and the demo prompts of a checkout.

OVERSTORY_CACHE overrides the cache; otherwise it is where the operating system keeps caches. Creates nothing.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path


def cache_folder(*, environment: Mapping[str, str] | None = None, platform: str = sys.platform) -> Path:
    """The folder below which fetched models are kept; may not exist yet."""
    variables = os.environ if environment is None else environment
    if chosen := variables.get("OVERSTORY_CACHE"):
        return Path(chosen).expanduser()
    if platform == "darwin":
        return Path.home() / "Library" / "Caches" / "overstory"
    if platform == "win32":
        local = variables.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "overstory" / "Cache"
    xdg = Path(variables.get("XDG_CACHE_HOME", ""))
    # The XDG base directory specification says to ignore a relative path.
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "overstory"


def calibration_prompts() -> Path:
    """The prompts of this checkout that a calibration writes texts to; missing where only the packages are."""
    return example_prompts().with_name("calibration.jsonl")


def example_prompts() -> Path:
    """The demo prompt file of this checkout; missing where only the packages are installed."""
    return Path(__file__).resolve().parent.parent / "examples" / "prompts.jsonl"


def validation_prompts() -> Path:
    """Other prompts, to hold a calibration against; missing where only the packages are installed."""
    return Path(__file__).resolve().parent.parent / "examples" / "validation.jsonl"
