"""Texts side by side in one cache have the logits that each has alone."""

from pathlib import Path

import pytest
import torch

from runtime.calibration.text_forest import Leaf, NewToken, TextForest, num_forest_tokens
from runtime.engine.loading import OpenSession
from runtime.model.streamed_model import chain_input
from tests.support.session_factory import open_tiny, save_tiny_folder

PROMPTS = ([5, 6, 7, 8], [5, 6, 9], [5, 6], [10], [5, 6, 9])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model") / "target", seed=2)


def alone(opened: OpenSession, tokens: list[int]) -> torch.Tensor:
    model = opened.session.engine.target
    model.cache.truncate(0)
    return model.logits(model.run_pass(chain_input(tokens, num_cached=0))[-1:])


def logits_of(opened: OpenSession, leaf: Leaf) -> torch.Tensor:
    return opened.session.engine.target.logits(leaf.target_hidden[None])


def test_what_prompts_begin_with_is_counted_once() -> None:
    assert num_forest_tokens(PROMPTS) == 6
    assert num_forest_tokens([[1] * 3, [1] * 5]) == 5
    assert num_forest_tokens([[1, 2], [3, 2]]) == 4  # the same token behind another one is another node


def test_texts_side_by_side_are_what_each_is_alone(folder: Path) -> None:
    with open_tiny(folder, draft=folder) as opened:
        forest = TextForest(opened.session.engine)
        forest.clear()
        leaves = forest.add_prompts(PROMPTS)
        first = forest.add([NewToken(20 + index, leaf.slots) for index, leaf in enumerate(leaves)])
        second = forest.add([NewToken(40 + index, leaf.slots) for index, leaf in enumerate(first)])
        rows = [logits_of(opened, leaf) for leaf in second]
        assert forest.num_free == opened.plan.capacity - 6 - 2 * len(PROMPTS)
        drafted = [leaf.draft_hidden for leaf in second]
        for index, prompt in enumerate(PROMPTS):
            expected = alone(opened, [*prompt, 20 + index, 40 + index])
            torch.testing.assert_close(rows[index], expected, rtol=1e-4, atol=1e-4)
        model = opened.session.engine.drafter.model  # type: ignore[union-attr]
        model.cache.truncate(0)
        hidden = model.run_pass(chain_input([*PROMPTS[1], 21, 41], num_cached=0))[-1]
        torch.testing.assert_close(drafted[1], hidden, rtol=1e-4, atol=1e-4)


def test_long_prompts_run_in_chunks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.calibration.text_forest.PREFILL_CHUNK_TOKENS", 4)
    prompt = [3 + index % 60 for index in range(19)]
    with open_tiny(folder, draft=folder) as opened:
        forest = TextForest(opened.session.engine)
        forest.clear()
        (leaf,) = forest.add_prompts([prompt])
        row = logits_of(opened, leaf)
        torch.testing.assert_close(row, alone(opened, prompt), rtol=1e-4, atol=1e-4)


def test_clearing_forgets_every_text(folder: Path) -> None:
    with open_tiny(folder, draft=folder) as opened:
        forest = TextForest(opened.session.engine)
        forest.add_prompts(PROMPTS)
        forest.clear()
        assert forest.num_free == opened.plan.capacity
        assert opened.session.engine.target.cache.num_cached == 0
