"""What a line of OpenAI's batch format asks, what is refused of it, and what its answer looks like."""

import itertools
import json
import sys
import zlib
from dataclasses import replace
from types import ModuleType

import pytest

from runtime.config import SamplingParams, options_of
from runtime.errors import PromptFileError
from runtime.events import Finished, TokenLogprob, TokenLogprobs
from runtime.prompts.headless import PromptResult, one_by_one, run_prompts
from runtime.prompts.openai_batch import read_prompts_or_batch
from runtime.prompts.prompt_file import BadLine, Message, PromptRequest
from runtime.prompts.result_format import OPENAI, OWN_FORMAT, is_answer, kind_of
from runtime.tokenizer.json_schema import ANY_OBJECT
from tests.support.answer_fakes import STATISTICS, echo
from tests.support.batch_files import CHAT, batch_line, chat_line, completion_line, write_lines

UNCHOSEN = frozenset(options_of(SamplingParams))


def json_schema(**changes):
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}, **changes}}


DEFAULTS = SamplingParams(max_new_tokens=32)


def read(tmp_path, *lines, **options):
    return read_prompts_or_batch(write_lines(tmp_path / "batch.jsonl", *lines), DEFAULTS, **options)


def read_line(tmp_path, line, **options):
    (item,), result_format = read(tmp_path, line, **options)
    assert result_format.kind == OPENAI
    return item


def results_of(items, generate=echo):
    return [event for event in run_prompts(one_by_one(generate), items) if isinstance(event, PromptResult)]


def lines_of(items, result_format, generate=echo):
    records = [result_format.record(result) for result in results_of(items, generate)]
    return [record for record in records if record is not None]


def test_a_chat_line_sets_every_key(tmp_path):
    body = {
        "model": "gpt-4o-mini",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "max_completion_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["\n", "END"],
        "seed": 3,
        "presence_penalty": 1,
        "frequency_penalty": -0.5,
        "n": 1,
        "logprobs": False,
        "response_format": {"type": "text"},
        "stream": False,
    }
    params = SamplingParams(
        max_new_tokens=7,
        temperature=0.5,
        top_p=0.9,
        stop=("\n", "END"),
        seed=3,
        presence_penalty=1.0,
        frequency_penalty=-0.5,
    )
    chosen = {"max_new_tokens", "temperature", "top_p", "stop", "seed", "presence_penalty", "frequency_penalty"}
    assert read_line(tmp_path, batch_line("a", CHAT, body), unchosen=UNCHOSEN) == PromptRequest(
        id="a",
        messages=(Message("system", "Be brief."), Message("user", "Hi")),
        params=params,
        unchosen=UNCHOSEN - chosen,
        wants_parts=True,
        line_number=1,
    )


def test_a_completions_line_writes_on_from_raw_text(tmp_path):
    item = read_line(tmp_path, completion_line("a", "  Once upon\n", max_tokens=5, stop="END"), system="Be brief.")
    assert (item.prompt, item.messages) == ("  Once upon\n", None)
    assert (item.params.max_new_tokens, item.params.stop) == (5, ("END",))
    assert read_line(tmp_path, completion_line("a", ["Once"]), is_raw=True).prompt == "Once"


def test_null_is_as_if_the_key_were_not_there(tmp_path):
    names = ("max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "seed", "presence_penalty")
    names += ("frequency_penalty", "n", "logprobs", "top_logprobs", "response_format", "stream")
    bare = read_line(tmp_path, chat_line("a"), unchosen=UNCHOSEN)
    assert read_line(tmp_path, chat_line("a", **dict.fromkeys(names)), unchosen=UNCHOSEN) == bare


def test_text_parts_are_one_text_and_a_developer_is_the_system(tmp_path):
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]
    turns = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    item = read_line(tmp_path, chat_line("a", messages=turns), system="not this")
    assert item.messages == (Message("system", "Be brief."), Message("user", "the cat"))
    assert read_line(tmp_path, chat_line("a"), system="S").messages[0] == Message("system", "S")


def test_a_line_is_sampled_as_the_api_does_unless_somebody_chose(tmp_path):
    """At 1, but the model's own settings may say otherwise; an option that was typed holds."""
    item = read_line(tmp_path, chat_line("a"), unchosen=UNCHOSEN)
    assert item.params.temperature == 1.0 and item.unchosen == UNCHOSEN
    typed = read_line(tmp_path, chat_line("a"), unchosen=UNCHOSEN - {"temperature", "seed"})
    assert (typed.params.temperature, typed.params.seed) == (DEFAULTS.temperature, DEFAULTS.seed)
    said = read_line(tmp_path, chat_line("a", temperature=0, seed=0), unchosen=UNCHOSEN)
    assert (said.params.temperature, said.params.seed) == (0.0, 0)
    assert said.unchosen == UNCHOSEN - {"temperature", "seed"}


def test_log_probabilities_are_asked_for_as_each_endpoint_has_it(tmp_path):
    lines = {
        None: (chat_line("a"), chat_line("a", logprobs=False), completion_line("a", logprobs=None)),
        0: (chat_line("a", logprobs=True), completion_line("a", logprobs=0)),
        5: (chat_line("a", logprobs=True, top_logprobs=5), completion_line("a", logprobs=5)),
        20: (chat_line("a", logprobs=True, top_logprobs=20),),
    }
    for wanted, asking in lines.items():
        assert [read_line(tmp_path, line).top_logprobs for line in asking] == [wanted] * len(asking)


def test_an_answer_has_them_in_the_shape_of_its_endpoint(tmp_path):
    """Offsets count from the prompt's first character."""
    token = TokenLogprob(5, -0.5, "x", b"x")

    def generate(request):
        yield Finished("stop", "x", STATISTICS, logprobs=(TokenLogprobs(token, (token,)),))

    lines = (chat_line("a", logprobs=True, top_logprobs=1), completion_line("b", "thé cat", logprobs=1))
    records = lines_of(*read(tmp_path, *lines), generate)
    chat, completion = (record["response"]["body"]["choices"][0]["logprobs"] for record in records)
    listed = {"token": "x", "logprob": -0.5, "bytes": [120]}
    assert chat == {"content": [{**listed, "top_logprobs": [listed]}], "refusal": None}
    assert completion == {
        "tokens": ["x"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"x": -0.5}],
        "text_offset": [7],
    }


def test_lines_with_the_same_prompt_have_seeds_of_their_own_that_stay(tmp_path):
    (first, second), _ = read(tmp_path, chat_line("a"), chat_line("b"), unchosen=UNCHOSEN)
    assert (first.params.seed, second.params.seed) == (zlib.crc32(b"a"), zlib.crc32(b"b"))


def test_n_choices_are_n_requests_with_ids_and_seeds_of_their_own(tmp_path):
    items, _ = read(
        tmp_path, chat_line("a", n=3, temperature=1, seed=7), chat_line("b"), completion_line("c", n=2, temperature=1)
    )
    assert [item.id for item in items] == ["a [0]", "a [1]", "a [2]", "b", "c [0]", "c [1]"]
    assert [item.params.seed for item in items[:3]] == [7, 8, 9]
    assert [item.line_number for item in items] == [1, 1, 1, 2, 3, 3]


def test_the_id_of_a_choice_is_that_of_no_line(tmp_path):
    """Before the one that has the choices, or behind it."""
    names = ("a [0]", "a", "a [1]", "a [1]'")
    items, result_format = read(
        tmp_path, *(chat_line(name, n=2, temperature=1) for name in names), chat_line("a [0] [0]")
    )
    ids = [item.id for item in items]
    assert len(set(ids)) == len(ids) == 9 and not set(ids[:-1]) & {*names, "a [0] [0]"}
    records = lines_of(items, result_format)
    assert [record["custom_id"] for record in records] == [*names, "a [0] [0]"]


REFUSED_LINES = [
    ("[1]", "expected a JSON object"),
    ('{"custom_id": "b", "method": "POST"', "not valid JSON"),
    ('{"custom_id": "b", "custom_id": "c"}', "the key 'custom_id' stands twice"),
    ({"prompt": "a"}, "custom_id is missing; a line of a batch has the keys custom_id, method, url, body"),
    (chat_line(""), "custom_id is ''; it must be text that is not empty"),
    (chat_line(5), "custom_id is 5; it must be text that is not empty"),
    (chat_line("\ud800"), "custom_id holds half of a surrogate pair"),
    (chat_line("good"), "the id 'good' is already that of line 1; ids must differ"),
    ({**chat_line("b"), "priority": 1}, "unknown key 'priority'; a batch's keys are custom_id, method, url, body"),
    ({**chat_line("b"), "method": "GET"}, "method is 'GET'; it must be 'POST'"),
    ({**chat_line("b"), "method": None}, "method is null; it must be 'POST'"),
    ({**chat_line("b"), "url": "/v1/embeddings"}, "url is '/v1/embeddings'; it must be one of /v1/chat/completions, /"),
    ({**chat_line("b"), "url": ["/v1/completions"]}, "url is ['/v1/completions']; it must be one of"),
    ({"custom_id": "b", "method": "POST", "body": {}}, "url is null; it must be one of"),
    ({**chat_line("b"), "body": []}, "body is []; it must be an object"),
    ({"custom_id": "b", "method": "POST", "url": CHAT}, "body is null; it must be an object"),
    (batch_line("b", CHAT, {}), "messages is null; it must be a list of turns"),
    (chat_line("b", messages=[]), "messages is []; it must be a list of turns"),
    (chat_line("b", messages=["hi"]), "turn 1 of messages must be an object with the keys role and content"),
    (chat_line("b", messages=[{"role": "tool", "content": "a"}]), "turn 1 of messages answers the tool call null"),
    (chat_line("b", messages=[{"role": "user", "content": "a", "name": "x"}]), "and no other"),
    (chat_line("b", messages=[{"role": "user", "content": None}]), "the content of turn 1 of messages is null"),
    (chat_line("b", messages=[{"role": "user", "content": []}]), "the content of turn 1 of messages is []"),
    (chat_line("b", messages=[{"role": "user", "content": [{"type": "text", "text": 1}]}]), "it must be text"),
    (
        chat_line("b", messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]),
        "turn 1 of messages holds a part of type 'image_url'; only text is answered, so leave it out",
    ),
    (chat_line("b", messages=[{"role": "assistant", "content": "a"}]), "it must end with a user turn"),
    (chat_line("b", prompt="a"), "body has the key 'prompt', which is not done here; leave it out (for /v1/chat/"),
    (completion_line("b", messages=[]), "body has the key 'messages', which is not done here"),
    (completion_line("b", max_completion_tokens=3), "body has the key 'max_completion_tokens', which is not done here"),
    (completion_line("b", top_logprobs=3), "body has the key 'top_logprobs', which is not done here"),
    (completion_line("b", response_format={"type": "text"}), "body has the key 'response_format', which is not done"),
    (completion_line("b", 5), "prompt is 5; it must be text"),
    (completion_line("b", ["a", "b"]), "prompt is a list; it must hold one text, so write a line for each prompt"),
    (completion_line("b", [5, 6]), "prompt is a list; it must hold one text"),
    (completion_line("b", [5]), "prompt is a list; it must hold one text"),
    (completion_line("b", []), "prompt is a list; it must hold one text"),
    (completion_line("b", " \n"), "prompt is empty; write something to write on from"),
    (completion_line("b", None), "prompt is null; it must be text"),
    (completion_line("b", "\ud800"), "prompt holds half of a surrogate pair"),
    (chat_line("b", model=None), "model is null; it must be text"),
    (chat_line("b", model=5), "model is 5; it must be text"),
    (chat_line("b", max_tokens=0), "max_tokens is 0; it must be 1 or more"),
    (chat_line("b", max_completion_tokens=2.5), "max_completion_tokens is 2.5; it must be a whole number"),
    (chat_line("b", max_tokens=2, max_completion_tokens=2), "max_tokens stands beside max_completion_tokens; keep one"),
    (chat_line("b", temperature="hot"), "temperature is 'hot'; it must be a number"),
    (chat_line("b", temperature=-1), "temperature is -1; it must be from 0 (greedy) to 2"),
    (chat_line("b", top_p=-1), "top_p is -1; it must be from 0 (the likeliest token alone) to 1 (off)"),
    (chat_line("b", stop=[""]), "stop is ''; it must be UTF-8 strings that are not empty"),
    (chat_line("b", stop=[5]), "stop is 5; it must be text"),
    (chat_line("b", seed=-1), "seed is -1; it must be 0 or more"),
    (chat_line("b", seed=1.5), "seed is 1.5; it must be a whole number"),
    (chat_line("b", presence_penalty=3), "presence_penalty is 3; it must be from -2 to 2"),
    (chat_line("b", frequency_penalty=-3), "frequency_penalty is -3; it must be from -2 to 2"),
    (chat_line("b", n=0), "n is 0; it must be from 1 to 128"),
    (chat_line("b", n=129), "n is 129; it must be from 1 to 128"),
    (chat_line("b", n=True), "n is true; it must be a whole number"),
    (chat_line("b", stream=True), "stream is true; a batch is answered whole, so leave it out"),
    (chat_line("b", stream=0), "stream is 0; a batch is answered whole"),
    (chat_line("b", logprobs=5), "logprobs is 5; it must be true or false"),
    (chat_line("b", logprobs=True, top_logprobs=21), "top_logprobs is 21; it must be from 0 to 20"),
    (chat_line("b", top_logprobs=3), "top_logprobs stands without logprobs; set logprobs to true, or leave both out"),
    (completion_line("b", logprobs=6), "logprobs is 6; it must be from 0 to 5"),
    (completion_line("b", logprobs=True), "logprobs is true; it must be a whole number"),
    (chat_line("b", response_format=json_schema(schema=[])), "schema is []; it must be an object"),
    (chat_line("b", response_format=json_schema(schema=None)), "schema is null; it must be an object"),
    (chat_line("b", response_format=json_schema(name=None)), "the name of json_schema is null; it must be text"),
    (chat_line("b", response_format=json_schema(strict="yes")), "strict is 'yes'; it must be true or false"),
    (chat_line("b", response_format=json_schema(other=1)), "json_schema has the key 'other'; its keys are name, descr"),
    (chat_line("b", response_format={**json_schema(), "schema": {}}), "it must be an object of type text, json_object"),
    (chat_line("b", response_format={"type": "json_schema"}), "it must be an object of type text, json_object or json"),
    (chat_line("b", response_format={"type": "xml"}), "response_format is {'type': 'xml'}; it must be an object of"),
    (chat_line("b", response_format="text"), "response_format is 'text'; it must be an object of type text"),
    (chat_line("b", response_format={"type": ["text"]}), "it must be an object of type text"),
]

OTHER_BODY_KEYS = ("functions", "function_call", "user", "store", "metadata", "top_k", "min_p", "echo")
OTHER_BODY_KEYS += ("best_of", "suffix", "stream_options", "modalities", "service_tier", "max_new_tokens", "system")


@pytest.mark.parametrize(("line", "expected"), REFUSED_LINES)
def test_what_cannot_be_done_is_said_of_its_line_and_the_others_go_on(tmp_path, line, expected):
    (before, bad, after), result_format = read(tmp_path, chat_line("good"), line, completion_line("other"))
    assert isinstance(before, PromptRequest) and isinstance(after, PromptRequest)
    assert isinstance(bad, BadLine) and bad.line_number == 2
    assert bad.error.startswith(f"{tmp_path / 'batch.jsonl'} line 2: ") and expected in bad.error
    assert "\n" not in bad.error and len(bad.error) < 600
    (record,) = lines_of([bad], result_format)
    assert record["error"] == {"code": "invalid_request", "message": bad.error} and record["response"] is None
    is_named = isinstance(line, dict) and line.get("custom_id") == "b"
    assert record["custom_id"] == ("b" if is_named else None)


@pytest.mark.parametrize(("key", "value"), itertools.product(OTHER_BODY_KEYS, ([], "x", None)))
def test_every_other_key_of_a_body_is_refused_by_its_name(tmp_path, key, value):
    for line in (chat_line("b", **{key: value}), completion_line("b", **{key: value})):
        assert f"body has the key '{key}', which is not done here; leave it out" in read_line(tmp_path, line).error


def test_a_chat_line_has_no_place_in_a_raw_run(tmp_path):
    assert "use /v1/completions, or drop --raw" in read_line(tmp_path, chat_line("a"), is_raw=True).error


def test_the_first_object_says_which_format_a_file_has(tmp_path):
    own, batch = {"prompt": "a"}, chat_line("a")
    for lines in ((own, batch), ("{", own), ("[1]",), ("{",)):
        assert read(tmp_path, *lines)[1] is OWN_FORMAT
    for lines in ((batch, own), ("{", batch), ({"body": {}},)):
        assert read(tmp_path, *lines)[1].kind == OPENAI


def test_a_file_of_text_is_never_a_batch(tmp_path):
    path = write_lines(tmp_path / "prompts.txt", chat_line("a"))
    items, result_format = read_prompts_or_batch(path, DEFAULTS)
    assert result_format is OWN_FORMAT and items[0].messages[0].content.startswith('{"custom_id"')


def test_a_file_that_cannot_be_used_as_a_whole_is_refused(tmp_path):
    with pytest.raises(PromptFileError, match="holds no prompt"):
        read(tmp_path)
    with pytest.raises(PromptFileError, match="--system holds half of a surrogate pair"):
        read(tmp_path, chat_line("a"), system="\udce9")


def test_an_answer_is_a_line_of_openais_output(tmp_path):
    items, result_format = read(tmp_path, chat_line("a", "hello", model="mine"), completion_line("b", "there"))
    chat, completion = lines_of(items, result_format)
    assert list(chat) == ["id", "custom_id", "response", "error"]
    assert chat["id"].startswith("batch_req_") and chat["id"] != completion["id"]
    assert (chat["custom_id"], chat["error"], chat["response"]["status_code"]) == ("a", None, 200)
    assert list(chat["response"]) == ["status_code", "request_id", "body"]
    body = chat["response"]["body"]
    assert list(body) == ["id", "object", "created", "model", "choices", "usage"]
    assert body["id"].startswith("chatcmpl-") and body["object"] == "chat.completion" and body["model"] == "mine"
    assert isinstance(body["created"], int) and body["created"] > 1_700_000_000
    assert body["usage"] == STATISTICS.usage
    message = {"role": "assistant", "content": "HELLO", "refusal": None}
    assert body["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
    body = completion["response"]["body"]
    assert body["id"].startswith("cmpl-") and body["object"] == "text_completion"
    assert body["choices"] == [{"index": 0, "text": "THERE", "logprobs": None, "finish_reason": "stop"}]
    for record in (chat, completion):
        assert kind_of(json.loads(json.dumps(record))) == OPENAI and is_answer(record)


@pytest.mark.parametrize(
    ("reason", "expected"), [("stop", "stop"), ("length", "length"), ("context", "length"), ("stopped", "stop")]
)
def test_an_answer_ends_for_a_reason_that_the_api_has(tmp_path, reason, expected):
    (item,), result_format = read(tmp_path, chat_line("a"))
    answer = PromptResult(id=item.id, line_number=1, finished=Finished(reason, "x", STATISTICS))
    assert result_format.record(answer)["response"]["body"]["choices"][0]["finish_reason"] == expected


def test_choices_are_one_line_once_all_are_there_in_their_order_whatever_came_first(tmp_path):
    for order in itertools.permutations(range(4)):
        items, result_format = read(tmp_path, chat_line("a", n=3, temperature=1), chat_line("b", "other"))
        results = [replace(result, finished=replace(result.finished, text=result.id)) for result in results_of(items)]
        records = [result_format.record(results[place]) for place in order]
        last_of_a = max(range(4), key=lambda step: (order[step] < 3, step))
        assert [step for step in range(4) if records[step] is not None] == sorted({last_of_a, order.index(3)})
        body = records[last_of_a]["response"]["body"]
        assert [choice["message"]["content"] for choice in body["choices"]] == ["a [0]", "a [1]", "a [2]"]
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
        counts = [body["usage"][f"{name}_tokens"] for name in ("prompt", "completion", "total")]
        assert counts == [5, 24, 29]


def test_choices_that_are_one_text_are_answered_once_and_given_so_often(tmp_path):
    items, result_format = read(tmp_path, chat_line("a", n=3, temperature=0))
    (record,) = lines_of(items, result_format)
    assert [item.id for item in items] == ["a"] and result_format.ids_answered_by(record) == ["a"]
    body = record["response"]["body"]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert body["usage"]["completion_tokens"] == 3 * STATISTICS.new_tokens


def test_a_choice_that_fails_costs_its_line(tmp_path):
    items, result_format = read(tmp_path, chat_line("a", n=2, temperature=1), chat_line("b"))
    first, _, other = results_of(items)
    failed = PromptResult(id="a [1]", line_number=1, error="the link is gone")
    assert result_format.record(failed) is None
    record = result_format.record(first)
    assert (record["custom_id"], record["response"]) == ("a", None)
    assert record["error"] == {"code": "server_error", "message": "the link is gone"}
    assert kind_of(record) == OPENAI and not is_answer(record)
    assert result_format.record(other)["custom_id"] == "b"


def test_an_answered_line_answers_all_its_choices(tmp_path):
    items, result_format = read(
        tmp_path, chat_line("a", n=2, temperature=1), chat_line("b"), chat_line("c", functions=[])
    )
    records = {record["custom_id"]: record for record in lines_of(items, result_format)}
    assert list(result_format.ids_answered_by(records["a"])) == ["a [0]", "a [1]"]
    assert list(result_format.ids_answered_by(records["b"])) == ["b"]
    for name in ("c", "of another file"):
        assert list(result_format.ids_answered_by({**records["b"], "custom_id": name})) == []


def test_a_schema_goes_with_the_request(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", ModuleType("llguidance"))
    for wanted, expected in (
        ({"type": "text"}, None),
        ({"type": "json_object"}, ANY_OBJECT),
        (json_schema(), '{"type": "object"}'),
        (json_schema(strict=True, description="what it is"), '{"type": "object"}'),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "{}"),
    ):
        assert read_line(tmp_path, chat_line("a", response_format=wanted)).response_schema == expected
    item = read_line(tmp_path, chat_line("a", response_format=json_schema(schema={"enum": ["x" * 2**18]})))
    assert isinstance(item, BadLine) and "it may take 262144, so make it smaller" in item.error


def test_where_the_library_is_missing_the_line_says_so(tmp_path, monkeypatch):
    """Before any model is loaded."""
    monkeypatch.setitem(sys.modules, "llguidance", None)
    item = read_line(tmp_path, chat_line("a", response_format=json_schema()))
    assert isinstance(item, BadLine) and item.error.endswith("install it with: pip install 'overstory[json]'")
    assert isinstance(read_line(tmp_path, chat_line("a", response_format={"type": "text"})), PromptRequest)
