"""What lm_eval's requests are answered with, beside what transformers computes; `test_harness.py` has the real ones."""

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.config import SamplingParams
from runtime.errors import OptionError
from runtime.scoring.evaluation import EvaluatedModel, engine_config, rolling_windows, sampling_params
from tests.support.model_factory import build_tokenizer
from tests.support.reference_models import greedy_reference, own_logits
from tests.support.session_factory import save_tiny_folder

WINDOW = 48


class Cache:
    """lm_eval's CacheHook, as far as models use it."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, Any, Any]] = []

    def add_partial(self, name: str, arguments: Any, answer: Any) -> None:
        self.kept.append((name, arguments, answer))


class FakeLM:
    """lm_eval's LM: the base that gives a model its cache."""

    def __init__(self) -> None:
        self.cache_hook = Cache()


class Model(EvaluatedModel, FakeLM):
    pass


def ask(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Model]:
    with Model(str(folder), max_length=WINDOW, batch_size=4, max_gen_toks=8, draft="none", device="cpu") as model:
        yield model


def log_likelihood(folder: Path, token_ids: list[int], num_scored: int) -> tuple[float, bool]:
    rows = own_logits(folder, token_ids[:-1])[-num_scored:].log_softmax(dim=-1)
    targets = token_ids[-num_scored:]
    chosen = [float(row[token]) for row, token in zip(rows, targets, strict=True)]
    return math.fsum(chosen), rows.argmax(dim=-1).tolist() == targets


def test_choices_are_scored_as_transformers_does(folder: Path, model: Model) -> None:
    tokenizer = build_tokenizer()

    def ids(text: str) -> list[int]:
        return tokenizer(text)["input_ids"]

    pairs = [("the cat and", " the dog"), ("the cat and ", "the pan"), ("the cat and", " the hat"), ("", "the end")]
    expected = [
        (ids("the cat and the dog"), len(ids(" the dog"))),
        (ids("the cat and the pan"), len(ids(" the pan"))),
        (ids("the cat and the hat"), len(ids(" the hat"))),
        ([1, *ids("the end")], len(ids("the end"))),
    ]
    answers = model.loglikelihood([ask(*pair) for pair in pairs])
    for answer, (token_ids, num_scored) in zip(answers, expected, strict=True):
        found, is_greedy = log_likelihood(folder, token_ids, num_scored)
        assert answer == (pytest.approx(found, abs=1e-4), is_greedy)
    assert model.cache_hook.kept[-4:] == [
        ("loglikelihood", pair, answer) for pair, answer in zip(pairs, answers, strict=True)
    ]


def test_a_whole_text_is_scored_in_windows(folder: Path, model: Model) -> None:
    text = "the cat and the dog, then one other thing: 12 hats in a pan. " * 3
    token_ids = [1, *build_tokenizer()(text)["input_ids"]]
    assert len(token_ids) > 2 * WINDOW
    expected = 0.0
    for pair in rolling_windows(token_ids, window=WINDOW):
        expected += log_likelihood(folder, pair.token_ids.tolist(), pair.num_scored)[0]
    found, nothing = model.loglikelihood_rolling([ask(text), ask("")])
    assert found == pytest.approx(expected, abs=1e-4 * len(token_ids))
    assert nothing == 0


def test_windows_are_those_of_lm_eval() -> None:
    """The example in the docstring of lm_eval's `LM.loglikelihood_rolling`: BOS is 99."""
    windows = list(rolling_windows([99, *range(10)], window=4))
    assert [pair.token_ids[:-1].tolist() for pair in windows] == [[99, 0, 1, 2], [3, 4, 5, 6], [5, 6, 7, 8]]
    assert [pair.token_ids[-pair.num_scored :].tolist() for pair in windows] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_texts_are_the_greedy_ones_up_to_a_stop_string(folder: Path, model: Model) -> None:
    tokenizer = build_tokenizer()
    prompt, token_ids = next(
        (prompt, found)
        for prompt in ("the cat", "the dog", "one hen in a pan", "other things", "and then")
        if 2 not in (found := greedy_reference(folder, tuple(tokenizer(prompt)["input_ids"]), 8)[0])
    )
    text = tokenizer.decode(token_ids, skip_special_tokens=True)
    assert len(text) > 4
    stop = text[3]
    long_prompt = "one other thing. " * 9 + prompt
    cut = tuple(tokenizer(long_prompt)["input_ids"][-(WINDOW - 8) :])
    answers = model.generate_until(
        [
            ask(prompt, {"until": ["\x00"]}),
            ask(prompt, {"until": [stop], "do_sample": False, "max_gen_toks": 8}),
            ask(prompt, {"max_gen_toks": 2, "temperature": 0.0}),
            ask(long_prompt, {"until": []}),
        ]
    )
    cut_ids, _ = greedy_reference(folder, cut, 8)
    cut_ids = cut_ids[: [*cut_ids, 2].index(2)]
    assert answers == [
        text,
        text.split(stop)[0],
        tokenizer.decode(token_ids[:2], skip_special_tokens=True),
        tokenizer.decode(cut_ids, skip_special_tokens=True),
    ]
    assert ("generate_until", (long_prompt, {"until": []}), answers[-1]) in model.cache_hook.kept


def test_a_text_that_leaves_no_room_is_a_sentence(model: Model) -> None:
    with pytest.raises(OptionError, match=r"max_gen_toks is 48 and max_length 48, which leaves no room"):
        model.generate_until([ask("the cat", {"max_gen_toks": 48})])


def test_the_choices_of_tasks_become_ours() -> None:
    greedy, chosen = sampling_params({"until": "\n", "do_sample": False, "temperature": 0.7}, max_gen_toks=5)
    assert greedy == SamplingParams(stop=("\n",), max_new_tokens=5)
    assert chosen == {"temperature", "max_new_tokens", "stop"}
    sampled, chosen = sampling_params(
        {"temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "max_new_tokens": 3, "num_beams": 1, "until": None},
        max_gen_toks=5,
    )
    assert sampled == SamplingParams(temperature=0.5, top_p=0.9, max_new_tokens=3)
    assert "top_p" in chosen
    with pytest.raises(OptionError, match="a task asks for 'num_beams', '4', which is not done here"):
        sampling_params({"num_beams": 4}, max_gen_toks=5)


def test_arguments_are_the_options_of_the_command_line() -> None:
    config = engine_config({"target": "x", "context": None, "device_memory": "2GB", "draft": "none", "ring_slots": 3})
    assert (config.target, config.context_tokens, config.ring_slots) == ("x", None, 3)
    assert (config.device_memory_bytes, config.draft, config.generation) == (2_000_000_000, "none", "auto")
    with pytest.raises(OptionError, match=r"unknown model argument 'dtype'; there are pretrained, .*context"):
        engine_config({"target": "x", "dtype": "float32"})
