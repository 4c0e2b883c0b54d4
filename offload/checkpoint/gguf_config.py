"""The settings of a GGUF file's model as config.json would have them, out of the file's metadata.

The names are those of transformers' own reading (integrations/ggml.py); a test holds the two together. Beside them
stands what that reading leaves out and llama.cpp takes into account: widths of heads, rope scaling, and how the largest
Gemma models scale their attention. Imports neither torch nor transformers.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from offload import llama_cpp
from offload.checkpoint.gguf_file import GgufArray, GgufHeader, MetadataValue
from offload.checkpoint.tensor_entry import TensorEntry
from offload.errors import CheckpointError
from profiles.errors import quote

_SIZES = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
_GEMMA = {**_SIZES, "attention.key_length": "head_dim", "attention.sliding_window": "sliding_window"}
_KEYS: Mapping[str, Mapping[str, str]] = {
    "llama": {**_SIZES, "rope.dimension_count": "head_dim"},
    "qwen2": _SIZES,
    "qwen3": _SIZES,
    "phi3": _SIZES,
    "gemma2": _GEMMA,
    "gemma3": _GEMMA,
    "gemma4": {
        **{key: name for key, name in _GEMMA.items() if key != "rope.freq_base"},
        "attention.key_length": "global_head_dim",
    },
    "qwen35": {
        **{key: name for key, name in _SIZES.items() if key != "rope.freq_base"},
        "full_attention_interval": "full_attention_interval",
        "ssm.conv_kernel": "linear_conv_kernel_dim",
        "ssm.state_size": "linear_key_head_dim",
        "ssm.group_count": "linear_num_key_heads",
        "ssm.time_step_rank": "linear_num_value_heads",
    },
}
"""By architecture: what of the metadata below its name is which setting."""
_MODEL_TYPES = {"gemma3": "gemma3_text", "gemma4": "gemma4_text", "qwen35": "qwen3_5_text"}
"""Where the architecture is not the model_type: these files hold the text part alone."""
SPECIAL_TOKENS = {
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
    "tokenizer.ggml.unknown_token_id": "unk_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
}
_END_TOKENS = ("eos_token_id", "eot_token_id", "eom_token_id")
"""Of text, turn and message: each ends an answer."""
_GEMMA4_END_TOKENS = [1, 106, 50]
"""What its generation_config.json has; a GGUF file says one of them."""
_MIXES = {
    **{10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M"},
    **{16: "Q5_K_S", 17: "Q5_K_M", 21: "Q2_K_S"},
}
"""By the number in a file: the mixes that have another name than most of their matrices' type."""
_NEEDED = ("context_length", "block_count", "embedding_length", "attention.head_count")
_NEEDED_OF_HYBRIDS = (
    *("attention.key_length", "full_attention_interval", "ssm.conv_kernel", "ssm.state_size", "ssm.group_count"),
    *("ssm.time_step_rank", "ssm.inner_size"),
)
_ROPE_SECTIONS = [11, 11, 10]
"""Of Qwen3.5's rotations, where its file does not say."""
_BLOCK = re.compile(r"blk\.(\d{1,6})\.", re.ASCII)
_CONVOLUTION = re.compile(r"blk\.\d{1,6}\.ssm_conv1d\.weight", re.ASCII)
_WIDE_GEMMAS = {"gemma2": 46, "gemma3": 62}
"""Layers of the models of 27B, which scale their scores by the width of the model over its heads."""


def config_of_gguf(header: GgufHeader) -> dict[str, Any]:
    """Return the settings that transformers' class for the architecture is made of.

    Raises CheckpointError for an architecture that transformers does not read from GGUF files, or that is no dense
    decoder, and for metadata that is missing or of the wrong kind.
    """
    architecture = header.architecture
    if (header.count(f"{architecture}.expert_count") or 0) > 1:
        advice = llama_cpp.for_experts(header.count(f"{architecture}.block_count"), header.file)
        raise CheckpointError(f"{header.file} holds a mixture of experts, {advice}")
    if architecture not in _KEYS:
        raise CheckpointError(
            f"{header.file} holds the architecture {quote(architecture)}, for which there is no mapping here from GGUF "
            f"to a dense decoder of transformers; known are {', '.join(_KEYS)}: use the model's safetensors folder"
        )
    for key in (*_NEEDED, *(_NEEDED_OF_HYBRIDS if architecture == "qwen35" else ())):
        if header.count(f"{architecture}.{key}") is None:
            raise CheckpointError(f"{header.file} lacks {architecture}.{key} in its metadata; download it again")
    config: dict[str, Any] = {
        "model_type": _model_type(header),
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }
    names = {f"{architecture}.{key}": name for key, name in _KEYS[architecture].items()} | SPECIAL_TOKENS
    config |= {name: _plain(header.metadata[key]) for key, name in names.items() if key in header.metadata}
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if "vocab_size" not in config and isinstance(tokens, GgufArray):
        config["vocab_size"] = tokens.count
    if architecture == "gemma4":
        config["eos_token_id"] = list(_GEMMA4_END_TOKENS)
    return config | _left_out(header, config)


def tensors_of_gguf(header: GgufHeader) -> Mapping[str, TensorEntry]:
    """Return the file's tensors in the shapes of the decoder, without layers that only guess further tokens."""
    if header.architecture != "qwen35":
        return header.tensors
    num_layers = _num_layers(header)
    return {
        name: replace(entry, shape=(entry.shape[0], 1, *entry.shape[1:]))
        if _CONVOLUTION.fullmatch(name) and len(entry.shape) == 2
        else entry
        for name, entry in header.tensors.items()
        if (block := _BLOCK.match(name)) is None or int(block[1]) < num_layers
    }


def _num_layers(header: GgufHeader) -> int:
    """Return how many layers the decoder has: the file counts the heads behind it that guess further tokens too."""
    counts = (header.count(f"{header.architecture}.{key}") or 0 for key in ("block_count", "nextn_predict_layers"))
    num_blocks, num_guessing = counts
    return num_blocks - num_guessing


def quantization_of_gguf(header: GgufHeader) -> str:
    """Return what people call the file's mix of types, as in Q4_K_M: the type of most bytes where it says another."""
    num_bytes: dict[str, int] = {}
    for tensor in header.tensors.values():
        num_bytes[tensor.dtype] = num_bytes.get(tensor.dtype, 0) + tensor.num_bytes
    largest = max(num_bytes, key=lambda dtype: num_bytes[dtype], default="F32")
    said = _MIXES.get(header.count("general.file_type") or 0, "")
    return said if said.startswith(largest) else largest


def end_token_ids(header: GgufHeader) -> list[int]:
    """Return the ids that end an answer, by the metadata. Raises CheckpointError for one that is no number."""
    if header.architecture == "gemma4":
        return list(_GEMMA4_END_TOKENS)
    found = (header.count(f"tokenizer.ggml.{name}") for name in _END_TOKENS)
    return sorted({token_id for token_id in found if token_id is not None})


def _model_type(header: GgufHeader) -> str:
    architecture = header.architecture
    if architecture == "llama" and header.metadata.get("general.name") == "mistral":
        return "mistral"  # as transformers has it: the files themselves do not tell the two apart
    return _MODEL_TYPES.get(architecture, architecture)


def _left_out(header: GgufHeader, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the metadata says and transformers' mapping drops."""
    architecture = header.architecture
    found: dict[str, Any] = {}
    width = header.count(f"{architecture}.attention.key_length")
    if width is not None and architecture != "gemma4":
        found["head_dim"] = width
    rotated = header.count(f"{architecture}.rope.dimension_count")
    if architecture == "phi3" and rotated is not None:
        whole = width or config["hidden_size"] // max(1, config["num_attention_heads"])
        if rotated < whole:
            found["partial_rotary_factor"] = rotated / whole
    if config["num_hidden_layers"] == _WIDE_GEMMAS.get(architecture):
        found["query_pre_attn_scalar"] = config["hidden_size"] // config["num_attention_heads"]
    if architecture == "qwen35":
        found |= _of_hybrid(header)
    kind = header.metadata.get(f"{architecture}.rope.scaling.type")
    factor = header.metadata.get(f"{architecture}.rope.scaling.factor")
    if kind in ("linear", "yarn") and isinstance(factor, float):
        scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
        original = header.count(f"{architecture}.rope.scaling.original_context_length")
        if kind == "yarn" and original is not None:
            scaling["original_max_position_embeddings"] = original
        if "rope_parameters" in found:
            found["rope_parameters"] |= scaling
        else:
            found["rope_scaling"] = scaling
    return found


def _of_hybrid(header: GgufHeader) -> dict[str, Any]:
    """Return what the metadata of Qwen3.5 says in other words than its class."""
    count, number = header.count, header.metadata.get("qwen35.rope.freq_base")
    width, num_heads = count("qwen35.attention.key_length"), count("qwen35.ssm.time_step_rank")
    inner, num_key_heads = count("qwen35.ssm.inner_size"), count("qwen35.ssm.group_count")
    if not (width and num_heads and inner and num_key_heads) or inner % num_heads or num_heads % num_key_heads:
        raise CheckpointError(
            f"the metadata of {header.file} has {inner} values in {num_heads} heads and {num_key_heads} heads of keys; "
            "expected multiples above 0; download it again"
        )
    sections = header.metadata.get("qwen35.rope.dimension_sections")
    kept = [one for one in sections.numbers() if one] if isinstance(sections, GgufArray) else _ROPE_SECTIONS
    rope: dict[str, Any] = {"rope_type": "default", "mrope_section": kept, "mrope_interleaved": True}
    if isinstance(number, float):
        rope["rope_theta"] = number
    rotated = count("qwen35.rope.dimension_count")
    if rotated is not None:
        rope["partial_rotary_factor"] = rotated / width
    return {
        "num_hidden_layers": _num_layers(header),
        "linear_value_head_dim": inner // num_heads,
        "rope_parameters": rope,
    }


def _plain(value: MetadataValue) -> Any:
    """Return a value as JSON would have it; a list whose items are all the same as one of them."""
    if not isinstance(value, GgufArray):
        return value
    if value.raw is None:
        return None
    items: list[Any] = value.strings() if value.holds_strings else value.numbers()
    return items[0] if items and all(item == items[0] for item in items) else items
