"""What reading leaves in the page cache: nothing with O_DIRECT, and all of a model that memory has room for twice.

A model larger than memory must not push everything else out; one that is smaller is there again at the next start.
"""

import ctypes
import mmap
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from offload.checkpoint.checkpoint import Checkpoint
from offload.checkpoint.layer_layout import layout_layer
from offload.copying.host_engine import HostCopyEngine
from offload.layer_slabs import read_slab
from runtime.engine import loading
from tests.support.model_factory import save_tiny_model, save_tiny_tokenizer
from tests.support.session_factory import open_tiny

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mincore and O_DIRECT are Linux's")

NUM_BYTES = 8 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One tensor of 8 MiB, written through and dropped from the cache."""
    save_file({"w": np.ones(NUM_BYTES // 4, dtype=np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    forget(tmp_path / "model.safetensors")
    return tmp_path


def forget(file: Path) -> None:
    """Drop a file from the page cache; pages that another processor has just written take a moment."""
    descriptor = os.open(file, os.O_RDONLY)
    for _ in range(200):
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        if cached_pages(file) == 0:
            break
        time.sleep(0.05)
    os.close(descriptor)


def cached_pages(file: Path) -> int:
    """Pages of the file that the kernel holds in memory."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        view = np.frombuffer(mapping, dtype=np.uint8)
        pages = (ctypes.c_ubyte * -(-len(mapping) // mmap.PAGESIZE))()
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mincore(ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(len(mapping)), pages) == 0
        del view
        return sum(page & 1 for page in pages)


def read_whole(folder: Path, *, direct: bool) -> bool:
    layout = layout_layer(dict(Checkpoint.open(folder).tensors))
    with HostCopyEngine(direct=None if direct else False) as engine:
        assert read_slab(layout, engine).numel() >= NUM_BYTES
        return engine.is_direct


def test_direct_reads_do_not_grow_the_page_cache(folder: Path) -> None:
    file = folder / "model.safetensors"
    if not read_whole(folder, direct=True):
        pytest.skip("the temporary folder's file system has no O_DIRECT")
    # Of 2,048 pages: the header is read through the cache, with readahead.
    assert cached_pages(file) < 64


def test_buffered_reads_do_which_is_how_we_know_that_the_count_counts(folder: Path) -> None:
    read_whole(folder, direct=False)
    assert cached_pages(folder / "model.safetensors") > NUM_BYTES // mmap.PAGESIZE // 2


@pytest.mark.parametrize(
    ("io", "free_bytes", "is_kept"),
    [
        ("auto", 1 << 40, True),
        ("auto", 1 << 30, False),
        ("direct", 1 << 40, False),
        ("buffered", 1 << 30, True),
    ],
)
def test_a_session_leaves_its_files_in_the_page_cache_where_memory_has_room_for_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, io: str, free_bytes: int, is_kept: bool
) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
    target = save_tiny_tokenizer(save_tiny_model("llama", tmp_path / "target", **sizes))
    file = target / "model.safetensors"
    if not read_whole(target, direct=True):
        pytest.skip("the temporary folder's file system has no O_DIRECT")
    forget(file)
    monkeypatch.setattr(loading, "free_memory_bytes", lambda: free_bytes)
    with open_tiny(target, io=io):
        num_pages = file.stat().st_size // mmap.PAGESIZE
        assert num_pages > 1000
        assert (cached_pages(file) > 0.9 * num_pages) == is_kept
