"""Scores of whole tries, whatever the passes, against transformers' logits of each text alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime.engine.loading import OpenSession
from runtime.errors import OptionError
from runtime.model.streamed_model import PassInput
from runtime.planner.prefill import PassWidths, PrefillPlanner
from runtime.scoring import scorer
from runtime.scoring.score_file import Score, ScoreRequest, ScoreResult
from runtime.scoring.scorer import Scorer, ScoringPass, TokenPair
from tests.support.reference_models import greedy_reference, own_logits
from tests.support.session_factory import open_tiny, save_tiny_folder, save_with_tokens_beyond

WINDOW = 40


def pair_of(context: Sequence[int], continuation: Sequence[int]) -> TokenPair:
    return TokenPair.within(context, continuation, window=WINDOW)


def random_pairs(seed: int = 0) -> list[TokenPair]:
    """Few-shot prompts with choices, texts of their own, texts that begin others, equal ones, and long ones."""
    rng = np.random.default_rng(seed)

    def tokens(num_tokens: int) -> list[int]:
        return rng.integers(3, 90, num_tokens).tolist()

    shots, pairs = tokens(17), []
    for _ in range(4):
        question = shots + tokens(int(rng.integers(1, 6)))
        pairs += [pair_of(question, tokens(int(rng.integers(1, 4)))) for _ in range(3)]
    pairs += [pair_of(tokens(int(rng.integers(1, 9))), tokens(int(rng.integers(1, 9)))) for _ in range(5)]
    alone = tokens(30)
    pairs += [pair_of(alone[:5], alone[5:]), pair_of(alone[:9], alone[9:12]), pair_of(alone[:1], alone[1:])]
    pairs += [pairs[0], pair_of(shots, tokens(1)), pair_of(shots, tokens(1)), pair_of(tokens(60), tokens(4))]
    order = rng.permutation(len(pairs))
    return [pairs[index] for index in order]


def by_definition(folder: Path, pair: TokenPair) -> tuple[float, bool]:
    """One forward of the text, as lm_eval does it."""
    logits = own_logits(folder, pair.token_ids[:-1].tolist())[-pair.num_scored :]
    targets = torch.from_numpy(pair.token_ids[-pair.num_scored :])
    chosen = logits.log_softmax(dim=-1).gather(1, targets[:, None])
    return float(chosen.sum()), bool((logits.argmax(dim=-1) == targets).all())


def with_passes(opened: OpenSession, *, slice_tokens: int, most_tokens: int) -> Scorer:
    """Passes of so many tokens, of which a layer computes so many at once, whatever they take."""
    engine = opened.session.engine
    engine.prefill = PrefillPlanner(
        slice_tokens=slice_tokens, most_tokens=most_tokens, first_tokens=most_tokens, is_streamed=True
    )
    engine.prefill.observe = lambda *_: None  # type: ignore[method-assign]
    engine.target._widths = PassWidths(slice_tokens, slice_tokens) if engine.target.can_slice else None
    return Scorer(engine, opened.plan.tokenizer)


def scores_of(scorer: Scorer, pairs: Sequence[TokenPair]) -> tuple[list[Score], list[ScoringPass]]:
    passes = list(scorer.score(pairs))
    scores = {index: score for done in passes for index, score in done.scores.items()}
    assert sorted(scores) == list(range(len(pairs)))
    assert sum(len(done.scores) for done in passes) == len(pairs), "each once"
    return [scores[index] for index in range(len(pairs))], passes


def watch(opened: OpenSession, inputs: list[PassInput], monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what goes into passes."""
    run_batch = opened.session.engine.target.run_batch

    def watched(parts: Sequence[PassInput], **how: object) -> list[torch.Tensor]:
        inputs.extend(parts)
        return run_batch(parts, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(opened.session.engine.target, "run_batch", watched)


def num_nodes(pairs: Sequence[TokenPair]) -> int:
    """Of the trie, counted as different beginnings."""
    return len({tuple(pair.token_ids[:stop]) for pair in pairs for stop in range(1, len(pair.token_ids))})


@pytest.mark.parametrize(
    ("kind", "num_lanes"),
    [("llama", 1), ("gemma3", 1), ("gpt2", 1), ("llama", 3), ("gemma3", 2), ("mistral", 4), ("qwen2", 3), ("gpt2", 3)],
)
def test_scores_are_those_of_each_text_alone_whatever_the_passes(
    tmp_path: Path, kind: str, num_lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sliding windows, slices, architectures without them; the head takes a few turns for each pass."""
    monkeypatch.setattr(scorer, "WALK_ROWS", 5)
    folder = save_tiny_folder(tmp_path / "model", kind)
    pairs = random_pairs()
    expected = [by_definition(folder, pair) for pair in pairs]
    with open_tiny(folder, num_residents=1, num_texts=num_lanes) as opened:
        can_slice = opened.session.engine.target.can_slice
        for slice_tokens, most_tokens in ((1, 1), (5, 20), (16, 16), (8, 64), (100, 100)):
            if not can_slice:
                most_tokens = slice_tokens
            scores, passes = scores_of(with_passes(opened, slice_tokens=slice_tokens, most_tokens=most_tokens), pairs)
            for score, (log_likelihood, is_greedy) in zip(scores, expected, strict=True):
                assert score.log_likelihood == pytest.approx(log_likelihood, abs=1e-4)
                assert score.is_greedy == is_greedy
            num_computed = sum(done.num_tokens for done in passes)
            assert num_computed == num_nodes(pairs) if num_lanes == 1 else num_computed < 1.7 * num_nodes(pairs)
            assert passes[-1].num_left == 0
            assert max(done.num_tokens for done in passes) <= 2 * most_tokens, "the last two passes may be one"
            cache = opened.session.engine.target.cache
            assert [cache.num_cached_in(lane) for lane in range(cache.num_lanes)] == [0] * num_lanes


def test_no_order_of_lanes_and_widths_loses_a_prediction(tmp_path: Path) -> None:
    """A lane that took over what another one had entered later did not read its own branch's tokens."""
    folder = save_tiny_folder(tmp_path / "model", "qwen3")
    with open_tiny(folder, num_residents=1, num_texts=4) as opened:
        for seed in range(1, 13):
            slice_tokens = int(np.random.default_rng(seed).integers(1, 20))
            scorer = with_passes(opened, slice_tokens=slice_tokens, most_tokens=slice_tokens * (1 + seed % 5))
            pairs = random_pairs(seed)
            scores, _ = scores_of(scorer, pairs)
            for score, pair in zip(scores, pairs, strict=True):
                expected = pytest.approx(by_definition(folder, pair)[0], abs=1e-4)
                assert score.log_likelihood == expected, (seed, slice_tokens)


def test_passes_are_as_wide_as_planned_and_stream_once(tmp_path: Path) -> None:
    with open_tiny(save_tiny_folder(tmp_path / "model"), num_residents=1) as opened:
        streamed = sum(source.payload_bytes for _, source in opened.streamer._sources)
        pairs = random_pairs()
        before = opened.session.engine.bytes_streamed
        _, passes = scores_of(with_passes(opened, slice_tokens=32, most_tokens=32), pairs)
        assert len(passes) == -(-num_nodes(pairs) // 32)
        assert opened.session.engine.bytes_streamed - before == len(passes) * streamed


def test_a_long_context_is_one_wide_pass_of_which_a_layer_computes_a_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs: list[PassInput] = []
    with open_tiny(save_tiny_folder(tmp_path / "model"), num_residents=1) as opened:
        scoring = with_passes(opened, slice_tokens=8, most_tokens=64)
        watch(opened, inputs, monkeypatch)
        context = list(range(3, 33))
        scores_of(scoring, [pair_of(context, [40, 41]), pair_of(context, [50, 51]), pair_of(context, [40, 60, 61])])
        (only,) = inputs
        assert len(only.token_ids) == 30 + 3
        assert only.num_text == 30


def test_lanes_share_a_pass_and_what_its_texts_begin_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty examples before forty questions are computed once, and branches of more rows than a layer computes."""
    rng = np.random.default_rng(4)
    shots = rng.integers(3, 90, 20).tolist()
    pairs = [pair_of(shots + rng.integers(3, 90, 5).tolist(), rng.integers(3, 90, 2).tolist()) for _ in range(40)]
    inputs: list[PassInput] = []
    with open_tiny(save_tiny_folder(tmp_path / "model"), num_residents=1, num_texts=4) as opened:
        watch(opened, inputs, monkeypatch)
        _, passes = scores_of(with_passes(opened, slice_tokens=16, most_tokens=64), pairs)
    assert len(passes) <= 1 + num_nodes(pairs) // 60
    assert sum(done.num_tokens for done in passes) < num_nodes(pairs) + 3 * 5 * len(passes)
    first = {each.lane: each.shared for each in reversed(inputs)}
    assert first[0] is None
    assert [shared[1] for lane in (1, 2, 3) if (shared := first[lane]) is not None] == [20, 20, 20]


def test_the_greedy_text_is_known_as_such(tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "model")
    context = tuple(range(5, 15))
    greedy, _ = greedy_reference(folder, context, 6)
    other = [*greedy[:-1], (greedy[-1] + 1) % 90]
    with open_tiny(folder) as opened:
        scores, _ = scores_of(
            Scorer(opened.session.engine, opened.plan.tokenizer), [pair_of(context, greedy), pair_of(context, other)]
        )
    assert [score.is_greedy for score in scores] == [True, False]


def test_nothing_to_score_takes_no_pass(tmp_path: Path) -> None:
    with open_tiny(save_tiny_folder(tmp_path / "model")) as opened:
        assert list(Scorer(opened.session.engine, opened.plan.tokenizer).score([])) == []


def test_stopping_half_way_leaves_the_session_empty_and_able_to_answer(tmp_path: Path) -> None:
    with open_tiny(save_tiny_folder(tmp_path / "model"), num_residents=1) as opened:
        scoring = with_passes(opened, slice_tokens=4, most_tokens=4)
        pairs = random_pairs()
        steps = scoring.score(pairs)
        next(steps)
        assert opened.session.engine.target.cache.num_cached > 0
        steps.close()
        assert opened.session.engine.target.cache.num_cached == 0
        scores_of(scoring, pairs)


def test_what_is_too_long_loses_its_beginning() -> None:
    pair = TokenPair.within(range(10), [20, 21, 22], window=8)
    assert pair.token_ids.tolist() == [4, 5, 6, 7, 8, 9, 20, 21, 22]
    assert (pair.num_scored, pair.num_truncated) == (3, 4)
    whole = TokenPair.within(range(6), [20, 21, 22], window=8)
    assert (len(whole.token_ids), whole.num_truncated) == (9, 0)
    assert TokenPair.within([1], range(2, 10), window=8).num_truncated == 0
    with pytest.raises(OptionError, match="the continuation has 9 tokens and the context holds 8"):
        TokenPair.within([1], range(9), window=8)


def test_every_line_gets_its_result(tmp_path: Path) -> None:
    folder = save_with_tokens_beyond(tmp_path)
    items = [
        ScoreRequest(id="a", context="the cat ", continuation="and the dog", line_number=1),
        ScoreRequest(id="c", context="see ", continuation="<image>", line_number=3),
        ScoreRequest(id="d", context="", continuation="the end", line_number=4),
        ScoreRequest(id="e", context="", continuation="the end " * 9, line_number=5),
        ScoreRequest(id="f", context="the end " * 9, continuation="x", line_number=6),
    ]
    with open_tiny(folder, context_tokens=16) as opened:
        found = [
            each
            for each in Scorer(opened.session.engine, opened.plan.tokenizer).run(items)
            if isinstance(each, ScoreResult)
        ]
    results = {result.id: result for result in found}
    assert [result.id for result in found[:2]] == ["c", "e"]
    assert "'<image>', id 96, and the model has none beyond 95" in (results["c"].error or "")
    assert "tokens and the context holds 16" in (results["e"].error or "")
    for name, text in (("a", "the cat and the dog"), ("d", "<s>the end")):
        score = results[name].score
        assert score is not None and score.num_truncated == 0
        ids = opened.plan.tokenizer.encode(text)
        assert score.num_tokens + score.num_context_tokens == len(ids)
        expected, is_greedy = by_definition(folder, TokenPair(np.array(ids), score.num_tokens))
        assert score.log_likelihood == pytest.approx(expected, abs=1e-4) and score.is_greedy == is_greedy
    cut = results["f"].score
    assert cut is not None and cut.num_context_tokens + cut.num_tokens == 17 and cut.num_truncated > 0
