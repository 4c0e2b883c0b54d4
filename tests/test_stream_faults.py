"""What goes wrong in a whole session costs one answer and one sentence, hangs nothing, and leaves nothing behind.

The faults of single parts are in the parts' own tests; here each reaches `Session.generate`, `overstory run` or
`load_session` through everything in between.
"""

import errno
import gc
import io
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from session_factory import answer, open_tiny, request, save_tiny_folder

from offload import block_reader, host_pinner
from offload.copy_engine import DiskSource, HostSource
from offload.errors import LinkError, OverstoryError
from offload.layer_streamer import ResidentLayer
from offload.slab_memory import allocate_slab
from offload.staged_copy_engine import StagedCopyEngine
from runtime import assembly
from runtime.assembly import OpenSession, load_session, plan_memory
from runtime.engine_config import EngineConfig
from runtime.events import LevelDrafted, TokensAccepted
from runtime.model.model_loader import ModelFiles
from tui import cli

WAYS: dict[str, dict[str, Any]] = {
    "host": {},
    "host, with a draft": {"draft": "substitute", "tree": "8x4"},
    "one link": {"link": "1GB/s", "host_memory_bytes": 0},
    "staged": {"link": "1GB/s", "disk_link": "1GB/s", "host_memory_bytes": 90_000},
}
ASKED = request(max_new_tokens=12)
OTHER = request("a dog, and some other words", max_new_tokens=12)
needs_preadv = pytest.mark.skipif(not hasattr(os, "preadv"), reason="faults are injected at os.preadv")


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """Opening a session collects garbage, and the libraries' own objects take that 0.3 s each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    before = what_is_open()
    yield
    gc.collect()
    assert what_is_open() == before


def what_is_open() -> tuple[int, int]:
    """(threads, files) of this process, without the thread that watches over the libraries' progress bars."""
    return sum(thread.name != "tqdm_monitor" for thread in threading.enumerate()), len(psutil.Process().open_files())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model") / "target", seed=37)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(whole, tmp_path / "target"))


@pytest.fixture(scope="module")
def expected(whole: Path) -> list[int]:
    with open_tiny(whole) as opened:
        return answer(opened, ASKED)[1]


class Faults:
    """Stands where os.preadv is, and misbehaves at chosen calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_calls = 0
        self.at: dict[int, Callable[[], int | None]] = {}
        """By call: what happens instead; None goes on as usual, a number is returned as what was read."""
        self._read = os.preadv
        monkeypatch.setattr(os, "preadv", self)

    def __call__(self, descriptor: int, buffers: list[memoryview], offset: int) -> int:
        self.num_calls += 1
        fault = self.at.pop(self.num_calls, None)
        found = None if fault is None else fault()
        return self._read(descriptor, buffers, offset) if found is None else found

    def soon(self, num_calls: int, fault: Callable[[], int | None]) -> None:
        """After so many more reads."""
        self.at[self.num_calls + 1 + num_calls] = fault


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(monkeypatch)


def raise_io_error() -> int:
    raise OSError(errno.EIO, "Input/output error")


def end_of_file() -> int:
    return 0


class Dies(BaseException):
    """What ends a thread."""


def kill_thread() -> int:
    raise Dies("shot")


def fails(opened: OpenSession, match: str) -> None:
    """An answer that ends with one sentence, after which both caches are where they were committed."""
    with pytest.raises(LinkError, match=match) as caught:
        for _ in range(3):  # what was read ahead of the ring's end belongs to the next answer, or the one after it
            answer(opened, OTHER)
    assert "\n" not in str(caught.value)
    engine = opened.session.engine
    assert engine.target.cache.num_cached == engine.num_committed
    if engine.drafter is not None:
        assert engine.drafter._model.cache.num_cached == engine.drafter.num_committed
    assert all(status.layer_index is None for status in opened.streamer.slot_states)


@needs_preadv
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("fault", "match"),
    [
        (raise_io_error, r"Reading .*model.safetensors failed at byte \d+ \(Input/output error\); check the disk"),
        (end_of_file, r"model.safetensors ends at byte \d+, expected at least \d+; it was cut short"),
        (kill_thread, "shot"),
    ],
)
def test_a_fault_in_the_middle_of_a_pass_costs_one_answer(
    way: str, fault: Callable[[], int], match: str, folder: Path, expected: list[int], faults: Faults
) -> None:
    with open_tiny(folder, num_residents=1, **WAYS[way]) as opened:
        assert answer(opened, ASKED)[1] == expected
        for num_calls in (1, 4):
            faults.soon(num_calls, fault)
            fails(opened, match)
            assert not faults.at
            assert answer(opened, ASKED)[1] == expected


@pytest.mark.parametrize("way", ["host", "staged"])
def test_a_file_that_is_replaced_ends_every_answer_until_it_is_back(
    way: str, folder: Path, expected: list[int], tmp_path: Path
) -> None:
    path, kept = folder / "model.safetensors", tmp_path / "kept"
    with open_tiny(folder, num_residents=1, **WAYS[way]) as opened:
        assert answer(opened, ASKED)[1] == expected
        path.rename(kept)
        path.write_bytes(kept.read_bytes())
        for _ in range(2):
            fails(opened, "was replaced or changed while a model streams from it; restart")
        kept.replace(path)
        assert answer(opened, ASKED)[1] == expected


@pytest.mark.parametrize("way", ["host", "staged"])
def test_a_file_that_is_cut_short_is_noticed(way: str, folder: Path) -> None:
    path = folder / "model.safetensors"
    with open_tiny(folder, num_residents=1, **WAYS[way]) as opened:
        answer(opened, ASKED)
        os.truncate(path, path.stat().st_size // 2)
        for _ in range(2):
            fails(opened, "was replaced or changed|cut short")


@pytest.mark.parametrize("way", ["host", "staged"])
def test_a_disk_that_vanishes_and_comes_back(way: str, folder: Path, expected: list[int]) -> None:
    away = folder.with_name("unplugged")
    with open_tiny(folder, num_residents=1, **WAYS[way]) as opened:
        answer(opened, ASKED)
        folder.rename(away)
        for _ in range(2):
            fails(opened, "is gone, although a model streams from it; put it back")
        away.rename(folder)
        assert answer(opened, ASKED)[1] == expected


def test_the_thread_that_feeds_a_link_may_die(
    folder: Path, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_tiny(folder, num_residents=0, **WAYS["staged"]) as opened:
        link = opened.link
        assert isinstance(link, StagedCopyEngine)
        answer(opened, ASKED)

        def die() -> None:
            monkeypatch.delattr(link, "_send")
            raise Dies("shot")

        monkeypatch.setattr(link, "_send", die)
        fails(opened, "shot")
        assert answer(opened, ASKED)[1] == expected


@needs_preadv
def test_a_fault_before_any_event_and_after_many_leaves_what_was_accepted(
    folder: Path, expected: list[int], faults: Faults
) -> None:
    """What was yielded before the fault begins the right text, and the same prompt asked again is answered whole."""
    with open_tiny(folder, num_residents=0, draft="substitute", tree="4x3") as opened:
        for num_rounds in range(3):
            accepted: list[int] = []
            with pytest.raises(LinkError), closing(opened.session.generate(ASKED)) as events:
                for event in events:
                    if isinstance(event, TokensAccepted):
                        accepted += event.token_ids
                    if isinstance(event, LevelDrafted) and len(accepted) >= num_rounds and not faults.at:
                        faults.soon(1, raise_io_error)
            assert accepted == expected[: len(accepted)]
            faults.at.clear()
        assert answer(opened, ASKED)[1] == expected


# ----------------------------------------------------------------------------------------------------- the command line


def run_command(prompts: Path, folder: Path, *options: str) -> tuple[int, list[dict[str, Any]], str]:
    out, err = io.StringIO(), io.StringIO()
    arguments = ["run", str(prompts), "--target", str(folder), "--raw", "--max-new-tokens", "8", "--quiet"]
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.execute([*arguments, "--device-memory", "min", "--draft", "none", "--io", "buffered", *options])
    return code, [json.loads(line) for line in out.getvalue().splitlines()], err.getvalue()


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("the cat and the dog\na dog\nthe end\n", encoding="utf-8")
    return path


@needs_preadv
@pytest.mark.parametrize(
    "options", [[], ["--emulate-link", "1GB/s", "--emulate-disk", "1GB/s", "--host-memory", "90KB"]]
)
def test_a_run_answers_the_prompts_after_a_fault(
    options: list[str], prompts: Path, folder: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, whole, err = run_command(prompts, folder, *options)
    assert (code, err) == (0, "")
    generate = assembly.Session.generate

    def fail_in_the_second(session: assembly.Session, asked: Any) -> Any:
        if asked.prompt == "a dog":
            faults.soon(3, raise_io_error)
        return generate(session, asked)

    monkeypatch.setattr(assembly.Session, "generate", fail_in_the_second)
    code, records, err = run_command(prompts, folder, *options)
    assert code == 1
    assert err == "overstory: error: 1 of 3 prompts have no answer; see `error` in their results\n"
    assert [record["text"] for record in records] == [whole[0]["text"], None, whole[2]["text"]]
    assert "Input/output error" in records[1]["error"] and "\n" not in records[1]["error"]


@needs_preadv
def test_a_fault_while_loading_is_one_line(prompts: Path, folder: Path, faults: Faults) -> None:
    faults.soon(1, raise_io_error)
    code, records, err = run_command(prompts, folder, "--device-memory", "1GB")
    assert (code, records) == (1, [])
    assert err.startswith("overstory: error: Reading ") and err.count("\n") == 1


# -------------------------------------------------------------------------------------------------------------- loading


def config_of(folder: Path, **settings: Any) -> EngineConfig:
    return EngineConfig(target=str(folder), **{"context_tokens": 128, "draft": "substitute", "tree": "8x4", **settings})


def mixed_config(folder: Path) -> EngineConfig:
    """One layer resident, two in host memory, one on disk."""
    config = config_of(folder, link="1GB/s", device_memory_bytes=0, host_memory_bytes=100_000)
    slab_bytes = max(layout.slab_bytes for layout in ModelFiles.open(folder).slabs.layouts)
    fixed_bytes = plan_memory(config, target=folder).fixed_bytes
    return config_of(folder, link="1GB/s", device_memory_bytes=fixed_bytes + 3 * slab_bytes, host_memory_bytes=100_000)


def test_a_load_may_be_closed_at_every_step(folder: Path) -> None:
    before = what_is_open()
    config, num_steps = mixed_config(folder), 0
    while True:
        with ExitStack() as stack:
            loading = load_session(config, stack, target=folder)
            try:
                for _ in range(num_steps):
                    next(loading)
            except StopIteration as end:
                kinds = [type(layer) for layer in end.value.streamer.layers]
                assert {ResidentLayer, HostSource, DiskSource} == set(kinds)
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
    """The read goes on in its thread while the main thread is interrupted in its wait."""
    interrupted = threading.Event()
    finished = threading.Event()

    def interrupt() -> None:
        interrupted.set()
        finished.wait(10)

    wait = threading.Event.wait

    def interrupted_wait(event: threading.Event, timeout: float | None = None) -> bool:
        if interrupted.is_set() and threading.current_thread() is threading.main_thread() and not finished.is_set():
            finished.set()
            raise KeyboardInterrupt
        return wait(event, timeout)

    before = what_is_open()
    faults.soon(at_read, interrupt)
    config = mixed_config(folder)
    monkeypatch.setattr(threading.Event, "wait", interrupted_wait)
    with ExitStack() as stack, pytest.raises(KeyboardInterrupt):
        loading = load_session(config, stack, target=folder)
        while True:
            next(loading)
    monkeypatch.undo()
    assert finished.is_set()
    assert what_is_open() == before


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

    monkeypatch.setattr(host_pinner, "allocate_slab", allocate)
    with open_tiny(folder, link="1GB/s") as opened:
        assert opened.accounting.num_host_layers == number
        assert opened.accounting.num_disk_layers == 4 - number
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
        loading = load_session(mixed_config(folder), stack, target=folder)
        while True:
            next(loading)
    assert what_is_open() == before
    with open_tiny(folder, num_residents=1, draft="substitute", tree="8x4") as opened:
        assert answer(opened, ASKED)[1] == expected


def test_faults_are_injected_where_files_are_read() -> None:
    """Were reads to go another way, the tests above would prove nothing."""
    assert "os.preadv(" in Path(block_reader.__file__).read_text(encoding="utf-8")
