from pathlib import Path

import pytest

from tui.environment import (
    cache_folder,
    config_folder,
    conversation_database,
    data_folder,
    export_folder,
    packaged_prompts,
    settings_file,
)


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


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ({}, "linux", "~/.local/share/overstory"),
        ({"XDG_DATA_HOME": "/x"}, "linux", "/x/overstory"),
        ({"XDG_DATA_HOME": "relative"}, "linux", "~/.local/share/overstory"),
        ({}, "darwin", "~/Library/Application Support/overstory"),
        ({"LOCALAPPDATA": "/local"}, "win32", "/local/overstory/Data"),
        ({}, "win32", "~/AppData/Local/overstory/Data"),
        ({"OVERSTORY_DATA": "/mine", "XDG_DATA_HOME": "/x"}, "linux", "/mine"),
        ({"OVERSTORY_DATA": "~/mine"}, "win32", "~/mine"),
    ],
)
def test_conversations_are_where_the_system_keeps_what_was_made(environment, platform, expected):
    assert data_folder(environment=environment, platform=platform) == Path(expected).expanduser()


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ({}, "linux", "~/.config/overstory"),
        ({"XDG_CONFIG_HOME": "/x"}, "linux", "/x/overstory"),
        ({"XDG_CONFIG_HOME": "relative"}, "linux", "~/.config/overstory"),
        ({}, "darwin", "~/Library/Application Support/overstory"),
        ({"APPDATA": "/roaming"}, "win32", "/roaming/overstory"),
        ({}, "win32", "~/AppData/Roaming/overstory"),
        ({"OVERSTORY_CONFIG": "/mine", "XDG_CONFIG_HOME": "/x"}, "linux", "/mine"),
        ({"OVERSTORY_CONFIG": "~/mine"}, "darwin", "~/mine"),
    ],
)
def test_settings_are_where_the_system_keeps_choices(environment, platform, expected):
    assert config_folder(environment=environment, platform=platform) == Path(expected).expanduser()


def test_the_environment_is_read_when_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("OVERSTORY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OVERSTORY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("OVERSTORY_CONFIG", str(tmp_path / "config"))
    assert cache_folder() == tmp_path / "cache"
    assert conversation_database() == tmp_path / "data" / "conversations.db"
    assert export_folder() == tmp_path / "data" / "exports"
    assert settings_file() == tmp_path / "config" / "settings.toml"
    assert list(tmp_path.iterdir()) == []


def test_what_comes_with_the_program_lies_in_a_package(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = ("demo.jsonl", "calibration.jsonl", "validation.jsonl", "perplexity.txt")
    assert all(packaged_prompts(name).is_file() for name in names)
    assert {path.name for path in packaged_prompts("").iterdir()} == set(names)
