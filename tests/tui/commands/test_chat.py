"""`overstory chat`: what was typed holds for the run, and what is broken is set aside and told."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import types

import psutil
import pytest
import typer

from profiles.errors import BadInputError
from runtime.config import SamplingParams
from runtime.errors import OptionError
from tests.support.paths import ROOT
from tui.cli import execute
from tui.commands.chat import open_conversations, run_chat, typed_overrides
from tui.options import AnsweringConfig, TurnOptions, with_option_groups

if os.name == "posix":
    from tests.support.terminal_driver import TerminalDriver


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERSTORY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("OVERSTORY_CONFIG", str(tmp_path / "config"))
    return tmp_path


def overrides_of(*arguments):
    """What a command line with these options says."""
    found = []

    @with_option_groups
    def command(
        command_line: typer.Context,
        config: AnsweringConfig,
        params: SamplingParams,
        turns: TurnOptions,
    ) -> int:
        found.append(typed_overrides(command_line, config, params, turns))
        return 0

    app = typer.Typer()
    app.command()(command)
    app(list(arguments), standalone_mode=False)
    return found[0]


def test_nothing_typed_is_nothing_said():
    assert overrides_of() == {}


def test_what_was_typed_is_said_even_where_it_is_the_default():
    """The default of `run` is greedy, and the chat's is not: --temperature 0 must count."""
    typed = overrides_of("--temperature", "0", "--target", "/m", "--device-memory", "min", "--emulate-link", "1GB/s")
    assert typed == {"temperature": 0.0, "target": "/m", "device_memory_bytes": 0, "link": "1GB/s"}
    assert overrides_of("--ban-token", "3", "--context", "99", "--system", "Hi.") == {
        "banned_tokens": (3,),
        "context_tokens": 99,
        "system_prompt": "Hi.",
    }


def test_texts_can_be_written_on_raw():
    assert overrides_of("--raw") == {"raw": True}


def test_the_help_says_what_a_chat_begins_with(capsys):
    """It once printed the defaults of `run`, which is greedy."""
    assert execute(["chat", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--temperature <float> 0 is greedy" in words and "[default: (the model's own, else 0.7)]" in words
    assert "[default: (1024)]" in words and "[default: (another one for each answer)]" in words
    assert "# in title and list" in words


def test_what_makes_no_sense_is_refused():
    with pytest.raises(OptionError, match=r"^--top-p is 7; it must be from 0"):
        overrides_of("--top-p", "7")


def test_without_a_terminal_it_says_what_to_use(capsys):
    assert execute(["chat"]) == 2
    assert "overstory run" in capsys.readouterr().err


def test_a_redirected_stderr_is_refused_since_nothing_would_be_seen(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert execute(["chat"]) == 2
    assert "draws on stderr, which is redirected" in capsys.readouterr().err


def test_a_damaged_database_is_set_aside_and_told(own_folders):
    path = own_folders / "data" / "conversations.db"
    path.parent.mkdir()
    path.write_bytes(b"not a database" * 100)
    store, notices = open_conversations()
    with store:
        assert store.list_conversations() == []
        assert len(notices) == 1 and "conversations" in notices[0]
    assert len(list(path.parent.iterdir())) >= 2


def test_conversations_that_cannot_be_kept_are_told(own_folders):
    (own_folders / "data").write_text("a file where the folder should be")
    store, (notice,) = open_conversations()
    with store:
        assert store.create_conversation().id
    assert "nothing that is said now will be kept" in notice


def test_a_conversation_that_is_not_there_is_told_before_the_app_starts():
    with pytest.raises(BadInputError):
        run_chat({}, conversation_id=99, is_last=False, has_mouse=False)


def test_the_app_gets_what_is_kept(own_folders, monkeypatch):
    (own_folders / "config").mkdir()
    (own_folders / "config" / "settings.toml").write_text("temperature = 9000\ntop_k = -1\n")
    with open_conversations()[0] as store:
        kept = store.create_conversation(title="Kept")
    seen = []

    class Recorder:
        return_code = 0

        def run(self, *, mouse):
            seen.append(mouse)
            return None

        def farewell(self):
            return ""

    def make(services):
        seen.append(services)
        return Recorder()

    monkeypatch.setattr("tui.chat.app.ChatApp", make)
    monkeypatch.setattr("tui.chat.app.collect_rarely", lambda: seen.append("collects rarely"))
    assert run_chat({"top_k": 3}, conversation_id=None, is_last=True, has_mouse=False) == 0
    services, collector, has_mouse = seen
    assert collector == "collects rarely"
    assert services.conversation_id == kept.id
    assert services.settings.params().top_k == 3
    assert any("top_k" in notice for notice in services.notices)
    assert has_mouse is False


def test_the_first_paint_needs_neither_torch_nor_transformers():
    """The interface paints within a second because only the engine's process imports them."""
    program = (
        "import sys\nimport tui.commands.chat\nassert 'textual' not in sys.modules\n"
        "import tui.chat.app, tui.chat.engine.client\nprint(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert "textual.app" in loaded
    assert not {"torch", "transformers", "accelerate", "bitsandbytes"} & set(loaded)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither these signals nor pseudo terminals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_the_end_of_the_terminal_ends_the_app_and_its_engine(own_folders, name):
    """A window that is closed must leave no process that holds gigabytes."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    program = "from tui.cli import main; main()"
    command = [sys.executable, "-c", program, "chat", "--target", str(own_folders / "missing")]
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal) as app:
        os.close(terminal)
        written = b""
        while b"Dismiss" not in written:  # the load has failed, so the engine runs
            written += os.read(controller, 65536)
        (engine,) = psutil.Process(app.pid).children()
        app.send_signal(getattr(signal, name))
        while select.select([controller], [], [], 0.1)[0] or app.poll() is None:
            try:
                written = os.read(controller, 65536)
            except OSError:
                break
        assert app.wait(timeout=60) == 128 + getattr(signal, name)
        assert not engine.is_running()
    os.close(controller)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither these signals nor pseudo terminals")
def test_the_app_asks_the_terminal_comes_back_from_a_stop_and_leaves_it_in_order(own_folders):
    """It once came back to a blank screen, read keys in two threads, and left the mouse on after a hang-up."""
    variables = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-c",
        "from tui.cli import main; main()",
        "chat",
        "--target",
        str(own_folders / "missing"),
    ]
    with TerminalDriver(command, environment={**os.environ, **variables}) as terminal:

        def shown(text):
            return terminal.wait_for(text, timeout_seconds=60) is not None

        def signalled(name):
            terminal.forget()
            os.kill(terminal.process_id, getattr(signal, name))

        def is_stopped():
            return psutil.Process(terminal.process_id).status() == psutil.STATUS_STOPPED

        assert shown("\x1b]11;?")
        terminal.press("\x1b]11;rgb:ffff/ffff/ffff\x1b\\")
        assert shown("48;2;251;251;248"), "the light theme's background"
        assert shown("Dismiss")
        num_threads = psutil.Process(terminal.process_id).num_threads()
        for way in ("ctrl+z", "SIGTSTP", "SIGSTOP"):
            terminal.forget()
            if way == "ctrl+z":
                terminal.press("\x1a")
            else:
                signalled(way)
            if way != "SIGSTOP":
                assert shown("\x1b[?1049l"), f"{way} puts the terminal back"
            while not is_stopped():
                os.sched_yield()
            signalled("SIGCONT")
            assert shown("\x1b[?1049h") and shown("Dismiss"), f"all is drawn again after {way}"
            assert psutil.Process(terminal.process_id).num_threads() == num_threads
        signalled("SIGHUP")
        assert shown("\x1b[?1049l") and shown("\x1b[?25h") and shown("\x1b[?1003l")
        while terminal.exit_code is None:
            terminal.wait_for("nothing", timeout_seconds=0.1)
        assert terminal.exit_code == 128 + signal.SIGHUP
