"""What goes wrong while a session loads is one sentence, leaves nothing behind, and the next load works."""

import errno
import threading
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from offload.checkpoint.layer_layout import LayerLayout
from offload.copying.copy_engine import HostSource
from offload.layer_streamer import ResidentLayer
from offload.memory import allocate_slab
from profiles.errors import OverstoryError
from runtime.config import EngineConfig
from runtime.engine.load_plan import LoadPlan
from runtime.engine.loading import load_session
from runtime.model.model_loader import ModelFiles
from tests.support.fault_injection import ASKED, Faults, needs_preadv, raise_io_error, what_is_open
from tests.support.session_factory import answer, open_tiny

pytest_plugins = ("tests.support.fault_fixtures",)
pytestmark = pytest.mark.usefixtures("quick_collections", "nothing_is_left_behind")


def config_of(folder: Path, **settings: Any) -> EngineConfig:
    return EngineConfig(target=str(folder), **{"context_tokens": 128, "draft": "substitute", "tree": "8x4", **settings})


def mixed_config(folder: Path) -> EngineConfig:
    """One layer resident, two in host memory, one on disk."""
    config = config_of(folder, link="1GB/s", device_memory_bytes=0, host_memory_bytes=100_000)
    slab_bytes = max(layout.slab_bytes for layout in ModelFiles.open(folder).layouts)
    fixed_bytes = LoadPlan.build(config).placement.fixed_bytes
    return config_of(folder, link="1GB/s", device_memory_bytes=fixed_bytes + 3 * slab_bytes, host_memory_bytes=100_000)


def test_a_load_may_be_closed_at_every_step(folder: Path) -> None:
    before = what_is_open()
    config, num_steps = mixed_config(folder), 0
    while True:
        with ExitStack() as stack:
            loading = load_session(config, stack)
            try:
                for _ in range(num_steps):
                    next(loading)
            except StopIteration as end:
                kinds = [type(layer) for layer in end.value.streamer.layers]
                assert {ResidentLayer, HostSource, LayerLayout} == set(kinds)
                break
            loading.close()
        assert what_is_open() == before
        num_steps += 1
    assert num_steps > 8


@needs_preadv
@pytest.mark.parametrize("at_read", [0, 3, 6])
def test_ctrl_c_in_the_middle_of_a_load_frees_everything(
    at_read: int, folder: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The read goes on in its thread while the main thread is interrupted in its wait, for that read or another."""
    interrupted = threading.Event()
    finished = threading.Event()

    def interrupt() -> None:
        interrupted.set()
        finished.wait(60)

    wait = threading.Condition.wait

    def interrupted_wait(condition: threading.Condition, timeout: float | None = None) -> bool:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and interrupted.is_set() and not finished.is_set() and not is_starting_a_thread():
            finished.set()
            raise KeyboardInterrupt
        return wait(condition, timeout)

    before = what_is_open()
    faults.soon(at_read, interrupt)
    config = mixed_config(folder)
    monkeypatch.setattr(threading.Condition, "wait", interrupted_wait)
    with ExitStack() as stack, pytest.raises(KeyboardInterrupt):
        loading = load_session(config, stack)
        while True:
            next(loading)
    monkeypatch.undo()
    assert finished.is_set()
    assert what_is_open() == before


def is_starting_a_thread() -> bool:
    """Whether the interpreter waits for a thread to have begun, which nobody can interrupt and know of the thread."""
    return any(frame.name == "start" and frame.filename == threading.__file__ for frame in traceback.extract_stack())


@pytest.mark.parametrize("number", range(3))
def test_host_memory_that_ends_at_a_slab_leaves_the_rest_on_disk(
    number: int, folder: Path, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    num_allocated = 0

    def allocate(num_bytes: int, *, huge_pages: bool) -> torch.Tensor:
        nonlocal num_allocated
        num_allocated += 1
        if num_allocated > number:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return allocate_slab(num_bytes, huge_pages=huge_pages)

    monkeypatch.setattr("offload.pinning.pinned_memory.allocate_slab", allocate)
    with open_tiny(folder, link="1GB/s") as opened:
        assert opened.placement.num_host_layers == number
        assert opened.placement.num_disk_layers == 4 - number
        (note,) = opened.notes
        assert note.startswith(f"host memory ran out at layer {number}") and "close other programs" in note
        assert answer(opened, ASKED)[1] == expected
        assert opened.session.engine.bytes_streamed > 0
    assert num_allocated == number + 1


@needs_preadv
@pytest.mark.parametrize("at_read", [0, 3, 6])
def test_a_read_error_while_loading_is_a_sentence_and_the_next_load_works(
    at_read: int, folder: Path, expected: list[int], faults: Faults
) -> None:
    before = what_is_open()
    faults.soon(at_read, raise_io_error)
    with ExitStack() as stack, pytest.raises(OverstoryError, match="Input/output error"):
        loading = load_session(mixed_config(folder), stack)
        while True:
            next(loading)
    assert what_is_open() == before
    with open_tiny(folder, num_residents=1, draft="substitute", tree="8x4") as opened:
        assert answer(opened, ASKED)[1] == expected
