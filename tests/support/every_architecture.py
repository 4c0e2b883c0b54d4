"""Every causal language model that transformers knows, and image-text ones, tiny, and whether a session gives its text.

The sizes are found by the names that configurations give them, so that a new architecture rarely needs a line here.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from profiles.errors import BadInputError
from runtime.engine.loading import OpenSession
from runtime.model.streamed_model import PassInput, StreamedModel, chain_input
from runtime.model.text_tower import FAMILIES
from tests.support.model_factory import TINY_VOCAB_SIZE, random_model, save_tiny_tokenizer
from tests.support.reference_models import TIE, own_logits, reference_model
from tests.support.session_factory import answer, open_tiny, request

ARCHITECTURES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
"""Model types, in transformers' own order."""
NUM_TOKENS = 20
WINDOW = 8
PARENTS = (-1, 0, 0, 1, 1, 2, 3)
"""Of the nodes of a tree."""
_SIZES: Mapping[str, Any] = {
    "vocab_size": TINY_VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "embedding_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rotary_dim": 8,
    "max_position_embeddings": 512,
    "sliding_window": WINDOW,
    "use_sliding_window": True,
    "max_window_layers": 1,
    "local_attention": 2 * WINDOW,
    "keep_window_size": WINDOW,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_DELTA: Mapping[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
_OTHERS: Mapping[str, Mapping[str, Any]] = {
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    **dict.fromkeys(("qwen3_5_text", "qwen3_next", "olmo_hybrid"), _DELTA),
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 1, "n_output_layers": 1},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "gemma4_text": {
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": TINY_VOCAB_SIZE,
        "per_layer_config": {"2": {"head_dim": 16}},
    },
    "qwen2_vl_text": {"rope_parameters": {**_ROPE, "mrope_section": [1, 1, 2]}},
    "qwen2_5_vl_text": {"rope_parameters": {**_ROPE, "mrope_section": [1, 1, 2]}},
    "qwen3_vl_text": {"rope_parameters": {**_ROPE, "mrope_section": [2, 1, 1]}},
    "minicpm3": {"num_key_value_heads": 4},
    "moshi": {"sliding_window": 512},
    "youtu": {"num_key_value_heads": 4, "pad_token_id": None},  # whose row transformers empties while it loads
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"]},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"]},
}
"""What is not found by name."""
_TOWER_SIZES: Mapping[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 5,
    "depth": 5,
    "num_attention_heads": 2,
    "num_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "embed_dim": 16,
    "mlp_ratio": 2,
    "image_size": 28,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "out_hidden_size": 32,
    "fullatt_block_indexes": [1],
    "deepstack_visual_indexes": [0],
    "position_embedding_size": 16,
}
"""Of the part that sees: more layers than the text part has."""
_TEXTS: Mapping[str, Mapping[str, Any]] = {
    "gemma4": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
        "hidden_size_per_layer_input": 0,
        "attention_k_eq_v": True,
        "per_layer_config": {"3": {"head_dim": 16, "num_key_value_heads": 1}},
        "final_logit_softcapping": 30.0,
        "use_bidirectional_attention": "vision",
    },
}
"""As the checkpoints that people run have them."""
_WHOLES: Mapping[str, Mapping[str, Any]] = {
    "gemma3": {"mm_tokens_per_image": 4},
    "muse_glimmer": {"out_hidden_size": 24, "projector_hidden_size": 24},
}
_LEFT_OUT = {"falcon": ("head_dim",)}


def small_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """The configuration of a tiny model of an architecture, of experts and towers as transformers has them."""
    config_class = CONFIG_MAPPING[model_type]
    if model_type in FAMILIES:
        return _small_composite(model_type, **changes)
    known = config_class.__dataclass_fields__.keys() | config_class.attribute_map.keys()
    known |= set(dir(config_class))
    settings = {name: value for name, value in _SIZES.items() if name in known}
    settings |= _OTHERS.get(model_type, {})
    return config_class(
        **{name: value for name, value in settings.items() if name not in _LEFT_OUT.get(model_type, ())} | changes
    )


def _small_composite(model_type: str, *, text_type: str | None = None, **changes: Any) -> PreTrainedConfig:
    """`changes` are those of the text part; where that is a model of its own, `text_type` may name another."""
    config_class = CONFIG_MAPPING[model_type]
    tower_class = config_class.sub_configs["vision_config"]
    if not hasattr(tower_class, "attribute_map") or tower_class is AutoConfig:
        tower_class = type(config_class().vision_config)
    known = tower_class.__dataclass_fields__.keys() | tower_class.attribute_map.keys()
    tower = {name: size for name, size in _TOWER_SIZES.items() if name in known}
    text = small_config(text_type or config_class().text_config.model_type, **_TEXTS.get(model_type, {}) | changes)
    return config_class(
        text_config=text.to_dict(),
        vision_config={"model_type": tower_class.model_type, **tower},
        image_token_id=TINY_VOCAB_SIZE - 2,
        video_token_id=TINY_VOCAB_SIZE - 1,
        tie_word_embeddings=getattr(text, "tie_word_embeddings", False),
        **_WHOLES.get(model_type, {}),
    )


def save_architecture(model_type: str, folder: Path, **changes: Any) -> Path:
    """Save a tiny model of an architecture, with random weights, and a tokenizer."""
    random_model(small_config(model_type, **changes)).save_pretrained(folder)
    return save_tiny_tokenizer(folder)


def outcome(folder: Path) -> str:
    """`equal` if a session gives what transformers gives, `refused: ` and why, or `wrong: ` and what differs."""
    try:
        with open_tiny(folder) as opened:
            differences = _differences(opened, folder)
        with open_tiny(folder, draft="substitute", tree="7x3", num_residents=1, num_texts=2) as opened:
            differences += _differences(opened, folder) or _batch_difference(opened.session.engine.target, folder)
    except BadInputError as error:
        return f"refused: {error}"
    return f"wrong: {differences}" if differences else "equal"


def _differences(opened: OpenSession, folder: Path) -> str:
    engine, asked = opened.session.engine, request(max_new_tokens=NUM_TOKENS)
    prompt = tuple(opened.session.format_prompt(asked))
    _, found = answer(opened, asked)
    expected, gaps = generated(folder, prompt)
    place = next((index for index, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), None)
    if place is None and len(found) != len(expected):
        place = min(len(found), len(expected))
    if place is not None and gaps[place] > TIE:
        return f"text {found}, expected {expected}; "
    attending = [layer for layer in engine.target.cache.layers if layer not in engine.target.cache.recurrent]
    kept_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in attending)
    counted = opened.plan.target.cache_bytes_per_token(torch.float32) * opened.plan.need.cached_tokens
    if kept_bytes != counted:
        return f"a cache of {kept_bytes} bytes, counted as {counted}; "
    return _tree_difference(engine.target, folder)


@functools.lru_cache(maxsize=2)
def generated(folder: Path, prompt: tuple[int, ...]) -> tuple[list[int], list[float]]:
    """The greedy tokens of transformers' generate(), and for each the gap between the two largest logits."""
    ids = torch.tensor([prompt])
    output = reference_model(folder).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    tokens = output.sequences[0, len(prompt) :].tolist()
    best = torch.cat(output.logits).topk(2).values
    return [token for token in tokens if token != 2], (best[:, 0] - best[:, 1]).tolist()


@torch.inference_mode()
def _tree_difference(model: StreamedModel, folder: Path) -> str:
    """Whether a tree behind a context has the logits that each of its paths has alone."""
    num_context, num_nodes = 14, len(PARENTS)
    ids = torch.randint(7, 90, (num_context + num_nodes,), generator=torch.Generator().manual_seed(0)).tolist()
    paths = [_path_to(node) for node in range(num_nodes)]
    context = np.arange(num_context)
    nodes = np.array([num_context + len(path) - 1 for path in paths])
    visible = np.zeros((num_nodes, num_context + num_nodes), dtype=np.bool_)
    visible[:, :num_context] = True
    for node, path in enumerate(paths):
        visible[node, [num_context + ancestor for ancestor in path]] = True
    model.cache.truncate(0)
    model.run_pass(PassInput(np.array(ids[:num_context]), context, context, np.tri(num_context, dtype=np.bool_)))
    inputs = PassInput(np.array(ids[num_context:]), nodes, np.concatenate([context, nodes]), visible)
    logits = model.logits(model.run_pass(inputs))
    model.cache.truncate(0)
    for node, path in enumerate(paths):
        alone = own_logits(folder, ids[:num_context] + [ids[num_context + item] for item in path])[-1]
        if not torch.allclose(logits[node], alone, atol=1e-3, rtol=1e-3):
            return f"logits of node {node} differ by {float((logits[node] - alone).abs().max())}; "
    return ""


@torch.inference_mode()
def _batch_difference(model: StreamedModel, folder: Path) -> str:
    """Whether two texts of one pass, the second with a beginning of the first's, have the logits of each alone."""
    ids = torch.randint(7, 90, (20,), generator=torch.Generator().manual_seed(1)).tolist()
    other = [*ids[:6], *reversed(ids[6:14])]
    early = 6 if model.cache.recurrent else 4  # states are shared as they were before the pass
    model.run_pass(chain_input(ids[:early], num_cached=0))
    parts = [chain_input(ids[early:], num_cached=early), chain_input(other[6:], num_cached=6, lane=1, shared=(0, 6))]
    hidden = model.run_batch(parts)
    for lane in range(2):
        model.cache.truncate(0, lane=lane)
    for name, rows, text, start in (("first", hidden[0], ids, early), ("second", hidden[1], other, 6)):
        if not torch.allclose(model.logits(rows), own_logits(folder, text)[start:], atol=1e-3, rtol=1e-3):
            return f"logits of the {name} text of a pass differ; "
    return ""


def _path_to(node: int) -> list[int]:
    return [] if node < 0 else [*_path_to(PARENTS[node]), node]
