import pytest

from runtime.events import Finished
from runtime.prompts.headless import PromptResult
from runtime.prompts.result_file import format_record
from runtime.prompts.result_format import LINE_START, OPENAI, OWN, OWN_FORMAT, is_answer, kind_of
from tests.support.answer_fakes import STATISTICS

GOOD = PromptResult(id="a", line_number=1, finished=Finished("stop", "hi", STATISTICS)).to_record()
FAILED = PromptResult(id="a", line_number=1, error="no").to_record()
ANSWER = {"id": "batch_req_1", "custom_id": "a", "response": {"status_code": 200, "body": {}}, "error": None}
REFUSAL = {"id": "batch_req_1", "custom_id": None, "response": None, "error": {"code": "x", "message": "y"}}


def test_each_kind_is_known_by_its_keys():
    assert [kind_of(record) for record in (GOOD, FAILED, ANSWER, REFUSAL)] == [OWN, OWN, OPENAI, OPENAI]
    assert [is_answer(record) for record in (GOOD, FAILED, ANSWER, REFUSAL)] == [True, False, True, False]
    assert is_answer({**GOOD, "response": 5}), "a key that is none of ours says nothing"
    assert not is_answer({**ANSWER, "response": {"status_code": 429, "body": {}}})


@pytest.mark.parametrize(
    "record",
    [
        None,
        [],
        "text",
        {},
        {"id": 7, "text": "x", "error": None},
        {"id": "a", "prompt": "a prompt file given by mistake"},
        {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}},
        {**ANSWER, "response": None},
        {**ANSWER, "response": {"status_code": 200}},
        {**ANSWER, "response": "text"},
        {**ANSWER, "custom_id": None},
        {**ANSWER, "custom_id": ["a"]},
        {**REFUSAL, "error": "text"},
        {**REFUSAL, "custom_id": 5},
    ],
)
def test_whatever_else_a_line_holds_is_no_result(record):
    assert kind_of(record) is None


def test_an_answer_of_ours_answers_its_id_and_begins_as_half_written_lines_are_known():
    assert OWN_FORMAT.kind == OWN
    assert list(OWN_FORMAT.ids_answered_by(GOOD)) == ["a"]
    for record in (GOOD, FAILED, ANSWER, REFUSAL):
        assert format_record(record).encode().startswith(LINE_START)
