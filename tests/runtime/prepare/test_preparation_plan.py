import json
import os
from pathlib import Path

import pytest
import torch
from transformers import BitsAndBytesConfig

from offload.errors import CheckpointError
from offload.formats.weight_quantizer import WeightQuantizer
from runtime.prepare.preparation_plan import PreparationPlan, matrix_shape
from tests.support.model_factory import save_tiny_model, save_tiny_tokenizer

NF4 = WeightQuantizer("nf4")


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        if value is None:
            config.pop(key, None)
        else:
            config[key] = value
    (folder / "config.json").write_text(json.dumps(config))


def test_every_layer_has_a_shard_and_so_has_every_matrix_outside(tmp_path: Path) -> None:
    folder = save_tiny_model("llama", tmp_path / "model")
    plan = PreparationPlan.make(folder, NF4)
    assert (plan.num_layers, len(plan.shards)) == (4, 6)
    assert list(plan.shards)[::5] == [
        "model-00001-of-00006.safetensors",
        "model-00006-of-00006.safetensors",
    ]
    layers, rest = list(plan.shards.values())[:4], list(plan.shards.values())[4:]
    for index, tensors in enumerate(layers):
        assert all(name.startswith(f"model.layers.{index}.") for name in tensors)
    assert [set(tensors) for tensors in rest] == [
        {"model.embed_tokens.weight", "model.norm.weight"},
        {"lm_head.weight"},
    ]
    names = [name for tensors in plan.shards.values() for name in tensors]
    assert sorted(names) == sorted(plan.checkpoint.tensors)
    assert plan.source_bytes == plan.checkpoint.total_bytes


def test_only_linear_layers_of_decoder_layers_are_quantized(tmp_path: Path) -> None:
    plan = PreparationPlan.make(save_tiny_model("qwen2", tmp_path / "model"), NF4)
    assert len(plan.is_turned) == 4 * 7 and plan.is_turned.keys() <= plan.tensors.keys()
    assert all(name.startswith("model.layers.") and name.endswith("_proj.weight") for name in plan.is_turned)
    assert plan.skipped_modules is None


def test_gpt2_stores_its_matrices_turned(tmp_path: Path) -> None:
    plan = PreparationPlan.make(save_tiny_model("gpt2", tmp_path / "model"), NF4)
    name = "transformer.h.0.mlp.c_fc.weight"
    assert plan.is_turned[name]
    entry = plan.tensors[name]
    assert matrix_shape(entry, is_turned=True) == entry.shape[::-1]


def test_a_linear_layer_outside_the_decoder_layers_is_named_to_transformers(tmp_path: Path) -> None:
    """OPT projects its embeddings; transformers would expect a quantized matrix there unless told otherwise."""
    folder = save_tiny_model(
        "opt", tmp_path / "model", word_embed_proj_dim=16, ffn_dim=64, do_layer_norm_before=True, dropout=0.0
    )
    plan = PreparationPlan.make(folder, NF4)
    skipped = plan.config()["quantization_config"]["llm_int8_skip_modules"]
    assert {"model.decoder.project_in", "model.decoder.project_out", "lm_head"} <= set(skipped)
    assert not any("project" in name for name in plan.is_turned)
    assert len(plan.is_turned) == 4 * 6


@pytest.mark.parametrize(
    ("quantizer", "expected"),
    [
        (WeightQuantizer("int8"), BitsAndBytesConfig(load_in_8bit=True)),
        (
            WeightQuantizer("nf4", True),
            BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            ),
        ),
    ],
)
def test_the_config_is_the_sources_and_what_transformers_adds(tmp_path: Path, quantizer, expected) -> None:
    folder = save_tiny_model("llama", tmp_path / "model", dtype=torch.bfloat16)
    config = PreparationPlan.make(folder, quantizer).config()
    assert config.pop("quantization_config") == expected.to_dict()
    assert config == json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": None, "torch_dtype": "float16"}, torch.float16),
        ({"dtype": None}, torch.float32),
        ({"dtype": "float64"}, torch.float32),
    ],
)
def test_matrices_are_quantized_from_the_type_that_transformers_loads(tmp_path: Path, settings, expected) -> None:
    folder = save_tiny_model("llama", tmp_path / "model")
    edit_config(folder, **settings)
    plan = PreparationPlan.make(folder, NF4)
    assert plan.dtype == expected
    config = plan.config()
    assert "torch_dtype" in config or config["dtype"] in (str(expected).removeprefix("torch."), settings["dtype"])


def test_small_files_are_taken_along_and_weights_are_not(tmp_path: Path) -> None:
    folder = save_tiny_tokenizer(save_tiny_model("llama", tmp_path / "model", max_shard_size="40KB"))
    for name in ("LICENSE", "README.md", "pytorch_model.bin", "modeling_x.py", ".hidden.json"):
        (folder / name).write_text("x")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("x")
    names = {str(file.relative_to(folder)) for file in PreparationPlan.make(folder, NF4).companions}
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE", "README.md"} <= names
    assert "additional_chat_templates/tools.jinja" in names
    assert not [name for name in names if name.endswith((".safetensors", ".index.json", ".bin", ".py"))]
    assert "config.json" not in names


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_model("llama", tmp_path / "model")
    edit_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(CheckpointError, match="is quantized already"):
        PreparationPlan.make(folder, NF4)


def test_the_state_of_the_files_shows_a_change(tmp_path: Path) -> None:
    folder = save_tiny_model("llama", tmp_path / "model")
    plan = PreparationPlan.make(folder, NF4)
    before = plan.source_files()
    assert {"config.json", "model.safetensors", "generation_config.json"} <= before.keys()
    (folder / "model.safetensors").touch()
    assert plan.source_files() != before
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="changed while it was read"):
        plan.source_files()


def test_a_link_that_leads_out_of_the_folder_is_not_copied(tmp_path: Path) -> None:
    """A private key that LICENSE led to stood in the output."""
    folder = save_tiny_model("llama", tmp_path / "model")
    (tmp_path / "key").write_text("private")
    (folder / "LICENSE").symlink_to(tmp_path / "key")
    with pytest.raises(CheckpointError, match="LICENSE leads out of the model folder"):
        PreparationPlan.make(folder, NF4)


def test_a_companion_is_weighed_before_it_is_read(tmp_path: Path) -> None:
    folder = save_tiny_model("llama", tmp_path / "model")
    (folder / "notes.txt").touch()
    os.truncate(folder / "notes.txt", 6 * 10**9)
    with pytest.raises(CheckpointError, match=r"notes.txt has 6.00 GB; expected at most 128 MB"):
        PreparationPlan.make(folder, NF4)
