"""Folders that transformers saved in formats of bitsandbytes, from opening to text, beside its own forward."""

from pathlib import Path

import pytest
import torch

from runtime.model.model_loader import ModelFiles
from runtime.model.streamed_model import chain_input
from tests.support.quantized_factory import FORMATS, dequantized_model, save_quantized_folder
from tests.support.session_factory import answer, open_tiny, request

TOKENS = [5, 17, 40, 8, 33, 62, 9, 71, 20, 14, 55]


@pytest.fixture(params=list(FORMATS), scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_quantized_folder(tmp_path_factory.mktemp("model"), request.param)


def test_streamed_logits_equal_transformers_own_of_the_dequantized_weights(folder: Path) -> None:
    """Three passes of different width: the format decides the result, not how many rows are multiplied at once."""
    with torch.inference_mode():
        expected = dequantized_model(folder)(torch.tensor([TOKENS])).logits[0]
    with open_tiny(folder, num_residents=1) as opened:
        target = opened.session.engine.target
        passes = [
            target.run_pass(chain_input(TOKENS[a:b], num_cached=a)) for a, b in ((0, 6), (6, 7), (7, len(TOKENS)))
        ]
        logits = target.logits(torch.cat(passes))
        assert opened.placement.num_disk_layers > 3
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_greedy_text_is_the_same_with_a_tree_as_without(folder: Path) -> None:
    texts = []
    for options in ({"draft": "none"}, {"draft": "substitute", "tree": "12x5"}, {"draft": "substitute", "tree": "3x3"}):
        with open_tiny(folder, num_residents=1, **options) as opened:
            texts.append(answer(opened, request())[1])
    assert texts[1] == texts[0] and texts[2] == texts[0]


def test_a_quantized_layer_is_a_smaller_slab_of_the_files_bytes(folder: Path) -> None:
    quantized, dense = ModelFiles.open(folder), ModelFiles.open(folder.parent / "dense")
    assert max(quantized.payload_bytes) < 0.75 * min(dense.payload_bytes)
    assert all(formats.keys() >= {"mlp.down_proj.weight", "self_attn.q_proj.weight"} for formats in quantized.formats)
    assert all(layout.is_phase_aligned for layout in quantized.layouts)


@pytest.mark.parametrize("name", ["nf4 nested", "int8"])
def test_a_quantized_head_outside_the_layers_is_read_too(name: str, tmp_path: Path) -> None:
    folder = save_quantized_folder(tmp_path, name, llm_int8_skip_modules=["q_proj"])
    files = ModelFiles.open(folder)
    assert "self_attn.q_proj.weight" not in files.formats[0]
    with torch.inference_mode():
        expected = dequantized_model(folder)(torch.tensor([TOKENS])).logits[0]
    with open_tiny(folder) as opened:
        target = opened.session.engine.target
        logits = target.logits(target.run_pass(chain_input(TOKENS, num_cached=0)))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_codes_that_are_stored_as_another_type_are_the_same_bytes(tmp_path: Path) -> None:
    """Folders made for sharded training keep the codes as bfloat16."""
    folder = save_quantized_folder(tmp_path, "nf4", bnb_4bit_quant_storage=torch.bfloat16)
    files = ModelFiles.open(folder)
    assert "BF16" in {entry.dtype for name, entry in files.checkpoint.tensors.items() if name.endswith("q_proj.weight")}
    with torch.inference_mode():
        expected = dequantized_model(folder)(torch.tensor([TOKENS])).logits[0]
    with open_tiny(folder) as opened:
        target = opened.session.engine.target
        logits = target.logits(target.run_pass(chain_input(TOKENS, num_cached=0)))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
