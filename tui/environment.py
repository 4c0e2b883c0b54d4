"""What surrounds a command: the paths that the program chooses itself, and what libraries are asked to leave be.

OVERSTORY_CACHE, OVERSTORY_DATA and OVERSTORY_CONFIG override the three folders; otherwise each is where the operating
system keeps such files (on Linux as the XDG base directory specification says). Creates nothing.
"""

import logging
import os
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path


def cache_folder(*, environment: Mapping[str, str] | None = None, platform: str = sys.platform) -> Path:
    """The folder below which fetched models are kept; may not exist yet."""
    variables = os.environ if environment is None else environment
    if chosen := variables.get("OVERSTORY_CACHE"):
        return Path(chosen).expanduser()
    if platform == "darwin":
        return Path.home() / "Library" / "Caches" / "overstory"
    if platform == "win32":
        return _windows_folder(variables, "LOCALAPPDATA", "Local") / "Cache"
    return _xdg_folder(variables, "XDG_CACHE_HOME", ".cache")


def data_folder(*, environment: Mapping[str, str] | None = None, platform: str = sys.platform) -> Path:
    """The folder of what cannot be fetched or measured again, the conversations; may not exist yet."""
    variables = os.environ if environment is None else environment
    if chosen := variables.get("OVERSTORY_DATA"):
        return Path(chosen).expanduser()
    if platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "overstory"
    if platform == "win32":
        return _windows_folder(variables, "LOCALAPPDATA", "Local") / "Data"
    return _xdg_folder(variables, "XDG_DATA_HOME", ".local/share")


def config_folder(*, environment: Mapping[str, str] | None = None, platform: str = sys.platform) -> Path:
    """The folder of the settings; may not exist yet."""
    variables = os.environ if environment is None else environment
    if chosen := variables.get("OVERSTORY_CONFIG"):
        return Path(chosen).expanduser()
    if platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "overstory"
    if platform == "win32":
        return _windows_folder(variables, "APPDATA", "Roaming")
    return _xdg_folder(variables, "XDG_CONFIG_HOME", ".config")


def conversation_database() -> Path:
    """The database of the chat app's conversations, OVERSTORY_DATA/conversations.db."""
    return data_folder() / "conversations.db"


def export_folder() -> Path:
    """Where conversations are exported to if nobody says where, OVERSTORY_DATA/exports."""
    return data_folder() / "exports"


def settings_file() -> Path:
    """The chat app's settings, OVERSTORY_CONFIG/settings.toml."""
    return config_folder() / "settings.toml"


def packaged_prompts(name: str) -> Path:
    """Return the file of this name that comes with the program: demo.jsonl, calibration.jsonl, validation.jsonl and
    perplexity.txt are what commands read where no file is given."""
    return Path(str(resources.files("profiles"))) / "builtin" / "prompts" / name


def quieten_libraries() -> None:
    """Ask the libraries, before they are imported, to send nothing anywhere, keep off stderr and share the cores."""
    defaults = {
        # OpenMP threads that spin between products starve each other where cores are shared with other machines or
        # with the reader threads: plain passes then took 1.4 s instead of 0.3 s on two virtual cores.
        "GOMP_SPINCOUNT": "3000",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        # Nothing here is compiled, but importing bitsandbytes loads torch's compiler all the same: 1.2 s of a core.
        "TORCHDYNAMO_DISABLE": "1",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it recommends a package that downloads kernels


def _windows_folder(variables: Mapping[str, str], name: str, usual: str) -> Path:
    chosen = variables.get(name)
    return (Path(chosen) if chosen else Path.home() / "AppData" / usual) / "overstory"


def _xdg_folder(variables: Mapping[str, str], name: str, usual: str) -> Path:
    chosen = Path(variables.get(name, ""))
    # The specification says to ignore a relative path.
    return (chosen if chosen.is_absolute() else Path.home() / usual) / "overstory"
