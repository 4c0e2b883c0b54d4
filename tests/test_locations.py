from pathlib import Path

import pytest

from tui.locations import cache_folder, calibration_prompts, example_prompts


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ({}, "linux", "~/.cache/overstory"),
        ({"XDG_CACHE_HOME": "/x"}, "linux", "/x/overstory"),
        ({"XDG_CACHE_HOME": "relative"}, "linux", "~/.cache/overstory"),
        ({"XDG_CACHE_HOME": ""}, "linux", "~/.cache/overstory"),
        ({}, "darwin", "~/Library/Caches/overstory"),
        ({"LOCALAPPDATA": "/local"}, "win32", "/local/overstory/Cache"),
        ({}, "win32", "~/AppData/Local/overstory/Cache"),
        ({"OVERSTORY_CACHE": "/mine", "XDG_CACHE_HOME": "/x"}, "linux", "/mine"),
        ({"OVERSTORY_CACHE": "~/mine"}, "darwin", "~/mine"),
    ],
)
def test_the_cache_is_where_the_system_keeps_caches(environment, platform, expected):
    assert cache_folder(environment=environment, platform=platform) == Path(expected).expanduser()


def test_the_environment_is_read_when_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("OVERSTORY_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


def test_the_example_prompts_are_in_this_checkout():
    assert example_prompts().is_file()


def test_the_calibration_prompts_are_in_this_checkout():
    assert calibration_prompts().is_file()
