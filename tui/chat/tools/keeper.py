"""Runs a server of tools and ends it once the app is gone, however that ended: `python -I -S keeper.py APP_ID COMMAND`.

A server that ignores the end of its input would outlive an app that was killed. The kernel's own signal for that
(PR_SET_PDEATHSIG) comes when the thread ends that has started the server, so this process waits for both instead. Needs
Linux, and nothing but Python's own library.
"""

import os
import select
import signal
import sys
from collections.abc import Sequence

GRACE_SECONDS = 2.0
"""In which a server may end by itself once its input has, and then once it was asked to."""


def kept_command(command: str, args: Sequence[str]) -> tuple[str, list[str]]:
    """Return what runs a command and ends it with this process; the command itself where the system has no way to."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):  # another system, or a container that forbids it
        return command, list(args)
    return sys.executable, ["-I", "-S", __file__, str(os.getpid()), command, *args]


def keep(app_id: int, command: list[str]) -> int:
    """Run a command until it ends, or the app has and the command with it; return its exit code."""
    asked = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    for number in asked:
        signal.signal(number, signal.SIG_IGN)  # they are for the server, whose end this process waits for
    app = os.pidfd_open(app_id)
    if os.getppid() != app_id:
        return 1  # gone before it could be watched
    try:
        child_id = os.posix_spawnp(command[0], command, os.environ, setsigdef=[*asked, signal.SIGPIPE, signal.SIGXFSZ])
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be started: {error.strerror}\n")
        return 127
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):  # else nobody would notice where the server closes its own
        os.dup2(nothing, descriptor)
    child = os.pidfd_open(child_id)
    ready, _, _ = select.select([app, child], [], [])
    if child not in ready:
        _end(child)
    _, status = os.waitpid(child_id, 0)
    exit_code = os.waitstatus_to_exitcode(status)
    return exit_code if exit_code >= 0 else 128 - exit_code


def _end(child: int) -> None:
    """End the server with its whole group, which this process leads."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if select.select([child], [], [], GRACE_SECONDS)[0]:
            return
        os.killpg(os.getpid(), number)


if __name__ == "__main__":
    sys.exit(keep(int(sys.argv[1]), sys.argv[2:]))
