"""Whole rounds on tiny random models: greedy speculative text is the target's own text, whatever the tree and ring."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime.config import SamplingParams
from runtime.engine.engine import Engine, verify_input
from runtime.engine.loading import OpenSession
from runtime.events import LevelDrafted, PrefillProgress, Round
from runtime.planner.prefill import PassWidths, PrefillPlanner
from runtime.speculation.token_tree import TokenTree, TreeTopology
from tests.support.model_factory import save_tiny_model
from tests.support.reference_models import assert_same_text
from tests.support.session_factory import open_tiny, save_target_and_drafts, save_tiny_folder
from tests.support.trees import tree_of_counts

PROMPT = [5, 17, 40, 8, 33]
NUM_TOKENS = 40
GREEDY = SamplingParams()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_target_and_drafts(tmp_path_factory.mktemp("models"))


def accepted_tokens(engine: Engine, num_tokens: int, *, prompt: Sequence[int] = PROMPT, seed: int = 0) -> list[int]:
    """Decode until there are enough tokens, and cut."""
    tokens: list[int] = []
    rounds = engine.generate(prompt, GREEDY, np.random.default_rng(seed))
    for event in rounds:
        if isinstance(event, Round):
            tokens += event.token_ids
            if len(tokens) >= num_tokens:
                break
    rounds.close()
    return tokens[:num_tokens]


@pytest.mark.parametrize("tree", ["2x2", "7x7", "16x4", "33x12", "auto"])
@pytest.mark.parametrize("draft", ["perfect", "unrelated", "substitute"])
def test_greedy_text_is_the_targets_own(draft: str, tree: str, folders: dict[str, Path]) -> None:
    with open_tiny(folders["target"], draft=folders.get(draft, draft), tree=tree, num_residents=0) as opened:
        assert_same_text(accepted_tokens(opened.session.engine, NUM_TOKENS), folders["target"], PROMPT)


@pytest.mark.parametrize("num_residents", [None, 0, 1])
@pytest.mark.parametrize("ring_slots", [2, 3])
def test_neither_ring_nor_budget_changes_the_text(
    ring_slots: int, num_residents: int | None, folders: dict[str, Path]
) -> None:
    settings = {"ring_slots": ring_slots, "num_residents": num_residents}
    if num_residents and ring_slots == 3:
        settings["num_residents"] = 0  # one more resident, and everything would fit
    with open_tiny(folders["target"], draft=folders["unrelated"], tree="12x5", **settings) as opened:
        assert_same_text(accepted_tokens(opened.session.engine, NUM_TOKENS), folders["target"], PROMPT)


@pytest.mark.parametrize("kind", ["mistral", "gemma3"])
def test_sliding_windows_survive_speculation(kind: str, tmp_path: Path) -> None:
    """The answer is longer than the window, so committed text leaves it while trees stand on it."""
    folder = save_tiny_folder(tmp_path / kind, kind)
    with open_tiny(folder, draft="substitute", tree="12x5", num_residents=0) as opened:
        assert_same_text(accepted_tokens(opened.session.engine, NUM_TOKENS), folder, PROMPT)


def test_a_perfect_draft_is_accepted_to_the_last_level(folders: dict[str, Path]) -> None:
    with open_tiny(folders["target"], draft=folders["perfect"], tree="6x6") as opened:
        events = list_events(opened, num_rounds=4)
    accepted = [event.num_emitted for event in events if isinstance(event, Round)]
    assert accepted == [6, 6, 6, 6]


def list_events(opened: OpenSession, *, num_rounds: int, prompt: Sequence[int] = PROMPT) -> list[object]:
    events: list[object] = []
    rounds = opened.session.engine.generate(prompt, GREEDY, np.random.default_rng(0))
    for event in rounds:
        events.append(event)
        num_rounds -= isinstance(event, Round)
        if num_rounds == 0:
            break
    rounds.close()
    return events


def test_a_round_is_drafted_level_by_level_then_verified(folders: dict[str, Path]) -> None:
    with open_tiny(folders["target"], draft=folders["perfect"], tree="4x4") as opened:
        kinds = [type(event) for event in list_events(opened, num_rounds=1)]
    assert kinds == [LevelDrafted, LevelDrafted, LevelDrafted, Round]


def test_a_round_without_a_draft_has_no_steps_of_the_one_before(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds of plain decoding were said to have taken the last tree's steps, and the planner learned them again."""
    with open_tiny(folders["target"], draft=folders["unrelated"], tree="4x4") as opened:
        planner = opened.session.engine.planner
        shapes = iter([planner.topology(max_levels=4), TreeTopology.single()])
        monkeypatch.setattr(type(planner), "shape", lambda self, **_: next(shapes))
        rounds = [event for event in list_events(opened, num_rounds=2) if isinstance(event, Round)]
    assert [len(done.draft_steps) for done in rounds] == [3, 0]
    assert rounds[1].overhead_seconds > 0


def cut_prompts(opened: OpenSession, num_tokens: int) -> None:
    """Let every pass over a prompt compute so many tokens, at once."""
    opened.session.engine.prefill = PrefillPlanner(
        slice_tokens=num_tokens, most_tokens=num_tokens, first_tokens=num_tokens, is_streamed=True
    )


def test_a_long_prompt_is_prefilled_in_chunks_and_changes_nothing(folders: dict[str, Path]) -> None:
    prompt = [int(token) for token in np.random.default_rng(5).integers(3, 90, 18)]
    with open_tiny(folders["target"], draft=folders["unrelated"], tree="9x4", num_residents=0) as opened:
        cut_prompts(opened, 4)
        events = list_events(opened, num_rounds=1, prompt=prompt)
        done = [event.num_done_tokens for event in events if isinstance(event, PrefillProgress)]
        assert done == [4, 8, 12, 16]
        assert_same_text(accepted_tokens(opened.session.engine, 20, prompt=prompt), folders["target"], prompt)


def test_a_prompt_in_one_pass_of_slices_streams_the_layers_once_and_changes_nothing(folders: dict[str, Path]) -> None:
    prompt = [int(token) for token in np.random.default_rng(5).integers(3, 90, 60)]
    with open_tiny(folders["target"], draft=folders["unrelated"], tree="9x4", num_residents=0) as opened:
        engine = opened.session.engine
        engine.target._widths = PassWidths(slice_tokens=8, widest_tokens=24)
        engine.prefill = PrefillPlanner(slice_tokens=8, most_tokens=128, first_tokens=128, is_streamed=True)
        events = list_events(opened, num_rounds=1, prompt=prompt)
        assert not any(isinstance(event, PrefillProgress) for event in events)
        assert isinstance(first := events[-1], Round) and first.num_pass_tokens >= 60
        assert engine.bytes_streamed == first.pass_statistics.bytes_streamed
        assert_same_text(accepted_tokens(engine, 20, prompt=prompt), folders["target"], prompt)


def test_what_a_pass_over_a_prompt_took_decides_the_next_ones(folders: dict[str, Path]) -> None:
    """The first answer's passes are short ones; by then it is known that the stream takes far longer."""
    prompt = [int(token) for token in np.random.default_rng(6).integers(3, 90, 100)]
    with open_tiny(folders["target"], num_residents=0, link="2MB/s") as opened:
        engine = opened.session.engine
        engine.target._widths = PassWidths(slice_tokens=8, widest_tokens=24)
        engine.prefill = PrefillPlanner(slice_tokens=8, most_tokens=128, first_tokens=16, is_streamed=True)
        events = list_events(opened, num_rounds=1, prompt=prompt)
        assert [event.num_done_tokens for event in events if isinstance(event, PrefillProgress)] == [16]
        engine.truncate(0)
        events = list_events(opened, num_rounds=1, prompt=prompt)
        assert [event.num_done_tokens for event in events if isinstance(event, PrefillProgress)] == []


def test_the_draft_reads_a_long_prompt_along_with_the_target(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.engine.engine.PREFILL_CHUNK_TOKENS", 4)  # of the draft
    with open_tiny(folders["target"], draft=folders["unrelated"], tree="9x4", num_residents=0) as opened:
        cut_prompts(opened, 4)
        engine = opened.session.engine
        assert engine.drafter is not None
        read = []
        with closing(engine.generate(list(range(3, 21)), GREEDY, np.random.default_rng(0))) as events:
            while isinstance(next(events), PrefillProgress):
                read.append(engine.drafter.num_committed)
        assert read == [0, 4, 8, 12]


def every_event(tree: str, folders: dict[str, Path]) -> Iterator[int]:
    with open_tiny(folders["target"], draft=folders["unrelated"], tree=tree) as opened:
        yield from range(1, len(list_events(opened, num_rounds=3)) + 1)


def test_stopping_at_any_event_rolls_both_caches_back(folders: dict[str, Path]) -> None:
    """After a stop anywhere, decoding goes on from the text as if nothing had been in flight."""
    with open_tiny(folders["target"], draft=folders["unrelated"], tree="9x4", num_residents=0) as opened:
        engine = opened.session.engine
        assert engine.drafter is not None
        for num_events in every_event("9x4", folders):
            engine.truncate(0)
            rounds = engine.generate(PROMPT, GREEDY, np.random.default_rng(0))
            for _ in range(num_events):
                next(rounds)
            rounds.close()
            assert engine.target.cache.num_cached == engine.num_committed <= len(engine.text) - 1
            assert engine.drafter.num_committed <= len(engine.text)
            text = list(engine.text)
            assert_same_text(accepted_tokens(engine, 12, prompt=text), folders["target"], text)


def test_a_failing_pass_leaves_the_engine_ready(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with open_tiny(folders["target"], draft=folders["unrelated"], tree="9x4", num_residents=0) as opened:
        engine = opened.session.engine
        accepted_tokens(engine, 3)
        text = list(engine.text)
        monkeypatch.setattr(opened.streamer, "acquire", _raise_os_error)
        with pytest.raises(OSError, match="gone"):
            list(engine.generate(text, GREEDY, np.random.default_rng(0)))
        monkeypatch.undo()
        assert_same_text(accepted_tokens(engine, 12, prompt=text), folders["target"], text)


def _raise_os_error(layer_index: int) -> torch.Tensor:
    raise OSError("gone")


def test_the_context_ends_decoding_without_overflow(folders: dict[str, Path]) -> None:
    with open_tiny(folders["target"], draft=folders["perfect"], tree="6x6", context_tokens=17) as opened:
        engine = opened.session.engine
        list(engine.generate(PROMPT, GREEDY, np.random.default_rng(0)))
        assert len(engine.text) == 17
        assert_same_text(engine.text[len(PROMPT) :], folders["target"], PROMPT)


def test_a_common_prefix_is_not_computed_again(folders: dict[str, Path]) -> None:
    with open_tiny(folders["target"], draft=folders["unrelated"], tree="9x4") as opened:
        engine = opened.session.engine
        accepted_tokens(engine, 10)
        prompt = [*engine.text[:12], 44, 45]
        engine.set_text(prompt)
        assert engine.num_committed == 12
        assert_same_text(accepted_tokens(engine, 10, prompt=prompt), folders["target"], prompt)


def test_sampling_is_reproducible_by_seed(folders: dict[str, Path]) -> None:
    params = SamplingParams(temperature=1.0, top_p=0.9, verification="sequoia")
    texts = []
    with open_tiny(folders["target"], draft=folders["unrelated"], tree="9x4") as opened:
        for seed in (1, 1, 2):
            rounds = opened.session.engine.generate(PROMPT, params, np.random.default_rng(seed))
            tokens: list[int] = []
            while len(tokens) < 20:
                event = next(rounds)
                tokens += event.token_ids if isinstance(event, Round) else ()
            rounds.close()
            texts.append(tokens[:20])
    assert texts[0] == texts[1] != texts[2]


def test_a_draft_with_fewer_padding_rows_can_serve(tmp_path: Path) -> None:
    """Vocabulary sizes differ between members of one family; only the strings must agree."""
    target = save_tiny_folder(tmp_path / "target")
    for size in (128, 91):
        draft = save_tiny_model("llama", tmp_path / str(size), vocab_size=size)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (draft / name).write_bytes((target / name).read_bytes())
        with open_tiny(target, draft=draft, tree="9x4") as opened:
            assert_same_text(accepted_tokens(opened.session.engine, 20), target, PROMPT)


def test_verify_input_places_the_tree_behind_the_text() -> None:
    tree = TokenTree(tree_of_counts([2, 1, 0, 0]), np.array([9, 11, 12, 13]))
    inputs = verify_input([7, 8, 9], tree, num_cached=1)
    assert inputs.token_ids.tolist() == [8, 9, 11, 12, 13]
    assert inputs.positions.tolist() == [1, 2, 3, 3, 4]
    assert inputs.key_positions.tolist() == [0, 1, 2, 3, 3, 4]
    assert inputs.num_text == 3  # whose keys each token sees up to its own position
    assert inputs.sight.astype(int).tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 1]]


def test_every_round_tells_its_tree_and_the_path_that_was_accepted(folders: dict[str, Path]) -> None:
    with open_tiny(folders["target"], draft=folders["perfect"], tree="12x4") as opened:
        events = []
        rounds = opened.session.engine.generate(PROMPT, GREEDY, np.random.default_rng(0))
        for event in rounds:
            events.append(event)
            if isinstance(event, Round):
                break
        rounds.close()
    *_, verified = events
    assert isinstance(verified, Round)
    assert len(verified.parents) == verified.num_nodes == 12
    assert TreeTopology(np.array(verified.parents)).num_levels == 4
    assert len(verified.path) == verified.num_emitted == 4  # it drafts for itself
    assert verified.path[0] == 0
    steps = zip(verified.path, verified.path[1:], strict=False)
    assert all(verified.parents[child] == parent for parent, child in steps)
