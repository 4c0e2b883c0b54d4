"""Too little room for the libraries themselves is a sentence, and room for them is left to the fit check."""

import sys
from pathlib import Path

import pytest

from offload.errors import BudgetError
from offload.units import format_bytes
from runtime.fit import startup
from runtime.fit.startup import ENTRY_BYTES, LIBRARY_BYTES, TOKENIZER_BYTES, check_startup
from tests.support.model_factory import edit_config
from tui.cli import execute

BEFORE_A_TOKENIZER = LIBRARY_BYTES + TOKENIZER_BYTES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"vocab_size": 262144}')
    return tmp_path


def leave(monkeypatch: pytest.MonkeyPatch, free_bytes: int, *, is_imported: bool) -> None:
    monkeypatch.setattr(startup, "free_memory_bytes", lambda root: free_bytes)
    if not is_imported:
        monkeypatch.delitem(sys.modules, "torch")


@pytest.mark.parametrize("free_mb", [0, 100, 300, 400, 500, 600, 700])
def test_a_cap_that_the_libraries_would_break_is_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, free_mb: int
) -> None:
    leave(monkeypatch, free_mb * 10**6, is_imported=False)
    needed = format_bytes(BEFORE_A_TOKENIZER + 262144 * ENTRY_BYTES)
    with pytest.raises(BudgetError, match=f"a tokenizer of 262144 entries take about {needed}; close other programs"):
        check_startup(folder)


def test_exactly_enough_is_enough(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(monkeypatch, BEFORE_A_TOKENIZER + 262144 * ENTRY_BYTES, is_imported=False)
    check_startup(folder)


def test_what_is_imported_already_takes_nothing_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chat's engine opens one model after another."""
    leave(monkeypatch, 262144 * ENTRY_BYTES, is_imported=True)
    check_startup(folder)
    leave(monkeypatch, 262144 * ENTRY_BYTES - 1, is_imported=True)
    with pytest.raises(BudgetError):
        check_startup(folder)


@pytest.mark.parametrize("size", ["x", -5, 0, None, 10**30, [3]])
def test_a_vocabulary_of_no_size_counts_as_a_usual_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, size: object
) -> None:
    """Opening the model says what is wrong with it."""
    edit_config(folder, vocab_size=size)
    leave(monkeypatch, BEFORE_A_TOKENIZER + 32_000 * ENTRY_BYTES, is_imported=False)
    check_startup(folder)
    (folder / "config.json").write_text("{")
    check_startup(folder)


def test_commands_without_a_tokenizer_need_the_libraries_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    leave(monkeypatch, 0, is_imported=True)
    check_startup(None)
    leave(monkeypatch, LIBRARY_BYTES, is_imported=False)
    check_startup(None)


@pytest.mark.parametrize("command", [["doctor"], ["plan", "--target", "llama-3-8b"], ["prepare", "x/y"]])
def test_every_command_asks_before_it_imports(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    leave(monkeypatch, LIBRARY_BYTES - 1, is_imported=False)
    options = ["--format", "int8", "-o", str(tmp_path / "out")] if command[0] == "prepare" else []
    assert execute([*command, *options]) == 2
    assert "before any weight is read the libraries " in capsys.readouterr().err
