"""A setting is what the engine takes; anything else is refused by its name."""

import dataclasses

import pytest

from runtime.config import EngineConfig, SamplingParams
from runtime.errors import OptionError
from tui.chat.settings.chat_settings import MAX_RECENT_TARGETS, SETTINGS, ChatSettings

CHOSEN = ChatSettings(
    temperature=1,
    top_p=0.5,
    top_k=40,
    min_p=0.1,
    repetition_penalty=1.1,
    seed=7,
    max_new_tokens=10,
    verification="coupled",
    system_prompt="Be\nbrief.",
    target="org/name",
    recent_targets=("org/name", "/models/b"),
    draft="none",
    draft_format="nf4",
    lookup="off",
    tree="64x10",
    context_tokens=2048,
    device="cpu",
    device_memory="2GB",
    host_memory="min",
    theme="nord",
    show_panel=True,
)
"""Every value differs from its default."""


def test_the_defaults_are_what_the_engine_takes():
    settings = ChatSettings()
    assert SamplingParams(**settings.to_params_fields(random_seed=9)) == SamplingParams(
        temperature=0.7, top_p=0.95, seed=9, max_new_tokens=1024
    )
    assert EngineConfig(**settings.to_config_fields()) == EngineConfig(lookup="on")


def test_every_value_reaches_the_engine():
    assert SamplingParams(**CHOSEN.to_params_fields(random_seed=9)) == SamplingParams(
        temperature=1,
        top_p=0.5,
        top_k=40,
        min_p=0.1,
        repetition_penalty=1.1,
        seed=7,
        max_new_tokens=10,
        verification="coupled",
    )
    assert EngineConfig(**CHOSEN.to_config_fields()) == EngineConfig(
        target="org/name",
        draft="none",
        draft_format="nf4",
        lookup="off",
        tree="64x10",
        context_tokens=2048,
        device="cpu",
        device_memory_bytes=2 * 10**9,
        host_memory_bytes=0,
    )


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("temperature", -1, "temperature is -1; it must be 0 or more"),
        ("temperature", float("nan"), "temperature is nan; it must be 0 or more"),
        ("temperature", "hot", "temperature is 'hot'; it must be a number"),
        ("temperature", True, "temperature is True; it must be a number"),
        ("top_p", 0, "top_p is 0; it must be above 0 and at most 1"),
        ("top_k", 1.5, "top_k is 1.5; it must be a whole number"),
        ("seed", -1, "seed is -1; it must be 0 or more"),
        ("seed", "auto", "seed is 'auto'; it must be a whole number or random"),
        ("max_new_tokens", 0, "max_new_tokens is 0; it must be 1 or more"),
        ("verification", "none", "verification is none; it must be one of auto, sequoia"),
        ("draft", " ", "draft is empty; give a model folder or a hub name"),
        ("draft_format", "int4", "draft_format is 'int4'; it must be one of auto, int8, nf4, stored"),
        ("lookup", True, "lookup is True; it must be a text"),
        ("tree", "64", "tree is '64'; it must be auto, static, dynamic, nodes x levels"),
        ("context_tokens", 1, "context_tokens is 1; it must be 2 or more"),
        ("context_tokens", None, "context_tokens is None; it must be a whole number or auto"),
        ("device_memory", "much", "device_memory: 'much' is not a size"),
        ("host_memory", "", "host_memory: "),
        ("recent_targets", ["a"], "recent_targets is ['a']; it must be a list of texts"),
        ("recent_targets", (1,), "recent_targets is (1,); it must be a list of texts"),
        ("theme", "", "theme is empty"),
        ("show_panel", 1, "show_panel is 1; it must be true or false"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name, value, complaint):
    with pytest.raises(OptionError) as caught:
        ChatSettings(**{name: value})
    assert str(caught.value).startswith(complaint)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_what_is_shown_can_be_typed(setting):
    """The settings screen shows a value as text and takes the text back."""
    assert getattr(CHOSEN, setting.name) != setting.default
    for settings in (CHOSEN, ChatSettings()):
        text = settings.text_of(setting.name)
        assert ChatSettings().with_text(setting.name, text) == dataclasses.replace(
            ChatSettings(), **{setting.name: getattr(settings, setting.name)}
        )


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", " 0 ", 0.0),
        ("seed", "12", 12),
        ("seed", "random ", "random"),
        ("context_tokens", "auto", "auto"),
        ("show_panel", "on", True),
        ("show_panel", "no", False),
        ("system_prompt", " kept as it is ", " kept as it is "),
    ],
)
def test_a_setting_changes_to_what_was_typed(name, text, value):
    changed = ChatSettings(seed=3, context_tokens=9, show_panel=value is False).with_text(name, text)
    assert getattr(changed, name) == value and type(getattr(changed, name)) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("temperature", "warm", "temperature is 'warm'; it must be a number"),
        ("top_k", "1.5", "top_k is '1.5'; it must be a whole number"),
        ("top_k", "9" * 5000, "top_k is '99"),
        ("show_panel", "maybe", "show_panel is 'maybe'; it must be true or false"),
        ("verification", "\x1b[2J", "verification is ; it must be one of"),
        ("heat", "1", "'heat' is no setting; choose one of temperature, top_p, "),
    ],
)
def test_what_cannot_be_meant_is_one_safe_sentence(name, text, complaint):
    with pytest.raises(OptionError) as caught:
        ChatSettings().with_text(name, text)
    assert str(caught.value).startswith(complaint) and str(caught.value).isprintable()


def test_the_model_chosen_last_is_the_first_of_the_recent_ones():
    settings = ChatSettings().with_target("a").with_target("b").with_target("a")
    assert (settings.target, settings.recent_targets) == ("a", ("a", "b"))
    demo = settings.with_target("")
    assert (demo.target, demo.recent_targets) == ("", ("a", "b"))
    for number in range(2 * MAX_RECENT_TARGETS):
        settings = settings.with_target(str(number))
    assert settings.recent_targets == tuple(str(number) for number in reversed(range(10, 20)))


def test_every_setting_is_described():
    assert [setting.name for setting in SETTINGS] == [field.name for field in dataclasses.fields(ChatSettings)]
    assert list(dict.fromkeys(setting.group for setting in SETTINGS)) == ["Answers", "Models", "Memory", "Looks"]
    for setting in SETTINGS:
        assert setting.help.endswith(".") and len(setting.help) < 100
        assert not setting.choices or setting.default in setting.choices


@pytest.mark.parametrize("setting", [setting for setting in SETTINGS if setting.choices], ids=lambda each: each.name)
def test_every_choice_is_taken_and_told(setting):
    for choice in setting.choices:
        assert getattr(ChatSettings(**{setting.name: choice}), setting.name) == choice
        assert choice in setting.help
