"""Which figures a row has room for, how they are written, and the status line on a real screen, as text."""

from dataclasses import replace

import pytest

from tests.support.chat_states import (
    drafting,
    folded,
    loading,
    loading_report,
    prefilling,
    ready,
    round_done,
    verifying,
)
from tests.support.screen_text import screen_rows
from tests.support.widget_screens import WidgetApp, resize, run, until
from tui.chat.engine.messages import Failed, OfAnswer
from tui.chat.engine.state import EngineState, begin_answer, begin_load, with_death, with_report
from tui.chat.machine.status import (
    StatusFigure,
    StatusLine,
    duration_text,
    fit_figures,
    phase_text,
    phase_tooltip,
    status_figures,
    status_row,
)

STATES = {
    "no model": EngineState(),
    "starting": begin_load(),
    "opening": folded(loading_report("opening the files", 0, 0, 0.5), begun=begin_load()),
    "downloading": folded(loading_report("downloading owner/name", 30, 120, 1.0), begun=begin_load()),
    "loading": loading(),
    "ready": ready(),
    "waiting": begin_answer(ready()),
    "prefill": prefilling(),
    "drafting": drafting(),
    "verifying": verifying(),
    "stopped": replace(ready(), phase="stopped"),
    "error": with_report(ready(), OfAnswer(1, Failed("the prompt \x1b[31mis\nlong", "context"))),
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
    assert "  ".join(fit_figures(status_figures(verifying()), width).values()) == row


def test_every_width_is_kept():
    for width in range(120):
        assert len("  ".join(fit_figures(status_figures(verifying()), width).values())) <= width


def test_nothing_is_shown_that_is_not_known():
    assert not list(status_figures(EngineState()))
    assert [figure.short for figure in status_figures(ready())] == ["dev 2.10 GB", "ctx 0%"]
    still = folded(round_done(bytes_streamed=0, link_busy_seconds=0.0), begun=ready())
    assert "link" not in "".join(figure.text for figure in status_figures(still))


def test_every_figure_explains_itself():
    assert all(figure.tooltip.endswith(".") for figure in status_figures(verifying()))
    assert "the planner expects 10.0" in next(status_figures(verifying())).tooltip


def test_wide_characters_count_as_two():
    figure = StatusFigure("日本", "日本", 1, "")
    assert fit_figures((figure,), 4) and not fit_figures((figure,), 3)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (125, "2:05 min"), (3840, "1:04 h")]
)
def test_durations(seconds, text):
    assert duration_text(seconds) == text


ROWS = [
    (EngineState(), 80, " ○ no model: /model"),
    (loading(), 80, " loading ━━━━──── 1.50 GB/3.00 GB  500 MB/s  3 s left"),
    (verifying(), 80, " verifying ━━━━╸─── 16/28 layers         7.2 tok/s  3.6/pass  link 90%  ctx 19%"),
    (verifying(), 44, " verifying ━━━━╸─── 16/28 layers"),
    (verifying(), 20, " verifying ━━━━╸──…"),
]


def test_the_row_says_as_much_as_fits():
    line = StatusLine()

    async def story(pilot):
        for state, width, row in ROWS:
            await resize(pilot, width, 6)
            line.show(state)
            await until(pilot, lambda row=row: screen_rows(pilot.app)[0] == row, row)

    run(WidgetApp(line), story)


def test_a_wider_terminal_shows_more():
    line = StatusLine()

    async def story(pilot):
        line.show(verifying())
        await pilot.pause()
        narrow = screen_rows(pilot.app)[0]
        await resize(pilot, 130, 10)
        assert "host" not in narrow
        await until(pilot, lambda: "host 3.40 GB  context 773/4096" in screen_rows(pilot.app)[0])

    run(WidgetApp(line), story)


def test_only_a_change_redraws():
    line = StatusLine()

    async def story(pilot):
        line.show(verifying())
        await pilot.pause()
        drawn = []
        line.refresh = lambda *_, **__: drawn.append(1)
        line.show(verifying())
        assert drawn == []
        line.show(ready())
        assert drawn == [1]

    run(WidgetApp(line), story)


def test_the_figure_under_the_pointer_explains_itself():
    line = StatusLine()

    async def story(pilot):
        line.show(verifying())
        await pilot.pause()
        await pilot.hover(line, offset=(42, 0))
        await pilot.pause()
        assert line.tooltip.startswith("Tokens per second over the last rounds")
        await pilot.hover(line, offset=(3, 0))
        assert line.tooltip.startswith("One pass of the target")
        for gap in (37, 50, 79):
            await pilot.hover(line, offset=(gap, 0))
            assert line.tooltip is None

    run(WidgetApp(line), story)


def test_what_happened_cannot_move_the_cursor():
    row = status_row(EngineState(phase="dead", sentence="\x1b[2Jevil\x1b]0;x\x07"), 78)
    assert row.plain.startswith("✗ evil") and "\x1b" not in phase_tooltip(EngineState(phase="dead", sentence="\x1b[2J"))
