"""A pair profile holds what can be, and names the field that cannot."""

from dataclasses import replace
from typing import Any

import pytest
from profile_factory import PAIR

from profiles.errors import ProfileError
from profiles.pair_profile import AcceptanceTable, ModelIdentity, PassCost, StepCost, WalkCost


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StepCost(0, 1.0), "width"),
        (lambda: StepCost(1, -1.0), "seconds of a draft step"),
        (lambda: StepCost(1, float("nan")), "seconds of a draft step"),
        (lambda: StepCost(1, 0.0), "expected more"),
        (lambda: PassCost(1, -1, 1.0), "context_tokens"),
        (lambda: PassCost(1, 1, 1.0, is_fitted=1), "is_fitted"),  # type: ignore[arg-type]
        (lambda: WalkCost(True, 1.0), "num_nodes"),
        (lambda: ModelIdentity("", "ab", "int8"), "name of a model"),
        (lambda: AcceptanceTable(0.0, (1.2,), (0.1,), (3,), (), ()), "by_rank"),
        (lambda: AcceptanceTable(0.0, (0.6, 0.6), (0.1, None), (3, 1), (), ()), "adds up to 1.2"),
        (lambda: AcceptanceTable(0.0, (0.6, 0.1), (0.1,), (3, 1), (), ()), "as many of each"),
        (lambda: AcceptanceTable(0.0, (0.6,), (0.1,), (3,), ((0.5, 0.1),), (3,)), "has 2 ranks"),
        (lambda: AcceptanceTable(0.0, (0.6,), (0.1,), (3,), ((0.5,),), ()), "1 rows but 0"),
        (lambda: AcceptanceTable(float("inf"), (0.6,), (0.1,), (3,), ((0.5,),), (3,)), "temperature"),
    ],
)
def test_parts_that_cannot_be_are_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        make()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"draft_steps": ()}, "draft_steps is empty"),
        ({"draft_steps": (StepCost(2, 0.1), StepCost(1, 0.1))}, "draft_steps is not in ascending order"),
        ({"walk_costs": (WalkCost(2, 0.1), WalkCost(2, 0.1))}, "walk_costs is not in ascending order"),
        ({"copy_slowdown": -0.1}, "copy_slowdown"),
        ({"compute_dtype": ""}, "compute_dtype"),
        ({"measured_at": "today"}, "measured_at"),
        ({"target": None}, "target"),
    ],
)
def test_a_profile_names_the_field_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        replace(PAIR, **fields)


def test_models_are_told_apart_by_content() -> None:
    assert str(ModelIdentity("tiny", "0123456789abcdef", "int8")) == "tiny (int8, 0123456789ab)"
