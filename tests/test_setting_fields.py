"""Text becomes a setting's value, or a sentence of the runtime's own."""

import pytest

from runtime.errors import OptionError
from tui.chat.setting_fields import SETTING_FIELDS, changes_that_reload, find_setting, parse_setting, setting_text


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", " 0.7 ", 0.7),
        ("top-p", "0.9", 0.9),
        ("TOP_K", "40", 40),
        ("verification", "coupled", "coupled"),
        ("tree", "64x10", "64x10"),
        ("lookup", "off", "off"),
        ("draft", "./some folder", "./some folder"),
        ("device_memory", "2.2GB", 2_200_000_000),
        ("device_memory", "min", 0),
        ("device_memory", "auto", None),
        ("host_memory", "", None),
        ("system", "  two\nlines ", "  two\nlines "),
        ("theme", "nord", "nord"),
    ],
)
def test_text_is_read(name, text, value):
    assert parse_setting(find_setting(name), text) == value


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("temperature", "-1", "temperature is -1.0; it must be 0 or more"),
        ("temperature", "nan", "temperature is nan; it must be 0 or more"),
        ("temperature", "warm", "temperature is 'warm'; it must be a number"),
        ("top_p", "0", "top_p is 0.0; it must be above 0 and at most 1"),
        ("top_k", "1.5", "top_k is '1.5'; it must be a whole number"),
        ("min_p", "2", "min_p is 2.0; it must be from 0 (off) to 1"),
        ("max_new_tokens", "0", "max_new_tokens is 0; it must be 1 or more"),
        ("tree", "64", "tree is '64'; it must be auto, or nodes x levels as in 64x10"),
        ("lookup", "maybe", "lookup is 'maybe'; it must be one of on, off"),
        ("draft", "", "draft is empty; give a model folder or a hub name"),
        ("host_memory", "much", "host_memory: 'much' is not a size: write a number and a unit, as in 3.2GB, 800MiB or"),
    ],
)
def test_what_is_not_allowed_is_refused_in_the_runtimes_words(name, text, sentence):
    with pytest.raises(OptionError) as refusal:
        parse_setting(find_setting(name), text)
    assert str(refusal.value).startswith(sentence)


@pytest.mark.parametrize(
    ("name", "hint"), [("temprature", "did you mean temperature?"), ("xyz", "there are temperature, top_p")]
)
def test_an_unknown_setting_is_told_with_what_there_is(name, hint):
    with pytest.raises(OptionError, match=f"no setting '{name}'; ") as refusal:
        find_setting(name)
    assert hint in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("temperature", 0.0, "0"),
        ("temperature", 0.65, "0.65"),
        ("top_k", 50, "50"),
        ("device_memory", None, "auto"),
        ("device_memory", 0, "min"),
        ("device_memory", 2_200_000_000, "2.20GB"),
        ("device_memory", 2_123_456_789, "2123456789"),
        ("system", "a\nb", "a\nb"),
    ],
)
def test_a_value_is_written_so_that_it_is_read_back(name, value, text):
    field = find_setting(name)
    assert setting_text(field, value) == text
    assert parse_setting(field, text) == value


def test_suggestions_are_allowed_values():
    for field in SETTING_FIELDS:
        for choice in field.choices:
            parse_setting(field, choice)


def test_only_what_the_model_is_loaded_with_needs_a_reload():
    before = {"temperature": 0.0, "tree": "auto", "draft": "substitute"}
    assert changes_that_reload(before, before | {"temperature": 1.0}) == ()
    assert changes_that_reload(before, before | {"tree": "64x10", "draft": "none"}) == ("tree", "draft")
