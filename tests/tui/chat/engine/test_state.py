"""Reports become one state: what the engine does, and what it has measured."""

from dataclasses import replace

import pytest

from runtime.events import LevelDrafted, PrefillProgress, TextDelta
from tests.support.chat_fakes import FINISHED
from tests.support.chat_states import (
    FIGURES,
    LOADED,
    drafting,
    folded,
    loading,
    loading_report,
    prefilling,
    ready,
    round_done,
    verifying,
)
from tui.chat.engine.messages import Failed, PassRunning
from tui.chat.engine.state import EngineState, begin_answer, begin_load, with_death, with_report


def test_there_is_no_model_at_first():
    assert EngineState().phase == "no model"


def test_a_load_has_a_rate_and_an_end():
    state = loading()
    assert (state.phase, state.load.latest.progress.what, state.load.share) == ("loading", "reading layers", 0.5)
    assert state.load.bytes_per_second == pytest.approx(0.5e9)
    assert state.load.seconds_left == pytest.approx(3.0)


def test_a_load_claims_no_rate_from_one_report():
    state = folded(loading_report("reading", 5, 10, 2.0), begun=begin_load())
    assert state.load.bytes_per_second is state.load.seconds_left is None
    assert begin_load().load.share is None


def test_another_reading_begins_anew():
    """First the target's bytes are read, then the draft's."""
    state = folded(loading_report("draft", 10, 400, 9.0), loading_report("draft", 110, 400, 10.0), begun=loading())
    assert state.load.bytes_per_second == pytest.approx(100)


def test_a_loaded_model_is_ready():
    assert ready().phase == "ready"
    assert ready().model == LOADED
    assert ready().predicted_tokens_per_second == pytest.approx(2)


def test_an_answer_is_prefill_before_the_engine_says_so():
    assert begin_answer(ready()).phase == "prefill"


def test_passes_over_the_prompt_are_prefill():
    state = folded(PassRunning(3, 28, (4,)), begun=prefilling())
    assert (state.phase, state.running.num_done_layers, state.running.layers_in_slots) == ("prefill", 3, (4,))
    state = folded(PrefillProgress(699, 700), PassRunning(1, 28, ()), begun=state)
    assert state.phase == "verifying"


def test_a_round_goes_from_drafting_to_verifying_and_back():
    assert (drafting().phase, drafting().drafted) == ("drafting", LevelDrafted(3, 12))
    state = verifying()
    assert (state.phase, state.running.num_done_layers, state.running.num_layers) == ("verifying", 16, 28)
    state = folded(round_done(), FIGURES, begun=state)
    assert (state.phase, state.running.num_done_layers, state.drafted.level) == ("drafting", 0, 0)
    assert state.figures.last == round_done()
    assert state.predicted_tokens_per_second == pytest.approx(10)


def test_without_a_draft_there_is_no_drafting():
    plain = EngineState(phase="verifying", model=replace(LOADED, draft="none"))
    assert folded(round_done(parents=(-1,), path=(0,)), begun=plain).phase == "verifying"


@pytest.mark.parametrize(("reason", "phase"), [("stop", "ready"), ("length", "ready"), ("stopped", "stopped")])
def test_the_end_of_an_answer_keeps_the_figures(reason, phase):
    before = verifying()
    state = folded(replace(FINISHED, finish_reason=reason), begun=before)
    assert (state.phase, state.running.num_done_layers) == (phase, 0)
    assert state.figures == before.figures


def test_a_failed_answer_keeps_the_model():
    state = folded(Failed("the prompt is too long", "context"), begun=verifying())
    assert (state.phase, state.sentence) == ("error", "the prompt is too long")
    assert state.model == LOADED
    again = begin_answer(state)
    assert (again.phase, again.sentence) == ("prefill", "")


def test_a_failed_load_leaves_no_model():
    """The session that was open is closed before another one is opened."""
    state = with_report(begin_load(), Failed("no such folder", "input"))
    assert (state.phase, state.sentence, state.model) == ("error", "no such folder", None)


def test_a_dead_engine_stays_dead_until_it_is_started_again():
    dead = with_death("killed")
    assert (dead.phase, dead.sentence, dead.model) == ("dead", "killed", None)
    assert folded(LevelDrafted(2, 3), FINISHED, begun=dead) == dead
    assert begin_load().phase == "loading"


def test_text_alone_changes_nothing():
    assert folded(TextDelta("x"), begun=verifying()) == verifying()
