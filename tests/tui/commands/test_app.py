from itertools import pairwise

import pytest

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


def test_every_command_has_a_sentence_of_help():
    registered = (*app.registered_commands, *bench_app.registered_commands)
    assert len(registered) > 8
    assert all(command.callback is not None and command.callback.__doc__ for command in registered)
