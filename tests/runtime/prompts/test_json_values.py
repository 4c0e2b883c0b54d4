import pytest

from runtime.errors import PromptFileError
from runtime.prompts.json_values import describe, encodable, number_value, option_value, text_value, whole_number


def test_what_is_shown_of_a_value_is_short():
    assert [describe(value) for value in (None, 5, "a\x1b", [1])] == ["null", "5", "'a\\x1b'", "[1]"]
    values = ("x" * 50, 10**50, [1] * 50, {"a": "x" * 50}, 1e300 + 0j)
    shown = [describe(value) for value in values]
    assert shown[:4] == ["a long text", "a long number", "a long list", "an object"]


def test_each_kind_of_option_has_its_values():
    assert option_value(float, 1, "temperature") == 1.0
    assert option_value(int, 3, "seed") == 3
    assert option_value(tuple[int, ...], [1, 2], "banned_tokens") == (1, 2)
    assert option_value(tuple[str, ...], "a", "stop") == ("a",)
    assert option_value(tuple[str, ...], ["a", "b"], "stop") == ("a", "b")
    assert option_value(str, "coupled", "verification") == "coupled"


@pytest.mark.parametrize(
    ("value", "bounds", "expected"),
    [
        (True, {}, "n is true; it must be a whole number"),
        (1.0, {}, "n is 1.0; it must be a whole number"),
        (0, {"least": 1}, "n is 0; it must be 1 or more"),
        (9, {"least": 1, "most": 8}, "n is 9; it must be from 1 to 8"),
        (0, {"least": 1, "most": 8}, "n is 0; it must be from 1 to 8"),
    ],
)
def test_a_number_out_of_its_bounds_is_named(value, bounds, expected):
    with pytest.raises(PromptFileError) as caught:
        whole_number(value, "n", **bounds)
    assert str(caught.value) == expected


def test_bounds_belong_to_the_range():
    assert [whole_number(value, "n", least=1, most=8) for value in (1, 8)] == [1, 8]


def test_text_must_be_text_that_a_file_can_take():
    assert text_value("é\u2028", "prompt") == encodable("é\u2028", "prompt") == "é\u2028"
    with pytest.raises(PromptFileError, match="prompt is 5; it must be text"):
        text_value(5, "prompt")
    with pytest.raises(PromptFileError, match="prompt holds half of a surrogate pair"):
        text_value("\udce9", "prompt")


@pytest.mark.parametrize(
    ("value", "bounds", "expected"),
    [
        ("x", {}, "n is 'x'; it must be a number"),
        (False, {}, "n is false; it must be a number"),
        (1.5, {"least": 0, "most": 1}, "n is 1.5; it must be from 0 to 1"),
        (10**400, {"least": 0, "most": 1}, "n is a long number; it must be from 0 to 1"),
        (10**400, {}, "n has hundreds of digits; it must be an ordinary number"),
    ],
)
def test_a_number_of_any_kind_out_of_its_bounds_is_named(value, bounds, expected):
    assert number_value(1, "n", least=0, most=1) == 1.0
    with pytest.raises(PromptFileError) as caught:
        number_value(value, "n", **bounds)
    assert str(caught.value) == expected
