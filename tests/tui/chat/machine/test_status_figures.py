"""Which figures a row has room for, and how they are written."""

from dataclasses import replace

import pytest

from tests.support.chat_states import drafting, folded, loading, prefilling, ready, round_done, verifying
from tui.chat.engine.engine_messages import Failed, Loading
from tui.chat.engine.engine_state import EngineState, begin_answer, begin_load, with_death, with_report
from tui.chat.machine.status_figures import (
    StatusFigure,
    duration_text,
    fit_figures,
    fit_text,
    phase_text,
    phase_tooltip,
    rate_text,
    status_figures,
)

STATES = {
    "no model": EngineState(),
    "starting": begin_load(),
    "opening": folded(Loading("opening the files", 0, 0, 0.5), begun=begin_load()),
    "downloading": folded(Loading("downloading owner/name", 30, 120, 1.0), begun=begin_load()),
    "loading": loading(),
    "ready": ready(),
    "waiting": begin_answer(ready()),
    "prefill": prefilling(),
    "drafting": drafting(),
    "verifying": verifying(),
    "stopped": replace(ready(), phase="stopped"),
    "error": with_report(ready(), Failed(1, "the prompt \x1b[31mis\nlong", "context")),
    "dead": with_death("killed; /restart"),
}
TEXTS = {
    "no model": "○ no model: /model",
    "starting": "loading",
    "opening": "loading opening the files",
    "downloading": "downloading ━━────── 30 B/120 B",
    "loading": "loading ━━━━──── 1.50 GB/3.00 GB  500 MB/s  3 s left",
    "ready": "● ready",
    "waiting": "prefill",
    "prefill": "prefill ━━━───── 256/700 tokens",
    "drafting": "drafting level 3, 12 nodes",
    "verifying": "verifying ━━━━╸─── 16/28 layers",
    "stopped": "■ stopped",
    "error": "✗ the prompt is long",
    "dead": "✗ killed; /restart",
}


@pytest.mark.parametrize("name", STATES)
def test_every_state_says_what_it_is(name):
    assert phase_text(STATES[name]).rstrip() == TEXTS[name]
    assert phase_tooltip(STATES[name])


def test_an_answer_in_progress_keeps_one_width():
    """Else figures would come and go with every pass."""
    assert len({len(phase_text(STATES[name])) for name in ("waiting", "prefill", "drafting", "verifying")}) == 1


@pytest.mark.parametrize(
    ("width", "row"),
    [
        (94, "7.2 tok/s  3.6 tok/pass  link 2.00 GB/s 90%  device 2.10 GB  host 3.40 GB  context 773/4096"),
        (80, "7.2 tok/s  3.6 tok/pass  link 90%  dev 2.10 GB  host 3.40 GB  context 773/4096"),
        (66, "7.2 tok/s  3.6/pass  link 90%  dev 2.10 GB  host 3.40 GB  ctx 19%"),
        (60, "7.2 tok/s  3.6/pass  link 90%  dev 2.10 GB  ctx 19%"),
        (40, "7.2 tok/s  3.6/pass  link 90%  ctx 19%"),
        (20, "7.2 tok/s  ctx 19%"),
        (9, "7.2 tok/s"),
        (8, ""),
        (0, ""),
    ],
)
def test_the_least_important_figures_go_first(width, row):
    texts = [text for _, text in fit_figures(status_figures(verifying()), width)]
    assert "  ".join(texts) == row


def test_every_width_is_kept():
    for width in range(120):
        fitted = fit_figures(status_figures(verifying()), width)
        assert len("  ".join(text for _, text in fitted)) <= width


def test_nothing_is_shown_that_is_not_known():
    assert status_figures(EngineState()) == ()
    assert [figure.name for figure in status_figures(ready())] == ["device", "context"]
    still = folded(round_done(bytes_streamed=0, link_busy_seconds=0.0), begun=ready())
    assert "link" not in [figure.name for figure in status_figures(still)]


def test_every_figure_explains_itself():
    assert all(figure.tooltip.endswith(".") for figure in status_figures(verifying()))
    assert "the planner expects 10.0" in status_figures(verifying())[0].tooltip


def test_wide_characters_count_as_two():
    figure = StatusFigure("x", "日本", "日本", 1, "")
    assert fit_figures((figure,), 4) and not fit_figures((figure,), 3)
    assert fit_text("日本語", 5) == "日本…"
    assert fit_text("日本語", 6) == "日本語"
    assert fit_text("abc", 0) == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (125, "2:05 min"), (3840, "1:04 h")]
)
def test_durations(seconds, text):
    assert duration_text(seconds) == text


@pytest.mark.parametrize(("rate", "text"), [(0.416, "0.42"), (0.999, "1.0"), (8.06, "8.1"), (112.3, "112")])
def test_rates(rate, text):
    assert rate_text(rate) == text
