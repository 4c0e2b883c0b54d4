import inspect
from collections.abc import Iterator
from itertools import pairwise
from typing import get_args

import pytest

from profiles.errors import BadInputError
from tui import cli
from tui.commands.app import app
from tui.commands.bench import bench_app


def test_no_switch_is_shown_as_if_it_took_a_value(capsys):
    assert app(["run", "--help"], standalone_mode=False) in (0, None)
    assert "--resume" in (shown := capsys.readouterr().out) and "<bool>" not in shown


@pytest.mark.parametrize("command", ["ask", "serve", "run"])
def test_paragraphs_of_help_are_broken_only_where_a_line_is_full(command, capsys, monkeypatch):
    """Lines of the source were kept and wrapped again, so that every other line held two words."""
    monkeypatch.setenv("COLUMNS", "80")
    assert app([command, "--help"], standalone_mode=False) in (0, None)
    lines = [line.strip() for line in capsys.readouterr().out.split("\u256d")[0].splitlines()]
    assert max(map(len, lines)) in range(60, 81), "the help is as wide as the terminal"
    for line, following in pairwise(lines):
        if line and following:
            assert len(line) + 1 + len(following.split(" ")[0]) > 76, line


def options_of_numbers() -> Iterator[tuple[list[str], str, str]]:
    """Yield each command with the words that it needs, each option of it whose values are numbers, and what they are.

    Other options of whole numbers are read by their own parsers, from texts.
    """
    apps = ([], app), (["bench"], bench_app)
    for before, registered in ((before, each) for before, one in apps for each in one.registered_commands):
        for name, parameter in inspect.signature(registered.callback).parameters.items():
            kind, *notes = get_args(parameter.annotation) or (parameter.annotation,)
            kinds = {kind, *get_args(kind), *(inner for member in get_args(kind) for inner in get_args(member))}
            if notes and kinds & {int, float}:
                declared = [each for each in notes[0].param_decls or () if each.startswith("--")]
                flag = (declared or ["--" + name.replace("_", "-")])[0]
                command = registered.name or registered.callback.__name__
                yield [*before, command], flag, "a whole number" if int in kinds else "a number"


def test_a_number_that_is_none_is_told_in_our_words_by_the_name_that_was_typed(capsys):
    """The library's own words were told, "Input should be a valid number, unable to parse string as a number"."""
    found = list(options_of_numbers())
    assert len(found) > 100 and {command[0] for command, _, _ in found} >= {"ask", "run", "chat", "score", "bench"}
    for command, flag, expected in found:
        assert cli.execute([*command, flag, "hot", "file.jsonl"]) == 2
        assert capsys.readouterr().err == f"overstory: error: {flag} is 'hot'; it must be {expected}\n", command


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("ask --max-new-tokens 0 x", "--max-new-tokens is 0; it must be 1 or more"),
        ("ask --temperature 9000 x", "--temperature is 9000; it must be from 0 (greedy) to 2"),
        ("ask --temperature nan x", "--temperature is nan; it must be from 0 (greedy) to 2"),
        ("ask --ban-token -1 x", "--ban-token is -1; it must be token ids, 0 or more"),
        ("ask --verification x x", "--verification is 'x'; it must be one of auto, sequoia, coupled, specinfer, top-k"),
        ("run x.jsonl --temperature 2.5", "--temperature is 2.5; it must be from 0 (greedy) to 2"),
        ("run x.jsonl --limit 0", "--limit is 0; it must be 1 or more"),
        ("run x.jsonl --limit " + 5000 * "9", "it must be a whole number"),
        ("run x.jsonl --reader-threads 999", "--reader-threads is 999; it must be 256 or less"),
        ("run x.jsonl --emulate-disk 3GB/s", "--emulate-disk has no link in front of it; give --emulate-link as well"),
        ("score x.jsonl --context 1", "--context is 1; it must be 2 or more"),
        ("chat --max-new-tokens 0", "--max-new-tokens is 0; it must be 1 or more"),
        ("serve --max-queue 0", "--max-queue is 0; it must be 1 or more"),
        ("plan --prompts 0", "--prompts is 0; it must be from 1 to 1024"),
        ("plan --temperature 3", "--temperature is 3; it must be from 0 (greedy) to 2"),
        ("plan --context 1", "--context is 1; it must be from 2 to "),
        ("bench round --temperature 3", "--temperature is 3; it must be from 0 (greedy) to 2"),
        ("bench round --temperature -1", "--temperature is -1.0; it must be 0 or more"),
        ("bench round --tree dynamic", "--tree is 'dynamic'; all rounds need the same one here"),
        ("bench trees --levels 65", "--levels is 65; it must be from 2 to 64"),
    ],
)
def test_a_value_outside_its_range_is_told_by_the_name_that_was_typed(arguments, expected, capsys):
    assert cli.execute(arguments.split()) == BadInputError.exit_code
    err = capsys.readouterr().err
    assert err.startswith("overstory: error: --") and expected in err and err.count("\n") == 1


def test_every_command_has_a_sentence_of_help():
    registered = (*app.registered_commands, *bench_app.registered_commands)
    assert len(registered) > 8
    assert all(command.callback is not None and command.callback.__doc__ for command in registered)
