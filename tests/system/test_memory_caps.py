"""Under every cap on its memory a run answers or says in a sentence why it cannot; the kernel never ends it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.session_factory import save_tiny_folder

COMMAND = "from tui.cli import main; main()"
GROUPS = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max"),
)


@pytest.fixture
def group() -> Iterator[tuple[Path, Path]]:
    """A memory control group of its own, and the file that holds its limit."""
    for place, limit in GROUPS:
        folder = place / f"overstory-test-{os.getpid()}-{time.monotonic_ns()}"
        if (place / "cgroup.procs").exists() and os.access(place, os.W_OK):
            folder.mkdir()
            if (folder / limit).exists():
                yield folder, folder / limit
                with suppress(OSError):
                    folder.rmdir()
                return
            folder.rmdir()
    pytest.skip("no control group of memory can be made here")


def under(group: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in the group; everything it says, and its exit code."""
    return subprocess.run(
        ["bash", "-c", 'echo $$ >"$0/cgroup.procs"; exec "$@"', str(group), sys.executable, "-c", COMMAND, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize("cap_mb", [200, 300, 350, 400, 450, 500, 600, 800, 1000])
def test_a_cap_is_met_with_an_answer_or_a_sentence(group: tuple[Path, Path], cap_mb: int, tmp_path: Path) -> None:
    """Imports and tokenizers took more than was assumed, and the kernel ended the process before anything was said."""
    folder, limit = group
    limit.write_text(str(cap_mb * 10**6))
    model = save_tiny_folder(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("the cat and the dog\n")
    arguments = ["run", str(tmp_path / "prompts.txt"), "--raw", "--target", str(model), "--max-new-tokens", "4", "-q"]
    done = under(folder, *arguments)
    assert done.returncode in (0, 2), done
    if done.returncode == 2:
        assert done.stderr.count("\n") == 1 and "memory" in done.stderr, done.stderr
    assert done.returncode == (2 if cap_mb <= 400 else 0 if cap_mb >= 800 else done.returncode), done


@pytest.mark.slow
@pytest.mark.parametrize("cap_mb", [250, 450, 650])
@pytest.mark.parametrize("command", [["doctor", "--json"], ["plan", "--target", "llama-3-8b", "--json"]])
def test_so_is_a_machine_measured(group: tuple[Path, Path], command: list[str], cap_mb: int) -> None:
    """The command that says what fits was ended itself."""
    folder, limit = group
    limit.write_text(str(cap_mb * 10**6))
    done = under(folder, *command, "-q")
    assert done.returncode >= 0 and "Traceback" not in done.stderr, done
    assert ("measuring this machine take about" in done.stderr) == (cap_mb < 600), done
