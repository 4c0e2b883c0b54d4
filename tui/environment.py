"""What surrounds a command: the program's folders, what libraries are asked to leave be, and how models are opened.

OVERSTORY_CACHE, OVERSTORY_DATA and OVERSTORY_CONFIG override the three folders; otherwise each is where the operating
system keeps such files (on Linux as the XDG base directory specification says). Creates nothing.
"""

import gc
import logging
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import PlatformDirs

if TYPE_CHECKING:
    from runtime.config import EngineConfig
    from runtime.engine.loading import OpenSession
    from runtime.events import LoadProgress
    from runtime.prompts.prompt_file import PromptRequest


def cache_folder() -> Path:
    """Return the folder below which fetched models are kept; it may not exist yet."""
    return _folder("cache", on_linux=".cache", on_macos="Library/Caches")


def data_folder() -> Path:
    """Return the folder of what cannot be fetched or measured again, the conversations; it may not exist yet."""
    return _folder("data", on_linux=".local/share", on_macos="Library/Application Support")


def config_folder() -> Path:
    """Return the folder of the settings; it may not exist yet."""
    return _folder("config", on_linux=".config", on_macos="Library/Application Support")


def packaged_prompts(name: str) -> Path:
    """Return the file of this name that comes with the program: demo.jsonl, calibration.jsonl, validation.jsonl and
    perplexity.txt are what commands read where no file is given."""
    return Path(str(resources.files("profiles"))) / "builtin" / "prompts" / name


_NVIDIA_NODES = ("dev/nvidiactl", "dev/dxg")
"""What a loaded NVIDIA driver shows on Linux, and what Windows shows of its own under WSL2."""


def has_nvidia_driver(*, root: Path = Path("/")) -> bool:
    """Return whether a driver of NVIDIA's is loaded on this Linux, without asking it; `root` is where dev/ is."""
    return sys.platform == "linux" and any((root / node).exists() for node in _NVIDIA_NODES)


def prepare_libraries(*, root: Path = Path("/")) -> None:
    """Ask the libraries, before they are imported, to send nothing anywhere, keep off stderr and share the machine.

    `root` is where dev/ is.
    """
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
    if has_nvidia_driver(root=root):
        defaults |= _cuda_allocator_settings()
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it recommends a package that downloads kernels


def _cuda_allocator_settings() -> dict[str, str]:
    """Let torch's CUDA memory grow in place: temporaries grow with the context, and a full card has no room for holes.

    Without, each new size is a segment of its own, and every one that does not fit waits for the whole device to free
    the others. torch reads the first of three names that is set, of which a person may have set any; where it cannot do
    it (on Windows, with AMD's runtime) it would only warn.
    """
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    is_chosen = any(name in os.environ for name in names)
    return {} if is_chosen else {names[-1]: "expandable_segments:True"}


def load_models(
    config: "EngineConfig",
    stack: ExitStack,
    *,
    requests: "Sequence[PromptRequest]" = (),
    is_early: bool = False,
) -> Generator["str | LoadProgress", None, "OpenSession"]:
    """Find the models that `config` names and load them; what was opened is closed with `stack`.

    `is_early`: return once a first pass may begin, while layers are still being read. torch is imported here and not
    before.
    """
    from runtime.engine.model_folders import locate_models
    from runtime.fit.startup import check_startup

    config = yield from locate_models(config, cache_folder=cache_folder())
    check_startup(Path(str(config.target)))
    yield f"opening {config.target}"
    from runtime.tokenizer.box import shared_box

    shared_box().start()  # its process gets ready on another core meanwhile
    with uncollected("runtime.engine.loading"):
        from runtime.engine.loading import load_session
    return (yield from load_session(config, stack, requests=requests, state_folder=cache_folder(), is_early=is_early))


@contextmanager
def uncollected(module: str) -> Iterator[None]:
    """Import `module` and all that it needs in here: Python then looks for no cycles among it, now or later.

    torch and transformers make a million objects that live to the end, and every collection would go through them:
    half a second of four while they are imported, and as much at the end. Where it is imported already nothing changes:
    there may be models among the objects by then, which are cycles and must be found.
    """
    if module in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _folder(kind: str, *, on_linux: str, on_macos: str) -> Path:
    if chosen := os.environ.get(f"OVERSTORY_{kind.upper()}"):
        return Path(chosen).expanduser()
    directories = PlatformDirs("overstory", appauthor=False, roaming=kind == "config")
    found: Path = getattr(directories, f"user_{kind}_path")
    if sys.platform == "win32" and kind == "data":
        return found / "Data"  # beside the cache, which lies in the same folder
    if sys.platform == "darwin":
        usual = Path.home() / on_macos / "overstory"
        return usual if usual.is_dir() else found  # newer platformdirs obey XDG here too, which older ones did not
    # The specification says to ignore a relative path.
    return found if found.is_absolute() else Path.home() / on_linux / "overstory"
