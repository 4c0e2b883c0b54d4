"""The random model is one that the engine and transformers read."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from runtime.bench.card.random_model import write_random_llama
from runtime.bench.card.setting import SMALL
from runtime.config import EngineConfig
from runtime.engine.loading import open_session
from tests.support.session_factory import request


def written(folder: Path) -> Path:
    return write_random_llama(folder, SMALL.target, num_layers=2, vocab_size=300, max_positions=64, seed=1)


def test_a_session_answers_with_it(tmp_path: Path) -> None:
    with open_session(EngineConfig(target=str(written(tmp_path)), draft="none", context_tokens=48)) as opened:
        assert len(opened.session.format_prompt(request("abc"))) == 3
        *_, finished = opened.session.generate(request("abc", max_new_tokens=5))
    assert finished.statistics.new_tokens == 5


def test_transformers_finds_every_weight(tmp_path: Path) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(written(tmp_path), output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()


def test_its_weights_begin_eight_bytes_behind_a_multiple_of_sixteen(tmp_path: Path) -> None:
    header_bytes = int(np.fromfile(written(tmp_path) / "model.safetensors", dtype="<u8", count=1)[0])
    assert (8 + header_bytes) % 16 == 8
