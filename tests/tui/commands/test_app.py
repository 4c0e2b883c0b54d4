from tui.commands.app import app
from tui.commands.bench import bench_app


def test_no_switch_is_shown_as_if_it_took_a_value(capsys):
    assert app(["run", "--help"], standalone_mode=False) in (0, None)
    assert "--resume" in (shown := capsys.readouterr().out) and "<bool>" not in shown


def test_every_command_has_a_sentence_of_help():
    registered = (*app.registered_commands, *bench_app.registered_commands)
    assert len(registered) > 8
    assert all(command.callback is not None and command.callback.__doc__ for command in registered)
