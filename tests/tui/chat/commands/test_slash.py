"""What is typed after a slash, and what could follow it."""

import asyncio
from pathlib import Path

import pytest

from runtime.errors import OptionError
from tui.chat.commands.registry import COMMANDS
from tui.chat.commands.slash import (
    as_typed_here,
    complete_command,
    is_command,
    known_command,
    message_text,
    parse_command,
    paths_for,
    paths_from,
    whole_command,
)
from tui.chat.settings.settings import ChatSettings, find_setting

KNOWN = {
    "THEME": ("nord", "textual-dark", "textual-light"),
    "MODEL": ("owner/Model-8B",),
    "FILE": ("notes.md", "no te/", "./m/"),
}


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("/help", True),
        ("/", True),
        ("/rename a b", True),
        ("/help\n", True),
        ("hello", False),
        ("", False),
        (" /help", False),
        ("/usr/bin/env is a path", False),
        ("//help", False),
        ("/system two\nlines", False),
    ],
)
def test_a_command_is_told_from_a_message(text, is_one):
    assert is_command(text) is is_one


def test_two_slashes_send_one():
    assert message_text("//help me") == "/help me"
    assert message_text("a // b") == "a // b"


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("/help", "help", ()),
        ("/HELP set", "help", ("set",)),
        ("/exit", "quit", ()),
        ("/rename  A  new title ", "rename", ("A  new title",)),
        ("/set", "set", ()),
        ("/set top-p", "set", ("top-p",)),
        ("/set system You are brief.", "set", ("system", "You are brief.")),
        ('/export "my notes.md"', "export", ("my notes.md",)),
        ("/export my notes.md", "export", ("my notes.md",)),
        ("/export '", "export", ("'",)),
        ("/tree 64x10", "tree", ("64x10",)),
        ("/tree 64x10 please", "tree", ("64x10 please",)),
    ],
)
def test_a_line_is_read(text, name, values):
    command, found = parse_command(text)
    assert (command.name, found) == (name, values)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("/modle", "there is no command /modle; did you mean /model? (to send it as a message, begin with //)"),
        ("/exitt", "there is no command /exitt; did you mean /exit? (to send it as a message, begin with //)"),
        ("/xyzzy", "there is no command /xyzzy; /help lists them (to send it as a message, begin with //)"),
        ("/quit now", "/quit takes no argument; found 'now'"),
    ],
)
def test_a_wrong_line_is_answered_with_its_use(text, sentence):
    with pytest.raises(OptionError) as refusal:
        parse_command(text)
    assert str(refusal.value) == sentence


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("/re", ["/rename ", "/redo", "/regenerate", "/refuse ", "/restart"]),
        ("/ex", ["/export ", "/quit"]),
        ("/set te", ["/set temperature "]),
        ("/set verification co", ["/set verification coupled"]),
        ("/set  lookup  o", ["/set  lookup  on", "/set  lookup  off"]),
        ("/set nothing x", []),
        ("/set theme T", ["/set theme textual-dark", "/set theme textual-light"]),
        ("/theme no", ["/theme nord"]),
        ("/theme nord", []),
        ("/tree 6", ["/tree 64x10"]),
        ("/help qu", ["/help quit"]),
        ("/export no", ["/export notes.md", "/export no te/"]),
        ("/export no te", ["/export no te/"]),
        ("/model ow", ["/model owner/Model-8B"]),
        ("/model ./", ["/model ./m/"]),
        ("/model ", ["/model owner/Model-8B"]),
        ("/rename any", []),
        ("/quit ", []),
        ("/nothing ", []),
        ("hello", []),
    ],
)
def test_what_could_follow(text, lines):
    assert [completion.text for completion in complete_command(text, KNOWN)] == lines


def test_a_lone_slash_lists_everything_with_help():
    found = complete_command("/", KNOWN)
    assert [completion.help for completion in found] == [command.help for command in COMMANDS]
    assert found[0].label == COMMANDS[0].usage


def test_every_completed_name_is_a_command_that_can_be_read():
    for completion in complete_command("/", KNOWN):
        assert parse_command(f"{completion.text} x".strip() if completion.text.endswith(" ") else completion.text)


def test_only_paths_need_the_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talk.json").touch()
    for text in ("/export ", "/model ta", f"/import {tmp_path}/t", '/export "ta'):
        assert [Path(path).name for path in asyncio.run(paths_for(text))] == ["talk.json"], text
    for text in ("/export", "/set draft ta", "hello ta", "/nothing ta", "/import /elsewhere/ta"):
        assert list(asyncio.run(paths_for(text))) == [], text


def test_paths_that_begin_so_in_order(tmp_path):
    (tmp_path / "beta").mkdir()
    for name in ("bread.json", "alpha.md", ".hidden"):
        (tmp_path / name).touch()
    assert paths_from(f"{tmp_path}/b") == (f"{tmp_path}/beta/", f"{tmp_path}/bread.json")
    assert f"{tmp_path}/.hidden" not in paths_from(f"{tmp_path}/")
    assert paths_from(f"{tmp_path}/.h") == (f"{tmp_path}/.hidden",)
    assert paths_from(f"{tmp_path}/missing/x") == paths_from("~nobody-of-that-name/x") == ()


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("so --device-memory 1.21GB is the nearest", "so /set device_memory 1.21GB is the nearest"),
        ("raise --device-memory to 2.7GB, or --draft none", "/set device_memory 2.7GB, or /set draft none"),
        ("so leaving out --device-memory and --host-memory", "so /set device_memory free and /set host_memory free"),
        ("leave out --tree or --draft none", "/set tree auto or /set draft none"),
        ("give a smaller --device-memory, draft", "give a smaller device memory (/set device_memory), draft"),
        ("give a larger --context or less", "give a larger context (/set context) or less"),
        ("or name a model with --target", "or name a model with /model"),
        ("add --raw to send prompts", "start overstory chat --raw to send prompts"),
        ("a -- b --", "a -- b --"),
    ],
)
def test_options_of_the_command_line_are_told_as_what_can_be_typed_here(sentence, words):
    """Errors once named flags that nobody can type in a chat."""
    assert as_typed_here(sentence) == words


def test_whatever_is_proposed_can_be_typed():
    """Each `/set NAME VALUE` in a sentence is a command that is understood and a setting that takes the value."""
    for sentence in (
        "--device-memory 1.21GB",
        "--context 512",
        "--draft none",
        "leave out --tree",
        "--temperature 0.7",
        "--generation plain",
    ):
        command, (name, value) = parse_command(as_typed_here(sentence))
        assert command.name == "set"
        ChatSettings().with_text(find_setting(name).name, value)


def test_an_unknown_command_is_told_with_a_near_one():
    with pytest.raises(OptionError, match="there is no command /renam; did you mean /rename"):
        known_command("renam")


@pytest.mark.parametrize(
    ("text", "is_needed"),
    [
        ("/regen", True),
        ("/set", False),
        ("/title", False),
        ("/set temp", True),
        ("/set temperature 0", False),  # a number of its own, although 0.6 could follow
        ("/set verification co", True),
        ("/theme no", True),
        ("/theme ", False),
        ("/help re", True),
    ],
)
def test_enter_takes_what_could_follow_where_nothing_can_be_meant_by_what_is_typed(text, is_needed):
    completions = complete_command(text, KNOWN)
    assert completions and {completion.is_needed for completion in completions} == {is_needed}


def test_a_command_that_was_typed_too_fast_for_the_list_is_completed_like_there():
    assert whole_command("/regen") == "/regenerate"
    assert whole_command("/exp talk.md") == "/export talk.md"
    assert [whole_command(text) for text in ("/undo", "/title Owls", "/nothing x")] == [
        "/undo",
        "/title Owls",
        "/nothing x",
    ]
