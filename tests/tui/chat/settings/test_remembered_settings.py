"""What the command line says holds for the run, until the same thing is changed in the app."""

from dataclasses import replace

import pytest

from offload.errors import WriteError
from tui.chat.settings.chat_settings import ChatSettings
from tui.chat.settings.remembered_settings import Overrides, RememberedSettings, changed_names
from tui.chat.settings.settings_file import read_settings


def test_the_command_line_comes_before_what_is_remembered():
    overrides = Overrides(
        config={"target": "b", "link": "1GB/s"}, params={"temperature": 0.0}, system_prompt="Be brief."
    )
    remembered = RememberedSettings(ChatSettings(target="a", temperature=0.9, top_k=5), overrides=overrides)
    assert remembered.config()["target"] == "b"
    assert remembered.config()["link"] == "1GB/s"
    assert (remembered.params()["temperature"], remembered.params()["top_k"]) == (0.0, 5)
    assert remembered.system_prompt == "Be brief."


def test_a_change_in_the_app_holds_against_the_command_line(tmp_path):
    path = tmp_path / "settings.toml"
    overrides = Overrides(config={"device_memory_bytes": 0, "tree": "8x4"}, params={"temperature": 0.0})
    remembered = RememberedSettings(ChatSettings(), path=path, overrides=overrides)
    changed = replace(remembered.settings, temperature=0.5, device_memory="2GB")
    remembered.replace(changed)
    assert remembered.params()["temperature"] == 0.5
    assert remembered.config()["device_memory_bytes"] == 2_000_000_000
    assert remembered.config()["tree"] == "8x4"
    assert read_settings(path).settings == changed


def test_a_model_that_is_chosen_comes_before_the_command_line():
    overrides = Overrides(config={"target": "b", "draft": "none", "link": "1GB/s"})
    remembered = RememberedSettings(ChatSettings(target="a"), overrides=overrides)
    remembered.choose_model("a", draft="substitute")
    assert (remembered.config()["target"], remembered.config()["draft"]) == ("a", "substitute")
    assert remembered.config()["link"] == "1GB/s"
    assert remembered.settings.recent_targets == ("a",)


def test_without_a_seed_each_answer_gets_its_own():
    seeds = iter((7, 8))
    remembered = RememberedSettings(ChatSettings(), draw_seed=lambda: next(seeds))
    assert [remembered.params()["seed"], remembered.params()["seed"]] == [7, 8]
    assert RememberedSettings(ChatSettings(seed=3)).params()["seed"] == 3


def test_settings_that_cannot_be_written_hold_all_the_same(tmp_path):
    path = tmp_path / "file" / "settings.toml"
    path.parent.touch()
    remembered = RememberedSettings(ChatSettings(), path=path)
    with pytest.raises(WriteError):
        remembered.replace(ChatSettings(temperature=0.1))
    assert remembered.settings.temperature == 0.1


def test_changed_names():
    assert changed_names(ChatSettings(), ChatSettings(seed=1, theme="nord")) == ("seed", "theme")
