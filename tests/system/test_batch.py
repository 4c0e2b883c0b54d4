"""Texts that share passes are the texts that each prompt has alone: whatever the batch, its order and its neighbours.

Tiny random models, whose logits depend on the shape of a pass by rounding only; where a text differs the first
difference must be a tie.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from profiles.errors import OverstoryError
from runtime.config import SamplingParams
from runtime.engine.loading import OpenSession
from runtime.errors import PromptTooLongError
from runtime.events import Finished, PrefillProgress, Round, TextDelta
from runtime.model.streamed_model import PassInput
from runtime.planner.prefill import PassWidths, PrefillPlanner
from runtime.prompts.prompt_file import PromptRequest
from tests.support.session_factory import open_tiny, save_target_and_drafts, save_tiny_folder

WORDS = ["the", "cat", "and", "dog", "a"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_target_and_drafts(tmp_path_factory.mktemp("models"))


def mixed_requests(count: int, *, seed: int = 0) -> list[PromptRequest]:
    """Prompts and answers of all lengths, greedy and sampled, with penalties, stops and bans."""
    rng = np.random.default_rng(seed)
    requests = []
    for number in range(count):
        params: dict[str, Any] = {
            "temperature": float(rng.choice([0.0, 0.0, 0.7, 1.2])),
            "top_p": float(rng.choice([1.0, 0.9])),
            "repetition_penalty": float(rng.choice([1.0, 1.3])),
            "presence_penalty": float(rng.choice([0.0, 0.5])),
            "seed": int(rng.integers(100)),
            "max_new_tokens": int(rng.integers(1, 20)),
            "banned_tokens": (5,) if number % 3 == 0 else (),
        }
        text = " ".join(rng.choice(WORDS, size=int(rng.integers(1, 24))))
        requests.append(PromptRequest(id=str(number), prompt=text, params=SamplingParams(**params)))
    return requests


def finished_texts(opened: OpenSession, requests: Sequence[PromptRequest]) -> dict[str, Finished]:
    events = opened.session.generate_all(requests)
    return {request.id: event for request, event in events if isinstance(event, Finished)}


def alone(folder: Path, requests: Sequence[PromptRequest], **settings: Any) -> dict[str, str]:
    with open_tiny(folder, **settings) as opened:
        return {request.id: list(opened.session.generate(request))[-1].text for request in requests}


@pytest.mark.parametrize(
    ("draft", "tree", "num_texts"),
    [
        ("none", "auto", 5),
        ("perfect", "6x6", 3),
        ("unrelated", "9x4", 8),
        ("substitute", "auto", 4),
        ("unrelated", "dynamic", 3),
    ],
)
def test_every_text_is_the_one_it_has_alone(draft: str, tree: str, num_texts: int, folders: dict[str, Path]) -> None:
    requests = mixed_requests(13)
    expected = alone(folders["target"], requests)
    settings = {"draft": folders.get(draft, draft), "tree": tree, "num_residents": 0, "lookup": "on"}
    with open_tiny(folders["target"], num_texts=num_texts, **settings) as opened:
        for order in (requests, requests[::-1]):
            found = finished_texts(opened, order)
            assert {name: answer.text for name, answer in found.items()} == expected


@pytest.mark.parametrize("kind", ["gemma3", "gpt2", "mistral", "phi", "falcon"])
def test_windows_and_attention_of_their_own_are_kept_apart_too(kind: str, tmp_path: Path) -> None:
    """Longer than the windows; some bring their result into the shape of the ids, some mask otherwise."""
    folder = save_tiny_folder(tmp_path / kind, kind)
    requests = [
        PromptRequest(
            id=str(number), prompt=" ".join(WORDS[: 2 + number] * 6), params=SamplingParams(max_new_tokens=24)
        )
        for number in range(3)
    ]
    expected = alone(folder, requests)
    with open_tiny(folder, draft="substitute", tree="6x4", num_texts=3, num_residents=0) as opened:
        assert {name: one.text for name, one in finished_texts(opened, requests).items()} == expected


def test_a_long_prompt_is_read_in_the_passes_in_which_others_are_decoded(folders: dict[str, Path]) -> None:
    short = PromptRequest(id="short", prompt="the cat", params=SamplingParams(max_new_tokens=20, banned_tokens=(2,)))
    long = PromptRequest(id="long", prompt=" ".join(WORDS * 8), params=SamplingParams(max_new_tokens=8))
    expected = alone(folders["target"], [short, long])
    with open_tiny(folders["target"], draft=folders["unrelated"], tree="9x4", num_texts=2, num_residents=0) as opened:
        engine = opened.session.engine
        engine.target._widths = PassWidths(slice_tokens=8, widest_tokens=24)
        engine.prefill = PrefillPlanner(slice_tokens=8, most_tokens=16, first_tokens=16, is_streamed=True)
        order, texts = [], {}
        for request, event in opened.session.generate_all([short, long]):
            if isinstance(event, Finished):
                texts[request.id] = event.text
            if isinstance(event, PrefillProgress | Round):
                order.append((request.id, type(event)))
    assert texts == expected
    reading = [place for place, entry in enumerate(order) if entry == ("long", PrefillProgress)]
    assert len(reading) > 3
    decoded = [place for place, entry in enumerate(order) if entry == ("short", Round)]
    assert sum(reading[1] < place < reading[-1] for place in decoded) >= 2


def pass_tokens(opened: OpenSession) -> Iterator[list[int]]:
    """Record how many tokens of each text every pass computes."""
    engine = opened.session.engine
    run_batch, seen = engine.target.run_batch, list[int]()

    def record(parts, **options):  # type: ignore[no-untyped-def]
        seen.append(sum(part.num_tokens for part in parts))
        return run_batch(parts, **options)

    engine.target.run_batch = record  # type: ignore[method-assign]
    yield seen
    engine.target.run_batch = run_batch  # type: ignore[method-assign]


@pytest.mark.parametrize("first_tokens", [16, 128])
def test_what_prompts_begin_with_is_computed_once(first_tokens: int, folders: dict[str, Path]) -> None:
    """Also where the first of them is not read in one pass: the others wait for it."""
    system = " ".join(WORDS * 8)
    requests = [
        PromptRequest(id=str(n), prompt=f"{system} {word}", params=SamplingParams(max_new_tokens=4, banned_tokens=(2,)))
        for n, word in enumerate([*WORDS, "cat dog", "dog a"])
    ]
    expected = alone(folders["target"], requests)
    with open_tiny(folders["target"], draft=folders["unrelated"], tree="3x3", num_texts=3, num_residents=0) as opened:
        engine = opened.session.engine
        engine.prefill = PrefillPlanner(
            slice_tokens=8, most_tokens=first_tokens, first_tokens=first_tokens, is_streamed=True
        )
        (num_prompt, *_) = [len(opened.session.format_prompt(request)) for request in requests]
        recording = pass_tokens(opened)
        seen = next(recording)
        found = finished_texts(opened, requests)
        num_draft = engine.drafter.num_committed_in(1)
    assert {name: one.text for name, one in found.items()} == expected
    num_rounds = sum(one.statistics.rounds for one in found.values())
    assert sum(seen) <= num_prompt + len(requests) * 6 + 3 * num_rounds
    assert num_draft > num_prompt - 2


def test_one_that_cannot_be_answered_costs_its_own_answer(folders: dict[str, Path]) -> None:
    requests = mixed_requests(6)
    requests[2] = PromptRequest(id="2", prompt=" ".join(WORDS * 90), params=SamplingParams())
    requests[4] = PromptRequest(id="4", prompt="a", params=SamplingParams(banned_tokens=(10**6,)))
    good = [request for request in requests if request.id not in ("2", "4")]
    expected = alone(folders["target"], good)
    with open_tiny(folders["target"], num_texts=2, num_residents=0) as opened:
        errors, texts = {}, {}
        for request, event in opened.session.generate_all(requests):
            if isinstance(event, OverstoryError):
                errors[request.id] = event
            elif isinstance(event, Finished):
                texts[request.id] = event.text
    assert texts == expected
    assert isinstance(errors["2"], PromptTooLongError) and "token" in str(errors["4"]) and len(errors) == 2


@pytest.mark.parametrize("model", ["target", "draft"])
@pytest.mark.parametrize("num_passes", range(2, 16, 3))
def test_a_pass_that_fails_costs_nothing_but_time(
    num_passes: int, model: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = mixed_requests(6, seed=2)
    expected = alone(folders["target"], requests)
    settings = {"draft": folders["unrelated"], "tree": "7x3", "num_texts": 3, "num_residents": 0}
    with open_tiny(folders["target"], **settings) as opened, failing_passes(opened, model, monkeypatch) as passes:
        passes.fails = lambda parts: passes.num_run == num_passes
        assert {name: one.text for name, one in finished_texts(opened, requests).items()} == expected
        assert passes.num_failed == 1


def test_a_text_that_no_pass_can_hold_costs_its_own_answer(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [*mixed_requests(7, seed=4)]
    poisoned = PromptRequest(id="2", prompt="dog dog dog cat", params=SamplingParams(max_new_tokens=9))
    requests[2] = poisoned
    expected = alone(folders["target"], [request for request in requests if request is not poisoned])
    with open_tiny(folders["target"], num_texts=4, num_residents=0) as opened:
        first = opened.session.format_prompt(poisoned)
        with failing_passes(opened, "target", monkeypatch) as passes:
            passes.fails = lambda parts: any(part.token_ids[: len(first)].tolist() == first for part in parts)
            ends = {
                request.id: event.text if isinstance(event, Finished) else str(event)
                for request, event in opened.session.generate_all(requests)
                if isinstance(event, Finished | OverstoryError)
            }
    assert ends == {**expected, "2": "the link is gone"}
    assert passes.num_failed == 3  # of four texts, of two, of its own


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_prompts(folders: dict[str, Path]) -> None:
    requests = (
        PromptRequest(id=str(n), prompt=f"the cat and {n} dogs", params=SamplingParams(max_new_tokens=8, stop=("xyz",)))
        for n in range(1000)
    )
    here, held = psutil.Process(), list[int]()
    settings = {"draft": folders["unrelated"], "tree": "7x3", "num_texts": 8, "num_residents": 0}
    with open_tiny(folders["target"], **settings) as opened:
        for _, event in opened.session.generate_all(requests):
            if isinstance(event, Finished):
                held.append(sum(each.memory_info().rss for each in (here, *here.children())))
    assert len(held) == 1000
    assert max(held[900:]) < max(held[:300]) + (8 << 20)


class Passes:
    """The passes of a model, some of which fail."""

    def __init__(self) -> None:
        self.num_run = self.num_failed = 0
        self.fails: Callable[[Sequence[PassInput]], bool] = lambda parts: False


@contextmanager
def failing_passes(opened: OpenSession, model: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Passes]:
    engine = opened.session.engine
    streamed = engine.target
    if model == "draft":
        assert engine.drafter is not None
        streamed = engine.drafter.model
    run_batch, passes = streamed.run_batch, Passes()

    def run(parts: Sequence[PassInput], **options: Any) -> Any:
        passes.num_run += 1
        if passes.fails(parts):
            passes.num_failed += 1
            raise OverstoryError("the link is gone")
        return run_batch(parts, **options)

    monkeypatch.setattr(streamed, "run_batch", run)
    yield passes


@pytest.mark.parametrize("num_events", [1, 4, 9, 14, 20])
def test_closing_at_any_event_leaves_the_session_ready(num_events: int, folders: dict[str, Path]) -> None:
    requests = mixed_requests(5, seed=3)
    expected = alone(folders["target"], requests)
    settings = {"draft": folders["unrelated"], "tree": "7x3", "num_texts": 3, "num_residents": 0}
    with open_tiny(folders["target"], **settings) as opened:
        with closing(opened.session.generate_all(requests)) as events:
            for _ in range(num_events):
                next(events)
        for lane, sequence in enumerate(opened.session.engine.sequences):
            assert opened.session.engine.target.cache.num_cached_in(lane) == sequence.num_committed
        assert {name: one.text for name, one in finished_texts(opened, requests).items()} == expected


def test_stopping_ends_all_answers_under_way_and_asks_for_no_more(folders: dict[str, Path]) -> None:
    requests = [
        PromptRequest(id=str(n), prompt="the cat", params=SamplingParams(max_new_tokens=60, banned_tokens=(2,)))
        for n in range(4)
    ]
    with open_tiny(folders["target"], num_texts=2, num_residents=0) as opened:
        ends = {}
        for request, event in opened.session.generate_all(requests):
            if isinstance(event, TextDelta):
                opened.session.stop()
            if isinstance(event, Finished):
                ends[request.id] = event.finish_reason
    assert ends == {"0": "stopped", "1": "stopped"}


def test_bytes_that_crossed_the_link_are_shared_out(folders: dict[str, Path]) -> None:
    requests = [
        PromptRequest(id=str(n), prompt="the cat", params=SamplingParams(max_new_tokens=6, banned_tokens=(2,)))
        for n in range(3)
    ]
    with open_tiny(folders["target"], num_texts=3, num_residents=0) as opened:
        found = finished_texts(opened, requests)
        streamed = opened.session.engine.bytes_streamed
    assert sum(one.statistics.bytes_streamed for one in found.values()) == pytest.approx(streamed, abs=3)
    assert {one.statistics.rounds for one in found.values()} == {6}
