"""From a config.json, parsed as untrusted plain JSON, to the sizes of a model, or of the part of it that writes text.

No class of transformers is looked up.
"""

import re
from collections.abc import Mapping
from itertools import chain
from typing import Any

from offload import llama_cpp
from offload.checkpoint.checkpoint import PACKED_METHOD
from offload.errors import CheckpointError
from offload.formats.stored_sizes import PACKED
from profiles.errors import quote
from runtime.fit.file_formats import format_of_settings
from runtime.fit.shapes import GlobalAttention, ModelShape, Recurrence
from runtime.fit.workspace import DeltaSizes, expanded_width, num_masks

_NAMES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "vocab_size": ("vocab_size",),
}
"""What each size is called, the usual name first."""
_WITHOUT_GATE = {"gpt2", "gpt_neox", "gptj", "gpt_bigcode", "opt", "phi", "starcoder2", "bloom", "falcon", "codegen"}
_TIED_UNLESS_SAID = {
    *("gemma", "gemma2", "gemma3_text", "gemma3", "gemma4_text", "gemma4"),
    *("gpt2", "cohere", "cohere2", "smollm3", "opt", "bloom"),
}
_BIASED_QUERIES = {"qwen2", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text", "seed_oss"}
_GATED_KINDS = {"qwen3_5_text", "qwen3_next"}
_DELTA_KINDS = {*_GATED_KINDS, "olmo_hybrid"}
"""Whose `linear_attention` is Gated DeltaNet, stored as `shapes` has it."""
_DELTA_SIZES = {
    "num_key_heads": "linear_num_key_heads",
    "num_heads": "linear_num_value_heads",
    "key_width": "linear_key_head_dim",
    "value_width": "linear_value_head_dim",
    "window": "linear_conv_kernel_dim",
}
_USUAL_INTERVAL = 4
"""Every so many layers attend, unless a configuration says otherwise."""
_NORMED_QUERIES = {"qwen3", "qwen3_vl_text", "gemma3_text", "gemma4_text", "exaone4", *_GATED_KINDS}
"""Whose queries and keys each have a norm as wide as a head."""
_NUM_NORMS = {
    **dict.fromkeys(("gemma2", "gemma3_text", "gemma4_text", "muse_glimmer_text"), 4),
    **dict.fromkeys(("cohere", "cohere2"), 1),
}
"""Of those that have another number of norms a layer than two."""
_ONE_KEY_HEAD = {"falcon", "gpt_bigcode"}
"""Whose queries share one key and one value unless `multi_query` says otherwise."""
_ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_EXPERT_KEY = re.compile(r"experts?$")
_OTHER_PART_KEY = re.compile(r"^(thinker|talker|encoder|decoder)_config$")
_LARGEST_SIZE = 1 << 24
_WINDOWS_BEFORE_GLOBAL, _GLOBAL_HEAD_DIM = 5, 512  # Gemma 4's own defaults


def shape_of_config(config: Mapping[str, Any], *, name: str, where: str) -> ModelShape:
    """Return the sizes that a parsed config.json gives; `where` names it in errors. Raises CheckpointError."""
    text = text_part(config)
    _refuse_other_models(text, whole=config, where=where)
    kind = str(text.get("model_type", ""))
    hidden, heads = _size(text, "hidden_size", where), _size(text, "num_attention_heads", where)
    num_layers = _size(text, "num_hidden_layers", where)
    head_dim = _optional_size(text, ("head_dim",), where) or max(1, hidden // heads)
    is_old = "n_embd" in text  # names of GPT-2, which has as many key heads
    kv_heads = heads if is_old else _optional_size(text, ("num_key_value_heads", "num_kv_heads"), where) or heads
    if kind in _ONE_KEY_HEAD and text.get("multi_query", True) and not text.get("new_decoder_architecture"):
        kv_heads = 1
    inner_names = ("n_inner",) if is_old else ("intermediate_size", "ffn_dim")
    published_as, item_bytes = _stored_as(config, text, where=where)
    num_vector_elements = (heads + 2 * kv_heads) * head_dim if kind in _BIASED_QUERIES else 0
    if kind == "olmo_hybrid":  # norms as wide as all queries and all keys
        num_vector_elements = (heads + kv_heads) * head_dim
    return ModelShape(
        name=name,
        source=where,
        num_layers=num_layers,
        hidden_size=hidden,
        inner_size=_optional_size(text, inner_names, where) or 4 * hidden,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=_size(text, "vocab_size", where),
        is_tied=_is_tied(config, text),
        item_bytes=item_bytes,
        num_vector_elements=num_vector_elements + (2 * head_dim if kind in _NORMED_QUERIES else 0),
        num_norms=_NUM_NORMS.get(kind, 2),
        has_gated_attention=kind == "muse_glimmer_text" or kind in _GATED_KINDS,
        is_gated=kind not in _WITHOUT_GATE,
        published_as=published_as,
        global_attention=_global_attention(text, num_layers, kv_heads, where=where) if kind == "gemma4_text" else None,
        recurrence=_recurrence(text, num_layers, where=where) if kind in _DELTA_KINDS else None,
        cache_heads=_cache_heads(text, heads, head_dim, where=where),
        num_masks=num_masks(text),
        expanded_width=expanded_width(text, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim),
        max_context_tokens=_max_context_tokens(text, where=where),
    )


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a config.json says of the model that writes text: a part of it, or all where it has none."""
    part = config.get("text_config")
    return part if isinstance(part, dict) and part else config


def _is_tied(config: Mapping[str, Any], text: Mapping[str, Any]) -> bool:
    """Return whether the head is the embeddings: the whole model's word counts before its part's."""
    said = [one.get("tie_word_embeddings") for one in (config, text)]
    return next((word for word in said if isinstance(word, bool)), text.get("model_type") in _TIED_UNLESS_SAID)


def _global_attention(text: Mapping[str, Any], num_layers: int, num_kv_heads: int, *, where: str) -> GlobalAttention:
    """Return the heads of Gemma 4's layers without a window; the last is always one of them."""
    kinds = text.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == num_layers:
        layers = {index for index, kind in enumerate(kinds) if kind == "full_attention"}
    else:
        layers = set(range(_WINDOWS_BEFORE_GLOBAL, num_layers, _WINDOWS_BEFORE_GLOBAL + 1))
    has_values = text.get("attention_k_eq_v") is not True
    fewer = None if has_values else _optional_size(text, ("num_global_key_value_heads",), where)
    return GlobalAttention(
        layers=frozenset(layers | {num_layers - 1}),
        num_kv_heads=fewer or num_kv_heads,
        head_dim=_optional_size(text, ("global_head_dim",), where) or _GLOBAL_HEAD_DIM,
        has_values=has_values,
    )


def _recurrence(text: Mapping[str, Any], num_layers: int, *, where: str) -> Recurrence | None:
    """Return the Gated DeltaNet layers of a hybrid; None where all of its layers attend."""
    kinds = text.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == num_layers:
        layers = {index for index, kind in enumerate(kinds) if kind == "linear_attention"}
    else:
        interval = _optional_size(text, ("full_attention_interval",), where) or _USUAL_INTERVAL
        layers = {index for index in range(num_layers) if (index + 1) % interval}
    sizes = {}
    for name, key in _DELTA_SIZES.items():
        size = _optional_size(text, (key,), where)
        if size is None:
            raise CheckpointError(f"{where} has no {key}; expected the configuration of a Gated DeltaNet hybrid")
        sizes[name] = size
    if not layers:
        return None
    return Recurrence(layers=frozenset(layers), delta=DeltaSizes(num_layers=len(layers), **sizes))


def _max_context_tokens(config: Mapping[str, Any], *, where: str) -> int | None:
    """Return the most positions of a text, which with longrope are those before its frequencies change."""
    sizes = [_optional_size(config, ("max_position_embeddings", "n_positions"), where)]
    for rope in (config.get("rope_scaling"), config.get("rope_parameters")):
        if isinstance(rope, dict) and "longrope" in (rope.get("rope_type"), rope.get("type")):
            sizes += [_optional_size(one, ("original_max_position_embeddings",), where) for one in (config, rope)]
    return min(filter(None, sizes), default=None)


def _cache_heads(config: Mapping[str, Any], heads: int, head_dim: int, *, where: str) -> tuple[int, int] | None:
    """Return what a layer keeps of a token where that is not a key and a value of each key head."""
    if config.get("model_type") == "falcon" and config.get("new_decoder_architecture"):
        return 2 * heads, 2 * heads * head_dim  # it repeats the heads before it keeps them
    latent, rotary = (_optional_size(config, (name,), where) for name in ("kv_lora_rank", "qk_rope_head_dim"))
    return (2, latent + rotary) if latent and rotary else None


def _refuse_other_models(text: Mapping[str, Any], *, whole: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError for every model but one with a dense decoder of text, as far as plain JSON shows it."""
    reason = next((f"a composite model ({key})" for key, value in whole.items() if _is_other_part(key, value)), None)
    nested = (value.items() for key, value in text.items() if isinstance(value, dict) and not key.endswith("_config"))
    for key, value in chain(text.items(), *nested):
        if _EXPERT_KEY.search(key) and type(value) is int and value > 1:
            layers = text.get("num_hidden_layers")
            reason = f"a mixture of experts ({key} = {value}), {llama_cpp.for_experts(layers)}"
    if text.get("is_encoder_decoder") is True:
        reason = "an encoder-decoder model"
    layers = text.get("layer_types")
    known = {"full_attention", "sliding_attention"}
    if text.get("model_type") in _DELTA_KINDS:
        known.add("linear_attention")
    if isinstance(layers, list) and set(map(str, layers)) - known:
        reason = "a model with layers other than full or sliding attention, or Gated DeltaNet as Qwen3.5 has it"
    if text.get("num_kv_shared_layers"):
        reason = "a model whose layers share keys and values"
    if reason is not None:
        raise CheckpointError(f"{where} describes {reason}; expected a dense decoder-only language model")


def _is_other_part(key: str, value: object) -> bool:
    return bool(_OTHER_PART_KEY.match(key) and value)


def _stored_as(config: Mapping[str, Any], text: Mapping[str, Any], *, where: str) -> tuple[str | None, int]:
    """Return the format of the published layers, None for what their numbers' size says, and that size in bytes."""
    said = (one.get(key) for one in (text, config) for key in ("dtype", "torch_dtype"))
    dtype = str(next(filter(None, said), "bfloat16"))
    item_bytes = _ITEM_BYTES.get(dtype)
    if item_bytes is None:
        raise CheckpointError(f"{where} says dtype {quote(dtype)}; expected one of {', '.join(_ITEM_BYTES)}")
    settings = config.get("quantization_config") or text.get("quantization_config")
    if settings is None:
        return ("float16" if dtype == "float16" else None), item_bytes
    method = settings.get("quant_method", "bitsandbytes") if isinstance(settings, dict) else settings
    if method == PACKED_METHOD:
        return PACKED, 2
    if method == "bitsandbytes":
        return ("int8" if settings.get("load_in_8bit") is True else "nf4"), item_bytes
    if isinstance(settings, dict) and (found := format_of_settings(settings)) is not None:
        return found, item_bytes
    raise CheckpointError(
        f"{where} says it is quantized with {quote(method)}, in a way that cannot be streamed; ask about its original, "
        "or about a GGUF file"
    )


def _size(config: Mapping[str, Any], name: str, where: str) -> int:
    found = _optional_size(config, _NAMES[name], where)
    if found is None:
        raise CheckpointError(f"{where} has no {name}; expected the configuration of a decoder-only language model")
    return found


def _optional_size(config: Mapping[str, Any], names: tuple[str, ...], where: str) -> int | None:
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if type(value) is not int or not 1 <= value <= _LARGEST_SIZE:  # True is an int too
            raise CheckpointError(f"{where} has {name} = {quote(value)}; expected a whole number above 0")
        return value
    return None
