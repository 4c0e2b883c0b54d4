"""What a user sees between a command and its first prompt."""

import io
from collections.abc import Generator
from pathlib import Path

from rich.console import Console
from session_factory import save_tiny_folder

from runtime.engine_config import EngineConfig
from tui.session_opening import finish, open_session_in_sight


def test_each_step_is_announced_and_the_result_returned() -> None:
    def steps() -> Generator[str, None, int]:
        yield "looking"
        yield "found"
        return 7

    console = Console(file=io.StringIO(), width=100)
    assert finish(steps(), console) == 7
    assert console.file.getvalue() == "looking\nfound\n"  # type: ignore[attr-defined]


def test_a_session_opens_with_its_accounting_and_what_was_decided(tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "target")
    console = Console(file=io.StringIO(), width=200)
    config = EngineConfig(target=str(folder), draft="none", context_tokens=64, device="cpu")
    with open_session_in_sight(config, [], console) as opened:
        assert opened.session.engine.context_tokens == 64
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "device memory:" in shown
    assert opened.plan.fit.sentence in shown
