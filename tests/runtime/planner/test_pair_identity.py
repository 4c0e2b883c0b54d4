"""What a session's models are called in a profile."""

from pathlib import Path

import pytest
import torch

from runtime.model.model_loader import ModelFiles
from runtime.planner.pair_identity import held_name, pair_identity
from tests.support.quantized_factory import save_quantized_folder
from tests.support.session_factory import open_tiny, save_tiny_folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("models")
    return (
        save_tiny_folder(base / "target", seed=2, dtype=torch.bfloat16),
        save_tiny_folder(base / "draft", seed=3),
    )


def test_a_separate_draft_has_a_digest_of_its_own(folders: tuple[Path, Path]) -> None:
    with open_tiny(folders[0], draft=folders[1]) as opened:
        target, draft = pair_identity(opened.plan)
    assert (target.name, target.held, draft.name, draft.held) == ("target", "bfloat16", "draft", "float32")
    assert target.content_digest != draft.content_digest


def test_a_substitute_is_the_target_held_in_another_way(folders: tuple[Path, Path]) -> None:
    with open_tiny(folders[0], draft="substitute", draft_format="nf4") as opened:
        target, draft = pair_identity(opened.plan)
    assert target.content_digest == draft.content_digest
    assert (target.held, draft.held) == ("bfloat16", "nf4")


def test_auto_names_the_format_that_the_session_chose(folders: tuple[Path, Path]) -> None:
    with open_tiny(folders[0], draft="substitute", draft_format="auto") as opened:
        _, draft = pair_identity(opened.plan)
    assert draft.held in ("int8", "nf4")


@pytest.mark.parametrize(("method", "expected"), [("int8", "int8"), ("nf4", "nf4")])
def test_what_is_stored_quantized_is_called_what_it_is(tmp_path: Path, method: str, expected: str) -> None:
    files = ModelFiles.open(save_quantized_folder(tmp_path, method))
    assert held_name(files, "stored") == expected
