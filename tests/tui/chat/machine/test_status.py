"""Which figures a row has room for, how they are written, and the status line on a real screen, as text."""

from dataclasses import replace
from itertools import product

import pytest

from runtime.events import LevelDrafted, LoadProgress, PrefillProgress
from tests.support.chat_states import (
    FIGURES,
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
from tui.chat.engine.messages import Failed, OfAnswer, PassRunning, StillLoading
from tui.chat.engine.state import EngineState, begin_answer, begin_load, with_death, with_report
from tui.chat.machine.status import (
    StatusFigure,
    StatusLine,
    duration_text,
    fit_figures,
    phase_tooltip,
    phase_words,
    status_figures,
    status_row,
)


def test_thinking_is_named_while_it_lasts_and_what_was_chosen_of_it():
    state = replace(verifying(), is_thinking=True)
    assert phase_words(state) == "thinking" and phase_words(replace(ready(), is_thinking=True)) == "● ready"
    chosen = [figure for figure in status_figures(ready(), "500") if figure.text == "think 500"]
    assert "for at most 500 tokens; /think changes that" in chosen[0].tooltip
    assert not [figure for figure in status_figures(ready(), "") if "think" in figure.text]
    cannot = replace(ready(), model=replace(ready().model, can_think=False))
    assert not [figure for figure in status_figures(cannot, "500") if "think" in figure.text]


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
    "no model": "○ no model, F4 chooses one",
    "starting": "loading Qwen-1.5B",
    "opening": "loading Qwen-1.5B  opening the files",
    "downloading": "downloading owner/name  ━━──────  30/120 B",
    "loading": "loading Qwen-1.5B  ━━━━────  1.50/3.00 GB  500 MB/s  3 s left",
    "ready": "● ready",
    "waiting": "reading  ────────",
    "prefill": "reading  ━━━─────  256/700 tokens",
    "drafting": "writing  ────────",
    "verifying": "writing  ━━━━╸───",
    "stopped": "■ stopped",
    "error": "✗ no answer",
    "dead": "✗ engine ended, /restart",
}


@pytest.mark.parametrize("name", STATES)
def test_every_state_says_what_it_is(name):
    row = status_row(STATES[name], 200, "Qwen-1.5B").plain
    assert row.split("   ")[0].rstrip() == TEXTS[name]
    assert phase_tooltip(STATES[name])


def test_a_long_prompt_is_followed_within_its_pass_and_says_how_long_it_should_take():
    event = PrefillProgress(0, 4000, num_pass_tokens=4000, expected_seconds=8.4)
    state = folded(event, PassRunning(7, 28, ()), begun=begin_answer(ready()))
    assert status_row(state, 200).plain.startswith("reading  ━━──────  1000/4000 tokens  about 8 s ")
    short = folded(replace(event, expected_seconds=0.4), begun=begin_answer(ready()))
    assert "about" not in status_row(short, 200).plain


def test_a_model_that_answers_while_it_is_loaded_says_how_far_that_is():
    state = with_report(ready(), StillLoading(LoadProgress("layers", 430, 1000)))
    assert status_row(state, 200).plain.startswith("● ready  (43% loaded)  ")
    assert status_row(state, 40).plain.startswith("● ready  43%  ")


def test_a_load_that_failed_leaves_no_model():
    assert phase_words(EngineState(phase="error", sentence="a long reason")) == "✗ no model"


def slow_round(draft_seconds, verify_seconds, *more):
    slow = round_done(draft_seconds=draft_seconds, verify_seconds=verify_seconds)
    return folded(slow, FIGURES, *more, begun=begin_answer(ready()))


@pytest.mark.parametrize(
    ("draft_seconds", "verify_seconds", "words"),
    [
        (0.05, 0.05, ("writing", "writing")),
        (0.2, 5.0, ("checking", "checking")),
        (5.0, 0.2, ("guessing ahead", "guessing ahead")),
        (1.5, 3.0, ("guessing ahead", "checking      ")),
    ],
)
def test_words_change_only_as_fast_as_they_can_be_read(draft_seconds, verify_seconds, words):
    """Two phases once took turns ten times a second."""
    drafted = slow_round(draft_seconds, verify_seconds, LevelDrafted(3, 12))
    checked = slow_round(draft_seconds, verify_seconds, LevelDrafted(3, 12), PassRunning(16, 28, (18, 19)))
    assert (phase_words(drafted), phase_words(checked)) == words
    places = [status_row(state, 100).plain.index("tok/s") for state in (drafted, checked)]
    assert places[0] == places[1], "nothing moves with the phase"


def test_the_words_of_the_field_stand_beside_ours():
    states = [slow_round(1.5, 3.0, LevelDrafted(3, 12)), slow_round(1.5, 3.0, PassRunning(16, 28, ()))]
    assert "guessing ahead  ────────  (drafting)" in status_row(states[0], 120).plain
    assert "checking        ━━━━╸───  (verifying)" in status_row(states[1], 120).plain


def test_one_node_is_one_node():
    one, more = (slow_round(1.5, 3.0, LevelDrafted(0, width)) for width in (1, 12))
    assert phase_tooltip(one).endswith("level 0, 1 node.")
    assert phase_tooltip(more).endswith("level 0, 12 nodes.")


@pytest.mark.parametrize(
    ("width", "row"),
    [
        (90, "writing  ━━━━╸───  ░░░█░░█◆▒█░░  ●●●○  Qwen2.5-Coder-1.5B-Instruct  7.2 tok/s  context 19%"),
        (78, "writing  ━━━━╸───     ░░█░░░◆▒░░  ●●●○  Qwen2.5-Coder-1.5…  7.2 tok/s  ctx 19%"),
        (38, "writing  ━━━━╸───   7.2 tok/s  ctx 19%"),
        (28, "writing   7.2 tok/s  ctx 19%"),
        (20, "writing    7.2 tok/s"),
        (4, "wri…"),
        (0, ""),
    ],
)
def test_the_least_important_figures_go_first(width, row):
    assert status_row(verifying(), width).plain == row


def test_a_narrow_terminal_keeps_rate_and_context():
    """At 40 columns the rate once vanished behind words of the phase."""
    states = (drafting(), verifying(), slow_round(0.2, 5.0), slow_round(2.0, 3.0, LevelDrafted(0, 1)))
    for state, columns in product(states, range(40, 131)):
        row = status_row(state, columns - 2).plain
        assert "tok/s" in row and "19%" in row and len(row) == columns - 2


def test_nothing_is_shown_that_is_not_known():
    assert not list(status_figures(EngineState()))
    assert [figure.text for figure in status_figures(ready())][1:] == ["Qwen2.5-Coder-1.5B-Instruct", "context 0%"]
    plain = folded(round_done(parents=(-1,), path=(0,)), begun=ready())
    assert "●" not in "".join(figure.text for figure in status_figures(plain))


def test_every_figure_explains_itself():
    assert all(figure.tooltip.endswith(".") for figure in status_figures(verifying()))
    tooltips = " ".join(figure.tooltip for figure in status_figures(verifying()))
    assert "the planner expects 10.0" in tooltips and "3.6 tokens per pass, without drafts it would be 1" in tooltips


def test_wide_characters_count_as_two():
    figure = StatusFigure("日本", "日本", 1, "")
    assert fit_figures((figure,), 4) and not fit_figures((figure,), 3)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (125, "2:05 min"), (3840, "1:04 h")]
)
def test_durations(seconds, text):
    assert duration_text(seconds) == text


ROWS = [
    (EngineState(), 80, " ○ no model, F4 chooses one"),
    (loading(), 80, " loading  ━━━━────  1.50/3.00 GB  500 MB/s  3 s left"),
    (verifying(), 92, " writing  ━━━━╸───  ░░░█░░█◆▒█░░  ●●●○  Qwen2.5-Coder-1.5B-Instruct  7.2 tok/s  context 19%"),
    (verifying(), 44, " writing  ━━━━╸───       7.2 tok/s  ctx 19%"),
    (verifying(), 12, " writing"),
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
        assert "Qwen2.5-Coder-1.5B-Instruct" not in narrow
        await until(pilot, lambda: "Qwen2.5-Coder-1.5B-Instruct" in screen_rows(pilot.app)[0])

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
        row = screen_rows(pilot.app)[0]
        pieces = {
            "writing": "Checking (verifying)",
            "tok/s": "Tokens per second over the last rounds",
            "ctx": "Prompt and answer take 773 of the 4,096 tokens",
            "●": "The tree of the last round",
            "◆": "The model's layers",
        }
        for piece, tooltip in pieces.items():
            await pilot.hover(line, offset=(row.index(piece), 0))
            assert line.tooltip.startswith(tooltip), piece
        for gap in (row.index("writing") + 7, row.index("tok/s") + 5, 79):
            await pilot.hover(line, offset=(gap, 0))
            assert line.tooltip is None

    run(WidgetApp(line), story)


def test_what_happened_cannot_move_the_cursor():
    row = status_row(begin_load(), 78, "\x1b[2Jevil\x1b]0;x\x07")
    assert row.plain.startswith("loading evil ")
    assert "\x1b" not in phase_tooltip(EngineState(phase="dead", sentence="\x1b[2J"))
