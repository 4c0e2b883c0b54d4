"""Layers of both kinds are timed in passes over the same trees; a model without one of them is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from profiles.steps import finish
from runtime.bench.hybrid import run_hybrid, write_random_layers
from runtime.config import EngineConfig
from runtime.engine.loading import open_session
from runtime.errors import OptionError
from runtime.fit.models import find_model
from runtime.fit.shapes import ModelShape
from tests.support.session_factory import save_tiny_folder


def small_shape() -> ModelShape:
    shape = find_model("qwen3.5-27b", what="the model")
    assert shape.recurrence is not None
    delta = replace(shape.recurrence.delta, num_key_heads=2, num_heads=6, key_width=8, value_width=8)
    sizes = {"hidden_size": 32, "inner_size": 64, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
    return replace(shape, recurrence=replace(shape.recurrence, delta=delta), **sizes)


def config_of(folder: Path, context_tokens: int = 64) -> EngineConfig:
    return EngineConfig(target=str(folder), draft="none", context_tokens=context_tokens)


def test_transformers_finds_every_weight(tmp_path: Path) -> None:
    folder = write_random_layers(tmp_path, small_shape(), max_positions=64)
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.isfinite(model(torch.tensor([[10, 20, 30]])).logits).all()


def test_each_tree_is_measured_in_each_turn(tmp_path: Path) -> None:
    folder, said = write_random_layers(tmp_path, small_shape(), max_positions=128), list[str]()
    with open_session(config_of(folder, 128)) as opened:
        steps = run_hybrid(opened, node_counts=[4, 16], text_tokens=40, num_turns=2)
        record = finish(steps, said.append)
        assert opened.session.engine.target.cache.num_cached == 0
    assert json.loads(json.dumps(record)) == record
    assert len(said) == 4
    assert [tree["num_nodes"] for tree in record["trees"]] == [4, 16]
    for tree in record["trees"]:
        for kind in ("recurrent", "attention"):
            assert 0 < tree[f"{kind}_mixer_seconds"] < tree[f"{kind}_layer_seconds"]
        assert tree["layer_ratio"] > 0 and tree["mixer_ratio"] > 0 and tree["counted_bytes"] > 0


def test_a_model_whose_layers_all_attend_is_refused(tmp_path: Path) -> None:
    with (
        open_session(config_of(save_tiny_folder(tmp_path / "target"))) as opened,
        pytest.raises(OptionError, match="no layer of the kind recurrent; give a hybrid such as"),
    ):
        finish(run_hybrid(opened, node_counts=[4], text_tokens=40, num_turns=1))


def test_a_context_that_does_not_hold_the_tree_is_refused(tmp_path: Path) -> None:
    folder = write_random_layers(tmp_path, small_shape(), max_positions=64)
    with (
        open_session(config_of(folder)) as opened,
        pytest.raises(OptionError, match=r"need a context of 70, and it holds 64; give a larger --context"),
    ):
        finish(run_hybrid(opened, node_counts=[30], text_tokens=40, num_turns=1))
