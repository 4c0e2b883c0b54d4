"""A pretended accelerator, `torch.device("sim")`, for running the whole program through torch's accelerator interface.

`load()` compiles simulated_device.cpp once (its opening comment lists the rules the device keeps), registers it as
torch's PrivateUse1 backend and makes `torch.sim` its device module. That cannot be undone: from then on
`torch.accelerator.current_accelerator()` is `sim` for the whole process, `torch.manual_seed` seeds it too, and
`pin_memory=True` takes its pinned memory. Tests therefore load it in a process of their own:

    python -c "from tests.support import simulated_device; simulated_device.load(); ..."
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import torch

SOURCE = Path(__file__).with_suffix(".cpp")
NAME = "sim"

SUCCESS = 0
INVALID_VALUE = 1
OUT_OF_MEMORY = 2
ALREADY_REGISTERED = 712
NOT_REGISTERED = 713

_COUNTERS = (
    "synchronous_copies",
    "synchronous_copy_bytes",
    "device_synchronisations",
    "event_synchronisations",
    "blocking_reads",
    "hazards",
    "bytes_to_device",
    "bytes_to_host",
    "waiting_uploads",
)
_FLAGS = ("-std=c++20", "-O1", "-fPIC", "-shared", "-pthread", "-DAT_PER_OPERATOR_HEADERS")
_MESSAGE_BYTES = 1000


def is_buildable() -> bool:
    """Whether a C++ compiler is there; the device needs POSIX threads and mmap too."""
    return _compiler() is not None and sys.platform != "win32"


def build() -> Path:
    """Compile the device, or find it compiled already, and return the library; 15 to 30 seconds the first time.

    It lies below OVERSTORY_CACHE (or else the folder for temporary files), under a digest of the source, the compiler
    and torch's version.
    """
    compiler = _compiler()
    if compiler is None:
        raise RuntimeError("The simulated device needs a C++ compiler: install g++ or clang++, or name one in CXX.")
    torch_folder = Path(torch.__file__).parent
    command = [
        compiler,
        *_FLAGS,
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        *("-isystem", str(torch_folder / "include")),
        *("-isystem", str(torch_folder / "include" / "torch" / "csrc" / "api" / "include")),
        str(SOURCE),
        f"-L{torch_folder / 'lib'}",
        *("-lc10", "-ltorch_cpu"),
    ]
    key = "\0".join([SOURCE.read_text(encoding="utf-8"), torch.__version__, sys.version, *command])
    folder = Path(os.environ.get("OVERSTORY_CACHE") or tempfile.gettempdir()) / f"overstory-tests-{_user()}"
    library = folder / f"simulated_device-{hashlib.sha256(key.encode()).hexdigest()[:20]}.so"
    if not library.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = library.with_suffix(f".{os.getpid()}.so")
        done = subprocess.run([*command, "-o", str(unfinished)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{compiler} could not compile {SOURCE}:\n{done.stderr}")
        unfinished.replace(library)
    return library


def load() -> None:
    """Register the device with torch; a second call does nothing."""
    _library()


def set_capacity_bytes(num_bytes: int, *, device: int | None = None) -> None:
    """How much memory a device (or each) has; 1 GiB at first. What lies there already stays."""
    for index in range(device_count()) if device is None else [device]:
        _library().sim_set_capacity_bytes(index, num_bytes)


def set_exact_segments(are_exact: bool) -> None:
    """Whether every block is a segment of its own, in 512 bytes, instead of a part of 2 or 20 MiB as CUDA does it.

    For checks that limit the capacity to a few megabytes.
    """
    _library().sim_set_exact_segments(are_exact)


def set_copy_bytes_per_second(speed: float | None) -> None:
    """The speed of each direction of the link for copies that start from now on; None: as fast as memory."""
    _library().sim_set_copy_bytes_per_second(speed or 0.0)


def set_registrable_bytes(num_bytes: int | None) -> None:
    """The most host memory that can be pinned at a time, torch's own pinned memory included; None: all of it."""
    _library().sim_set_registrable_bytes(2**63 - 1 if num_bytes is None else num_bytes)


def host_register(pointer: int, num_bytes: int) -> int:
    """Pin foreign memory: SUCCESS, INVALID_VALUE, OUT_OF_MEMORY or ALREADY_REGISTERED (the numbers are CUDA's)."""
    return int(_library().sim_host_register(pointer, num_bytes))


def host_unregister(pointer: int) -> int:
    """Unpin what was registered at exactly this address: SUCCESS or NOT_REGISTERED."""
    return int(_library().sim_host_unregister(pointer))


def registered_bytes() -> int:
    """How much host memory is pinned now."""
    return int(_library().sim_registered_bytes())


def num_synchronous_copies() -> int:
    """Copies to the device with non_blocking=True that made the host wait: the source was not pinned, or not plain."""
    return _counter("synchronous_copies")


def synchronous_copy_bytes() -> int:
    """How much those copies carried."""
    return _counter("synchronous_copy_bytes")


def num_device_synchronisations() -> int:
    """How often a whole device or stream was waited for explicitly."""
    return _counter("device_synchronisations")


def num_event_synchronisations() -> int:
    """How often the host waited for an event."""
    return _counter("event_synchronisations")


def num_blocking_reads() -> int:
    """How often the host had to wait for device data: copies to pageable memory, .item(), nonzero, boolean indices."""
    return _counter("blocking_reads")


def bytes_to_device() -> int:
    """How much was copied from the host to the device."""
    return _counter("bytes_to_device")


def bytes_to_host() -> int:
    """How much was copied from the device to the host."""
    return _counter("bytes_to_host")


def num_waiting_uploads() -> int:
    """Copies to the device that the host waited for: from pageable memory, or with another type or layout."""
    return _counter("waiting_uploads")


def num_allocations(*, at_least_bytes: int = 0) -> int:
    """Allocations on all devices; results of operators count, so name a size to see only the large ones."""
    return int(_library().sim_num_allocations(at_least_bytes))


def num_hazards() -> int:
    """Accesses to bytes that another stream wrote, or still reads, with no event or host wait in between."""
    return _counter("hazards")


def hazards() -> list[str]:
    """One sentence for each of the first hundred of them."""
    found: list[str] = []
    text = ctypes.create_string_buffer(_MESSAGE_BYTES)
    while _library().sim_hazard(len(found), text, _MESSAGE_BYTES):
        found.append(text.value.decode())
    return found


def reset_counters() -> None:
    """Set every count to zero and forget the hazards."""
    _library().sim_reset_counters()


def delay_stream(seconds: float) -> None:
    """Keep the current stream busy; the host goes on at once."""
    _library().sim_delay(seconds)


def device_count() -> int:
    """The number of simulated devices."""
    return int(_library().sim_device_count())


def _counter(name: str) -> int:
    return int(_library().sim_counter(_COUNTERS.index(name)))


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "user"


def _compiler() -> str | None:
    names = [os.environ.get("CXX"), "g++", "c++", "clang++"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


@functools.cache
def _library() -> ctypes.CDLL:
    path = build()
    torch.utils.rename_privateuse1_backend(NAME)
    library = ctypes.CDLL(str(path))
    library.sim_set_capacity_bytes.argtypes = [ctypes.c_int, ctypes.c_int64]
    library.sim_set_exact_segments.argtypes = [ctypes.c_bool]
    library.sim_set_copy_bytes_per_second.argtypes = [ctypes.c_double]
    library.sim_set_registrable_bytes.argtypes = [ctypes.c_int64]
    library.sim_host_register.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.sim_host_unregister.argtypes = [ctypes.c_void_p]
    library.sim_registered_bytes.restype = ctypes.c_int64
    library.sim_counter.restype = ctypes.c_int64
    library.sim_num_allocations.argtypes = [ctypes.c_int64]
    library.sim_num_allocations.restype = ctypes.c_int64
    library.sim_hazard.argtypes = [ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]
    library.sim_hazard.restype = ctypes.c_size_t
    library.sim_manual_seed.argtypes = [ctypes.c_uint64]
    library.sim_rng_state.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    library.sim_rng_state.restype = ctypes.c_size_t
    library.sim_set_rng_state.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    library.sim_delay.argtypes = [ctypes.c_double]
    torch._register_device_module(NAME, _device_module(library))
    torch.utils.generate_methods_for_privateuse1_backend()
    return library


def _device_module(library: ctypes.CDLL) -> types.ModuleType:
    """`torch.sim`, with the names that torch and transformers ask a device module for."""

    def index_of(device: torch.device | str | int | None) -> int:
        if device is None:
            return int(library.sim_current_device())
        return device if isinstance(device, int) else torch.device(device).index or 0

    def set_device(device: torch.device | str | int) -> None:
        if library.sim_set_device(index_of(device)) != SUCCESS:
            raise RuntimeError(f"there is no device {device}")

    def get_rng_state(device: torch.device | str | int | None = None) -> torch.Tensor:
        state = torch.empty(library.sim_rng_state(index_of(device), None, 0), dtype=torch.uint8)
        library.sim_rng_state(index_of(device), state.data_ptr(), state.numel())
        return state

    def set_rng_state(state: torch.Tensor, device: torch.device | str | int | None = None) -> None:
        library.sim_set_rng_state(index_of(device), state.data_ptr(), state.numel())

    module = types.ModuleType(f"torch.{NAME}", "The device module of the simulated device.")
    names = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: int(library.sim_device_count()),
        "current_device": lambda: int(library.sim_current_device()),
        "set_device": set_device,
        "get_device_name": lambda device=None: f"simulated device {index_of(device)}",
        "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16],
        "manual_seed": library.sim_manual_seed,
        "manual_seed_all": library.sim_manual_seed,
        "get_rng_state": get_rng_state,
        "set_rng_state": set_rng_state,
        "synchronize": lambda device=None: torch.accelerator.synchronize(index_of(device)),
        "current_stream": lambda device=None: torch.accelerator.current_stream(index_of(device)),
        "empty_cache": torch.accelerator.empty_cache,
        "mem_get_info": lambda device=None: torch.accelerator.get_memory_info(index_of(device)),
        "memory_allocated": lambda device=None: torch.accelerator.memory_allocated(index_of(device)),
        "memory_reserved": lambda device=None: torch.accelerator.memory_reserved(index_of(device)),
    }
    for name, value in names.items():
        setattr(module, name, value)
    return module
