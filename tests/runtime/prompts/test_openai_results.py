"""Files of results in OpenAI's batch format: gone on with by custom_id, repaired, and never mixed with ours."""

import io
import json
import os
import random
import subprocess
import sys
import time

import pytest

from runtime.config import SamplingParams
from runtime.errors import OptionError
from runtime.events import Finished
from runtime.prompts.headless import PromptResult, one_by_one, pending_items, run_prompts
from runtime.prompts.openai_batch import read_prompts_or_batch
from runtime.prompts.result_file import ResultFile, ResultStream, format_record
from runtime.prompts.result_format import OWN_FORMAT
from tests.support.answer_fakes import STATISTICS, echo
from tests.support.batch_files import chat_line, completion_line, write_lines
from tests.support.paths import ROOT

OWN_RESULT = PromptResult(id="a", line_number=1, finished=Finished("stop", "hi", STATISTICS))
OWN_LINE = format_record(OWN_RESULT.to_record()).encode() + b"\n"


@pytest.fixture
def batch(tmp_path):
    lines = (
        chat_line("a", "one"),
        chat_line("b", "two", n=3, temperature=1),
        completion_line("c", "thrée"),
        chat_line("d", functions=[{"name": "f"}]),
    )
    return write_lines(tmp_path / "batch.jsonl", *lines)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.jsonl"


def answer(batch, path, *, is_resumed=False, num_results=None, generate=echo):
    """Answer the batch up to so many results; return the ids of what was asked."""
    items, result_format = read_prompts_or_batch(batch, SamplingParams())
    asked = []

    def watched(request):
        asked.append(request.id)
        yield from generate(request)

    with ResultFile(path, is_resumed=is_resumed, result_format=result_format) as file:
        events = run_prompts(one_by_one(watched), pending_items(items, file.finished_ids))
        results = (event for event in events if isinstance(event, PromptResult))
        for _, result in zip(range(len(items) if num_results is None else num_results), results, strict=False):
            file.append(result)
    return asked


def records(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def custom_ids(path):
    return [record["custom_id"] for record in records(path)]


def test_a_line_with_several_choices_is_written_once_all_are_there(batch, path):
    answer(batch, path, num_results=3)
    assert custom_ids(path) == ["a"]
    asked = answer(batch, path, is_resumed=True)
    assert asked == ["b [0]", "b [1]", "b [2]", "c"], "what was not written of a line is answered anew"
    assert custom_ids(path) == ["a", "b", "c", "d"]
    assert [record["error"] is None for record in records(path)] == [True, True, True, False]
    assert answer(batch, path, is_resumed=True) == []
    assert custom_ids(path) == ["a", "b", "c", "d"]


def test_a_stream_gets_whole_lines_alone(batch):
    items, result_format = read_prompts_or_batch(batch, SamplingParams())
    stream = io.StringIO()
    writer = ResultStream(stream, result_format)
    counts = []
    for event in run_prompts(one_by_one(echo), items):
        if isinstance(event, PromptResult):
            writer.append(event)
            counts.append(stream.getvalue().count("\n"))
    assert counts == [1, 1, 1, 2, 3, 4]
    assert "thrée".upper() in stream.getvalue()


@pytest.mark.parametrize("tail", [b"", b"\0" * 64], ids=["killed", "power cut"])
def test_resume_repairs_a_last_line_cut_anywhere(batch, path, monkeypatch, tail):
    answer(batch, path, num_results=5)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # 1,000 of them take seconds
    first, second, last = path.read_bytes().splitlines(keepends=True)
    cut = last[:-1] + tail
    items, result_format = read_prompts_or_batch(batch, SamplingParams())
    for num_bytes in range(len(cut) + 1):
        path.write_bytes(first + second + cut[:num_bytes])
        is_whole = num_bytes == len(last) - 1
        with ResultFile(path, is_resumed=True, result_format=result_format) as file:
            assert set(file.finished_ids) == {"a", "b [0]", "b [1]", "b [2]"} | ({"c"} if is_whole else set())
            pending = [item.id for item in pending_items(items, file.finished_ids)]
            assert pending == (["d"] if is_whole else ["c", "d"])
        assert path.read_bytes() == first + second + (last if is_whole else b"")


def test_results_of_the_other_kind_are_refused_in_one_sentence_and_nothing_is_changed(batch, path):
    answer(batch, path, num_results=5)
    content = path.read_bytes()
    with pytest.raises(OptionError) as caught:
        ResultFile(path, is_resumed=True, result_format=OWN_FORMAT)
    assert str(caught.value) == (
        f"{path} holds results in OpenAI's batch format, and this prompt file gives results in overstory's own "
        "format; give another --output"
    )
    assert path.read_bytes() == content
    for content in (OWN_LINE, OWN_LINE[:-1], OWN_LINE + OWN_LINE[:20]):
        path.write_bytes(content)
        with pytest.raises(OptionError, match="holds results in overstory's own format, and this prompt file gives"):
            answer(batch, path, is_resumed=True)
        assert path.read_bytes() == content


def test_a_line_that_is_no_result_is_named_and_nothing_is_changed(batch, path):
    answer(batch, path, num_results=1)
    content = path.read_bytes() + batch.read_bytes()
    path.write_bytes(content)
    with pytest.raises(OptionError, match="line 2 is not a result of an earlier run; remove that line"):
        answer(batch, path, is_resumed=True)
    assert path.read_bytes() == content


def test_what_the_api_itself_answered_counts_and_what_it_refused_is_asked_here(batch, path):
    """Its output file of a batch that expired is gone on with like one of ours."""
    body = {"id": "chatcmpl-1", "choices": [], "usage": {}}
    response = {"status_code": 200, "request_id": "x", "body": body}
    answered = {"id": "batch_req_1", "custom_id": "b", "response": response, "error": None}
    refused = {**answered, "custom_id": "a", "response": {**response, "status_code": 429}}
    expired = {**answered, "custom_id": "c", "response": None, "error": {"code": "batch_expired", "message": "late"}}
    write_lines(path, *(json.dumps(each, separators=(",", ":")) for each in (answered, refused, expired)))
    assert answer(batch, path, is_resumed=True) == ["a", "c"]
    assert custom_ids(path) == ["b", "a", "c", "d"]


SHUFFLED_RUN = """
import random, sys, time
from pathlib import Path
from runtime.config import SamplingParams
from runtime.events import Finished, GenerationStatistics
from runtime.prompts.headless import PromptResult, pending_items
from runtime.prompts.openai_batch import read_prompts_or_batch
from runtime.prompts.result_file import ResultFile
from runtime.prompts.result_order import InputOrder

batch, path, seed, is_in_order = sys.argv[1:]
random.seed(int(seed))
items, result_format = read_prompts_or_batch(batch, SamplingParams())
statistics = GenerationStatistics.total([])
with ResultFile(Path(path), is_resumed=True, result_format=result_format) as file:
    waiting = pending_items(items, file.finished_ids)
    results = InputOrder(file, waiting) if is_in_order else file
    print("begun", flush=True)
    under_way = []
    while waiting or under_way:
        while waiting and len(under_way) < 7:
            under_way.append(waiting.pop(0))
        item = under_way.pop(random.randrange(len(under_way)))
        time.sleep(0.001)
        finished = Finished("stop", item.prompt.upper() + item.id, statistics)
        results.append(PromptResult(id=item.id, line_number=item.line_number, finished=finished))
"""


@pytest.mark.parametrize("is_in_order", [False, True], ids=["as they finish", "in order"])
def test_killed_at_random_moments_with_many_prompts_under_way(tmp_path, path, is_in_order, pytestconfig):
    """40 times with `--fuzz 1`: every line is there once, whole, with the text that it has alone."""
    source = random.Random(11)
    names = [f"no. {number}" for number in range(300)]
    batch = write_lines(
        tmp_path / "batch.jsonl", *(completion_line(name, f"{name}: ", n=2, temperature=1) for name in names)
    )
    arguments = [sys.executable, "-c", SHUFFLED_RUN, str(batch), str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    num_kills = 40 // min(5, pytestconfig.getoption("fuzz"))
    for seed in range(num_kills):
        command = [*arguments, str(seed), "x" * is_in_order]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout.readline() == b"begun\n"
            time.sleep(source.random() * 0.5 / num_kills)
            process.kill()
        with path.open("ab") as torn:  # as where the power went, too
            torn.write(b'{"id": "batch_req_5", "cus'[: source.randint(0, 26)])
    assert 0 < len(path.read_bytes().splitlines()) < len(names)
    subprocess.run([*arguments, "99", "x" * is_in_order], env=environment, check=True, stdout=subprocess.DEVNULL)
    assert (custom_ids(path) if is_in_order else sorted(custom_ids(path), key=names.index)) == names
    for record in records(path):
        name, choices = record["custom_id"], record["response"]["body"]["choices"]
        assert [choice["text"] for choice in choices] == [f"NO. {name[4:]}: {name} [{index}]" for index in (0, 1)]


KILLED_RUN = """
import sys
from pathlib import Path
from runtime.config import SamplingParams
from runtime.prompts.headless import PromptResult, one_by_one, run_prompts
from runtime.prompts.openai_batch import read_prompts_or_batch
from runtime.prompts.result_file import ResultFile
from tests.support.answer_fakes import echo

def generate(request):
    if request.id == "b [1]":
        print("answering the second choice", flush=True)
        sys.stdin.read()  # until somebody kills this process
    yield from echo(request)

items, result_format = read_prompts_or_batch(sys.argv[1], SamplingParams())
with ResultFile(Path(sys.argv[2]), is_resumed=False, result_format=result_format) as results:
    for event in run_prompts(one_by_one(generate), items):
        if isinstance(event, PromptResult):
            results.append(event)
"""


def test_kill_9_between_two_choices_leaves_their_line_unanswered(batch, path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_RUN, str(batch), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with process:
        assert process.stdout.readline() == b"answering the second choice\n"
        process.kill()
    assert custom_ids(path) == ["a"]
    assert answer(batch, path, is_resumed=True)[0] == "b [0]"
    assert sorted(custom_ids(path)) == ["a", "b", "c", "d"]
