"""What is no dense decoder, or does not fit its files, is refused in one sentence that says why."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from offload.checkpoint.checkpoint import Checkpoint
from offload.errors import CheckpointError
from runtime.model.architecture import (
    load_config,
    open_decoder,
)
from tests.support.model_factory import edit_config, save_tiny_model, write_safetensors


def refusal(folder) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_decoder(Checkpoint.open(folder), dtype=torch.float32)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    return message


@pytest.mark.parametrize(
    ("kind", "overrides", "expected"),
    [
        ("mixtral", {}, "'MixtralForCausalLM', a mixture of experts (num_local_experts = 4)"),
        ("qwen3_moe", {"num_experts": 4}, "mixture of experts"),
        ("mamba", {}, "'linear_attention'"),
        ("bloom", {}, "takes no position_ids"),
        ("mpt", {}, "takes no position_ids"),
        ("falcon", {"alibi": True}, "alibi"),
        ("gpt_neo", {"attention_types": [[["global", "local"], 2]]}, "cache slots"),
        ("bert", {}, "no single list of decoder layers"),
        ("gpt2", {"add_cross_attention": True}, "cross-attention"),
        ("gemma3", {"use_bidirectional_attention": True}, "bidirectional"),
    ],
)
def test_other_architectures_are_refused_by_name(tmp_path, kind, overrides, expected):
    save_tiny_model(kind, tmp_path, **overrides)
    message = refusal(tmp_path)
    assert expected in message and "dense decoder-only causal language models" in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "encoder-decoder"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"vision_config": {"hidden_size": 3}}, "a composite model (vision_config)"),
        ({"audio_config": {"hidden_size": 3}}, "a composite model (audio_config)"),
        ({"n_routed_experts": 8}, "mixture of experts (n_routed_experts = 8)"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "not a causal language model"),
        ({"model_type": "clip_text_model", "architectures": None}, "not a causal language model"),
    ],
)
def test_a_config_of_another_kind_is_refused_before_building(tmp_path, changes, expected):
    save_tiny_model("llama", tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(CheckpointError, match="dense decoder-only causal language models"):
        load_config(Checkpoint.open(tmp_path))
    assert expected in refusal(tmp_path)


def test_code_from_the_checkpoint_is_never_run(tmp_path):
    save_tiny_model("llama", tmp_path)
    (tmp_path / "configuration_mine.py").write_text("raise SystemExit('code of the checkpoint was run')")
    auto_map = {"AutoConfig": "configuration_mine.Mine", "AutoModelForCausalLM": "configuration_mine.Model"}
    edit_config(tmp_path, auto_map=auto_map)
    assert open_decoder(Checkpoint.open(tmp_path), dtype=torch.float32).num_layers == 4
    edit_config(tmp_path, model_type="mine")
    assert "needs code from its own repository (auto_map), which is never run" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": None}, "model_type None"),
        ({"model_type": "no_such_model"}, "refused by transformers"),
        ({"num_hidden_layers": 5}, "calls for 5 decoder layers, but the files hold tensors of 4"),
        ({"num_hidden_layers": 3}, "calls for 3 decoder layers"),
        ({"num_hidden_layers": 10**9}, "expected at most"),
        ({"num_hidden_layers": -4}, "expected at most"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers"),
        ({"num_labels": 10**9}, "expected at most"),
        ({"hidden_size": 10**12}, "cannot be built"),
        ({"hidden_size": 64}, "has shape"),
        ({"intermediate_size": 10**9}, "cannot be built"),
        ({"vocab_size": 97}, "has shape"),
        ({"num_key_value_heads": 0}, "config.json"),
        ({"num_attention_heads": 10**15}, "config.json"),
        ({"hidden_act": "no_such_activation"}, "cannot be built"),
        ({"rope_parameters": {"rope_type": "no_such_type"}}, "config.json"),
        ({"attention_bias": True}, "lacks the tensor 'model.layers.0.self_attn"),
    ],
)
def test_a_config_that_does_not_fit_the_files_is_refused(tmp_path, changes, expected):
    save_tiny_model("llama", tmp_path)
    edit_config(tmp_path, **changes)
    assert expected in refusal(tmp_path)


def test_a_position_table_that_would_fill_the_memory_is_refused(tmp_path):
    """This model keeps positions x positions bytes as a real buffer: 10 TB for this setting."""
    save_tiny_model("gpt_bigcode", tmp_path)
    edit_config(tmp_path, n_positions=10**6 + 4, max_position_embeddings=None)
    assert "cannot be built" in refusal(tmp_path)


def test_missing_layer_tensors_are_named(tmp_path):
    save_tiny_model("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("model.layers.2.mlp.up_proj.weight")
    save_file(tensors, file)
    assert "lacks the tensor 'model.layers.2.mlp.up_proj.weight'" in refusal(tmp_path)
    save_file({name: tensor for name, tensor in tensors.items() if ".layers.2." not in name}, file)
    assert "calls for 4 decoder layers, but the files hold tensors of 3" in refusal(tmp_path)
    write_safetensors(file, {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4))
    assert "no decoder layers" in refusal(tmp_path)


def test_a_wrong_dtype_is_refused(tmp_path):
    save_tiny_model("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor.double() for name, tensor in tensors.items()}, file)
    assert "is stored as F64; expected one of BF16, F16, F32" in refusal(tmp_path)
