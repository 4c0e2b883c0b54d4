import math

import pytest

from runtime.config import UNLIMITED_THINKING, SamplingParams, options_of, parse_thinking_budget
from runtime.errors import OptionError, OptionValueError


def test_options_are_described_once() -> None:
    """Every value of a million lines is checked by them: two minutes went into describing."""
    assert options_of(SamplingParams) is options_of(SamplingParams)


def test_the_defaults_are_greedy() -> None:
    assert SamplingParams().is_greedy
    assert not SamplingParams(temperature=0.1).is_greedy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.01),
        ("temperature", 9000),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", -0.01),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("top_k", -1),
        ("min_p", -0.1),
        ("min_p", 1.01),
        ("min_p", math.nan),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 101),
        ("repetition_penalty", math.nan),
        ("presence_penalty", 2.1),
        ("presence_penalty", math.nan),
        ("frequency_penalty", -2.1),
        ("banned_tokens", (3, -1)),
        ("forced_tokens", (-1,)),
        ("seed", -1),
        ("max_new_tokens", 0),
        ("stop", ("",)),
        ("stop", ("caf\udce9",)),
        ("verification", "gumbel"),
        ("thinking_budget", -1),
    ],
)
def test_a_value_outside_its_range_is_named(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=f"^{name} is"):
        SamplingParams(**{name: value})  # type: ignore[arg-type]


def test_the_ends_of_the_ranges_are_fine() -> None:
    SamplingParams(temperature=2, top_p=0)
    SamplingParams(min_p=1, repetition_penalty=0.01, presence_penalty=-2, frequency_penalty=2, banned_tokens=(0,))
    SamplingParams(min_p=0, repetition_penalty=100, presence_penalty=2, frequency_penalty=-2, forced_tokens=(0, 0))


def test_a_value_is_told_as_it_was_typed_and_under_the_name_that_it_had_there() -> None:
    with pytest.raises(OptionValueError) as told:
        SamplingParams(top_p=3.0)
    sentence = " is 3; it must be from 0 (the likeliest token alone) to 1 (off)"
    assert str(told.value) == f"top_p{sentence}" and str(told.value.called("--top-p")) == f"--top-p{sentence}"
    for tokens, shown in (((-1,), "-1"), ((3, -1), r"\[3, -1\]")):
        with pytest.raises(OptionValueError, match=f"^banned_tokens is {shown}; it must be token ids, 0 or more$"):
            SamplingParams(banned_tokens=tokens)


def test_a_scheme_that_is_not_there_comes_with_those_that_are() -> None:
    with pytest.raises(OptionError, match=r"one of auto, sequoia, coupled, specinfer, top-k$"):
        SamplingParams(verification="gumbel")


def test_auto_is_coupled_above_zero_and_everything_is_greedy_at_zero() -> None:
    assert SamplingParams(temperature=0.1).scheme_name == "coupled"
    assert SamplingParams(temperature=0.1, verification="sequoia").scheme_name == "sequoia"
    assert SamplingParams(verification="sequoia").scheme_name == "greedy"


def test_how_long_a_model_may_think() -> None:
    texts = ("on", "off", "0", "1", "999999999")
    assert [parse_thinking_budget(text, "--think") for text in texts] == [
        UNLIMITED_THINKING,
        0,
        0,
        1,
        UNLIMITED_THINKING,
    ]
    for text in ("", "auto", "-1", "1e3", "9" * 10, "\u0663"):
        with pytest.raises(OptionError, match=r"--think is .*; it must be on, off, or the most tokens of thinking"):
            parse_thinking_budget(text, "--think")
