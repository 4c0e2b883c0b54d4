"""Where the program keeps its files on each system, and what it asks of libraries and of the collector."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import platformdirs.macos
import platformdirs.unix
import platformdirs.windows
import pytest

from tui.environment import (
    cache_folder,
    config_folder,
    data_folder,
    packaged_prompts,
    prepare_libraries,
    uncollected,
)

SYSTEMS = {
    "linux": platformdirs.unix.Unix,
    "darwin": platformdirs.macos.MacOS,
    "win32": platformdirs.windows.Windows,
}
WINDOWS_FOLDERS = {"CSIDL_APPDATA": "/roaming", "CSIDL_LOCAL_APPDATA": "/local"}
OVERRIDES = {"OVERSTORY_CACHE": "/c", "OVERSTORY_DATA": "~/d", "OVERSTORY_CONFIG": "/s", "XDG_CACHE_HOME": "/x"}


@pytest.fixture
def on_system(monkeypatch, tmp_path):
    """Pretend to be on a system, with an empty home folder and these variables."""

    def pretend(platform, environment):
        for name in ("CACHE", "DATA", "CONFIG"):
            monkeypatch.delenv(f"OVERSTORY_{name}", raising=False)
            monkeypatch.delenv(f"XDG_{name}_HOME", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("platformdirs.windows.get_win_folder", WINDOWS_FOLDERS.__getitem__)
        monkeypatch.setattr("tui.environment.PlatformDirs", SYSTEMS[platform])
        monkeypatch.setattr(sys, "platform", platform)

    return pretend


@pytest.mark.parametrize(
    ("platform", "environment", "folders"),
    [
        ("linux", {}, ("~/.cache/overstory", "~/.local/share/overstory", "~/.config/overstory")),
        (
            "linux",
            {"XDG_CACHE_HOME": "/c", "XDG_DATA_HOME": "/d", "XDG_CONFIG_HOME": "/s"},
            ("/c/overstory", "/d/overstory", "/s/overstory"),
        ),
        (
            "linux",
            {"XDG_CACHE_HOME": "relative", "XDG_DATA_HOME": "relative", "XDG_CONFIG_HOME": ""},
            ("~/.cache/overstory", "~/.local/share/overstory", "~/.config/overstory"),
        ),
        (
            "darwin",
            {},
            (
                "~/Library/Caches/overstory",
                "~/Library/Application Support/overstory",
                "~/Library/Application Support/overstory",
            ),
        ),
        ("win32", {}, ("/local/overstory/Cache", "/local/overstory/Data", "/roaming/overstory")),
        *((platform, OVERRIDES, ("/c", "~/d", "/s")) for platform in SYSTEMS),
    ],
)
def test_files_are_where_the_system_keeps_their_kind(on_system, platform, environment, folders):
    on_system(platform, environment)
    assert (cache_folder(), data_folder(), config_folder()) == tuple(Path(each).expanduser() for each in folders)


def test_on_macos_what_is_there_already_is_found_whatever_the_variables_say(on_system, tmp_path):
    """Newer versions of platformdirs obey XDG variables there; conversations of before must not seem lost."""
    on_system("darwin", {"XDG_DATA_HOME": "/x"})
    usual = tmp_path / "Library" / "Application Support" / "overstory"
    usual.mkdir(parents=True)
    assert data_folder() == usual


def test_the_environment_is_read_when_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("OVERSTORY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OVERSTORY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("OVERSTORY_CONFIG", str(tmp_path / "config"))
    assert cache_folder() == tmp_path / "cache"
    assert data_folder() == tmp_path / "data"
    assert config_folder() == tmp_path / "config"
    assert list(tmp_path.iterdir()) == []


def test_what_comes_with_the_program_lies_in_a_package(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = ("demo.jsonl", "calibration.jsonl", "validation.jsonl", "perplexity.txt")
    assert all(packaged_prompts(name).is_file() for name in names)
    assert {path.name for path in packaged_prompts("").iterdir()} == set(names)


def test_what_is_imported_uncollected_is_never_looked_through() -> None:
    """In a process of its own: what is frozen stays so."""
    code = (
        "import gc, sys; from tui.environment import uncollected\n"
        "with uncollected('unittest.mock'):\n"
        "    assert not gc.isenabled(); import unittest.mock\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 1000\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_second_session_leaves_the_collector_alone() -> None:
    """Models are cycles: frozen, those of an earlier session would stay in memory for ever."""
    frozen = gc.get_freeze_count()
    with uncollected("sys"):
        assert gc.isenabled()
    assert gc.get_freeze_count() <= frozen  # fewer where one has gone meanwhile


ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


@pytest.fixture
def allocator_settings(monkeypatch, tmp_path):
    """What `prepare_libraries` leaves of torch's allocator settings on a machine with these files and variables."""

    def settings(platform, node, chosen):
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.setattr("os.environ", {**os.environ} | chosen)
        for name in set(ALLOCATOR) - set(chosen):
            os.environ.pop(name, None)
        root = tmp_path / f"{platform}-{node}"
        (root / "dev").mkdir(parents=True, exist_ok=True)
        if node:
            (root / "dev" / node).touch()
        prepare_libraries(root=root)
        return {name: os.environ[name] for name in ALLOCATOR if name in os.environ}

    return settings


@pytest.mark.parametrize("node", ["nvidiactl", "dxg"])
def test_memory_of_an_nvidia_card_grows_in_place(allocator_settings, node):
    assert allocator_settings("linux", node, {}) == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


@pytest.mark.parametrize(
    ("platform", "node"), [("linux", ""), ("linux", "kfd"), ("win32", "nvidiactl"), ("darwin", "")]
)
def test_where_torch_would_warn_of_it_or_has_no_card_nothing_is_set(allocator_settings, platform, node):
    assert allocator_settings(platform, node, {}) == {}


@pytest.mark.parametrize("name", ALLOCATOR)
def test_allocator_settings_that_a_person_chose_stay_alone(allocator_settings, name):
    chosen = {name: "max_split_size_mb:64"}
    assert allocator_settings("linux", "nvidiactl", chosen) == chosen


def test_torch_takes_the_allocator_settings_and_says_nothing_on_a_processor():
    code = (
        "import torch; (torch.ones(9, 9) @ torch.ones(9, 9)).sum();"
        "torch._C._accelerator_setAllocatorSettings('expandable_segments:True')"
    )
    environment = os.environ | {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, b"")
