"""The default model, streamed for real: the text of a tree of drafts is the target's own, token for token."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from runtime.config import EngineConfig, SamplingParams
from runtime.engine.loading import OpenSession, open_session
from runtime.prompts.prompt_file import PromptRequest, read_prompts
from tests.support.session_factory import answer
from tui.environment import packaged_prompts

pytestmark = pytest.mark.real

PROMPTS = packaged_prompts("demo.jsonl")
NUM_TOKENS = 24
TIE = 1e-4
CONFIG = EngineConfig(context_tokens=160)


@pytest.fixture(scope="module")
def questions() -> list[PromptRequest]:
    """The first two example prompts, cut short."""
    requests = [item for item in read_prompts(PROMPTS, SamplingParams()) if isinstance(item, PromptRequest)]
    return [replace(item, params=replace(item.params, max_new_tokens=NUM_TOKENS)) for item in requests[:2]]


@pytest.fixture(scope="module")
def tree_session(demo_folder: Path) -> Iterator[OpenSession]:
    """Every layer streamed from disk, substitute draft."""
    with open_session(replace(CONFIG, target=str(demo_folder), tree="24x8", device_memory_bytes=0)) as opened:
        yield opened


@pytest.mark.slow
def test_the_tree_writes_what_plain_streaming_writes(
    tree_session: OpenSession, demo_folder: Path, questions: list[PromptRequest]
) -> None:
    assert tree_session.placement.num_disk_layers == 30
    with open_session(replace(CONFIG, target=str(demo_folder), draft="none", device_memory_bytes=0)) as plain:
        for question in questions:
            expected, expected_tokens = answer(plain, question)
            found, found_tokens = answer(tree_session, question)
            assert found_tokens == expected_tokens
            assert found.text == expected.text
            assert expected.statistics.tokens_per_round == 1
            assert found.statistics.tokens_per_round > 3
            assert found.statistics.bytes_streamed < expected.statistics.bytes_streamed / 3


def test_the_text_is_that_of_transformers_own_generate(
    tree_session: OpenSession, demo_folder: Path, questions: list[PromptRequest]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(demo_folder, dtype=torch.float32)
    prompt = tree_session.session.format_prompt(questions[0])
    _, tokens = answer(tree_session, questions[0])
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    for row, token in zip(logits, tokens, strict=True):
        best = row.topk(2).values
        assert token == int(row.argmax()) or best[0] - best[1] < TIE


@pytest.mark.slow
def test_sampled_text_is_reproducible_and_varies_with_the_seed(
    tree_session: OpenSession, questions: list[PromptRequest]
) -> None:
    texts = []
    for seed in (1, 1, 2):
        params = replace(questions[0].params, temperature=0.9, top_p=0.95, seed=seed)
        texts.append(answer(tree_session, replace(questions[0], params=params))[0].text)
    assert texts[0] == texts[1] != texts[2]
