"""Small GGUF files of tiny transformers models, as llama.cpp's convert_hf_to_gguf.py writes them, for the tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import PreTrainedModel

from tests.support.every_architecture import small_config
from tests.support.model_factory import random_model, tiny_config

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
KINDS = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "qwen35")
_ARCHITECTURES = {"mistral": "llama"}
_OVERRIDES: Mapping[str, Mapping[str, Any]] = {
    "qwen3": {"head_dim": 128},  # transformers' mapping drops the width of heads, and takes its class's own
    "mistral": {"sliding_window": None, "head_dim": 8},
    "llama": {"head_dim": 8},
    "gemma2": {"query_pre_attn_scalar": 256},  # which no file says
    "gemma3": {"query_pre_attn_scalar": 256, "sliding_window_pattern": 6},
    "qwen35": {
        "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 6,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 16,
        "head_dim": 32,
    },
}
CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def gguf_model(kind: str, *, seed: int = 0, **overrides: object) -> PreTrainedModel:
    """A random model whose settings its GGUF file says, or transformers' classes take for granted."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "rms_norm_eps": 1e-5}
    settings = {**sizes, **_OVERRIDES.get(kind, {}), **overrides}
    if kind != "qwen35":
        return random_model(tiny_config(kind, **settings), seed=seed)
    settings["layer_types"] = settings["layer_types"][: settings["num_hidden_layers"]]
    return random_model(small_config("qwen3_5_text", **settings), seed=seed)


def write_gguf(
    file: Path,
    model: PreTrainedModel,
    *,
    kind: str,
    types: Sequence[str] = ("F32",),
    metadata: Mapping[str, int | float | str] = {},
    tokenizer: Mapping[str, Any] | None = None,
    extra: Mapping[str, np.ndarray] = {},
    without: str = "",
    num_parts: int = 1,
    num_blocks: int | None = None,
) -> Path:
    """Write the model's file, or its parts, and return it or the first.

    Matrices take the block types in turn, vectors are F32; the tensor `without` is left out. `num_blocks`: as the
    metadata counts them; None: as many as the model has layers.
    """
    architecture = _ARCHITECTURES.get(kind, kind)
    file.parent.mkdir(parents=True, exist_ok=True)
    num_tensors = len(model.state_dict()) + len(extra)
    most = 0 if num_parts == 1 else -(-num_tensors // num_parts)
    writer = gguf.GGUFWriter(file, architecture, split_max_tensors=most)
    config = model.config
    writer.add_name("tiny")
    _write_sizes(writer, config, architecture, num_blocks=num_blocks or config.num_hidden_layers)
    for key, value in metadata.items():
        {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)](key, value)
    _write_tokenizer(writer, config.vocab_size, tokenizer)
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    tied = set(model.all_tied_weights_keys) if config.tie_word_embeddings else set()
    matrices = 0
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        stored = names.get_name(name.replace(".dt_bias", ".dt_proj.bias"), try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        if stored == without:
            continue
        values = _as_written(tensor.float(), stored, config, architecture).numpy()
        kind_of_values = "F32"
        if values.ndim == 2 and "conv1d" not in stored:
            kind_of_values = types[matrices % len(types)]
            matrices += 1
        number_of_type = gguf.GGMLQuantizationType[kind_of_values]
        writer.add_tensor(stored, gguf.quantize(values, number_of_type), raw_dtype=number_of_type)
    for name, values in extra.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file if num_parts == 1 else file.with_name(f"{file.stem}-00001-of-{num_parts:05}.gguf")


def _write_sizes(writer: gguf.GGUFWriter, config: Any, architecture: str, *, num_blocks: int) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(num_blocks)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1)))
    writer.add_key_length(head_dim)
    if architecture == "llama":
        writer.add_vocab_size(config.vocab_size)
    if architecture in ("gemma2", "gemma3"):
        writer.add_sliding_window(config.sliding_window)
    if architecture == "qwen35":
        writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
        writer.add_ssm_state_size(config.linear_key_head_dim)
        writer.add_ssm_group_count(config.linear_num_key_heads)
        writer.add_ssm_time_step_rank(config.linear_num_value_heads)
        writer.add_ssm_inner_size(config.linear_value_head_dim * config.linear_num_value_heads)
        writer.add_full_attention_interval([*config.layer_types, "full_attention"].index("full_attention") + 1)
        writer.add_rope_dimension_sections([*rope.get("mrope_section", [11, 11, 10]), 0])


def _write_tokenizer(writer: gguf.GGUFWriter, vocab_size: int, tokenizer: Mapping[str, Any] | None) -> None:
    """A byte-level vocabulary without merges, or what is given."""
    words = [*SPECIAL, *(chr(ord("!") + index) for index in range(vocab_size - len(SPECIAL) - 1)), "ab"]
    given = {"model": "gpt2", "tokens": words, "types": [3] * len(SPECIAL) + [1] * (len(words) - len(SPECIAL))}
    given |= {"merges": ["a b"], "bos": 1, "eos": 2, "pad": 0, "template": CHAT_TEMPLATE} | dict(tokenizer or {})
    writer.add_tokenizer_model(given["model"])
    writer.add_token_list(given["tokens"])
    writer.add_token_types(given["types"])
    if given["merges"] is not None:
        writer.add_token_merges(given["merges"])
    if "scores" in given:
        writer.add_token_scores(given["scores"])
    if "pre" in given:
        writer.add_tokenizer_pre(given["pre"])
    writer.add_bos_token_id(given["bos"])
    writer.add_eos_token_id(given["eos"])
    writer.add_pad_token_id(given["pad"])
    for name in ("add_bos_token", "add_eos_token"):
        if name in given:
            getattr(writer, name.replace("add_", "add_add_"))(given[name])
    for name in ("eot", "eom"):
        if name in given:
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", given[name])
    if given["template"] is not None:
        writer.add_chat_template(given["template"])


def _as_written(values: torch.Tensor, stored: str, config: Any, architecture: str) -> torch.Tensor:
    """What llama.cpp's converter does to the values: pairs of rotated rows, and norms with 1 added."""
    if architecture == "llama" and (".attn_q." in stored or ".attn_k." in stored):
        heads = config.num_attention_heads if ".attn_q." in stored else config.num_key_value_heads
        halves = values.reshape(heads, 2, -1, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)
    if architecture == "qwen35":
        values = _with_tiled_heads(values, stored, config)
    if stored.endswith(".ssm_a"):
        return -values.exp()
    is_raised = architecture in ("gemma2", "gemma3", "qwen35") and not stored.endswith("ssm_norm.weight")
    return values + 1 if is_raised and stored.endswith("norm.weight") else values


def _with_tiled_heads(values: torch.Tensor, stored: str, config: Any) -> torch.Tensor:
    """The same with heads of values in turns of the heads of keys, wherever there are any, and no axis of one."""
    num_key_heads, width = config.linear_num_key_heads, config.linear_value_head_dim
    first = 2 * num_key_heads * config.linear_key_head_dim  # behind queries and keys

    def tiled(rows: torch.Tensor, of_head: int) -> torch.Tensor:
        heads = rows.reshape(num_key_heads, -1, of_head, *rows.shape[1:])
        return heads.transpose(0, 1).reshape(rows.shape)

    part = stored.split(".")[2] if stored.startswith("blk.") else ""
    if part in ("attn_qkv", "ssm_conv1d"):
        values = values.squeeze(1) if values.ndim == 3 else values
        return torch.cat((values[:first], tiled(values[first:], width)))
    if part == "ssm_out":
        return tiled(values.T, width).T.contiguous()
    per_head = {"attn_gate": width, "ssm_alpha": 1, "ssm_beta": 1, "ssm_a": 1, "ssm_dt": 1}
    return tiled(values, per_head[part]) if part in per_head else values
