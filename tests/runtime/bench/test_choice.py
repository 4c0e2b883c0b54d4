"""The default beside fixed choices, on a tiny model whose link decides which is best."""

import json
from pathlib import Path

import pytest

from profiles.steps import finish
from runtime.bench.choice import CHAIN, TREES, run_choice
from runtime.config import EngineConfig
from runtime.errors import OptionError
from tests.support.session_factory import CONTEXT_TOKENS, request, save_tiny_folder

PROMPTS = [request(max_new_tokens=24), request("in the end", max_new_tokens=24)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model") / "target", seed=37)


def test_every_choice_answers_in_every_turn_and_the_default_stands_beside_the_best(folder: Path) -> None:
    """The target drafts for itself, so that on a slow link the widest trees take the fewest passes."""
    config = EngineConfig(
        target=str(folder),
        draft=str(folder),
        draft_format="stored",
        context_tokens=CONTEXT_TOKENS,
        device_memory_bytes=0,
        link="2MB/s",
    )
    said = list[str]()
    report = finish(run_choice(config, PROMPTS, draft=str(folder), num_turns=2), said.append)
    choices = {choice["choice"]: choice for choice in report["choices"]}
    assert list(choices) == ["default", "no draft", "chain", *TREES]
    assert choices["no draft"]["tokens_per_round"] == 1
    assert choices["chain"]["tokens_per_round"] == pytest.approx(int(CHAIN.split("x")[0]), abs=0.5)
    assert all(len(choice["by_turn"]) == 2 for choice in choices.values())
    assert report["num_tokens"] == 48
    others = [choice["seconds_per_token"] for name, choice in choices.items() if name != "default"]
    assert report["best"] != "no draft"
    assert report["default_over_best"] == pytest.approx(choices["default"]["seconds_per_token"] / min(others))
    assert report["is_within_tolerance"] == (report["default_over_best"] <= 1.03)
    assert [text.split(", ")[1].split(":")[0] for text in said[:3]] == ["default", "no draft", "chain"]
    assert said[8].startswith("turn 2, no draft"), "the second turn begins with the next choice"
    json.dumps(report, allow_nan=False)


def test_answers_that_end_within_their_first_round_are_a_sentence(folder: Path) -> None:
    config = EngineConfig(target=str(folder), draft="none", context_tokens=CONTEXT_TOKENS)
    with pytest.raises(OptionError, match="--max-new-tokens"):
        list(run_choice(config, [request(max_new_tokens=1)], draft=str(folder)))
