"""Texts are the target's own, positions are what verification does there, and no text's end stops the others.

Texts side by side in one cache have the logits that each has alone.
"""

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from profiles.acceptance import ForcedPosition, acceptance_tables
from runtime.calibration.texts import NUM_RANKS, Leaf, TextForest, TextWriter, num_forest_tokens
from runtime.config import SamplingParams
from runtime.engine.loading import OpenSession
from runtime.errors import OptionError
from runtime.model.streamed_model import chain_input
from runtime.prompts.prompt_file import PromptRequest
from tests.support.session_factory import answer, open_tiny, request, save_tiny_folder

PROMPTS = ("the cat and the dog", "the cat ran", "once upon a time")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A target, and a draft of its own mind."""
    base = tmp_path_factory.mktemp("models")
    return save_tiny_folder(base / "target", seed=2), save_tiny_folder(base / "draft", seed=3)


def requests(*texts: str) -> list[PromptRequest]:
    return [replace(request(text), id=str(index)) for index, text in enumerate(texts, start=1)]


def of_temperatures(counts: dict[float, int]) -> dict[SamplingParams, int]:
    return {SamplingParams(temperature=temperature): count for temperature, count in counts.items()}


def write(writer: TextWriter, temperatures: list[float], num_texts: int, num_steps: int) -> list[ForcedPosition]:
    writer.begin(of_temperatures(dict.fromkeys(temperatures, num_texts)))
    return [position for _ in range(num_steps) for position in writer.step()]


def test_greedy_positions_say_which_rank_the_answer_has(folders: tuple[Path, Path]) -> None:
    """The text of the session itself, read by the draft alone, has the same ranks at the same places."""
    target, draft = folders
    with open_tiny(target, draft=draft, context_tokens=256) as opened:
        positions = write(TextWriter(opened, requests(PROMPTS[0])), [0.0], 1, 12)
        finished, token_ids = answer(opened, request(PROMPTS[0], max_new_tokens=12))
        text, model = list(opened.session.engine.text), opened.session.engine.drafter.model  # type: ignore[union-attr]
        model.cache.truncate(0)
        num_prompt = finished.statistics.prompt_tokens
        hidden = model.run_pass(chain_input(text[:-1], num_cached=0))[num_prompt - 1 :]
        best = model.logits(hidden).topk(NUM_RANKS, dim=-1).indices.numpy()
    expected = best == np.asarray(token_ids)[:, None]
    found = np.stack([position.acceptance for position in positions])
    assert np.array_equal(found[: len(expected)], expected)
    assert np.array_equal(np.stack([position.followed for position in positions]), found)
    assert found.sum() > 0


def test_a_draft_that_is_the_target_is_always_right(folders: tuple[Path, Path]) -> None:
    target, _ = folders
    with open_tiny(target, draft=target, context_tokens=256) as opened:
        positions = write(TextWriter(opened, requests(*PROMPTS)), [0.0, 0.8], 3, 6)
    assert len({position.text for position in positions}) >= 6
    for position in positions:
        assert position.acceptance[0] == pytest.approx(1.0, abs=1e-3)
        assert position.followed.sum() == pytest.approx(1.0, abs=1e-3)


def test_sampled_positions_agree_with_rounds_that_really_verify(folders: tuple[Path, Path]) -> None:
    """Analytic means by rank against what 200 real rounds of the session accept, seed 4, within 4 standard errors."""
    target, draft = folders
    with open_tiny(target, draft=draft, context_tokens=512, tree="4x2") as opened:
        (table,) = acceptance_tables(write(TextWriter(opened, requests(PROMPTS[0]), seed=4), [1.0], 6, 40))
        accepted, rounds = count_accepted_first_children(opened, num_answers=12)
    mean = accepted / rounds
    error = np.sqrt(mean * (1 - mean) / rounds + (table.by_rank_errors[0] or 0) ** 2)
    assert rounds > 150
    assert sum(table.by_rank[:3]) == pytest.approx(mean, abs=4 * error)


def count_accepted_first_children(opened: OpenSession, *, num_answers: int) -> tuple[int, int]:
    """(rounds whose root had an accepted child, rounds) with trees of a root and three children."""
    from runtime.events import Round

    accepted = rounds = 0
    for seed in range(num_answers):
        asked = request(PROMPTS[0], temperature=1.0, verification="sequoia", seed=seed, max_new_tokens=40)
        for event in opened.session.generate(asked):
            if isinstance(event, Round):
                accepted += event.num_emitted > 1
                rounds += 1
    return accepted, rounds


def test_positions_of_a_text_come_one_by_one_and_texts_that_end_are_replaced(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.calibration.texts.MAX_TEXT_TOKENS", 4)
    target, draft = folders
    with open_tiny(target, draft=draft, context_tokens=256) as opened:
        positions = write(TextWriter(opened, requests(*PROMPTS)), [0.0, 1.0], 3, 10)
    lengths = Counter((position.temperature, position.text) for position in positions)
    assert max(lengths.values()) == 4
    by_temperature: defaultdict[float, int] = defaultdict(int)
    for (temperature, _), length in lengths.items():
        by_temperature[temperature] += length
    assert by_temperature[0.0] == 12  # three greedy texts, which nothing replaces
    assert by_temperature[1.0] == 30  # three at any time, for ten steps


def test_an_end_token_is_a_position_and_the_text_ends_there(folders: tuple[Path, Path]) -> None:
    """Every token ends: texts of one position each."""
    target, draft = folders
    with open_tiny(target, draft=draft, context_tokens=256) as opened:
        opened.session.end_token_ids = frozenset(range(96))
        writer = TextWriter(opened, requests(*PROMPTS))
        positions = write(writer, [0.0, 1.0], 3, 3)
        assert writer.step()  # sampled texts go on for ever
    lengths = Counter((position.temperature, position.text) for position in positions)
    assert set(lengths.values()) == {1}
    assert sum(temperature == 0.0 for temperature, _ in lengths) == 3
    assert sum(temperature == 1.0 for temperature, _ in lengths) == 9


def test_texts_stop_where_the_caches_are_full(folders: tuple[Path, Path]) -> None:
    target, draft = folders
    with open_tiny(target, draft=draft, context_tokens=40, tree="6x3") as opened:
        writer = TextWriter(opened, requests(*PROMPTS))
        positions = write(writer, [0.0, 1.0], 3, 200)
        assert 0 < len(positions) < 46
        assert writer.step() == []


def test_fewer_texts_are_written_where_many_would_be_short(folders: tuple[Path, Path]) -> None:
    target, draft = folders
    with open_tiny(target, draft=draft, context_tokens=128, tree="6x3") as opened:
        writer = TextWriter(opened, requests(*PROMPTS))
        writer.begin(of_temperatures({0.0: 16, 1.0: 16}))
        assert len(writer.step()) <= 4


def test_each_temperature_has_its_own_number_of_texts(folders: tuple[Path, Path]) -> None:
    target, draft = folders
    with open_tiny(target, draft=draft, context_tokens=256) as opened:
        writer = TextWriter(opened, requests(*PROMPTS))
        writer.begin(of_temperatures({0.0: 3, 0.6: 1, 1.0: 2}))
        assert Counter(position.temperature for position in writer.step()) == {0.0: 3, 0.6: 1, 1.0: 2}


def test_the_same_seed_writes_the_same_texts(folders: tuple[Path, Path]) -> None:
    target, draft = folders
    with open_tiny(target, draft=draft, context_tokens=256) as opened:
        runs = [write(TextWriter(opened, requests(*PROMPTS), seed=7), [1.0], 2, 5) for _ in range(2)]
    for one, other in zip(*runs, strict=True):
        assert np.array_equal(one.acceptance, other.acceptance)


def test_a_prompt_without_room_for_an_answer_is_a_sentence(folders: tuple[Path, Path]) -> None:
    target, draft = folders
    with open_tiny(target, draft=draft, context_tokens=12) as opened:
        writer = TextWriter(opened, requests("a b c d e f g h i j k l m n o p"))
        with pytest.raises(OptionError, match="--context"):
            writer.begin(of_temperatures({0.0: 1}))


def test_prompts_that_do_not_fit_beside_the_first_are_left_out(folders: tuple[Path, Path]) -> None:
    target, draft = folders
    with open_tiny(target, draft=draft, context_tokens=60, tree="6x3") as opened:
        writer = TextWriter(opened, requests("the cat", "a b c d e f g h i j k l m n o p q r s t u v", "the dog"))
        assert len(writer.prompt_tokens) == 2


BEGINNINGS = ([5, 6, 7, 8], [5, 6, 9], [5, 6], [10], [5, 6, 9])


def alone(opened: OpenSession, tokens: list[int]) -> torch.Tensor:
    model = opened.session.engine.target
    model.cache.truncate(0)
    return model.logits(model.run_pass(chain_input(tokens, num_cached=0))[-1:])


def logits_of(opened: OpenSession, leaf: Leaf) -> torch.Tensor:
    return opened.session.engine.target.logits(leaf.target_hidden[None])


def test_what_prompts_begin_with_is_counted_once() -> None:
    assert num_forest_tokens(BEGINNINGS) == 6
    assert num_forest_tokens([[1] * 3, [1] * 5]) == 5
    assert num_forest_tokens([[1, 2], [3, 2]]) == 4  # the same token behind another one is another node


def test_texts_side_by_side_are_what_each_is_alone(folders: tuple[Path, Path]) -> None:
    with open_tiny(folders[0], draft=folders[0]) as opened:
        forest = TextForest(opened.session.engine)
        forest.clear()
        leaves = forest.add_prompts(BEGINNINGS)
        first = forest.add(range(20, 25), [leaf.slots for leaf in leaves])
        second = forest.add(range(40, 45), [leaf.slots for leaf in first])
        rows = [logits_of(opened, leaf) for leaf in second]
        assert forest.num_free == opened.plan.need.capacity_tokens - 6 - 2 * len(BEGINNINGS)
        drafted = [leaf.draft_hidden for leaf in second]
        for index, prompt in enumerate(BEGINNINGS):
            expected = alone(opened, [*prompt, 20 + index, 40 + index])
            torch.testing.assert_close(rows[index], expected, rtol=1e-4, atol=1e-4)
        model = opened.session.engine.drafter.model  # type: ignore[union-attr]
        model.cache.truncate(0)
        hidden = model.run_pass(chain_input([*BEGINNINGS[1], 21, 41], num_cached=0))[-1]
        torch.testing.assert_close(drafted[1], hidden, rtol=1e-4, atol=1e-4)


def test_long_prompts_run_in_chunks(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.calibration.texts.PREFILL_CHUNK_TOKENS", 4)
    prompt = [3 + index % 60 for index in range(19)]
    with open_tiny(folders[0], draft=folders[0]) as opened:
        forest = TextForest(opened.session.engine)
        forest.clear()
        (leaf,) = forest.add_prompts([prompt])
        row = logits_of(opened, leaf)
        torch.testing.assert_close(row, alone(opened, prompt), rtol=1e-4, atol=1e-4)


def test_clearing_forgets_every_text(folders: tuple[Path, Path]) -> None:
    with open_tiny(folders[0], draft=folders[0]) as opened:
        forest = TextForest(opened.session.engine)
        forest.add_prompts(BEGINNINGS)
        forest.clear()
        assert forest.num_free == opened.plan.need.capacity_tokens
        assert opened.session.engine.target.cache.num_cached == 0
