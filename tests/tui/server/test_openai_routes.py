"""OpenAI's own client against a server with a tiny model: what it asks is what comes, whole and streamed."""

import json
import math

import openai
import pytest

from runtime.config import SamplingParams
from runtime.prompts.prompt_file import Message, PromptRequest
from tests.support.json_models import blank_tokens
from tests.support.served import MODEL, served, tiny_load
from tests.support.session_factory import open_tiny

HI = [{"role": "user", "content": "the cat"}]


def chat(running, **body):
    return running.client().chat.completions.create(**{"model": "any", "messages": HI, "max_tokens": 12, **body})


def complete(running, prompt="the cat", **body):
    return running.client().completions.create(**{"model": "any", "prompt": prompt, "max_tokens": 12, **body})


def test_an_answer_is_that_of_the_session(tiny, folder):
    params = SamplingParams(temperature=0.7, seed=5, max_new_tokens=12)
    asked = PromptRequest(id="1", messages=(Message("user", "the cat"),), params=params)
    with open_tiny(folder, num_residents=0) as opened:
        *_, expected = opened.session.generate(asked)
    answer = chat(tiny, temperature=0.7, seed=5)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == {"stop": "stop", "length": "length"}[expected.finish_reason]
    assert (answer.model, answer.object) == (MODEL, "chat.completion")
    assert answer.usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"}) == {
        name: count for name, count in expected.statistics.usage.items() if isinstance(count, int)
    }


def test_what_was_not_computed_is_told(tiny):
    complete(tiny, prompt="the cat and the dog", temperature=0)
    again = complete(tiny, prompt="the cat and the dog", temperature=0)
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1
    assert again.usage.completion_tokens_details.reasoning_tokens == 0
    response = tiny.client().responses.create(model="any", input="the cat", max_output_tokens=4)
    response = tiny.client().responses.create(model="any", input="the cat", max_output_tokens=4)
    assert response.usage.input_tokens_details.cached_tokens == response.usage.input_tokens - 1


def test_a_stream_joins_to_the_whole_answer(tiny):
    whole = chat(tiny, seed=3, n=2)
    chunks = list(chat(tiny, seed=3, n=2, stream=True, stream_options={"include_usage": True}))
    *pieces, last = chunks
    for index, choice in enumerate(whole.choices):
        own = [piece.choices[0] for piece in pieces if piece.choices[0].index == index]
        assert own[0].delta.role == "assistant"
        assert "".join(each.delta.content or "" for each in own) == choice.message.content
        assert [each.finish_reason for each in own if each.finish_reason] == [choice.finish_reason]
    assert last.choices == [] and last.usage.total_tokens == whole.usage.total_tokens
    assert last.usage.prompt_tokens_details.cached_tokens == last.usage.prompt_tokens - 1, "it was asked before"
    assert len({chunk.id for chunk in chunks}) == 1
    assert whole.choices[0].message.content != whole.choices[1].message.content
    assert chat(tiny, seed=3).choices[0].message.content == whole.choices[0].message.content


def test_choices_that_are_one_text_are_computed_once(tiny):
    before = tiny.wait(lambda state: state.num_running == state.num_waiting == 0).tally
    options = {"temperature": 0, "n": 3, "logprobs": True}
    whole = chat(tiny, **options)
    tally = tiny.wait(lambda state: state.num_running == 0).tally
    assert sum(tally.num_ended.values()) == sum(before.num_ended.values()) + 1
    assert whole.usage.completion_tokens == 3 * (tally.num_new_tokens - before.num_new_tokens)
    assert len({choice.message.content for choice in whole.choices}) == 1 and len(whole.choices) == 3
    chunks = list(chat(tiny, stream=True, stream_options={"include_usage": True}, **options))
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    for index, choice in enumerate(whole.choices):
        own = [piece.choices[0] for piece in chunks[:-1] if piece.choices[0].index == index]
        assert "".join(each.delta.content or "" for each in own) == choice.message.content
        tokens = [[each.token for each in found.logprobs.content] for found in (own[-1], choice)]
        assert tokens[0] == tokens[1] and own[-1].finish_reason == choice.finish_reason


def test_a_seed_that_nobody_gave_is_a_new_one(tiny):
    assert len({chat(tiny, temperature=1.5).choices[0].message.content for _ in range(4)}) > 1


def test_stop_strings_and_biases_hold(tiny):
    whole = complete(tiny, temperature=0, max_tokens=20, logit_bias={"2": -100}).choices[0]
    assert whole.finish_reason == "length"
    sign = whole.text[4]
    stopped = complete(tiny, temperature=0, max_tokens=20, logit_bias={"2": -100}, stop=[sign]).choices[0]
    assert stopped.text == whole.text[: whole.text.index(sign)] and stopped.finish_reason == "stop"
    assert complete(tiny, logit_bias={"2": 100}).choices[0].text == ""


def test_log_probabilities_come_whole_and_streamed(tiny):
    options = {"seed": 3, "logprobs": True, "top_logprobs": 2}
    (choice,) = chat(tiny, **options).choices
    tokens = choice.logprobs.content
    assert "".join(token.token for token in tokens) == choice.message.content
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)
    streamed = [chunk.choices[0].logprobs for chunk in chat(tiny, stream=True, **options)]
    assert [token for each in streamed if each for token in each.content] == tokens


def test_json_is_held_to_its_schema(json_writer):
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", "yy"]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}
    bias = {str(token): -100 for token in blank_tokens()}
    answer = chat(json_writer, response_format=wanted, max_tokens=60, logit_bias=bias)
    found = json.loads(answer.choices[0].message.content)
    assert isinstance(found["a"], bool) and found["b"] in ("x", "yy") and len(found) == 2


def test_prompts_are_echoed_with_log_probabilities(tiny):
    tokens = [[8, 9, 10, 11], [8, 9, 12]]
    answer = complete(tiny, prompt=tokens, echo=True, logprobs=1, max_tokens=1, temperature=0)
    assert [len(choice.logprobs.tokens) for choice in answer.choices] == [5, 4]
    for choice in answer.choices:
        logprobs = choice.logprobs
        assert logprobs.token_logprobs[0] is None and all(each <= 0 for each in logprobs.token_logprobs[1:])
        assert "".join(logprobs.tokens) == choice.text or "</s>" in logprobs.tokens
        assert logprobs.token_logprobs[-1] == max(logprobs.top_logprobs[-1].values())
    alone = complete(tiny, prompt=tokens[1], echo=True, logprobs=1, max_tokens=0)
    assert alone.choices[0].text == "".join(answer.choices[1].logprobs.tokens[:3])
    assert alone.choices[0].logprobs.token_logprobs[1:] == pytest.approx(
        answer.choices[1].logprobs.token_logprobs[1:3], abs=1e-5
    )
    assert alone.usage.completion_tokens == 0


def test_an_echoed_prompt_may_be_written_on(tiny):
    plain = complete(tiny, seed=4)
    echoed = complete(tiny, seed=4, echo=True, logprobs=0)
    assert echoed.choices[0].text == "the cat" + plain.choices[0].text
    assert echoed.usage.total_tokens == plain.usage.total_tokens
    pieces = [piece.choices[0].text for piece in complete(tiny, seed=4, echo=True, stream=True)]
    assert "".join(pieces) == echoed.choices[0].text


def test_what_cannot_be_done_is_an_error_of_the_client_s_own(tiny):
    with pytest.raises(openai.BadRequestError, match="messages") as refused:
        chat(tiny, messages=[])
    assert refused.value.type == "invalid_request_error"
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="context holds 128") as refused:
            complete(tiny, prompt="the cat " * 100, stream=stream)
        assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="logit_bias names the token 100000"):
        complete(tiny, logit_bias={"100000": 1})


def test_the_model_is_listed(tiny):
    client = tiny.client()
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "overstory"
    with pytest.raises(openai.NotFoundError, match="the model here is tiny"):
        client.models.retrieve("other/one")


def test_an_answer_goes_on_to_the_end_of_the_context_unless_somebody_chose(tiny, folder):
    body = {"max_tokens": openai.omit, "logit_bias": {"2": -100}, "temperature": 0}
    assert chat(tiny, **body).usage.total_tokens == 128
    assert complete(tiny, **body).usage.completion_tokens == 16, "as the API has it"
    chosen = frozenset({"max_new_tokens"})
    with served(tiny_load(folder), params=SamplingParams(max_new_tokens=5), chosen=chosen) as other:
        assert chat(other, **body).usage.completion_tokens == 5


def test_scores_are_the_sums_of_the_model_s_own(tiny, folder):
    """As lm-evaluation-harness adds them up."""
    prompt, context = "the cat and the dog", 3
    with open_tiny(folder, num_residents=0) as opened:
        ids = opened.session.format_prompt(PromptRequest(id="1", prompt=prompt))
        from runtime.scoring.scorer import Scorer, TokenPair

        pair = TokenPair.within(ids[:context], ids[context:], window=128)
        (done,) = Scorer(opened.session.engine, opened.plan.tokenizer).score([pair])
    answer = complete(tiny, prompt=ids, echo=True, logprobs=1, max_tokens=1, temperature=0)
    logprobs = answer.choices[0].logprobs
    assert sum(logprobs.token_logprobs[context:-1]) == pytest.approx(done.scores[0].log_likelihood, abs=1e-4)
    is_greedy = all(
        math.isclose(own, max(top.values()))
        for own, top in zip(logprobs.token_logprobs[context:-1], logprobs.top_logprobs[context:-1], strict=True)
    )
    assert is_greedy == done.scores[0].is_greedy
