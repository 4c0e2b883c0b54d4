"""A model's own generation settings: greedy text is that of transformers' generate() with the same file.

Token by token, plain and with trees, on tiny random models whose usual text each setting changes.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from offload.errors import CheckpointError
from runtime.config import EngineConfig, SamplingParams, options_of
from runtime.engine.loading import OpenSession, open_session
from runtime.errors import OptionError
from runtime.model.generation_config import read_generation_config
from runtime.prompts.prompt_file import PromptRequest
from tests.support.model_factory import edit_config
from tests.support.session_factory import answer, open_tiny, save_tiny_folder

NUM_TOKENS = 24
EVERYTHING = frozenset(options_of(SamplingParams)) - {"max_new_tokens"}
PROMPTS = ("the dog in the", "the cat and the dog", "a cat, a dog, a cat")
TREES = ({"draft": "none"}, {"draft": "substitute", "tree": "12x5"}, {"draft": "substitute", "tree": "dynamic:16x4"})


def request(text: str, *, unchosen: frozenset[str] = EVERYTHING, **params: Any) -> PromptRequest:
    chosen = SamplingParams(**{"max_new_tokens": NUM_TOKENS, **params})
    return PromptRequest(id="1", prompt=text, params=chosen, unchosen=unchosen - params.keys())


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    (folder / "generation_config.json").write_text(json.dumps(settings))


@cache
def by_transformers(folder: Path, prompt: tuple[int, ...], settings: str) -> list[int]:
    """What generate() answers with these settings, a JSON text, as the model's generation_config.json."""
    model = reference(folder)
    model.generation_config = GenerationConfig.from_dict(json.loads(settings))
    has_length = {"max_new_tokens", "max_length"} & json.loads(settings).keys()
    with torch.inference_mode():
        text = model.generate(
            torch.tensor([prompt]), pad_token_id=0, **({} if has_length else {"max_new_tokens": NUM_TOKENS})
        )
    return text[0, len(prompt) :].tolist()


@cache
def reference(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model") / "target")


@pytest.fixture(scope="module")
def usual(folder: Path) -> dict[str, list[int]]:
    """What each prompt is answered with where the file says nothing."""
    write_settings(folder, {"eos_token_id": 2})
    with open_tiny(folder, **TREES[0]) as opened:
        return {text: answer(opened, request(text))[1] for text in PROMPTS}


def settings_that_matter(usual: Mapping[str, list[int]]) -> dict[str, dict[str, Any]]:
    """Settings, each of which changes what the first prompt is answered with."""
    text = usual[PROMPTS[0]]
    return {
        "repetition_penalty": {"repetition_penalty": 1.3},
        "encouraged repetition": {"repetition_penalty": 0.7},
        "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
        "no token twice": {"no_repeat_ngram_size": 1},
        "bad_words_ids": {"bad_words_ids": [[text[0]], text[2:4], text[5:8], [2], [3, 4, 5]]},
        "suppress_tokens": {"suppress_tokens": [text[1], text[4], text[4]]},
        "begin_suppress_tokens": {"begin_suppress_tokens": [text[0], 5]},
        "forced_eos_token_id": {"forced_eos_token_id": 2},
        "several last tokens": {"forced_eos_token_id": [9, 2]},
        "max_new_tokens": {"max_new_tokens": 7},
        "max_length": {"max_length": 30},
        "min_new_tokens": {"min_new_tokens": 6, "eos_token_id": [2, text[3]]},
        "min_length": {"min_length": 20, "eos_token_id": [2, text[3]]},
        "greedy whatever is listed": {"temperature": 0.3, "top_k": 2, "top_p": 0.5, "repetition_penalty": 1.1},
        "all together": {
            "repetition_penalty": 1.2,
            "no_repeat_ngram_size": 3,
            "bad_words_ids": [[text[0]], text[1:3]],
            "suppress_tokens": [text[2]],
            "begin_suppress_tokens": [7, 8],
            "min_new_tokens": 12,
            "eos_token_id": [2, text[4]],
        },
    }


def adopt(opened: OpenSession, settings: Mapping[str, Any], folder: Path) -> None:
    """Let an open session have these settings, read from a file in `folder`, as a load would."""
    write_settings(folder, settings)
    found = read_generation_config(folder, "auto", vocab_size=opened.session.engine.target.vocab_size)
    opened.session.generation = found
    opened.session.end_token_ids = frozenset(found.eos_token_ids)


def check(opened: OpenSession, folder: Path, text: str, settings: Mapping[str, Any]) -> list[int]:
    """Return what overstory answers, once it is what transformers does."""
    has_length = {"max_new_tokens", "max_length"} & settings.keys()
    asked = request(text, unchosen=EVERYTHING | {"max_new_tokens"} if has_length else EVERYTHING)
    expected = by_transformers(folder, tuple(opened.session.format_prompt(asked)), json.dumps(settings))
    finished, found = answer(opened, asked)
    if finished.finish_reason == "stop":
        assert expected[-1] in opened.session.end_token_ids
        expected = expected[:-1]
    assert found == expected, (settings, text)
    return found


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.get("tree", "plain"))
def test_greedy_text_is_that_of_generate(
    tree: Mapping[str, str], folder: Path, usual: dict[str, list[int]], tmp_path: Path
) -> None:
    with open_tiny(folder, **tree) as opened:
        for name, settings in settings_that_matter(usual).items():
            settings = {"eos_token_id": 2} | settings
            adopt(opened, settings, tmp_path)
            found = [check(opened, folder, text, settings) for text in PROMPTS]
            assert found[0] != usual[PROMPTS[0]], f"{name} changes nothing here"


def test_the_first_token_is_forced_behind_a_prompt_of_one(folder: Path, usual: dict[str, list[int]]) -> None:
    settings = {"eos_token_id": 2, "forced_bos_token_id": 9, "begin_suppress_tokens": [9, 10, 11]}
    write_settings(folder, settings)
    for tree in TREES:
        with open_tiny(folder, **tree, generation="auto") as opened:
            assert check(opened, folder, "a", settings)[0] == 9
            assert check(opened, folder, PROMPTS[0], settings)[0] == usual[PROMPTS[0]][0]


def test_a_sampled_text_is_that_of_the_same_choices_made_by_hand(folder: Path) -> None:
    write_settings(folder, {"do_sample": True, "temperature": 0.9, "top_p": 0.8, "repetition_penalty": 1.1})
    by_hand = {"temperature": 0.9, "top_p": 0.8, "top_k": 50, "repetition_penalty": 1.1, "seed": 3}
    for tree in TREES:
        with open_tiny(folder, **tree, generation="plain") as opened:
            expected, _ = answer(opened, request(PROMPTS[0], **by_hand))
            assert expected.own_settings == {} and expected.generation == "plain"
            assert answer(opened, request(PROMPTS[0]))[0].verification == "greedy", "plain takes nothing"
        with open_tiny(folder, **tree, generation="auto") as opened:
            found, _ = answer(opened, request(PROMPTS[0], seed=3))
            assert (found.text, found.verification, found.generation) == (expected.text, "coupled", "auto")
            assert found.own_settings == {name: by_hand[name] for name in by_hand if name != "seed"}
            chosen = answer(opened, request(PROMPTS[0], unchosen=frozenset()))[0]
            assert (chosen.own_settings, chosen.verification) == ({}, "greedy")


def test_a_folder_of_before_says_it_in_its_config_json(folder: Path, tmp_path: Path) -> None:
    older = save_tiny_folder(tmp_path / "older")
    (older / "generation_config.json").unlink()
    settings = {"eos_token_id": 2, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2}
    edit_config(older, **settings)
    assert AutoModelForCausalLM.from_pretrained(older).generation_config.repetition_penalty == 1.3
    with open_tiny(older, generation="auto") as opened:
        check(opened, folder, PROMPTS[0], settings)


def test_what_cannot_be_done_is_refused_before_a_weight_is_read(folder: Path) -> None:
    write_settings(folder, {"num_beams": 4})
    with (
        pytest.raises(CheckpointError, match=r"generation_config\.json asks for num_beams 4"),
        open_tiny(folder, generation="auto"),
    ):
        pass
    with open_tiny(folder, generation="plain") as opened:
        assert answer(opened, request(PROMPTS[0]))[0].text


def test_a_prompt_beyond_the_files_length_costs_its_own_answer(folder: Path) -> None:
    write_settings(folder, {"max_length": 12})
    with open_tiny(folder, generation="auto") as opened:
        with pytest.raises(OptionError, match="max_length is 12"):
            answer(opened, request(PROMPTS[2], unchosen=EVERYTHING | {"max_new_tokens"}))
        assert answer(opened, request(PROMPTS[2]))[0].text, "whoever chooses a length gets it"


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "min_new_tokens": 20, "suppress_tokens": [198, 30]},
    ],
)
def test_a_real_models_greedy_text_is_that_of_generate(
    settings: dict[str, Any], demo_folder: Path, tmp_path: Path
) -> None:
    """With the values that Qwen2.5 ships, and with several rules at once."""
    ends = read_generation_config(demo_folder, "plain", vocab_size=1).eos_token_ids
    settings = {"eos_token_id": [*ends]} | settings
    with open_session(EngineConfig(target=str(demo_folder), context_tokens=160, tree="24x8")) as opened:
        adopt(opened, settings, tmp_path)
        for text in ("Write a haiku about the sea.", "The cat and the dog and the cat and the"):
            check(opened, demo_folder, text, settings)
