"""A server of tools never outlives the app, whatever it ignores and however the app ends."""

import os
import select
import signal
import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tui.chat.tools.keeper import kept_command

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")

STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
os.write(1, b"%d\\n" % os.getpid())  # at once: both write to one pipe
while True:
    time.sleep(60)
"""
"""A server of two processes that hear neither the end of their input nor a request to end."""
APP = f"""
import os, subprocess, sys
from tui.chat.tools.keeper import kept_command
command, args = kept_command(sys.executable, ["-c", {STUBBORN!r}])
server = subprocess.Popen([command, *args], stdin=subprocess.PIPE, start_new_session=True)
os.write(1, b"%d\\n" % server.pid)
server.wait()
"""


def kept(*command, **options):
    program, args = kept_command(command[0], command[1:])
    return subprocess.Popen([program, *args], text=True, start_new_session=True, **options)


def wait_for_end(*process_ids):
    """Wait until processes that are no children of ours are gone."""
    for process_id in process_ids:
        try:
            handle = os.pidfd_open(process_id)
        except ProcessLookupError:
            continue
        try:
            assert select.select([handle], [], [], 20)[0], f"{process_id} goes on"
        finally:
            os.close(handle)


def test_a_stubborn_server_ends_with_an_app_that_is_killed():
    with subprocess.Popen([sys.executable, "-c", APP], cwd=ROOT, stdout=subprocess.PIPE, text=True) as app:
        process_ids = [int(app.stdout.readline()) for _ in range(3)]
        app.send_signal(signal.SIGKILL)
        assert app.wait(10) == -signal.SIGKILL
        wait_for_end(*process_ids)
        assert app.stdout.read() == "", "nobody holds its output any more"


def test_what_a_server_reads_and_writes_and_its_exit_code_pass_through():
    code = "import sys; print(sys.stdin.read() + sys.argv[1]); sys.stderr.write('so'); sys.exit(7)"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with kept(sys.executable, "-c", code, "a b", **pipes) as server:
        assert server.communicate("said ", timeout=30) == ("said a b\n", "so")
        assert server.returncode == 7


def test_a_request_to_end_is_for_the_server():
    # Not signal.pause, which would wait for a second signal where the first one comes just before it.
    wait = "while True: time.sleep(0.01)"
    code = f"import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(3))\nprint(1, flush=True)\n{wait}"
    with kept(sys.executable, "-c", code, stdout=subprocess.PIPE) as server:
        assert server.stdout.readline() == "1\n"
        os.killpg(server.pid, signal.SIGTERM)
        assert server.wait(30) == 3
    with kept(
        sys.executable, "-c", "print(1, flush=True); input()", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as it:
        assert it.stdout.readline() == "1\n"
        os.killpg(it.pid, signal.SIGTERM)
        assert it.wait(30) == 128 + signal.SIGTERM


def test_the_end_of_a_server_s_output_is_seen_while_it_goes_on():
    code = "import os, sys; os.close(1); sys.stdin.read()"
    with kept(sys.executable, "-c", code, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout.read() == ""
        assert server.poll() is None
        server.stdin.close()
        assert server.wait(30) == 0


def test_what_cannot_be_started_is_a_sentence(tmp_path):
    program = tmp_path / "program"
    program.write_bytes(b"\x00")
    program.chmod(0o700)
    with kept(str(program), stderr=subprocess.PIPE) as server:
        assert server.communicate(timeout=30)[1] == f"{program} cannot be started: Exec format error\n"
        assert server.returncode == 127


def test_where_the_system_has_no_way_the_command_runs_alone(monkeypatch):
    def forbid(process_id):
        raise PermissionError

    assert kept_command("serve", ["a"])[1][-2:] == ["serve", "a"]
    monkeypatch.setattr(os, "pidfd_open", forbid)
    assert kept_command("serve", ["a"]) == ("serve", ["a"])
    monkeypatch.delattr(os, "pidfd_open")
    assert kept_command("serve", ["a"]) == ("serve", ["a"])
