"""A setting is what the engine takes; anything else is refused by its name."""

import copy
import textwrap

import pytest

from runtime.config import UNLIMITED_THINKING, EngineConfig, SamplingParams, options_of
from runtime.errors import OptionError
from tui.chat.settings.settings import (
    MAX_RECENT_TARGETS,
    NOT_TYPED,
    SETTINGS,
    TYPED_SETTINGS,
    ChatSettings,
    changed_names,
    changes_that_reload,
    find_setting,
)

CHOSEN = ChatSettings(
    temperature=1,
    top_p=0.5,
    top_k=40,
    min_p=0.1,
    repetition_penalty=1.1,
    seed=7,
    max_new_tokens=10,
    thinking_budget="500",
    verification="coupled",
    system_prompt="Be\nbrief.",
    target="org/name",
    recent_targets=("org/name", "/models/b"),
    draft="none",
    draft_format="nf4",
    lookup="off",
    generation="plain",
    tree="64x10",
    context_tokens=2048,
    device="cpu",
    device_memory="2GB",
    kv_format="int8",
    prefix_cache="20GB",
    host_memory="min",
    theme="nord",
    when_done="bell",
    show_panel=True,
)
"""Every value differs from its default."""


def test_the_defaults_are_what_the_engine_takes():
    settings = ChatSettings()
    assert SamplingParams(**settings.fields_of(SamplingParams)) == SamplingParams(max_new_tokens=1024)
    assert "seed" not in settings.fields_of(SamplingParams)  # so that each answer may have its own
    assert EngineConfig(**settings.fields_of(EngineConfig)) == EngineConfig(
        draft="auto", lookup="on", generation="auto", prefix_cache="auto"
    )


def test_every_value_reaches_the_engine():
    assert SamplingParams(**CHOSEN.fields_of(SamplingParams)) == SamplingParams(
        temperature=1,
        top_p=0.5,
        top_k=40,
        min_p=0.1,
        repetition_penalty=1.1,
        seed=7,
        max_new_tokens=10,
        thinking_budget=500,
        verification="coupled",
    )
    assert EngineConfig(**CHOSEN.fields_of(EngineConfig)) == EngineConfig(
        target="org/name",
        draft="none",
        draft_format="nf4",
        lookup="off",
        tree="64x10",
        context_tokens=2048,
        device="cpu",
        device_memory_bytes=2 * 10**9,
        kv_format="int8",
        prefix_cache="20GB",
        host_memory_bytes=0,
    )


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("temperature", -1, "temperature is -1; it must be from 0 (greedy) to 2"),
        ("temperature", float("nan"), "temperature is nan; it must be from 0 (greedy) to 2"),
        ("temperature", "hot", "temperature is 'hot'; it must be a number or auto"),
        ("temperature", True, "temperature is True; it must be a number or auto"),
        ("top_p", -1, "top_p is -1; it must be from 0 (the likeliest token alone) to 1 (off)"),
        ("top_k", 1.5, "top_k is 1.5; it must be a whole number"),
        ("seed", -1, "seed is -1; it must be 0 or more"),
        ("seed", "auto", "seed is 'auto'; it must be a whole number or random"),
        ("max_new_tokens", 0, "max_new_tokens is 0; it must be 1 or more"),
        ("verification", "none", "verification is 'none'; it must be one of auto, sequoia"),
        ("draft", " ", "draft is empty; give a model folder, a GGUF file or a hub name"),
        ("draft_format", "int4", "draft_format is 'int4'; it must be one of auto, int8, nf4, stored"),
        ("kv_format", "int4", "kv_format is 'int4'; it must be one of exact, int8"),
        ("prefix_cache", "x", "prefix_cache is 'x'; it must be auto, off, or a size as in 20GB"),
        ("lookup", True, "lookup is True; it must be a text"),
        ("tree", "64", "tree is '64'; it must be auto, static, dynamic, nodes x levels"),
        ("context_tokens", 1, "context_tokens is 1; it must be 2 or more"),
        ("context_tokens", None, "context_tokens is None; it must be a whole number or auto"),
        ("device_memory", "much", "device_memory: 'much' is not a size"),
        ("host_memory", "", "host_memory: "),
        ("recent_targets", "a", "recent_targets is 'a'; it must be a list of texts"),
        ("recent_targets", (1,), "recent_targets is (1,); it must be a list of texts"),
        ("theme", "", "theme is empty"),
        ("when_done", "gong", "when_done is 'gong'; it must be bell or title or off"),
        ("show_panel", 1, "show_panel is 1; it must be true or false"),
        ("heat", 1, "'heat' is no setting; choose one of temperature, top_p, "),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name, value, complaint):
    with pytest.raises(OptionError) as caught:
        ChatSettings(**{name: value})
    assert str(caught.value).startswith(complaint)


def test_what_is_shown_can_be_typed():
    """The settings screen shows a value as text and takes the text back."""
    assert not [name for name, setting in SETTINGS.items() if CHOSEN[name] == setting.default]
    for name in TYPED_SETTINGS:
        for settings in (CHOSEN, ChatSettings()):
            assert ChatSettings().with_text(name, str(settings[name])) == ChatSettings(**{name: settings[name]})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", " 0 ", 0.0),
        ("seed", "12", 12),
        ("seed", "random ", "random"),
        ("context_tokens", "auto", "auto"),
        ("system_prompt", " kept as it is ", " kept as it is "),
    ],
)
def test_a_setting_changes_to_what_was_typed(name, text, value):
    changed = ChatSettings(seed=3, context_tokens=9).with_text(name, text)
    assert getattr(changed, name) == value and type(getattr(changed, name)) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("temperature", "warm", "temperature is 'warm'; it must be a number or auto"),
        ("top_k", "1.5", "top_k is '1.5'; it must be a whole number"),
        ("top_k", "9" * 5000, "top_k is '99"),
        ("verification", "\x1b[2J", "verification is '\\x1b[2J'; it must be one of"),
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


def test_values_are_attributes_that_cannot_be_set():
    settings = ChatSettings(theme="nord")
    assert settings.theme == settings["theme"] == copy.copy(settings).theme == "nord"
    with pytest.raises(AttributeError):
        settings.theme = "auto"
    with pytest.raises(AttributeError, match="no setting 'them'"):
        _ = settings.them
    assert "nord" in repr(settings)


def test_names_order_and_groups_are_those_of_the_files_that_people_have():
    groups = {}
    for name, setting in SETTINGS.items():
        groups.setdefault(setting.group, []).append(name)
    answers = "temperature top_p top_k min_p repetition_penalty seed max_new_tokens thinking_budget"
    answers += " verification system_prompt"
    models = "target draft draft_format lookup generation tree context_tokens recent_targets"
    assert list(groups.items()) == [
        ("Answers", answers.split()),
        ("Models", models.split()),
        ("Memory", ["device", "device_memory", "kv_format", "prefix_cache", "host_memory"]),
        ("Looks", ["theme", "when_done", "show_panel"]),
    ]
    assert list(ChatSettings()) == list(SETTINGS)


def test_every_option_that_the_chat_remembers_is_a_setting():
    """So another one is stated in `runtime.config` alone."""
    options = [*options_of(SamplingParams).values(), *options_of(EngineConfig).values()]
    remembered = {option.name.removesuffix("_bytes") for option in options if option.is_setting}
    own = {"system_prompt", "recent_targets", "theme", "when_done", "show_panel"}
    assert remembered | own == set(SETTINGS) and not remembered & own


def test_every_setting_is_described_on_the_two_lines_that_the_screen_has():
    for setting in SETTINGS.values():
        assert setting.help.endswith(".") and setting.help[0] != " "
        assert len(textwrap.wrap(setting.help, 72)) <= 2
        assert setting.word is None or (setting.word or "empty") in setting.help
        assert not setting.choices or setting.default in setting.choices


def test_every_choice_is_taken_and_told():
    for name, setting in SETTINGS.items():
        for choice in setting.choices:
            assert ChatSettings(**{name: choice})[name] == choice
            assert choice in setting.help


def test_everything_but_what_the_app_keeps_can_be_typed():
    assert SETTINGS.keys() - TYPED_SETTINGS.keys() == set(NOT_TYPED)


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
    for name, setting in TYPED_SETTINGS.items():
        for text in setting.suggestions:
            ChatSettings().with_text(name, text)
    assert SETTINGS["lookup"].suggestions == ("on", "off")


def test_labels_are_words():
    labels = {name: setting.label for name, setting in TYPED_SETTINGS.items()}
    assert (labels["top_p"], labels["device_memory"], labels["target"]) == ("Top-p", "Device memory", "Model")
    assert not [label for label in labels.values() if "_" in label]


def test_only_what_the_model_is_loaded_with_needs_a_reload():
    before = ChatSettings()
    assert changes_that_reload(before, before.replace(temperature=1.0, seed=4, system_prompt="x", theme="nord")) == ()
    after = before.replace(temperature=1.0, tree="64x10", draft="none", device_memory="2GB")
    assert changes_that_reload(before, after) == ("draft", "tree", "device_memory")
    assert not SETTINGS["verification"].needs_reload


def test_changed_names():
    assert changed_names(ChatSettings(), ChatSettings(seed=1, theme="nord")) == ("seed", "theme")


def test_a_recent_model_can_be_forgotten():
    settings = ChatSettings().with_target("a").with_target("b")
    assert settings.without_recent("a").recent_targets == ("b",)
    assert settings.without_recent("b").target == "b", "the one that is open stays it"
    assert settings.without_recent("c").recent_targets == ("b", "a")


def test_thinking_is_typed_in_words_or_tokens():
    setting = find_setting("think")
    assert setting is find_setting("thinking") is SETTINGS["thinking_budget"] and setting.default == "auto"
    for text, value in (("auto", None), ("on", UNLIMITED_THINKING), ("off", 0), ("500", 500)):
        settings = ChatSettings().with_text("thinking_budget", text)
        assert settings["thinking_budget"] == text
        assert settings.fields_of(SamplingParams).get("thinking_budget") == value
        assert setting.typed_value(value) == text
    with pytest.raises(OptionError, match="thinking_budget is 'much'; it must be on, off, or the most tokens"):
        ChatSettings().with_text("thinking_budget", "much")
