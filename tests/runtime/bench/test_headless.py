"""Many prompts at a time beside one at a time, on a tiny model over a slow link."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from profiles.steps import finish
from runtime.bench.headless import run_headless
from runtime.config import EngineConfig
from runtime.errors import OptionError
from tests.support.session_factory import CONTEXT_TOKENS, request, save_tiny_folder

PROMPTS = [replace(request(max_new_tokens=8, banned_tokens=(2,)), id=str(number)) for number in range(4)]


def test_passes_that_many_share_bring_as_many_times_the_tokens(tmp_path: Path) -> None:
    """The link takes nearly all of the time, so that a pass of four takes about as long as a pass of one."""
    folder = save_tiny_folder(tmp_path / "target", seed=37)
    config = EngineConfig(
        target=str(folder),
        draft=str(folder),
        draft_format="stored",
        tree="4x4",
        context_tokens=CONTEXT_TOKENS,
        device_memory_bytes=0,
        num_texts=8,
    )
    said = list[str]()
    report = finish(
        run_headless(config, PROMPTS, counts=[4], num_alone=1, plain_tokens=6, steps_per_pass=60), said.append
    )
    assert json.loads(json.dumps(report)) == report
    assert said[-1].startswith("plain, 4 prompts together: ")
    plain, tree = (report["together"]["4"][name] for name in ("plain", "tree"))
    alone = report["alone"]["plain"]
    assert (alone["num_prompts"], alone["num_texts"], alone["tokens_per_pass"]) == (1, 1, 1.0)
    assert (plain["num_prompts"], plain["num_texts"], plain["num_tokens"]) == (4, 4, 24)
    assert tree["num_tokens"] == 32
    assert plain["tokens_per_pass"] == 4.0 and plain["bound"] == "link"
    assert tree["tokens_per_pass"] == 16.0  # of a draft that is never wrong
    assert 2 < plain["tokens_per_second"] / alone["tokens_per_second"] < 6
    with pytest.raises(OptionError, match="the file has 4"):
        finish(run_headless(config, PROMPTS, counts=[5]))
