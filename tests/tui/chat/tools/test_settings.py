"""Servers in the settings file: what is right is used, each mistake is one sentence and costs its own server alone."""

import pytest

from offload.errors import WriteError
from tui.chat.settings.file import read_settings
from tui.chat.tools.settings import ServerSettings, keep_server, parse_servers, read_servers

TEXT = """\
# mine
temperature = 0.5

[mcp.files]  # the folder of notes
command = "npx"
args = ["-y", "server", "/notes"]
env = { KEY = "secret" }
timeout_seconds = 5
off = ["write"]

[mcp.other]
command = "other"
enabled = false
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_servers_are_read_in_their_order_and_are_settings_like_others(path):
    servers, problems = read_servers(path)
    assert problems == ()
    assert servers == (
        ServerSettings(
            name="files",
            command="npx",
            args=("-y", "server", "/notes"),
            env={"KEY": "secret"},
            timeout_seconds=5.0,
            off=frozenset({"write"}),
        ),
        ServerSettings(name="other", command="other", enabled=False),
    )
    settings, notices = read_settings(path)
    assert settings["temperature"] == 0.5 and notices == ()


def test_no_file_and_a_damaged_one_name_no_servers(tmp_path):
    assert read_servers(tmp_path / "none.toml") == ((), ())
    (tmp_path / "bad.toml").write_text("[mcp.")
    assert read_servers(tmp_path / "bad.toml") == ((), ())


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("npx", "it is 'npx' and must be a table: command = "),
        ({}, "it has no command; give it command = "),
        ({"command": ""}, "command is '' and must be the name or the path of a program"),
        ({"command": ["npx"]}, "command is ['npx'] and must be the name or the path of a program"),
        ({"command": "x", "args": "-y"}, "args is '-y' and must be a list of texts"),
        ({"command": "x", "args": [1]}, "args is [1] and must be a list of texts"),
        ({"command": "x", "env": {"A": 1}}, "env is {'A': 1} and must be a table of texts"),
        ({"command": "x", "env": {"A=B": "1"}}, "and must be a table of texts"),
        ({"command": "x", "enabled": "yes"}, "enabled is 'yes' and must be true or false"),
        ({"command": "x", "timeout_seconds": 0}, "timeout_seconds is 0 and must be a number of seconds above 0"),
        ({"command": "x", "timeout_seconds": True}, "timeout_seconds is True and must be a number of seconds above 0"),
        ({"command": "x", "off": "a"}, "off is 'a' and must be a list of texts"),
        (
            {"comand": "x"},
            "'comand' is none of command, args, env, enabled, timeout_seconds, off; did you mean command?",
        ),
        ({"url": "http://x"}, "only servers that a command starts are known"),
    ],
)
def test_a_mistake_is_one_sentence_that_costs_its_own_server(table, reason):
    servers, (problem,) = parse_servers({"a": table, "b": {"command": "y"}})
    assert [each.name for each in servers] == ["b"]
    assert problem.startswith("[mcp.a] in the settings: ") and problem.endswith("; the server is left out")
    assert reason in problem and "\n" not in problem


@pytest.mark.parametrize("name", ["", "a b", "a__b", "_a", "a_", "x" * 33, "\x1b[2J", "ü"])
def test_a_name_that_tools_cannot_bear_is_refused(name):
    servers, (problem,) = parse_servers({name: {"command": "x"}})
    assert servers == () and "a server's name is 1 to 32 letters" in problem and "\x1b" not in problem


def test_what_is_no_table_of_servers_is_told():
    servers, (problem,) = parse_servers(["x"])
    assert servers == () and "begin each server with [mcp.NAME]" in problem


def test_what_is_switched_off_is_written_and_nothing_else_changes(path):
    files, other = read_servers(path)[0]
    keep_server(path, ServerSettings(**{**fields(files), "off": frozenset({"write", "move"})}))
    keep_server(path, ServerSettings(**{**fields(other), "enabled": True}))
    assert path.read_text() == TEXT.replace('["write"]', '["move", "write"]').replace("false", "true")
    keep_server(path, ServerSettings(name="gone", command="x", enabled=False))
    assert "gone" not in path.read_text()


def test_what_cannot_be_written_is_one_sentence(path):
    path.write_text("[mcp.")
    with pytest.raises(WriteError, match="it holds until the app is closed"):
        keep_server(path, ServerSettings(name="files", command="x"))


def fields(settings):
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}
