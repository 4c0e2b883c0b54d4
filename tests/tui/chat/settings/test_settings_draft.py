"""Settings while they are edited."""

from dataclasses import replace

from tui.chat.settings.chat_settings import ChatSettings
from tui.chat.settings.settings_draft import SettingsDraft


def test_texts_become_settings():
    draft = SettingsDraft(ChatSettings())
    assert draft.put("temperature", "0.3") is None
    assert draft.put("tree", "64x10") is None
    assert draft.settings == replace(ChatSettings(), temperature=0.3, tree="64x10")
    assert draft.num_changes == 2
    assert draft.reloading == ("tree",)


def test_a_wrong_text_is_told_and_leaves_the_value():
    draft = SettingsDraft(ChatSettings())
    assert draft.put("temperature", "-1") == "temperature is -1.0; it must be 0 or more"
    assert draft.settings == ChatSettings()
    assert list(draft.problems) == ["temperature"]
    draft.put("top_p", "0.5")
    assert draft.settings.top_p == 0.5
    assert draft.put("temperature", "1") is None
    assert not draft.problems


def test_going_back_is_no_change():
    draft = SettingsDraft(ChatSettings())
    draft.put("tree", "64x10")
    draft.put("tree", "auto")
    assert draft.num_changes == 0
    assert draft.reloading == ()
