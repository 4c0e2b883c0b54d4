"""What people call the settings, and what they are told."""

from dataclasses import replace

import pytest

from runtime.errors import OptionError
from tui.chat.settings.chat_settings import SETTINGS, ChatSettings
from tui.chat.settings.setting_words import (
    NOT_TYPED,
    TYPED_SETTINGS,
    changes_that_reload,
    find_setting,
    needs_reload,
    setting_label,
    suggested_values,
)


def test_everything_but_what_the_app_keeps_can_be_typed():
    assert {setting.name for setting in SETTINGS} - {setting.name for setting in TYPED_SETTINGS} == set(NOT_TYPED)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("temperature", "temperature"),
        ("top-p", "top_p"),
        ("TOP_K", "top_k"),
        ("system", "system_prompt"),
        ("max-tokens", "max_new_tokens"),
        ("model", "target"),
    ],
)
def test_a_setting_is_found_by_the_names_that_people_try(name, found):
    assert find_setting(name).name == found


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("temprature", "did you mean temperature?"),
        ("xyz", "there are temperature, top_p"),
        ("show_panel", "there are temperature"),
    ],
)
def test_an_unknown_setting_is_told_with_what_there_is(name, hint):
    with pytest.raises(OptionError, match=f"no setting '{name}'; ") as refusal:
        find_setting(name)
    assert hint in str(refusal.value)


def test_suggestions_are_allowed_values():
    for setting in TYPED_SETTINGS:
        for text in suggested_values(setting):
            ChatSettings().with_text(setting.name, text)
    assert suggested_values(find_setting("lookup")) == ("on", "off")


def test_labels_are_words():
    assert [setting_label(find_setting(name)) for name in ("top_p", "device_memory", "target")] == [
        *("Top-p", "Device memory"),
        "Model",
    ]
    assert not [setting.name for setting in TYPED_SETTINGS if "_" in setting_label(setting)]


def test_only_what_the_model_is_loaded_with_needs_a_reload():
    before = ChatSettings()
    assert changes_that_reload(before, replace(before, temperature=1.0, seed=4, system_prompt="x", theme="nord")) == ()
    after = replace(before, temperature=1.0, tree="64x10", draft="none", device_memory="2GB")
    assert changes_that_reload(before, after) == ("draft", "tree", "device_memory")
    assert not needs_reload(find_setting("verification"))
