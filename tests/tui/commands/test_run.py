import io
import json
from dataclasses import replace

from runtime.events import Finished
from runtime.prompts.headless import PromptResult, one_by_one, run_prompts
from runtime.prompts.prompt_file import BadLine, Message, PromptRequest
from tests.support.answer_fakes import echo, statistics
from tests.support.thinking_models import save_thinking_folder
from tui.cli import execute
from tui.commands.run import Comparison, show_answers


def result(text, verification="greedy", **costs):
    finished = Finished("stop", text, statistics(**costs), verification=verification)
    return PromptResult(id="a", line_number=1, finished=finished)


FAILED = PromptResult(id="a", line_number=1, error="no")


def test_two_lines_compare_the_costs():
    plain = [result("one", decode_seconds=6.0, rounds=8), result("two", decode_seconds=6.0, rounds=8)]
    tree = [result("one"), result("other")]
    assert Comparison.of(plain, tree).lines() == (
        "plain  1.00 s/token   1.00 tokens/pass   8.00 MB streamed   link 40 % busy",
        "tree   0.5 s/token   2.00 tokens/pass   8.00 MB streamed   link 80 % busy   "
        "2.00x as fast, 1 of 2 texts identical",
    )


def test_only_lines_that_both_answered_are_compared():
    comparison = Comparison.of([result("one"), FAILED, result("three")], [FAILED, FAILED, result("three")])
    assert (comparison.num_answered, comparison.num_identical, comparison.num_errors) == (1, 1, 2)
    assert comparison.plain_total == statistics()


def test_nothing_answered_is_no_division_by_zero():
    comparison = Comparison.of([FAILED], [FAILED])
    assert comparison.speedup is None
    assert comparison.lines()[1].endswith("0 of 0 texts identical")
    json.dumps(comparison.to_record(), allow_nan=False)


def test_the_record_has_both_costs_and_the_verdict():
    record = Comparison.of([result("one")], [result("one", decode_seconds=1.5)]).to_record()
    assert record["speedup"] == 2.0
    assert (record["num_answered"], record["num_identical"], record["num_errors"]) == (1, 1, 0)
    assert record["num_fixed"] == 1
    assert record["plain"]["seconds_per_token"] == 0.5
    assert record["tree"]["decode_bytes_streamed"] == 3_000_000


def items(*texts):
    return [PromptRequest(id=f"{i}", messages=(Message("user", text),)) for i, text in enumerate(texts)]


def test_answers_are_shown_as_they_come_without_terminal_escapes():
    out = io.StringIO()
    prompts = [*items("hello\x1b[2J\nworld"), BadLine(2, "2", "line 2: bad\x1b[1m")]
    results = show_answers(run_prompts(one_by_one(echo), prompts), out, num_prompts=2)
    assert len(results) == 2
    shown = out.getvalue()
    assert "[1/2] 0: hello world\nHELLO\nWORLD\n" in shown
    assert "error: line 2: bad" in shown
    assert "\x1b" not in shown and "identical" not in shown


def test_each_answer_is_marked_against_the_earlier_one():
    plain = [result("ONE"), result("something else"), FAILED]
    out = io.StringIO()
    show_answers(run_prompts(one_by_one(echo), items("one", "two", "three")), out, num_prompts=3, earlier=plain)
    verdicts = [line for line in out.getvalue().splitlines() if line.startswith("  (")]
    assert "   identical)" in verdicts[0]
    assert "DIFFERS from plain streaming" in verdicts[1]
    assert "identical" not in verdicts[2] and "DIFFERS" not in verdicts[2]


def test_only_texts_that_the_seed_decides_are_expected_to_be_identical():
    plain = [result("a"), result("b", "coupled"), result("c", "sequoia"), result("d", "sequoia")]
    tree = [result("a"), result("B", "coupled"), result("c", "sequoia"), result("D", "sequoia")]
    comparison = Comparison.of(plain, tree)
    assert comparison.lines()[1].endswith("1 of 2 texts identical, 2 texts sampled anew")
    assert (comparison.to_record()["num_fixed"], comparison.num_identical) == (2, 1)
    assert Comparison.of(plain[2:], tree[2:]).lines()[1].endswith("as fast, 2 texts sampled anew")


def test_another_sample_is_not_called_a_difference():
    def sampled(request):
        *events, finished = echo(request)
        yield from events
        yield replace(finished, verification="sequoia")

    out = io.StringIO()
    show_answers(
        run_prompts(one_by_one(sampled), items("one")), out, num_prompts=1, earlier=[result("other", "sequoia")]
    )
    assert "another sample (sequoia)" in out.getvalue()
    assert "DIFFERS" not in out.getvalue()


def test_a_result_has_its_thinking_beside_its_text(tmp_path, capsys):
    """The template begins the answer within thinking, which ends after three tokens."""
    folder, prompts = save_thinking_folder(tmp_path / "model"), tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "the cat", "thinking": true, "thinking_budget": 3}\n')
    options = ["--target", str(folder), "--draft", "none", "--max-new-tokens", "8", "--quiet"]
    assert execute(["run", str(prompts), *options]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}
    assert record["reasoning"] and record["text"] and record["tool_calls"] is None
    assert "think>" not in record["text"] + record["reasoning"]
