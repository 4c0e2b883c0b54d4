"""Paths are completed from what a folder holds."""

import asyncio

from tui.chat.settings.path_completion import list_paths, paths_from


def test_paths_that_begin_so_in_order(tmp_path):
    (tmp_path / "beta").mkdir()
    for name in ("bread.json", "alpha.md", ".hidden"):
        (tmp_path / name).touch()
    assert paths_from(f"{tmp_path}/b") == (f"{tmp_path}/beta/", f"{tmp_path}/bread.json")
    assert f"{tmp_path}/.hidden" not in paths_from(f"{tmp_path}/")
    assert paths_from(f"{tmp_path}/.h") == (f"{tmp_path}/.hidden",)


def test_a_folder_that_is_missing_has_no_paths(tmp_path):
    assert paths_from(f"{tmp_path}/missing/x") == ()


def test_the_path_of_a_command_line(tmp_path):
    (tmp_path / "talk.json").touch()
    complete = asyncio.run(list_paths(f"/import {tmp_path}/t"))
    assert complete(f"{tmp_path}/t") == [f"{tmp_path}/talk.json"]
    assert complete("/elsewhere") == []
