"""Scores of hybrids through every door that gives them: the command line, the server, and lm-evaluation-harness.

Beside transformers' own logits of each text alone; `test_harness.py` has lm_eval itself.
"""

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.runtime.scoring.test_evaluation import Model, ask, log_likelihood
from tests.support.hybrids import save_hybrid
from tests.support.reference_models import greedy_reference, own_logits
from tests.support.served import served, tiny_load
from tui import cli

CONTEXT = "the cat and the dog in a pan, then"
TEXTS = [
    (CONTEXT, " the hen"),
    (CONTEXT, " one other thing"),
    (CONTEXT + " one", " other thin tin"),
    ("the cat", " and the dog on a mat"),
    ("", "an other thing"),
]


@functools.cache
def tokenizer_of(folder: Path) -> Any:
    """The one of transformers, which for Qwen3.5 has a class of its own."""
    return AutoTokenizer.from_pretrained(folder)


def token_ids(folder: Path, text: str) -> list[int]:
    found: list[int] = tokenizer_of(folder)(text)["input_ids"]
    return found


def by_transformers(folder: Path, context: str, continuation: str) -> tuple[float, bool]:
    before = token_ids(folder, context)
    after = token_ids(folder, context + continuation)[len(before) :]
    return log_likelihood(folder, (before or [1]) + after, len(after))


@pytest.fixture(scope="module", params=["qwen3_5", "olmo_hybrid"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hybrid(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.mark.parametrize("memory", ["0", "1GB"])
def test_the_command_line_scores_as_transformers_does(
    memory: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"context": first, "continuation": rest}) for first, rest in TEXTS))
    options = ["--target", str(folder), "--device", "cpu", "--device-memory", memory]
    assert cli.execute(["score", str(file), *options]) == 0
    results = sorted(map(json.loads, capsys.readouterr().out.splitlines()), key=lambda result: result["line"])
    assert len(results) == len(TEXTS)
    for result, text in zip(results, TEXTS, strict=True):
        expected, is_greedy = by_transformers(folder, *text)
        assert result["log_likelihood"] == pytest.approx(expected, abs=1e-4)
        assert result["is_greedy"] == is_greedy


def test_the_server_echoes_prompts_with_transformers_log_probabilities(folder: Path) -> None:
    prompts = [token_ids(folder, context + continuation) for context, continuation in TEXTS]
    with served(tiny_load(folder)) as running:
        body = {"model": "any", "prompt": prompts, "echo": True, "logprobs": 3, "max_tokens": 1, "temperature": 0}
        answer = running.client().completions.create(**body)
        alone = running.client().completions.create(**body | {"prompt": prompts[0], "max_tokens": 0})
    for choice, ids in zip(answer.choices, prompts, strict=True):
        rows = own_logits(folder, ids).log_softmax(dim=-1)
        chosen = [*ids[1:], int(rows[-1].argmax())]
        logprobs = choice.logprobs
        assert logprobs.token_logprobs[0] is None
        assert logprobs.token_logprobs[1:] == pytest.approx(
            [float(row[token]) for row, token in zip(rows, chosen, strict=True)], abs=1e-4
        )
        for found, row in zip(logprobs.top_logprobs[1:], rows, strict=True):
            assert sorted(found.values())[-3:] == pytest.approx(sorted(row.topk(3).values.tolist()), abs=1e-4)
    first = answer.choices[0].logprobs.token_logprobs
    assert alone.choices[0].logprobs.token_logprobs[1:] == pytest.approx(first[1:-1], abs=1e-4)


def test_evaluations_get_what_transformers_computes(folder: Path) -> None:
    """Choices, a text that is longer than the window, and what is written behind a context."""
    window = 48
    text = "the cat and the dog, then one other thing: 12 hats in a pan. " * 4
    with Model(str(folder), max_length=window, max_gen_toks=6, draft="none", device="cpu") as model:
        choices = model.loglikelihood([ask(*each) for each in TEXTS])
        (rolling,) = model.loglikelihood_rolling([ask(text)])
        (written,) = model.generate_until([ask(CONTEXT, {"until": [], "do_sample": False})])
    for found, each in zip(choices, TEXTS, strict=True):
        expected, is_greedy = by_transformers(folder, *each)
        assert found == (pytest.approx(expected, abs=1e-4), is_greedy)
    ids = [1, *token_ids(folder, text)]
    assert len(ids) > 2 * window, "in several windows"
    parts = []
    for start in range(1, len(ids), window):
        stop = min(start + window, len(ids))
        parts.append(log_likelihood(folder, ids[max(0, stop - window - 1) : stop], stop - start)[0])
    assert rolling == pytest.approx(math.fsum(parts), abs=1e-3)
    greedy, gaps = greedy_reference(folder, tuple(token_ids(folder, CONTEXT)), 6)
    assert min(gaps) > 1e-4, "no tie, so that the text is the only one"
    assert written == tokenizer_of(folder).decode(greedy, skip_special_tokens=True)
