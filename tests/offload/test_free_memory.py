"""The numbers of this process, and control groups of both versions as small trees of files."""

import mmap
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from offload.free_memory import (
    control_group_bytes,
    free_memory_bytes,
    peak_memory_bytes,
    resident_memory_bytes,
)

V1_UNLIMITED = "9223372036854771712\n"


def write_tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v1_group(folder: str, *, limit: str, usage: int, stat: str = "") -> dict[str, str]:
    return {
        f"{folder}/memory.limit_in_bytes": limit,
        f"{folder}/memory.usage_in_bytes": f"{usage}\n",
        f"{folder}/memory.stat": stat,
    }


def v2_group(folder: str, *, limit: str, usage: int, stat: str = "", high: str = "max\n") -> dict[str, str]:
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.high": high,
        f"{folder}/memory.current": f"{usage}\n",
        f"{folder}/memory.stat": stat,
    }


def test_version_2_leaves_limit_minus_usage_plus_page_cache(tmp_path: Path) -> None:
    stat = "anon 700\nfile 290\nactive_file 200\ninactive_file 50\nshmem 40\n"
    tree = {"proc/self/cgroup": "0::/user.slice/app.scope\n"}
    tree |= v2_group("sys/fs/cgroup/user.slice/app.scope", limit="2200\n", usage=1000, stat=stat)
    assert control_group_bytes(write_tree(tmp_path, tree)) == 2200 - (1000 - 250)


def test_a_tighter_group_further_up_decides(tmp_path: Path) -> None:
    tree = {"proc/self/cgroup": "0::/user.slice/app.scope\n"}
    tree |= v2_group("sys/fs/cgroup/user.slice/app.scope", limit="5000\n", usage=1000)
    tree |= v2_group("sys/fs/cgroup/user.slice", limit="6000\n", usage=5500)
    assert control_group_bytes(write_tree(tmp_path, tree)) == 500


def test_a_soft_limit_of_version_2_counts_since_beyond_it_everything_is_slowed_down(tmp_path: Path) -> None:
    tree = {"proc/self/cgroup": "0::/a\n"} | v2_group("sys/fs/cgroup/a", limit="5000\n", usage=1000, high="3000\n")
    assert control_group_bytes(write_tree(tmp_path, tree)) == 2000


def test_no_limit_is_none(tmp_path: Path) -> None:
    tree = {"proc/self/cgroup": "4:memory:/a\n0::/a\n"}
    tree |= v2_group("sys/fs/cgroup/a", limit="max\n", usage=1000)
    tree |= v1_group("sys/fs/cgroup/memory/a", limit=V1_UNLIMITED, usage=1000)
    assert control_group_bytes(write_tree(tmp_path, tree)) is None


def test_version_1_counts_the_page_cache_of_all_groups_below(tmp_path: Path) -> None:
    stat = "inactive_file 1\nactive_file 2\ntotal_inactive_file 100\ntotal_active_file 200\n"
    tree = {"proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/box\n3:cpuset:/\n0::/\n"}
    tree |= v1_group("sys/fs/cgroup/memory/box", limit="3200\n", usage=1000, stat=stat)
    tree |= v1_group("sys/fs/cgroup/memory", limit=V1_UNLIMITED, usage=9000)
    assert control_group_bytes(write_tree(tmp_path, tree)) == 3200 - (1000 - 300)


def test_a_container_that_sees_the_hosts_path_finds_its_limit_at_the_mount(tmp_path: Path) -> None:
    tree = {"proc/self/cgroup": "4:memory:/docker/0123abcd\n"}
    tree |= v1_group("sys/fs/cgroup/memory", limit="3000\n", usage=1000)
    assert control_group_bytes(write_tree(tmp_path / "v1", tree)) == 2000
    tree = {"proc/self/cgroup": "0::/../../outside\n"} | v2_group("sys/fs/cgroup", limit="3000\n", usage=500)
    assert control_group_bytes(write_tree(tmp_path / "v2", tree)) == 2500


def test_a_path_cannot_lead_out_of_the_mount(tmp_path: Path) -> None:
    tree = {"proc/self/cgroup": "0::/../../../elsewhere\n"} | v2_group("elsewhere", limit="1\n", usage=0)
    assert control_group_bytes(write_tree(tmp_path, tree)) is None


@pytest.mark.parametrize("text", ["", "nonsense", "::", "4:memory\n", "0::\n", "4:memory:/a\n\x00\n"])
def test_unreadable_trees_mean_no_limit(tmp_path: Path, text: str) -> None:
    tree = {"proc/self/cgroup": text}
    tree |= v1_group("sys/fs/cgroup/memory/a", limit="many", usage=1, stat="inactive_file\nx y z\n")
    assert control_group_bytes(write_tree(tmp_path, tree)) is None
    assert control_group_bytes(tmp_path / "nothing_here") is None


@pytest.mark.parametrize(("left_in_group", "free"), [(None, 10), (7, 7), (12, 10), (-3, 0)])
def test_the_smaller_of_machine_and_group_is_free(
    monkeypatch: pytest.MonkeyPatch, left_in_group: int | None, free: int
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10))
    monkeypatch.setattr("offload.free_memory.control_group_bytes", lambda root: left_in_group)
    assert free_memory_bytes() == free


def test_this_machine_has_an_answer(tmp_path: Path) -> None:
    total = psutil.virtual_memory().total
    assert 0 <= free_memory_bytes() <= total
    assert 0 < free_memory_bytes(root=tmp_path) <= total


def test_resident_memory_and_its_peak_are_those_of_this_process() -> None:
    before = resident_memory_bytes()
    with mmap.mmap(-1, 64_000_000) as ballast:  # not the heap, which may hold as much that is free and still resident
        ballast.write(bytes(64_000_000))
        assert resident_memory_bytes() - before > 50_000_000
    assert peak_memory_bytes() - before > 50_000_000


def test_the_peak_is_known_without_proc(tmp_path: Path) -> None:
    assert peak_memory_bytes(root=tmp_path) >= resident_memory_bytes() > 0


def test_the_peak_comes_from_proc_where_there_is_one(tmp_path: Path) -> None:
    """Linux's getrusage gives a small program the peak of the large one that started it."""
    write_tree(tmp_path, {"proc/self/status": "Name:\tpython\nVmHWM:\t  1073741824 kB\n"})
    assert peak_memory_bytes(root=tmp_path) == 2**40
