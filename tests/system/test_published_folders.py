"""Folders in the formats that models are published in, from opening to text, beside the same weights unpacked."""

from pathlib import Path

import pytest
import torch
from torch import nn

from offload.checkpoint.checkpoint import Checkpoint
from profiles.errors import BadInputError
from runtime.model.architecture import open_decoder
from runtime.model.model_loader import ModelFiles
from runtime.model.streamed_model import chain_input
from runtime.prepare.preparation import prepare_model
from tests.support.every_architecture import save_architecture
from tests.support.generator_ends import drained
from tests.support.published_factory import edit_settings, edit_tensors, publish, save_published_folder
from tests.support.published_weights import PUBLISHED
from tests.support.reference_models import assert_tree_is_its_paths, own_logits
from tests.support.session_factory import answer, open_tiny, request

TOKENS = [5, 17, 40, 8, 33, 62, 9, 71, 20, 14, 55]
MODELS = ("llama", "qwen2", "mistral", "qwen3")


def logits_of(folder: Path) -> torch.Tensor:
    with open_tiny(folder, num_residents=1) as opened:
        target = opened.session.engine.target
        passes = [
            target.run_pass(chain_input(TOKENS[a:b], num_cached=a)) for a, b in ((0, 6), (6, 7), (7, len(TOKENS)))
        ]
        return target.logits(torch.cat(passes))


@pytest.mark.parametrize(("index", "kind"), list(enumerate(PUBLISHED)))
def test_streamed_logits_equal_those_of_the_unpacked_weights(index: int, kind: str, tmp_path: Path) -> None:
    """Three passes of different width, on models with and without biases and windows."""
    published, dense = save_published_folder(tmp_path, kind, model=MODELS[index % len(MODELS)], seed=index)
    torch.testing.assert_close(logits_of(published), own_logits(dense, TOKENS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "model"), [("fp8 tensor", "mistral3"), ("compressed fp8 blocks", "gemma3")])
def test_the_text_part_of_a_quantized_image_text_model(kind: str, model: str, tmp_path: Path) -> None:
    """As Mistral Medium is published: one scale a matrix, names that begin with the part's, towers in bfloat16."""
    dense = save_architecture(model, tmp_path / "dense")
    published = publish(dense, tmp_path / "published", kind)
    assert ModelFiles.open(published).is_quantized
    torch.testing.assert_close(logits_of(published), logits_of(dense), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["fp8 blocks", "w4a16 zeros", "nvfp4", "awq", "gptq order"])
def test_every_node_of_a_tree_has_the_logits_of_its_own_path(kind: str, tmp_path: Path) -> None:
    published, dense = save_published_folder(tmp_path, kind, model="mistral")
    with open_tiny(published, num_residents=1) as opened:
        assert_tree_is_its_paths(opened.session.engine.target, dense, TOKENS, num_first=8)


@pytest.mark.parametrize("kind", ["fp8 tensor", "w4a16", "mxfp4", "gptq"])
def test_greedy_text_is_the_same_with_a_tree_as_without(kind: str, tmp_path: Path) -> None:
    folder, _ = save_published_folder(tmp_path, kind)
    texts = []
    for options in ({"draft": "none"}, {"draft": "substitute", "tree": "12x5"}, {"draft": "substitute", "tree": "3x3"}):
        with open_tiny(folder, num_residents=1, **options) as opened:
            texts.append(answer(opened, request())[1])
    assert texts[1] == texts[0] and texts[2] == texts[0]


@pytest.mark.parametrize("kind", ["fp8 blocks", "w8a16", "awq"])
def test_modules_that_are_left_as_they_were_are_read_so(kind: str, tmp_path: Path) -> None:
    published, dense = save_published_folder(tmp_path, kind, kept=("mlp.down_proj", "self_attn.q_proj"))
    files = ModelFiles.open(published)
    assert files.formats[0].keys() == {
        *(f"self_attn.{name}_proj.weight" for name in "kvo"),
        *("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    }
    torch.testing.assert_close(logits_of(published), own_logits(dense, TOKENS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["fp8 tensor", "gptq", "w8a16"])
def test_a_head_that_is_quantized_too(kind: str, tmp_path: Path) -> None:
    published, dense = save_published_folder(tmp_path, kind, more=("lm_head",))
    torch.testing.assert_close(logits_of(published), own_logits(dense, TOKENS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", list(PUBLISHED))
def test_a_layer_is_a_slab_of_the_files_bytes_and_the_modules_stay_plain(kind: str, tmp_path: Path) -> None:
    """No setting makes transformers build layers of its own for a format, or ask for a package that computes it."""
    published, dense = save_published_folder(tmp_path, kind)
    files = ModelFiles.open(published)
    assert files.is_quantized and not files.is_packed
    wide = ModelFiles.open(dense).payload_bytes
    assert all(ours < 0.4 * theirs for ours, theirs in zip(files.payload_bytes, wide, strict=True))
    parts = open_decoder(Checkpoint.open(published), dtype=torch.float32)
    linears = [module for layer in parts.layers for module in layer.modules() if "Linear" in type(module).__name__]
    assert len(linears) == 4 * 7 and {type(module) for module in linears} == {nn.Linear}


def test_a_quantized_model_is_not_quantized_again(tmp_path: Path) -> None:
    published, _ = save_published_folder(tmp_path, "awq")
    with pytest.raises(BadInputError, match="is quantized already"):
        drained(prepare_model(str(published), tmp_path / "prepared", weight_format="nf4"))


def test_a_folder_whose_settings_contradict_its_tensors_is_refused(tmp_path: Path) -> None:
    published, _ = save_published_folder(tmp_path, "gptq")
    edit_settings(published, group_size=64)
    with pytest.raises(BadInputError, match=r"in groups of 32; expected what quantization_config in config\.json says"):
        ModelFiles.open(published)


def test_a_folder_that_lacks_the_scales_of_one_matrix_is_refused(tmp_path: Path) -> None:
    published, _ = save_published_folder(tmp_path, "awq")
    edit_tensors(published, {"model.layers.2.mlp.up_proj.scales": None})
    with pytest.raises(BadInputError, match=r"lacks the tensor 'model\.layers\.2\.mlp\.up_proj\.scales'"):
        ModelFiles.open(published)
