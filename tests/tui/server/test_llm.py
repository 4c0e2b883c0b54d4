"""`llm`, a client for the command line, against a server with a tiny model: streamed, whole, and of a conversation."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.served import Served

GREEDY = ["-o", "temperature", "0", "-o", "max_tokens", "12", "-o", "logit_bias", '{"2": -100}']


@pytest.fixture
def settings(tiny: Served, tmp_path: Path) -> dict[str, str]:
    """What its documentation says of servers that speak OpenAI's API."""
    lines = ("- model_id: ours", "  model_name: any", f"  api_base: {tiny.url}/v1")
    (tmp_path / "extra-openai-models.yaml").write_text("\n".join(lines) + "\n")
    return {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "any"}


def llm(settings: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "llm", "-m", "ours", *arguments]
    return subprocess.run(program, env=settings, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)


def test_an_answer_and_the_next_one_of_its_conversation(tiny: Served, settings: dict[str, str]) -> None:
    first = llm(settings, "the cat", *GREEDY, "--usage")
    asked = [{"role": "user", "content": "the cat"}]
    body = {"temperature": 0, "max_tokens": 12, "logit_bias": {"2": -100}}
    expected = tiny.client().chat.completions.create(model="any", messages=asked, **body)
    text = expected.choices[0].message.content
    assert first.stdout == f"{text}\n", first.stderr
    assert f"{expected.usage.prompt_tokens} input, 12 output" in first.stderr
    second = llm(settings, "a dog", *GREEDY, "--continue", "--no-stream", "--usage")
    turns = [*asked, {"role": "assistant", "content": text}, {"role": "user", "content": "a dog"}]
    expected = tiny.client().chat.completions.create(model="any", messages=turns, **body)
    assert second.stdout == f"{expected.choices[0].message.content}\n", second.stderr
    assert re.search(rf"\b{expected.usage.prompt_tokens} input", second.stderr)


def test_what_is_refused_is_a_sentence_there_too(settings: dict[str, str]) -> None:
    refused = llm(settings, "the cat " * 100, *GREEDY)
    assert refused.returncode != 0 and refused.stdout == ""
    assert "the context holds 128" in refused.stderr and "Traceback" not in refused.stderr
