"""Rows of the model picker as exact text."""

import pytest

from tui.chat.fit_estimates import FitEstimate
from tui.chat.widgets.model_list import (
    ListedModel,
    fit_words,
    matching_models,
    merged_models,
    model_row,
    model_sentence,
)

SMALL = ListedModel("/m/small", "owner/Small-135M", 270_000_000)
LARGE = ListedModel("/m/large", "owner/Large-70B", 141_000_000_000)
STREAMS = FitEstimate("/m/large", "streams", 1.24, "streams 120 GB in every pass, about 1.24 s/token")


def test_recent_models_come_first_and_every_model_once():
    found = merged_models(["/m/large", "owner/gone", "/m/large"], [SMALL, LARGE])
    assert found == (
        ListedModel("/m/large", "owner/Large-70B", 141_000_000_000, is_recent=True),
        ListedModel("owner/gone", "owner/gone", None, is_recent=True),
        SMALL,
    )


@pytest.mark.parametrize(
    ("typed", "targets"),
    [
        ("", ["/m/small", "/m/large"]),
        ("large", ["/m/large", "large"]),
        ("OWNER 70b", ["/m/large", "OWNER 70b"]),
        ("owner/Large-70B", ["/m/large"]),
        ("/m/small", ["/m/small"]),
        ("./elsewhere", ["./elsewhere"]),
        ("  ", ["/m/small", "/m/large"]),
    ],
)
def test_typing_filters_and_may_name_another(typed, targets):
    assert [model.target for model in matching_models((SMALL, LARGE), typed)] == targets


@pytest.mark.parametrize(
    ("model", "estimate", "is_waiting", "row"),
    [
        (LARGE, STREAMS, True, "owner/Large-70B             141 GB  streams, 1.2 s/token    "),
        (SMALL, None, True, "owner/Small-135M            270 MB  …                       "),
        (SMALL, None, False, "owner/Small-135M            270 MB                          "),
        (
            *(ListedModel("x/y", "x/y", None, is_recent=True), None, False),
            "x/y (recent)                                                ",
        ),
    ],
)
def test_rows(model, estimate, is_waiting, row):
    assert model_row(model, estimate, width=60, is_waiting=is_waiting) == row


def test_a_narrow_row_is_the_name():
    assert model_row(LARGE, STREAMS, width=30, is_waiting=False) == "owner/Large-70B"
    assert model_row(LARGE, STREAMS, width=8, is_waiting=False) == "owner/L…"


@pytest.mark.parametrize(
    ("fit", "seconds", "words"),
    [
        ("resident", 1 / 12, "resident, 12.0 tok/s"),
        ("streams", 0.6, "streams, 1.7 tok/s"),
        ("streams", 4.0, "streams, 4.0 s/token"),
        ("does not fit", None, "does not fit"),
        ("unusable", None, "unusable"),
    ],
)
def test_fits_in_a_few_words(fit, seconds, words):
    assert fit_words(FitEstimate("f", fit, seconds, "s")) == words
    assert len(words) <= 24


def test_a_sentence_says_what_is_known():
    assert model_sentence(LARGE, {"/m/large": STREAMS}, is_waiting=False) == f"owner/Large-70B: {STREAMS.sentence}"
    assert "is asked how it would fit" in model_sentence(SMALL, {}, is_waiting=True)
    assert model_sentence(ListedModel("a/b", "a/b"), {}, is_waiting=False).startswith("a/b: Enter loads it")


def test_a_name_cannot_move_the_cursor():
    evil = ListedModel("\x1b[2J/x", "\x1b]0;t\x07evil\nrow", 5)
    row = model_row(evil, None, width=60, is_waiting=False)
    assert row.startswith("evil row ") and "\x1b" not in row
    assert "\x1b" not in model_sentence(evil, {}, is_waiting=False)
