import pytest

from runtime.sampling_params import VERIFICATIONS, SamplingParams
from runtime.speculation.scheme_choice import SCHEMES, scheme_for


def test_every_name_that_can_be_asked_for_is_a_scheme_of_that_name() -> None:
    """Two lists of names would drift apart."""
    assert {*SCHEMES} == {*VERIFICATIONS, "greedy"} - {"auto"}
    for name, make in SCHEMES.items():
        assert make(SamplingParams()).name == name


@pytest.mark.parametrize("verification", VERIFICATIONS)
def test_at_temperature_zero_all_are_greedy(verification: str) -> None:
    assert scheme_for(SamplingParams(verification=verification)).name == "greedy"


def test_above_it_the_scheme_is_what_was_asked_for() -> None:
    for verification in VERIFICATIONS[1:]:
        assert scheme_for(SamplingParams(temperature=0.5, verification=verification)).name == verification


def test_a_scheme_serves_one_answer() -> None:
    params = SamplingParams(temperature=1, verification="coupled")
    assert scheme_for(params) is not scheme_for(params)
