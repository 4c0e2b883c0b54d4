"""Which tools may or must be called follows from three keys, and what cannot be is refused."""

import json
from typing import Any

import pytest

from runtime.api.tools import ToolTerms, parse_tool_terms
from runtime.errors import PromptFileError
from runtime.prompts.prompt_file import parse_tools
from tests.support.calling_models import OPENAI_TOOLS

NAMED = {"type": "function", "function": {"name": "look"}}


def terms(**body: Any) -> ToolTerms:
    return parse_tool_terms({"tools": OPENAI_TOOLS, **body})


def test_tools_may_be_called_unless_the_choice_is_none() -> None:
    free = ToolTerms(tools=parse_tools(OPENAI_TOOLS))
    assert terms() == terms(tool_choice="auto") == terms(parallel_tool_calls=True) == free
    assert terms(tool_choice="none") == parse_tool_terms({}) == parse_tool_terms({"tools": []}) == ToolTerms()
    assert terms(parallel_tool_calls=False).has_one_call


def test_a_demanded_call_is_one_of_the_tools_or_several() -> None:
    found = terms(tool_choice="required")
    schema = json.loads(found.schema or "")
    assert schema["type"] == "array" and schema["minItems"] == 1 and not found.has_one_call
    assert [each["properties"]["name"] for each in schema["items"]["anyOf"]] == [{"const": "look"}, {"const": "go"}]
    arguments = schema["items"]["anyOf"][0]["properties"]["arguments"]
    assert arguments == {"type": "object", "properties": {"at": {"type": "string"}}}
    one = terms(tool_choice="required", parallel_tool_calls=False)
    assert "anyOf" in json.loads(one.schema or "") and one.has_one_call


def test_a_named_tool_is_called_once_and_the_others_stay_known() -> None:
    found = terms(tool_choice=NAMED)
    assert json.loads(found.schema or "")["properties"]["name"] == {"const": "look"}
    assert found.has_one_call and found.tools == parse_tools(OPENAI_TOOLS)


def sharing(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"at": {"$ref": "#/$defs/place"}}, "$defs": {"place": schema}}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def test_what_parameters_refer_to_moves_to_the_root_of_the_schema() -> None:
    text = {"type": "string"}
    found = terms(tools=[sharing("a", text), sharing("b", text)], tool_choice="required")
    assert json.loads(found.schema or "")["$defs"] == {"place": text}
    with pytest.raises(PromptFileError, match=r"two tools have a schema 'place' in \$defs"):
        terms(tools=[sharing("a", text), sharing("b", {"type": "integer"})], tool_choice="required")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"tool_choice": "maybe"}, "tool_choice is 'maybe'; it must be one of none, auto, required"),
        ({"tool_choice": {"type": "function"}}, "an object naming a function"),
        ({"tool_choice": {"type": "function", "function": {"name": "fly"}}}, "names 'fly', which is none of the tools"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls is 1; it must be true or false"),
        ({"tools": [], "tool_choice": "required"}, "asks for a call and there are no tools"),
        ({"tools": {}}, "tools is {}; it must be a list"),
    ],
)
def test_what_cannot_be_is_refused(body: dict[str, Any], expected: str) -> None:
    with pytest.raises(PromptFileError) as caught:
        terms(**body)
    assert expected in str(caught.value)
