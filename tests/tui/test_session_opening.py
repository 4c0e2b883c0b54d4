"""What a user sees between a command and its first prompt."""

import gc
import io
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

from rich.console import Console

from runtime.config import EngineConfig
from tests.support.session_factory import save_tiny_folder
from tui.session_opening import announce, open_session_in_sight, uncollected


def test_each_step_is_announced_and_the_result_returned() -> None:
    def steps() -> Generator[str, None, int]:
        yield "looking"
        yield "found"
        return 7

    console = Console(file=io.StringIO(), width=100)
    assert announce(steps(), console) == 7
    assert console.file.getvalue() == "looking\nfound\n"  # type: ignore[attr-defined]


def test_a_session_opens_with_its_placement_and_what_was_decided(tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "target")
    console = Console(file=io.StringIO(), width=200)
    config = EngineConfig(target=str(folder), draft="none", context_tokens=64, device="cpu")
    with open_session_in_sight(config, [], console) as opened:
        assert opened.session.engine.context_tokens == 64
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "device memory:" in shown
    assert opened.plan.fit.sentence in shown


def test_what_is_imported_uncollected_is_never_looked_through() -> None:
    """In a process of its own: what is frozen stays so."""
    code = (
        "import gc, sys; from tui.session_opening import uncollected\n"
        "with uncollected('unittest.mock'):\n"
        "    assert not gc.isenabled(); import unittest.mock\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 1000\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_second_session_leaves_the_collector_alone() -> None:
    """Models are cycles: frozen, those of an earlier session would stay in memory for ever."""
    frozen = gc.get_freeze_count()
    with uncollected("sys"):
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen
