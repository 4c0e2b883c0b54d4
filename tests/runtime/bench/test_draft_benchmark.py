import json
from pathlib import Path

import numpy as np
import pytest
import torch

from offload.copying.host_engine import HostCopyEngine
from profiles.steps import finish
from runtime.bench.draft_benchmark import (
    AnsweredPrompt,
    DraftFormatReport,
    DraftReport,
    greedy_hits,
    run_draft_benchmark,
)
from runtime.engine_config import EngineConfig
from runtime.errors import OptionError
from runtime.model.model_loader import ComputePlan, EmptyModel, ModelFiles, read_others
from tests.support.quantized_factory import save_quantized_folder
from tests.support.session_factory import CONTEXT_TOKENS, request, save_tiny_folder

PROMPTS = [request(max_new_tokens=12), request("in the end", max_new_tokens=12, temperature=1.0)]


def measured(config: EngineConfig, cache_folder: Path) -> DraftReport:
    *steps, report = run_draft_benchmark(config, PROMPTS, cache_folder=cache_folder, num_repeats=1)
    assert isinstance(report, DraftReport)
    assert tuple(step for step in steps if isinstance(step, DraftFormatReport)) == report.formats
    return report


def config_of(target: Path, draft: Path | str, draft_format: str = "auto") -> EngineConfig:
    return EngineConfig(
        target=str(target), draft=str(draft), tree="6x3", draft_format=draft_format, context_tokens=CONTEXT_TOKENS
    )


def test_a_draft_that_is_the_target_is_right_at_once_every_time(tmp_path: Path) -> None:
    """The exact oracle: held as stored, its likeliest token is the target's."""
    target = save_tiny_folder(tmp_path / "target", seed=37)
    report = measured(config_of(target, target), tmp_path)
    assert [item.held for item in report.formats] == ["int8", "nf4", "stored"]
    stored = report.formats[-1]
    assert stored.acceptance == (1.0, 0.0, 0.0, 0.0, 0.0)
    assert stored.num_positions == 24
    assert [step.width for step in stored.steps] == [1, 4, 8, 16]
    assert all(0 < step.fastest_seconds <= step.seconds for item in report.formats for step in item.steps)
    assert sum(report.formats[1].acceptance) <= 1.0 + 1e-9
    record = json.loads(json.dumps(report.to_record()))
    assert record["draft"] == "target" and record["formats"][0]["held"] == "int8"


def test_a_substitute_is_measured_in_the_formats_that_it_can_have(tmp_path: Path) -> None:
    target = save_tiny_folder(tmp_path / "target", seed=37)
    assert [item.held for item in measured(config_of(target, "substitute"), tmp_path).formats] == ["int8", "nf4"]
    assert [item.held for item in measured(config_of(target, "substitute", "nf4"), tmp_path).formats] == ["nf4"]
    quantized = save_quantized_folder(tmp_path / "quantized", "nf4")
    report = measured(config_of(quantized, "substitute"), tmp_path)
    assert [item.held for item in report.formats] == ["stored"]
    assert report.formats[0].acceptance[0] > 0.9  # the same weights, by kernels that may round


def test_hits_are_ranks_in_the_drafts_own_order(tmp_path: Path) -> None:
    files = ModelFiles.open(save_tiny_folder(tmp_path / "model", seed=3))
    with HostCopyEngine() as engine:
        empty = EmptyModel.build(files, ComputePlan(torch.float32), others=read_others(files, engine))
        model = finish(empty.resident(files.slabs, engine, capacity=32))
    prompt = [5, 17, 40]
    plain = np.array(list(greedy_hits(model, AnsweredPrompt((*prompt, 8, 9), 3), num_ranks=96)))
    assert plain.shape == (2, 96) and (plain.sum(axis=1) == 1).all()
    ranked = [int(row.argmax()) for row in plain]
    assert ranked != [0, 0]
    few = np.array(list(greedy_hits(model, AnsweredPrompt((*prompt, 8, 9), 3), num_ranks=5)))
    assert (few == plain[:, :5]).all()


def test_without_a_draft_or_prompts_there_is_nothing_to_measure(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--draft none"):
        list(run_draft_benchmark(EngineConfig(draft="none"), PROMPTS, cache_folder=tmp_path))
    with pytest.raises(OptionError, match="no prompt"):
        list(run_draft_benchmark(EngineConfig(), [], cache_folder=tmp_path))
