"""What each check lets pass, and the sentence for everything else."""

import math
from datetime import date, datetime
from typing import Any

import pytest

from profiles import field_checks as checks
from profiles.errors import ProfileError


@pytest.mark.parametrize(
    "check",
    [
        lambda: checks.check_text("x", "a"),
        lambda: checks.check_text("x", "", can_be_empty=True),
        lambda: checks.check_flag("x", False),
        lambda: checks.check_day("x", date(2026, 1, 31)),
        lambda: checks.check_bytes("x", 0),
        lambda: checks.check_bytes("x", 1 << 60),
        lambda: checks.check_count("x", 1, minimum=1),
        lambda: checks.check_number("x", 1, maximum=1.0),
        lambda: checks.check_seconds("x", 1e-9),
        lambda: checks.check_rate("x", None, can_be_zero=False),
        lambda: checks.check_rate("x", 0, can_be_zero=True),
        lambda: checks.check_entries("x", (1, 2), int),
        lambda: checks.check_ascending("x", [(0, 2), (1, 1)]),
        lambda: checks.check_ascending("x", []),
        lambda: checks.check_not_empty("x", (None,)),
        lambda: checks.check_probabilities("x", (0.5, 0.5, 1e-7)),
        lambda: checks.check_probabilities("x", ()),
    ],
)
def test_what_is_sound_passes(check: Any) -> None:
    check()


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: checks.check_text("x", ""), "x is ''; expected a text"),
        (lambda: checks.check_text("x", None, can_be_empty=True), "x is None; expected a text"),
        (lambda: checks.check_flag("x", 1), "x is 1; expected true or false"),
        (lambda: checks.check_day("x", datetime(2026, 1, 31)), "x is datetime.*; expected a date such as 2026-01-31"),
        (lambda: checks.check_bytes("x", (1 << 60) + 1), "x is .*; expected a whole number of bytes, at least 0"),
        (lambda: checks.check_count("x", True, minimum=0), "x is True; expected a whole number, at least 0"),
        (lambda: checks.check_number("x", math.nan, maximum=3.0), "x is nan; expected a number from 0 to 3"),
        (lambda: checks.check_number("x", 10**400, maximum=3.0), "x is 10+.*; expected a number from 0 to 3"),
        (lambda: checks.check_number("x", -1e-300, maximum=3.0), "x is -1e-300; expected a number from 0 to 3"),
        (lambda: checks.check_seconds("x", 0.0), "x is 0; expected more"),
        (lambda: checks.check_rate("x", 0, can_be_zero=False), "x is 0; expected a number above 0, or null"),
        (lambda: checks.check_rate("x", math.inf, can_be_zero=True), "x is inf; expected a number at least 0"),
        (lambda: checks.check_entries("x", [1], int), r"x is \[1\]; expected a list"),
        (lambda: checks.check_entries("x", (1, "2"), int), r"x\[1\] is '2'; expected an object"),
        (lambda: checks.check_ascending("x", [1, 1]), "x is not in ascending order"),
        (lambda: checks.check_not_empty("x", ()), "x is empty; expected at least one entry"),
        (lambda: checks.check_probabilities("x", (0.7, 0.4)), "x adds up to 1.1000; expected at most 1"),
        (
            lambda: checks.check_probabilities("x", (0.7, "0.1")),
            "an entry of x is '0.1'; expected a number from 0 to 1",
        ),
        (lambda: checks.check_probabilities("x", 0.7), "x is 0.7; expected a list"),
    ],
)
def test_anything_else_is_one_sentence_that_names_the_field(check: Any, message: str) -> None:
    with pytest.raises(ProfileError, match=f"^{message}") as caught:
        check()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200
