import numpy as np
import pytest

from profiles.builtin_profiles import builtin_pairs
from runtime.fit.plan_acceptance import planned_acceptance
from runtime.fit.plan_question import resolve_question
from runtime.fit.request import PlanRequest
from runtime.fit.speed import Basis
from runtime.speculation.acceptance import builtin_acceptance


def accepted(held="stored", **fields):
    return planned_acceptance(resolve_question(PlanRequest(**fields)), held)


def test_a_published_pair_has_its_own_vector_sorted():
    found = accepted()
    published = builtin_pairs()["llama-3-70b-8b"].acceptance[0].by_rank
    assert found.basis is Basis.PUBLISHED and found.source.startswith("Llama-3-70B-Instruct / 8B-Instruct: ")
    assert (np.diff(found.probabilities) <= 0).all()
    assert found.probabilities.sum() == pytest.approx(sum(published))


@pytest.mark.parametrize(
    ("temperature", "first", "words"), [(0.2, 0.818, "temperature 0"), (0.9, 0.792, "temperature 1")]
)
def test_the_nearest_temperature_counts(temperature, first, words):
    found = accepted(target="qwen2.5-coder-1.5b", draft="qwen2.5-coder-0.5b", temperature=temperature)
    assert found.probabilities[0] == pytest.approx(first)
    assert words in found.source


def test_an_unknown_pair_is_an_assumption():
    found = accepted(target="qwen2.5-72b")
    assert found.basis is Basis.ASSUMED and "nothing is known of this pair" in found.source
    np.testing.assert_array_equal(found.probabilities, builtin_acceptance(substitute_held=None))


@pytest.mark.parametrize("held", ["int8", "nf4"])
def test_a_substitute_is_accepted_as_it_is_held(held):
    found = accepted(held, draft="substitute")
    np.testing.assert_array_equal(found.probabilities, builtin_acceptance(substitute_held=held))
    assert found.basis is Basis.ASSUMED
