"""Why nothing can be asked: said while no model is open, and not while one is being loaded."""

from tests.support.chat_fakes import LOADED
from tui.chat.changes import Trouble, missing_model
from tui.chat.engine.state import EngineState, begin_load, with_death, with_report


def test_a_missing_model_is_told_unless_one_is_coming():
    assert missing_model(EngineState()) == Trouble("no model", "no model is open; choose one first")
    assert missing_model(EngineState(sentence="choose a draft")) == Trouble("no model", "choose a draft")
    assert missing_model(with_death("the engine ended")) == Trouble("dead", "the engine ended")
    assert missing_model(begin_load()) is None
    assert missing_model(with_report(begin_load(), LOADED)) is None
