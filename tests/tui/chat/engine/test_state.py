"""Reports become one state: what the engine does, and what it has measured."""

from dataclasses import replace

import pytest

from runtime.events import LevelDrafted, LoadProgress, PrefillProgress, TextDelta
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
from tui.chat.engine.messages import Failed, LoadRefused, OfAnswer, PassRunning, SessionNote, StillLoading
from tui.chat.engine.state import EngineState, begin_answer, begin_load, with_death, with_report, with_thinking


def test_an_answer_thinks_until_it_says_something_or_ends():
    state = with_thinking(drafting(), is_thinking=True)
    assert state.is_thinking and with_thinking(state, is_thinking=True) is state
    assert not with_thinking(state, is_thinking=False).is_thinking
    assert not begin_answer(state).is_thinking
    for last in (FINISHED, Failed("no", "fault")):
        assert not with_report(state, OfAnswer(1, last)).is_thinking


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


def test_a_model_that_is_still_loaded_is_ready_all_the_same():
    half, said = LoadProgress("layers", 5, 10), ("all host layers are pinned",)
    state = with_report(ready(), StillLoading(half))
    assert (state.phase, state.late, state.model) == ("ready", half, LOADED)
    state = with_report(with_report(state, StillLoading(None, said)), StillLoading(None, said))
    assert state.late is None and state.model == replace(LOADED, sentences=(*LOADED.sentences, *said))
    assert with_report(begin_load(), StillLoading(half)) == begin_load()


def test_what_turns_out_while_it_answers_is_known_of_the_session_once():
    said = ("draft passes are not recorded",)
    state = with_report(with_report(ready(), SessionNote(said)), SessionNote(said))
    assert state == replace(ready(), model=replace(LOADED, sentences=(*LOADED.sentences, *said)))
    assert with_report(begin_load(), SessionNote(said)) == begin_load()


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


def test_a_load_that_is_refused_or_stopped_leaves_the_model_that_was_open():
    for kind in ("input", "stopped"):
        state = with_report(begin_load(), LoadRefused("no such folder", kind, LOADED))
        assert (state.phase, state.sentence, state.model) == ("ready", "", LOADED)
    state = with_report(begin_load(), Failed("loading was stopped", "stopped"))
    assert (state.phase, state.sentence, state.model) == ("no model", "loading was stopped", None)


def test_the_time_left_of_a_load_runs_down_and_is_not_said_once_it_is_over():
    """Once one second was left for six, while the last of the model was made ready."""
    read = [loading_report("layers", num_bytes, 1000, seconds) for num_bytes, seconds in ((0, 0), (900, 9.0))]
    waited = [loading_report("layers", 900, 1000, seconds) for seconds in (9.5, 10.5, 15.0)]
    states = [folded(*read, *waited[:count], begun=begin_load()) for count in range(4)]
    assert [state.load.seconds_left for state in states] == [pytest.approx(1), pytest.approx(0.5), None, None]
    assert states[3].load.bytes_per_second == pytest.approx(100)
    whole = folded(*read, loading_report("draft", 1000, 1000, 10.0), begun=begin_load())
    assert whole.load.seconds_left is None


def test_a_failed_load_leaves_no_model():
    """There was none before, or it could not be loaded again."""
    state = with_report(begin_load(), Failed("no such folder", "input"))
    assert (state.phase, state.sentence, state.model) == ("error", "no such folder", None)


def test_a_dead_engine_stays_dead_until_it_is_started_again():
    dead = with_death("killed")
    assert (dead.phase, dead.sentence, dead.model) == ("dead", "killed", None)
    assert folded(LevelDrafted(2, 3), FINISHED, begun=dead) == dead
    assert begin_load().phase == "loading"


def test_text_alone_changes_nothing():
    assert folded(TextDelta("x"), begun=verifying()) == verifying()
