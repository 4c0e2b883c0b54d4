"""A link as slow as asked for, plain streaming on it, and trees beside it, on a tiny model."""

import json
from pathlib import Path

import pytest

from profiles.steps import finish
from runtime.bench.ratio import run_ratio
from runtime.config import EngineConfig
from runtime.errors import OptionError
from tests.support.session_factory import CONTEXT_TOKENS, request, save_tiny_folder

PROMPTS = [request(max_new_tokens=24), request("in the end", max_new_tokens=24)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model") / "target", seed=37)


def config_of(folder: Path, **options: str) -> EngineConfig:
    choices = {"draft": str(folder), "draft_format": "stored", "tree": "12x12"} | options
    return EngineConfig(target=str(folder), context_tokens=CONTEXT_TOKENS, **choices)  # type: ignore[arg-type]


def test_a_draft_that_is_never_wrong_gains_nearly_a_tree_of_tokens(folder: Path) -> None:
    """The target drafts for itself in a chain of 12: 12 tokens a pass, less what drafting takes."""
    said = list[str]()
    steps = run_ratio(config_of(folder), PROMPTS, temperatures=(0.0,), steps_per_pass=40)
    report = finish(steps, said.append)
    (run,) = report["runs"]
    assert said[-1] == f"temperature 0: {run['speedup']:.2f}x as fast as plain streaming"
    assert report["steps_per_pass"] > 36  # the link is as slow as asked for, and the pass no faster
    assert float(report["link"].removesuffix("B/s")) == pytest.approx(
        report["bytes_per_pass"] / (40 * report["draft_step_seconds"]), rel=0.01
    )
    assert run["tree"] == "12x12"
    assert (run["num_tokens"], run["tokens_per_round"]) == (48, 12.0)
    assert run["published_speedup"] == 9.5
    assert run["speedup"] == pytest.approx(report["plain_seconds_per_token"] / run["seconds_per_token"])
    assert run["speedup"] > 1.5  # 8 or so on quiet cores
    assert run["shares"][run["bound"]] == max(run["shares"].values())
    json.dumps(report, allow_nan=False)


def test_answers_that_end_within_their_first_round_are_a_sentence(folder: Path) -> None:
    short = [request(max_new_tokens=2)]
    with pytest.raises(OptionError, match="--max-new-tokens"):
        list(run_ratio(config_of(folder), short, temperatures=(0.0,), steps_per_pass=1))
