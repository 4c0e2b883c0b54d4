"""A server is found while it runs, by whoever it belongs to, and never after."""

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tui.chat.store.writers import writer_token
from tui.server.running import RunningServer, announced, found_anywhere, running_servers, servers_folder

SERVER = RunningServer(host="127.0.0.1", port=8642, model="tiny", target="/models/tiny", api_key="secret")


def record_of(server: RunningServer, **changes: Any) -> str:
    fields = ("host", "port", "model", "target", "api_key", "process", "schema_version")
    return json.dumps({name: getattr(server, name) for name in fields} | changes)


def test_a_server_is_found_while_it_runs(tmp_path: Path) -> None:
    assert running_servers(folder=tmp_path / "none") == []
    with announced(SERVER, folder=tmp_path):
        (found,) = running_servers(folder=tmp_path)
        assert replace(found, process="") == SERVER
        assert found.process == writer_token()
        assert found.base_url == "http://127.0.0.1:8642"
    assert running_servers(folder=tmp_path) == [] and list(tmp_path.iterdir()) == []


def test_the_last_one_stands_in_front(tmp_path: Path) -> None:
    other = replace(SERVER, host="::1", port=9000)
    with announced(SERVER, folder=tmp_path), announced(other, folder=tmp_path):
        os.utime(tmp_path / "8642.json", (1, 1))
        assert [found.port for found in running_servers(folder=tmp_path)] == [9000, 8642]
        assert running_servers(folder=tmp_path)[0].base_url == "http://[::1]:9000"


def test_the_file_is_for_its_owner_alone_and_lies_with_what_the_program_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVERSTORY_CACHE", str(tmp_path / "cache"))
    with announced(SERVER):
        path = servers_folder() / "8642.json"
        assert path.is_relative_to(tmp_path / "cache")
        if os.name == "posix":
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [found.port for found in running_servers()] == [8642]


def test_one_whose_process_has_ended_is_none(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for process in (f"{ended.pid} 1.0", f"{os.getpid()} 1.0", "", "x y", "-1 0"):
        (tmp_path / "8642.json").write_text(record_of(SERVER, process=process))
        assert running_servers(folder=tmp_path) == [], process


def test_what_is_no_record_is_passed_over(tmp_path: Path) -> None:
    sound = replace(SERVER, process=writer_token())
    for text in (
        "",
        "[]",
        "{",
        "x" * (1 << 17),
        record_of(sound, host="192.168.0.1"),
        record_of(sound, port=0),
        record_of(sound, port="8642"),
        record_of(sound, schema_version=2),
    ):
        (tmp_path / "8642.json").write_text(text)
        assert running_servers(folder=tmp_path) == [], text[:40]
    (tmp_path / "8642.json").unlink()
    (tmp_path / "8642.json").mkdir()
    (tmp_path / "notes.json").write_text(record_of(sound))
    assert running_servers(folder=tmp_path) == []
    (tmp_path / "1.json").write_text(record_of(sound, is_new=True))
    assert [found.port for found in running_servers(folder=tmp_path)] == [8642], "a key of a later version"


def test_the_record_of_a_later_server_on_the_same_port_stays(tmp_path: Path) -> None:
    with announced(SERVER, folder=tmp_path):
        (tmp_path / "8642.json").write_text(record_of(SERVER, process=writer_token(), model="later"))
    assert [found.model for found in running_servers(folder=tmp_path)] == ["later"]


def test_a_folder_is_found_from_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path was of the folder that `serve` was started in, so that `ask` loaded the model again elsewhere."""
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert found_anywhere("model") == str(tmp_path.resolve() / "model")
    assert found_anywhere("owner/name") == "owner/name"
    assert found_anywhere(None) == ""
