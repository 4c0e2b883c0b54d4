import io
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from runtime.config import SamplingParams
from runtime.errors import PromptFileError
from runtime.prompts.prompt_file import BadLine, Message, PromptRequest, ToolCall, read_prompts, read_requests
from tests.support.paths import EXAMPLES
from tui.environment import packaged_prompts

DEFAULTS = SamplingParams(max_new_tokens=32)


def write(tmp_path, content, name="prompts.jsonl"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read_line(tmp_path, fields, **options):
    line = fields if isinstance(fields, str) else json.dumps(fields)
    (item,) = read_prompts(write(tmp_path, line), DEFAULTS, **options)
    return item


def test_txt_has_one_prompt_a_line_and_skips_blank_ones(tmp_path):
    path = write(tmp_path, "first\n\n   \nsecond\r\n", "prompts.txt")
    items = read_prompts(path, DEFAULTS)
    assert [(item.id, item.line_number, item.messages) for item in items] == [
        ("1", 1, (Message("user", "first"),)),
        ("4", 4, (Message("user", "second"),)),
    ]
    assert all(item.params == DEFAULTS and item.prompt is None for item in items)


def test_every_prompt_file_that_comes_with_it_can_be_read():
    paths = [*EXAMPLES.glob("*.jsonl"), *EXAMPLES.glob("*.txt"), *packaged_prompts("").glob("*.jsonl")]
    numbers = {path.name: len(read_requests(path, DEFAULTS)) for path in paths}
    assert numbers["editing.jsonl"] == 8
    assert numbers["demo.jsonl"] == 4
    assert {"calibration.jsonl", "validation.jsonl", "prompts.txt"} < set(numbers)


def test_txt_is_never_json(tmp_path):
    (item,) = read_prompts(write(tmp_path, '{"prompt": 1}', "prompts.txt"), DEFAULTS)
    assert item.messages == (Message("user", '{"prompt": 1}'),)


def test_jsonl_sets_every_key(tmp_path):
    item = read_line(
        tmp_path,
        {
            "id": "a",
            "prompt": "Hi",
            "system": "Be brief.",
            "max_new_tokens": 7,
            "temperature": 1,
            "top_p": 0.9,
            "top_k": 40,
            "min_p": 0.05,
            "repetition_penalty": 1.1,
            "presence_penalty": 1,
            "frequency_penalty": -0.5,
            "banned_tokens": [4, 5],
            "forced_tokens": [7],
            "seed": 3,
            "stop": ["\n", "END"],
            "verification": "coupled",
            "thinking_budget": 0,
            "top_logprobs": 2,
        },
    )
    params = SamplingParams(
        max_new_tokens=7,
        temperature=1.0,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        repetition_penalty=1.1,
        presence_penalty=1.0,
        frequency_penalty=-0.5,
        banned_tokens=(4, 5),
        forced_tokens=(7,),
        seed=3,
        stop=("\n", "END"),
        verification="coupled",
        thinking_budget=0,
    )
    messages = (Message("system", "Be brief."), Message("user", "Hi"))
    assert item == PromptRequest(id="a", messages=messages, params=params, top_logprobs=2, line_number=1)


def test_turns_of_tools_are_read_in_openais_shape(tmp_path):
    turns = [
        {"role": "user", "content": "where"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": calling({"at": 1})["tool_calls"],
            "reasoning_content": "hm",
        },
        {"role": "tool", "content": "here", "tool_call_id": "c1"},
    ]
    item = read_line(tmp_path, {"messages": turns, "tools": [function("look")], "thinking": False})
    assert item.messages == (
        Message("user", "where"),
        Message("assistant", "", (ToolCall("c1", "look", '{"at": 1}'),), "hm"),
        Message("tool", "here", tool_call_id="c1", name="look"),
    )
    assert item.thinking is False
    (tool,) = json.loads(item.tools)
    assert tool["function"] == {"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}}


def test_no_tools_are_none(tmp_path):
    assert read_line(tmp_path, {"prompt": "Hi", "tools": []}).tools is None


@pytest.mark.parametrize("key", [{"tools": []}, {"thinking": True}])
def test_a_raw_prompt_has_neither_tools_nor_thinking(tmp_path, key):
    path = write(tmp_path, json.dumps({"prompt": "a", **key}))
    (bad,) = read_prompts(path, DEFAULTS, is_raw=True)
    assert isinstance(bad, BadLine) and "a raw prompt has no chat template" in bad.error


def test_messages_are_kept_in_order(tmp_path):
    turns = [("system", "S"), ("user", "U"), ("assistant", "A"), ("user", "V")]
    item = read_line(tmp_path, {"messages": [{"role": role, "content": content} for role, content in turns]})
    assert item.messages == tuple(Message(*turn) for turn in turns)


def test_what_a_line_says_is_chosen(tmp_path):
    """Even where it says what holds anyway: the model's own settings must not replace it."""
    item = read_line(tmp_path, {"prompt": "Hi", "temperature": 0.0}, unchosen={"temperature", "top_k"})
    assert item.unchosen == {"top_k"}
    assert read_line(tmp_path, {"prompt": "Hi"}).unchosen == frozenset()


def test_no_limit_to_thinking_is_null(tmp_path):
    defaults = replace(DEFAULTS, thinking_budget=3)
    (item,) = read_prompts(write(tmp_path, '{"prompt": "Hi", "thinking_budget": null}'), defaults)
    assert item.params.thinking_budget is None


def test_a_line_that_is_to_think_may(tmp_path):
    """Where the command line says that none does."""
    defaults = replace(DEFAULTS, thinking_budget=0)
    lines = [
        '{"prompt": "Hi", "thinking": true}',
        '{"prompt": "Hi", "thinking": true, "thinking_budget": 3}',
        '{"prompt": "Hi"}',
    ]
    found = read_prompts(write(tmp_path, "\n".join(lines)), defaults)
    assert [item.params.thinking_budget for item in found] == [None, 3, 0]


def test_stop_may_be_one_string(tmp_path):
    assert read_line(tmp_path, {"prompt": "Hi", "stop": "END"}).params.stop == ("END",)


def test_a_whole_number_is_an_id_too(tmp_path):
    assert read_line(tmp_path, {"prompt": "Hi", "id": 17}).id == "17"


def test_raw_prompts_keep_their_text(tmp_path):
    item = read_line(tmp_path, {"prompt": "  Once upon\n"}, is_raw=True)
    assert (item.prompt, item.messages) == ("  Once upon\n", None)


def test_the_lines_own_system_turn_wins_over_the_default(tmp_path):
    own = {"messages": [{"role": "system", "content": "own"}, {"role": "user", "content": "Hi"}]}
    assert read_line(tmp_path, {"prompt": "Hi"}, system="default").messages[0] == Message("system", "default")
    assert read_line(tmp_path, {"prompt": "Hi", "system": "own"}, system="default").messages[0].content == "own"
    assert read_line(tmp_path, own, system="default").messages[0].content == "own"


def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path):
    (item,) = read_prompts(write(tmp_path, b"\xef\xbb\xbfHello\n", "prompts.txt"), DEFAULTS)
    assert item.messages[0].content == "Hello"


def test_unicode_line_separators_do_not_end_a_line(tmp_path):
    """str.splitlines would cut a JSON string in two at U+2028."""
    item = read_line(tmp_path, json.dumps({"prompt": "a\u2028b\x85c"}, ensure_ascii=False))
    assert item.messages[0].content == "a\u2028b\x85c"


def calling(arguments):
    """A turn that calls a tool."""
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def function(name, **others):
    return {"type": "function", "function": {"name": name, **others}}


BAD_LINES = [
    ("{", "not valid JSON"),
    ("[1]", "expected a JSON object"),
    ("null", "expected a JSON object"),
    ("[" * 100_000, "nested too deeply"),
    ('{"prompt": ' + "9" * 5000 + "}", "not valid JSON"),
    ('{"prompt": "a", "prompt": "b"}', "the key 'prompt' stands twice"),
    ("{" + ",".join(f'"key{i}": 1' for i in range(20_000)) + ', "key7": 2}', "the key 'key7' stands twice"),
    ({"prompt": "a", "temprature": 1}, "unknown key 'temprature'"),
    ({"prompt": "a", "top_logprobs": 21}, "top_logprobs is 21; it must be from 0 to 20"),
    ({"prompt": "a", "top_logprobs": True}, "top_logprobs is true; it must be a whole number"),
    ({"prompt": "a", "x" * 1_000_000: 1}, "unknown key a long text"),
    ({}, "either prompt or messages"),
    ({"prompt": "a", "messages": []}, "either prompt or messages"),
    ({"prompt": None}, "prompt is null; it must be text"),
    ({"prompt": 5}, "prompt is 5; it must be text"),
    ({"prompt": " \n"}, "prompt is empty"),
    ({"prompt": "a\ud800"}, "surrogate"),
    ({"prompt": "a", "id": True}, "id is true"),
    ({"prompt": "a", "id": 1.5}, "id is 1.5"),
    ({"prompt": "a", "id": ""}, "id is ''"),
    ({"prompt": "a", "id": ["x" * 100]}, "id is a long list"),
    ({"prompt": "a", "system": 1}, "system is 1"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]},
        "turn 1 of messages holds a part of type 'image_url'; only text is answered, so leave it out",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "the content of turn 1 of messages is [{"),
    ({"messages": [{"role": "user", "content": [[], {"type": None}]}]}, "it must be text"),
    ({"prompt": "a", "verification": 1}, "verification is 1; it must be text"),
    (
        {"prompt": "a", "verification": "magic"},
        "verification is 'magic'; it must be one of auto, sequoia, coupled, specinfer, top-k",
    ),
    ({"prompt": "a", "max_new_tokens": 0}, "max_new_tokens is 0; it must be 1 or more"),
    ({"prompt": "a", "max_new_tokens": 2.0}, "max_new_tokens is 2.0; it must be a whole number"),
    ({"prompt": "a", "max_new_tokens": True}, "max_new_tokens is true"),
    ({"prompt": "a", "temperature": "hot"}, "temperature is 'hot'; it must be a number"),
    ({"prompt": "a", "temperature": False}, "temperature is false"),
    ('{"prompt": "a", "temperature": NaN}', "'NaN' is not a finite number"),
    ('{"prompt": "a", "temperature": 1e999}', "'1e999' is not a finite number"),
    ('{"prompt": "a", "temperature": 1' + "0" * 400 + "}", "temperature has hundreds of digits"),
    ({"prompt": "a", "top_p": -0.1}, "top_p is -0.1; it must be from 0"),
    ({"prompt": "a", "top_k": -1}, "top_k is -1"),
    ({"prompt": "a", "thinking_budget": -1}, "thinking_budget is -1; it must be 0 or more"),
    ({"prompt": "a", "thinking_budget": "off"}, "thinking_budget is 'off'; it must be a whole number"),
    ({"prompt": "a", "min_p": 2}, "min_p is 2; it must be from 0 (off) to 1"),
    ({"prompt": "a", "repetition_penalty": 0}, "repetition_penalty is 0; it must be from 0.01 to 100"),
    ({"prompt": "a", "presence_penalty": "x"}, "presence_penalty is 'x'; it must be a number"),
    ({"prompt": "a", "banned_tokens": 5}, "banned_tokens is 5; it must be a list of token ids"),
    ({"prompt": "a", "banned_tokens": [True]}, "banned_tokens is [True]; it must be a list of token ids"),
    ({"prompt": "a", "forced_tokens": [1.5]}, "forced_tokens is [1.5]; it must be a list of token ids"),
    ({"prompt": "a", "forced_tokens": [-5]}, "forced_tokens is -5; it must be token ids, 0 or more"),
    ({"prompt": "a", "seed": -1}, "seed is -1"),
    ({"prompt": "a", "stop": [""]}, "stop is"),
    ({"prompt": "a", "stop": [1]}, "stop is 1; it must be text"),
    ({"messages": []}, "messages is"),
    ({"messages": "hi"}, "messages is 'hi'"),
    ({"messages": ["hi"]}, "turn 1 of messages must be an object"),
    ({"messages": [{"role": "user"}]}, "turn 1 of messages must be an object"),
    ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "it may have role, content, and no other"),
    ({"messages": [{"role": "critic", "content": "a"}]}, "the role 'critic'"),
    ({"messages": [{"role": "tool", "content": "a", "tool_call_id": "x"}]}, "answers the tool call 'x', which no turn"),
    ({"messages": [{"role": "user", "content": None}]}, "the content of turn 1 of messages is null"),
    ({"messages": [calling("no")]}, "arguments of call 1 of turn 1 of messages is 'no'; it must be a JSON object"),
    ({"messages": [calling("[1]")]}, "it must be a JSON object"),
    ({"messages": [calling(7)]}, "arguments of call 1 of turn 1 of messages is 7; it must be text"),
    ({"messages": [{**calling("{}"), "tool_calls": ["f"]}]}, "call 1 of turn 1 of messages must be an object like"),
    ({"messages": [{**calling("{}"), "tool_calls": "f"}]}, "tool_calls of turn 1 of messages is 'f'"),
    ({"messages": [calling("{}")]}, "the last turn of messages is of the role assistant"),
    ({"prompt": "a", "tools": "f"}, "tools is 'f'; it must be a list of functions"),
    ({"prompt": "a", "tools": [{"type": "web_search"}]}, "tool 1 must be an object like"),
    ({"prompt": "a", "tools": [function("a b")]}, "tool 1 is called 'a b'; a name is 1 to 128 letters"),
    ({"prompt": "a", "tools": [function("f"), function("f")]}, "two tools are called 'f'; names must differ"),
    ({"prompt": "a", "tools": [function("f", description=1)]}, "the description of tool 1 is 1; it must be text"),
    (
        {"prompt": "a", "tools": [function("f", parameters=[1])]},
        "parameters of tool 1 is [1]; it must be a JSON schema",
    ),
    ({"prompt": "a", "thinking": "yes"}, "thinking is 'yes'; it must be true or false"),
    ({"messages": [{"role": ["user"], "content": "a"}]}, "the role"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "the content of turn 1"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "end with a user turn"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, "move it to the front"),
    ({"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], "system": "c"}, "keep one"),
]


@pytest.mark.parametrize(("line", "expected"), BAD_LINES)
def test_a_bad_line_says_what_is_wrong_and_the_others_go_on(tmp_path, line, expected):
    text = line if isinstance(line, str) else json.dumps(line)
    good = '{"prompt": "good"}'
    path = write(tmp_path, f"{good}\n{text}\n{good}\n")
    before, bad, after = read_prompts(path, DEFAULTS)
    assert isinstance(before, PromptRequest) and isinstance(after, PromptRequest)
    assert isinstance(bad, BadLine) and bad.line_number == 2
    assert bad.error.startswith(f"{path} line 2: ")
    assert expected in bad.error and "\n" not in bad.error and len(bad.error) < 500


def test_an_error_does_not_repeat_a_long_value(tmp_path):
    item = read_line(tmp_path, json.dumps({"prompt": "a", "verification": "x" * 1_000_000}))
    assert item.error.endswith("it must be one of auto, sequoia, coupled, specinfer, top-k")
    assert len(item.error) < 1000


def test_a_system_prompt_of_the_command_line_must_be_utf_8(tmp_path):
    """An argument in another encoding arrives with surrogates, which the tokenizer refuses with a TypeError."""
    path = write(tmp_path, b"Hello\n", "prompts.txt")
    with pytest.raises(PromptFileError, match="--system holds half of a surrogate pair"):
        read_prompts(path, DEFAULTS, system="caf\udce9")


@pytest.mark.parametrize("fields", [{"messages": [{"role": "user", "content": "a"}]}, {"prompt": "a", "system": "b"}])
def test_a_raw_prompt_has_no_place_for_turns(tmp_path, fields):
    assert "drop --raw" in read_line(tmp_path, fields, is_raw=True).error


def test_a_second_line_with_the_same_id_is_bad(tmp_path):
    path = write(tmp_path, '{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}\n')
    first, second = read_prompts(path, DEFAULTS)
    assert first.id == "x"
    assert second.id == "2" and "already that of line 1" in second.error


def test_an_explicit_id_can_take_a_later_lines_number(tmp_path):
    path = write(tmp_path, '{"prompt": "a", "id": "2"}\n{"prompt": "b"}\n')
    assert "already that of line 1" in read_prompts(path, DEFAULTS)[1].error


def test_a_bad_line_keeps_its_own_id(tmp_path):
    assert read_line(tmp_path, {"prompt": "a", "id": "mine", "top_p": 3}).id == "mine"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("prompts.txt", b"", "holds no prompt"),
        ("prompts.jsonl", b"\n \r\n", "holds no prompt"),
        ("prompts.txt", b"fine\nna\xefve\n", "not UTF-8: line 2 holds the byte 0xef"),
        ("prompts.txt", "\ufeffhi".encode("utf-16-le"), "not UTF-8: line 1"),
        ("prompts.json", b"{}", "neither .txt"),
        ("prompts", b"hi", "neither .txt"),
    ],
)
def test_a_file_that_cannot_be_used_as_a_whole_is_refused(tmp_path, name, content, expected):
    with pytest.raises(PromptFileError, match=expected) as caught:
        read_prompts(write(tmp_path, content, name), DEFAULTS)
    assert caught.value.exit_code == 2


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(PromptFileError, match=r"missing\.txt cannot be read: No such file"):
        read_prompts(tmp_path / "missing.txt", DEFAULTS)
    with pytest.raises(PromptFileError, match="cannot be read"):
        read_prompts(tmp_path, DEFAULTS)


def test_a_dash_is_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"one\ntwo\n")))
    assert [item.messages[0].content for item in read_prompts("-", DEFAULTS)] == ["one", "two"]


def test_where_no_line_may_be_missing_a_bad_one_ends_the_reading(tmp_path):
    path = write(tmp_path, '{"prompt": "a"}\n{"prompt": 3}\n')
    with pytest.raises(PromptFileError, match="line 2"):
        read_requests(path, DEFAULTS)
    good = write(tmp_path, '{"prompt": "a"}\n', "good.jsonl")
    assert [request.params for request in read_requests(good, DEFAULTS)] == [DEFAULTS]
