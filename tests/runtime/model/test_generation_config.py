"""generation_config.json: what is taken from it, what is refused by name, and what means nothing."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from offload.errors import CheckpointError
from runtime.config import Generation, SamplingParams, options_of
from runtime.errors import OptionError
from runtime.model.generation_config import (
    _HARMLESS,
    _HARMLESS_SAMPLED,
    _KINDS,
    FILE_NAME,
    GenerationConfig,
    describe_own_settings,
    read_generation_config,
    token_ids_of,
)
from runtime.speculation.logit_processors import LogitProcessor

VOCAB_SIZE = 100
ALL = frozenset(options_of(SamplingParams))
QWEN = {"do_sample": True, "repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20}


def read(folder: Path, content: object, choice: Generation = "auto") -> GenerationConfig:
    raw = content if isinstance(content, str) else json.dumps(content)
    (folder / FILE_NAME).write_text(raw)
    return read_generation_config(folder, choice, vocab_size=VOCAB_SIZE)


def own(config: GenerationConfig, *, unchosen: frozenset[str] = ALL, **params: Any) -> dict[str, float]:
    chosen = SamplingParams(**params)
    return dict(config.choices(chosen, unchosen - params.keys(), num_prompt_tokens=10).own)


def test_a_folder_without_the_file_has_no_settings(tmp_path: Path) -> None:
    found = read_generation_config(tmp_path, "auto", vocab_size=VOCAB_SIZE)
    assert found == GenerationConfig(choice="auto")
    assert found.choices(SamplingParams(), ALL, num_prompt_tokens=1).params == SamplingParams()


def test_a_config_json_says_it_where_there_is_no_such_file(tmp_path: Path) -> None:
    """As transformers takes it: so folders said it before there was a file for it."""
    settings = {"repetition_penalty": 1.3, "eos_token_id": 5, "top_k": None}
    found = read_generation_config(tmp_path, "auto", vocab_size=VOCAB_SIZE, model_config=settings)
    assert found == GenerationConfig(choice="auto", repetition_penalty=1.3, eos_token_ids=(5,))
    with pytest.raises(CheckpointError, match=r"config\.json asks for num_beams 2"):
        read_generation_config(tmp_path, "auto", vocab_size=VOCAB_SIZE, model_config={"num_beams": 2})
    (tmp_path / FILE_NAME).write_text("{}")
    found = read_generation_config(tmp_path, "auto", vocab_size=VOCAB_SIZE, model_config=settings)
    assert found == GenerationConfig(choice="auto"), "the file comes instead of it, not on top"


def test_sampling_values_hold_where_the_author_samples_and_nobody_chose(tmp_path: Path) -> None:
    config = read(tmp_path, QWEN)
    assert own(config) == {key: value for key, value in QWEN.items() if key != "do_sample"}
    assert own(config, temperature=0.2, top_k=0) == {"repetition_penalty": 1.05, "top_p": 0.8}
    assert own(config, temperature=0.0) == {"repetition_penalty": 1.05}, "of greedy text only what changes it"
    assert own(config, unchosen=frozenset()) == {}
    params = config.choices(SamplingParams(seed=4), ALL, num_prompt_tokens=10).params
    assert params == SamplingParams(seed=4, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05)


def test_text_is_greedy_where_neither_the_author_nor_the_asker_samples(tmp_path: Path) -> None:
    config = read(tmp_path, QWEN | {"do_sample": False})
    assert own(config) == {"repetition_penalty": 1.05}
    assert own(config, temperature=0.9) == {"repetition_penalty": 1.05, "top_p": 0.8, "top_k": 20}
    assert own(read(tmp_path, {"do_sample": None, "temperature": 0.3})) == {}


def test_sampling_without_values_is_that_of_transformers(tmp_path: Path) -> None:
    assert own(read(tmp_path, {"do_sample": True})) == {"temperature": 1.0, "top_k": 50}
    assert own(read(tmp_path, {"do_sample": True, "top_k": 0, "top_p": 1, "min_p": 0})) == {"temperature": 1.0}
    assert own(read(tmp_path, {"do_sample": True, "temperature": 0})) == {}


def test_lengths_only_shorten_what_nobody_chose(tmp_path: Path) -> None:
    assert own(read(tmp_path, {"max_new_tokens": 30})) == {"max_new_tokens": 30}
    assert own(read(tmp_path, {"max_new_tokens": 30}), max_new_tokens=99) == {}
    assert own(read(tmp_path, {"max_new_tokens": 9999, "max_length": 5})) == {}
    assert own(read(tmp_path, {"max_length": 50})) == {"max_new_tokens": 40}
    config = read(tmp_path, {"max_length": 10})
    assert own(config, max_new_tokens=5) == {}
    with pytest.raises(OptionError, match=r"the prompt has 10 tokens, .* max_length is 10, .* give --max-new-tokens"):
        own(config)


def test_rules_reach_the_answer_and_are_counted(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        {
            "eos_token_id": [2, 3],
            "no_repeat_ngram_size": 3,
            "bad_words_ids": [[5, 6], [2], [7], [2, 3]],
            "suppress_tokens": [8, 9],
            "begin_suppress_tokens": [10],
            "min_length": 14,
            "forced_bos_token_id": 0,
            "forced_eos_token_id": 2,
            "stop_strings": "END",
        },
    )
    choices = config.choices(SamplingParams(), ALL, num_prompt_tokens=10, end_token_ids={2, 3, 4})
    assert choices.params.stop == ("END",)
    rules = choices.rules
    assert rules.banned_sequences == ((5, 6), (7,), (2, 3)), "an end token alone is no bad word"
    assert (rules.banned_tokens, rules.banned_first_tokens, rules.last_tokens) == ((8, 9), (10,), (2,))
    assert (rules.min_new_tokens, rules.end_token_ids, rules.first_token) == (4, (2, 3, 4), None)
    assert config.choices(SamplingParams(), num_prompt_tokens=1).rules.first_token == 0
    assert config.choices(SamplingParams(), num_prompt_tokens=20).rules.min_new_tokens == 0
    assert describe_own_settings(choices.own) == (
        "1 stop strings, no 3 tokens in a row twice, 3 banned sequences, 2 banned tokens, "
        "1 tokens that begin no answer, at least 4 new tokens, 1 tokens that may end the longest answer"
    )


def test_settings_are_told_in_words(tmp_path: Path) -> None:
    told = describe_own_settings(own(read(tmp_path, QWEN)))
    assert told == "temperature 0.7, top-k 20, top-p 0.8, repetition penalty 1.05"


def test_plain_reads_nothing_but_the_end_tokens(tmp_path: Path) -> None:
    config = read(tmp_path, QWEN | {"eos_token_id": [2, 7], "num_beams": 4, "suppress_tokens": "all"}, "plain")
    assert config == GenerationConfig(eos_token_ids=(2, 7))
    assert own(config) == {}


@pytest.mark.parametrize(
    "harmless",
    [
        {"num_beams": 1, "num_beam_groups": 1, "length_penalty": 0.5, "early_stopping": True, "diversity_penalty": 0},
        {
            "transformers_version": "4.1",
            "use_cache": False,
            "cache_implementation": "hybrid",
            "_from_model_config": True,
        },
        {"typical_p": 0.9, "epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "top_h": 0.4},
        {"do_sample": True, "temperature": 0.5, "typical_p": 1.0, "penalty_alpha": 0.6},
        {"guidance_scale": 1, "penalty_alpha": 0.6, "top_k": 1, "renormalize_logits": True, "pad_token_id": -1},
        {"watermarking_config": None, "constraints": None, "eos_token_id": -1, "token_healing": False},
        {"eos_token_id": [5000, 2]},
    ],
)
def test_what_leaves_the_text_as_it_is_passes(harmless: dict[str, object], tmp_path: Path) -> None:
    params = read(tmp_path, harmless).choices(SamplingParams(), num_prompt_tokens=3).params
    assert params.is_greedy or harmless["do_sample"]


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"num_beams": 4}, "num_beams 4"),
        ({"num_beams": 4, "guidance_scale": 1.5}, "num_beams 4, guidance_scale 1.5"),
        ({"penalty_alpha": 0.6}, "penalty_alpha 0.6"),
        ({"exponential_decay_length_penalty": [3, 1.1]}, "exponential_decay_length_penalty [3, 1.1]"),
        ({"sequence_bias": [[[1], 2.0]]}, "sequence_bias [[[1], 2.0]]"),
        ({"encoder_repetition_penalty": 1.2}, "encoder_repetition_penalty 1.2"),
        ({"encoder_no_repeat_ngram_size": 2}, "encoder_no_repeat_ngram_size 2"),
        ({"watermarking_config": {"bias": 1}}, "watermarking_config {'bias': 1}"),
        ({"dola_layers": "high"}, "dola_layers 'high'"),
        ({"token_healing": True}, "token_healing True"),
        ({"max_time": 3.0}, "max_time 3.0"),
        ({"force_words_ids": [[1]]}, "force_words_ids [[1]]"),
        ({"constraints": [1]}, "constraints [1]"),
        ({"do_sample": True, "typical_p": 0.9}, "typical_p 0.9"),
        ({"do_sample": True, "eta_cutoff": 0.1, "epsilon_cutoff": 0.1}, "epsilon_cutoff 0.1, eta_cutoff 0.1"),
        ({"do_sample": True, "top_h": 0.3}, "top_h 0.3"),
    ],
)
def test_what_would_change_the_text_and_is_not_done_is_refused_by_name(
    asked: dict[str, object], named: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, asked)
    assert str(caught.value) == (
        f"{tmp_path / FILE_NAME} asks for {named}, which is not done here and would change the text; "
        "give --generation plain to go on without the model's own generation settings"
    )
    assert read(tmp_path, asked, "plain") == GenerationConfig()


def test_cutoffs_of_sampling_are_refused_where_the_asker_samples(tmp_path: Path) -> None:
    config = read(tmp_path, {"typical_p": 0.9})
    assert own(config) == {}
    with pytest.raises(OptionError, match=r"asks for typical_p 0\.9, which is not done here"):
        own(config, temperature=0.5)


MALFORMED: list[tuple[str, object]] = [
    *[
        ("eos_token_id", value)
        for value in (["a", 1], [None], {}, 1.5, [1.5], [[1]], True, "2", {"a": 1}, [[[]]], "\ud800")
    ],
    *[("pad_token_id", value) for value in ([1], {}, "a", 1.5, [None])],
    *[("bos_token_id", value) for value in ({}, "a", 1.5, [None], "\ud800")],
    *[("do_sample", value) for value in (1, "yes", [])],
    *[("temperature", value) for value in (-1, "hot", [], True, 10**400)],
    *[("top_p", value) for value in (1.1, -1, "x", {})],
    *[("top_k", value) for value in (-1, 1.5, "x", 10**30)],
    *[("min_p", value) for value in (-0.1, 2, "x")],
    *[("repetition_penalty", value) for value in (0, -1, 1000, "x", [1.1], 10**400)],
    *[("max_new_tokens", value) for value in (0, -5, 1.5, "x", [])],
    *[("max_length", value) for value in (0, "x")],
    *[("min_new_tokens", value) for value in (-1, "x")],
    *[("min_length", value) for value in (-1, [])],
    *[("stop_strings", value) for value in ("", [""], 5, [5], {}, "\ud800", ["a", "\udfff"], ["a"] * 101, "a" * 1001)],
    *[("no_repeat_ngram_size", value) for value in (-1, "x", 1.5)],
    *[("bad_words_ids", value) for value in ([], [[]], [1], [["a"]], [[-1]], {}, "x", [[[1]]])],
    *[("suppress_tokens", value) for value in (5, ["a"], [-1], [[1]], {}, [None])],
    *[("begin_suppress_tokens", value) for value in (5, ["a"], [-1])],
    *[("forced_bos_token_id", value) for value in ([1], -1, "a", 1.5)],
    *[("forced_eos_token_id", value) for value in (-1, ["a"], {}, 1.5, [[1]])],
]


def test_a_value_that_means_nothing_is_one_sentence(tmp_path: Path) -> None:
    for key, value in MALFORMED:
        with pytest.raises(CheckpointError) as caught:
            read(tmp_path, {key: value})
        told = str(caught.value)
        assert told.startswith(f"{tmp_path / FILE_NAME}: {key} is "), told
        assert "; it must be " in told and "\n" not in told and len(told) < len(str(tmp_path)) + 350, told
        assert ("--generation plain" in told) == (key != "eos_token_id"), told


@pytest.mark.parametrize(
    "key", ["suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "forced_bos_token_id", "forced_eos_token_id"]
)
def test_ids_that_the_model_does_not_have_are_refused(key: str, tmp_path: Path) -> None:
    value = {"bad_words_ids": [[1, 100]], "forced_bos_token_id": 100, "forced_eos_token_id": 100}.get(key, [100])
    with pytest.raises(CheckpointError, match=f"{key} holds 100; the model's ids are 0 to 99; mend the file"):
        read(tmp_path, {key: value})


def test_some_token_must_be_left(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="suppress_tokens holds all 100 ids of the model"):
        read(tmp_path, {"suppress_tokens": [*range(100), 5]})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds []; expected a JSON object"),
        ("[" * 100_000, "is not valid JSON"),
        ('{"eos_token_id": 1, "eos_token_id": 2}', "the key 'eos_token_id' stands twice"),
        ('{"temperature": NaN}', "is not a finite number"),
        (json.dumps({"eos_token_id": [2] * 3_000_000}), "bytes; expected at most"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(content: str, told: str, tmp_path: Path) -> None:
    for choice in ("auto", "plain"):
        with pytest.raises(CheckpointError) as caught:
            read(tmp_path, content, choice)  # type: ignore[arg-type]
        assert told in str(caught.value)


def test_other_sources_of_end_tokens_are_checked_alike() -> None:
    assert token_ids_of({}, "eos_token_id", where="config.json") == ()
    assert token_ids_of({"eos_token_id": [1, 2]}, "eos_token_id", where="config.json") == (1, 2)
    for value in (["a", 1], [None], {}, 1.5, {"a"}, [[1]], True):
        with pytest.raises(CheckpointError, match=r"config\.json: eos_token_id is .*; it must be a token id or a list"):
            token_ids_of({"eos_token_id": value}, "eos_token_id", where="config.json")


PIECES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 99, 100, 2**31, 10**30, 0.5, 1.0, 1.5, -0.5, 1e300, "", "a", "never"),
    *([], {}, [[]], [1], [1, 2], [None], ["a", 1], [[1, 2]], [[1], []], {"a": 1}, [1.5], [True], [{}], [[[1]]], [-1]),
]


def test_whatever_a_file_holds_it_is_taken_or_refused_in_a_sentence(tmp_path: Path) -> None:
    """Seed 3, 3000 objects of up to three keys: the values of every key, and pairs of keys that meet."""
    rng = random.Random(3)
    keys = [*_KINDS, *_HARMLESS, *_HARMLESS_SAMPLED, "penalty_alpha", "unknown"]
    for number in range(3000):
        chosen = [keys[number % len(keys)], *rng.sample(keys, k=rng.randrange(3))]
        settings = {key: rng.choice(PIECES) for key in chosen}
        try:
            found = read_generation_config(tmp_path, "auto", vocab_size=VOCAB_SIZE, model_config=settings)
            choices = found.choices(SamplingParams(temperature=0.5), ALL, num_prompt_tokens=3)
            LogitProcessor(choices.params, prompt=[1, 2, 3], vocab_size=VOCAB_SIZE, rules=choices.rules)
            describe_own_settings(choices.own)
        except (CheckpointError, OptionError) as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
