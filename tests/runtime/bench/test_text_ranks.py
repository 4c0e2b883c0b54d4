from pathlib import Path

import numpy as np
import pytest

from runtime.bench.text_ranks import rank_tokens
from runtime.bench.tree_yield import count_yield
from tests.support.session_factory import answer, open_tiny, request, save_tiny_folder


def test_a_greedy_answer_is_first_in_the_models_own_order_everywhere(tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "model", seed=37)
    with open_tiny(folder) as opened:
        _, tokens = answer(opened, request())
        text = list(opened.session.engine.text)
        opened.session.engine.truncate(0)
        ranks = rank_tokens(opened.session.engine.target, text, num_prompt=len(text) - len(tokens))
    assert ranks.tolist() == [1] * len(tokens)


def test_ranks_count_the_likelier_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against sorting; and a token that the model does not know has none."""
    monkeypatch.setattr("runtime.bench.text_ranks.CHUNK_ROWS", 3)
    folder = save_tiny_folder(tmp_path / "model", seed=3)
    with open_tiny(folder) as opened:
        model = opened.session.engine.target
        text = [1, 5, 9, 2, 7, 7, 3, model.vocab_size + 4, 2]
        ranks = rank_tokens(model, text, num_prompt=2)
        assert ranks[5] == 0
        for position in range(2, 7):
            alone = rank_tokens(model, text[: position + 1], num_prompt=position)
            assert ranks[position - 2] == alone[0]
        assert (ranks[:5] >= 1).all()
        assert (ranks <= model.vocab_size).all()


def test_counted_yields_are_what_a_session_emits(tmp_path: Path) -> None:
    """Real greedy rounds with a tree, against the same tree counted on the ranks of the text that they wrote."""
    target, draft = (save_tiny_folder(tmp_path / name, seed=seed) for name, seed in (("target", 37), ("draft", 38)))
    with open_tiny(target, draft=draft, tree="16x4") as opened:
        engine = opened.session.engine
        finished, tokens = answer(opened, request(max_new_tokens=48))
        text, topology = list(engine.text), engine.planner.topology(max_levels=4)
        engine.truncate(0)
        assert engine.drafter is not None
        ranks = rank_tokens(engine.drafter.model, text, num_prompt=len(text) - len(tokens))
    start = num_rounds = 0
    while start < len(tokens):
        reach = ranks[start : start + topology.num_levels - 1]
        padded = np.concatenate([reach, np.zeros(topology.num_levels - 1 - len(reach), dtype=np.int64)])
        start += int(count_yield(topology, [np.append(padded, 0)]).mean)
        num_rounds += 1
    assert num_rounds == finished.statistics.rounds
