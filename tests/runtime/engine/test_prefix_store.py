"""The store gives back what it was given or nothing, keeps to its size, and survives full disks, other processes and
kills."""

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runtime.engine.prefix_block import PARTIAL_SUFFIX, SUFFIX, BlockForm
from runtime.engine.prefix_store import PrefixStore
from tests.support.paths import ROOT

FORM = BlockForm.of({"digest": "a"}, num_tokens=2, parts=[("layer 0", 1000)])
OTHER = BlockForm.of({"digest": "b"}, num_tokens=2, parts=[("layer 0", 1000)])
PLENTY = 10**12


def content_of(number: int) -> np.ndarray:
    return np.full(1000, number, dtype=np.uint8)


def open_store(folder: Path, *, max_bytes: int | None = PLENTY, free_bytes: int | None = PLENTY) -> PrefixStore:
    return PrefixStore(folder / "prefixes", max_bytes=max_bytes, free_bytes=lambda _: free_bytes)


def offer(store: PrefixStore, *numbers: int, form: BlockForm = FORM) -> list[bool]:
    """Offer blocks named by their numbers, which their bytes are, too."""
    taken = []
    for number in numbers:
        taken.append(store.offer(form, str(number), lambda into, number=number: into.fill(number)))
        assert store.flush()
    return taken


def found(store: PrefixStore, *numbers: int, form: BlockForm = FORM) -> list[int]:
    return [int(content[0]) for content in store.read(form, list(map(str, numbers)))]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "prefixes").rglob("*") if path.is_file())


def test_what_is_offered_is_read_by_a_later_store(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        assert offer(store, 1, 2, 3) == [True] * 3
        assert store.bytes_per_second is None
    with open_store(tmp_path) as store:
        assert store.count(FORM, ["1", "2", "3", "4"]) == 3
        assert store.count(FORM, ["4", "1"]) == store.count(OTHER, ["1"]) == store.count(FORM, []) == 0
        assert found(store, 1, 2, 3) == [1, 2, 3]
        assert store.bytes_per_second is not None and store.bytes_per_second > 0


def test_reading_ends_at_the_first_block_that_is_not_there(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        offer(store, 1, 2, 4, 5)
        assert found(store, 1, 2, 3, 4, 5) == [1, 2]
        assert found(store, 7) == []
        reading = store.read(FORM, ["1", "2", "4"])
        assert int(next(reading)[0]) == 1
        reading.close()


def test_what_is_there_or_coming_is_not_copied_again(tmp_path: Path) -> None:
    def never(into: np.ndarray) -> None:
        raise AssertionError("it is there")

    with open_store(tmp_path) as store:
        offer(store, 1)
        assert store.offer(FORM, "1", never)


def test_what_is_used_again_while_it_is_written_was_used_then(tmp_path: Path) -> None:
    """Else the end of a longer text stayed where its beginning went."""
    may_write, is_writing = threading.Event(), threading.Event()

    def free_bytes(_: Path) -> int:
        is_writing.set()
        assert may_write.wait(60)
        return PLENTY

    with PrefixStore(tmp_path / "prefixes", max_bytes=PLENTY, free_bytes=free_bytes) as store:
        for name in ("1", "2"):
            assert store.offer(FORM, name, lambda into: into.fill(1), used_ns=10**18)
        assert is_writing.wait(60)
        for name, used_ns in (("1", 3 * 10**18), ("2", 2 * 10**18)):
            assert store.offer(FORM, name, lambda into: into.fill(2), used_ns=used_ns)
        may_write.set()
        assert store.flush()
        times = [(tmp_path / "prefixes" / FORM.identity / f"{name}{SUFFIX}").stat().st_mtime_ns for name in "12"]
        assert times == [3 * 10**18, 2 * 10**18]
        assert found(store, 1) == [1]


def test_only_their_owner_may_read_them(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        offer(store, 1)
    if os.name == "posix":
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "prefixes").rglob("*")}
        assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
        assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
        assert stat.S_IMODE((tmp_path / "prefixes").stat().st_mode) == 0o700


def test_a_damaged_block_is_a_miss_and_goes(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        offer(store, 1, 2, 3)
        path = tmp_path / "prefixes" / FORM.identity / f"2{SUFFIX}"
        path.write_bytes(path.read_bytes()[:-1])
        assert found(store, 1, 2, 3) == [1]
        assert store.num_damaged == 1 and not path.exists()
        assert offer(store, 2) == [True]
        assert found(store, 1, 2, 3) == [1, 2, 3]


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    with open_store(tmp_path, max_bytes=4 * FORM.file_bytes) as store:
        offer(store, 1, 2, 3)
        offer(store, 4, form=OTHER)
        assert found(store, 1) == [1]
        offer(store, 5)
        assert found(store, 1) == [1] and found(store, 5) == [5]
        assert found(store, 2) == []
        assert len(files(tmp_path)) <= 4


def test_of_a_text_the_end_goes_first(tmp_path: Path) -> None:
    """A block without those before it is worth nothing."""
    with open_store(tmp_path, max_bytes=5 * FORM.file_bytes) as store:
        offer(store, 1, 2, 3, 4, 5)
        assert found(store, 1, 2, 3, 4, 5) == [1, 2, 3, 4, 5]
        offer(store, 6)
        assert found(store, 1, 2) == [1, 2] and found(store, 5) == []


def test_nothing_goes_for_what_never_finds_room(tmp_path: Path) -> None:
    """A state of a large hybrid, beside the blocks of other models."""
    large = BlockForm.of({"digest": "a", "keeps": "states"}, num_tokens=2, parts=[("state 0", 5 * FORM.file_bytes)])
    with open_store(tmp_path, max_bytes=3 * FORM.file_bytes) as store:
        offer(store, 1, 2)
        offer(store, 3, form=large)
        assert store.notice is not None
        assert found(store, 1, 2) == [1, 2]


@pytest.mark.parametrize("max_bytes", [None, PLENTY])
def test_a_nearly_full_disk_is_left_alone(tmp_path: Path, max_bytes: int | None) -> None:
    with open_store(tmp_path, max_bytes=max_bytes, free_bytes=10**9) as store:
        assert offer(store, 1, 2) == [True, True]
        assert files(tmp_path) == []
        assert store.notice is not None and "--prefix-cache off" in store.notice


def test_nobody_chose_is_a_share_of_what_is_free(tmp_path: Path) -> None:
    free = 4 * 10**9
    with open_store(tmp_path, max_bytes=None, free_bytes=free) as store:
        assert store._most_bytes() == free // 4
    with open_store(tmp_path, max_bytes=None, free_bytes=None) as store:
        assert store._most_bytes() == 8 * 10**9


def test_a_full_disk_ends_the_writing_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(tmp_path) as store:
        offer(store, 1)

        def refuse(self: BlockForm, *args: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(BlockForm, "write", refuse)
        assert offer(store, 2, 3) == [True, True]
        assert store.notice is not None and "No space left on device" in store.notice
        assert found(store, 1, 2) == [1]


def test_a_folder_that_cannot_be_made_ends_the_writing(tmp_path: Path) -> None:
    (tmp_path / "prefixes").write_text("a file")
    with open_store(tmp_path) as store:
        assert offer(store, 1) == [True]
        assert store.notice is not None
        assert found(store, 1) == []


def test_a_folder_that_may_not_be_looked_into_has_no_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that an administrator's session made."""
    stat_of, opened = os.stat, os.open

    def refuse(path: object, *args: object, **named: object) -> object:
        if FORM.identity in str(path):
            raise PermissionError(13, "Permission denied")
        return (opened if args else stat_of)(path, *args, **named)  # type: ignore[arg-type]

    with open_store(tmp_path) as store:
        offer(store, 1)
        monkeypatch.setattr(os, "stat", refuse)
        monkeypatch.setattr(os, "open", refuse)
        assert store.count(FORM, ["1"]) == 0
        assert found(store, 1) == []
        assert offer(store, 2) == [True]
        assert store.notice is not None and "Permission denied" in store.notice


def test_what_finds_no_room_among_the_copies_is_offered_again(tmp_path: Path) -> None:
    holding = threading.Event()

    class Held(PrefixStore):
        def _write(self, waiting: object) -> None:
            assert holding.wait(30)
            super()._write(waiting)  # type: ignore[arg-type]

    with Held(tmp_path / "prefixes", max_bytes=PLENTY, free_bytes=lambda _: PLENTY, most_waiting_bytes=1500) as store:
        assert store.offer(FORM, "1", lambda into: into.fill(1))
        assert not store.offer(FORM, "2", lambda into: into.fill(2))
        assert store.offer(FORM, "1", lambda into: into.fill(9))  # on its way already
        holding.set()
        assert store.flush()
        assert store.offer(FORM, "2", lambda into: into.fill(2))
        assert store.flush()
        assert found(store, 1, 2) == [1, 2]


def test_a_folder_that_another_process_removes_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, is_first = BlockForm.write, True

    def remove_before(self: BlockForm, folder: Path, name: str, content: np.ndarray) -> None:
        nonlocal is_first
        if is_first:
            folder.rmdir()
        is_first = False
        write(self, folder, name, content)

    monkeypatch.setattr(BlockForm, "write", remove_before)
    with open_store(tmp_path) as store:
        offer(store, 1)
        assert store.notice is None and found(store, 1) == [1]


def test_two_stores_share_a_folder(tmp_path: Path) -> None:
    with open_store(tmp_path) as first, open_store(tmp_path) as second:
        offer(first, 1, 2)
        offer(second, 2, 3)
        assert found(first, 1, 2, 3) == found(second, 1, 2, 3) == [1, 2, 3]
        reading = first.read(FORM, ["1", "2", "3"])
        next(reading)
        second._evict(0)
        list(reading)  # whatever was read ahead
        assert found(first, 1) == found(second, 3) == []
        assert not any((tmp_path / "prefixes").iterdir())


def test_how_fast_tokens_were_computed_is_kept_beside_their_blocks(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.remember(FORM, 0.25)  # nothing of it is kept
        assert store.recall(FORM) is None
        offer(store, 1)
        store.remember(FORM, 0.25)
        assert store.recall(FORM) == 0.25 and store.recall(OTHER) is None
        file = tmp_path / "prefixes" / FORM.identity / "speed.json"
        for wrong in ("", "[]", "{}", '{"schema_version": 2, "token_seconds": 1.0}', "x" * 2000):
            file.write_text(wrong)
            assert store.recall(FORM) is None
        for wrong in ("0.0", "-1.0", "true", '"1"'):
            file.write_text(f'{{"schema_version": 1, "token_seconds": {wrong}}}')
            assert store.recall(FORM) is None
        store._evict(0)
        assert not any((tmp_path / "prefixes").iterdir())


def test_what_was_begun_and_left_is_removed_after_a_while(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        offer(store, 1)
    folder = tmp_path / "prefixes" / FORM.identity
    for name, age in (("old", 7200), ("new", 0)):
        path = folder / f"{name}{PARTIAL_SUFFIX}"
        path.write_bytes(b"half")
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    with open_store(tmp_path) as store:
        offer(store, 2)
    assert files(tmp_path) == [f"1{SUFFIX}", f"2{SUFFIX}", f"new{PARTIAL_SUFFIX}"]


_WRITER = """
import sys, itertools
from pathlib import Path
from runtime.engine.prefix_block import BlockForm
from runtime.engine.prefix_store import PrefixStore
form = BlockForm.of({"digest": "a"}, num_tokens=2, parts=[("layer 0", 3_000_000)])
store = PrefixStore(Path(sys.argv[1]), max_bytes=10**12, free_bytes=lambda _: 10**12)
for number in itertools.count():
    store.offer(form, str(number), lambda into: into.fill(number % 256))
    store.flush()
    print(number, flush=True)
"""


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Path]:
    """A folder at which a process wrote when it was killed."""
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    for _ in range(3):
        writer.stdout.readline()
    writer.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    writer.wait()
    writer.stdout.close()
    yield tmp_path


def test_a_process_that_is_killed_while_it_writes_leaves_whole_blocks_alone(killed: Path) -> None:
    form = BlockForm.of({"digest": "a"}, num_tokens=2, parts=[("layer 0", 3_000_000)])
    with PrefixStore(killed, max_bytes=PLENTY, free_bytes=lambda _: PLENTY) as store:
        count = store.count(form, list(map(str, range(100))))
        assert count >= 3
        contents = list(store.read(form, list(map(str, range(count)))))
        assert [set(content.tolist()) for content in contents] == [{number} for number in range(count)]
        assert store.num_damaged == 0
