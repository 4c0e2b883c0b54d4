"""Cost of a recurrent layer beside an attention layer of the same model, in the engine's own passes over trees.

Trees of several sizes stand on one text and take turns, so that all of them see the same machine. Each pass is a
round's: what the one before has accepted is folded into the states. Times are a module's own, from its call to its
return, and the device is waited for at both.
"""

import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from offload.device import wait_for_device
from runtime.bench.card.random_model import write_random_model
from runtime.engine.engine import verify_input
from runtime.engine.loading import OpenSession
from runtime.errors import OptionError
from runtime.fit.shapes import ModelShape
from runtime.model.delta_layers import delta_module
from runtime.model.streamed_model import StreamedModel, chain_input
from runtime.speculation.token_tree import TokenTree, TreeTopology

_VOCAB_SIZE = 320
"""Of random layers: neither embeddings nor head are measured."""
_FIRST_ID, _PREFILL_TOKENS = 7, 256


_Times = dict[str, dict[str, float]]
"""Seconds of one pass by kind of layer, `recurrent` or `attention`: of the whole `layer`, and of its `mixer` in it."""
_Layers = dict[str, list[tuple[nn.Module, nn.Module]]]
"""Layers and their mixers, by kind: attention, or the recurrence, with its projections."""


def write_random_layers(folder: Path, shape: ModelShape, *, max_positions: int, seed: int = 0) -> Path:
    """Write a recurrent layer and an attention layer of `shape`'s sizes, the way Qwen3.5 has them; return `folder`."""
    assert shape.recurrence is not None
    delta = shape.recurrence.delta
    config = AutoConfig.for_model(
        "qwen3_5_text",
        architectures=["Qwen3_5ForCausalLM"],
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        hidden_size=shape.hidden_size,
        intermediate_size=shape.inner_size,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        linear_num_key_heads=delta.num_key_heads,
        linear_num_value_heads=delta.num_heads,
        linear_key_head_dim=delta.key_width,
        linear_value_head_dim=delta.value_width,
        linear_conv_kernel_dim=delta.window,
        vocab_size=_VOCAB_SIZE,
        max_position_embeddings=max_positions,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        weights = AutoModelForCausalLM.from_config(config).state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    return write_random_model(folder, config.to_dict(), shapes, seed=seed)


def run_hybrid(
    opened: OpenSession, *, node_counts: Sequence[int], text_tokens: int, num_turns: int
) -> Generator[str, None, dict[str, Any]]:
    """Measure passes over random trees of these many nodes behind a text; the first turn is not counted.

    Raises OptionError if the target has no layers of both kinds, or if its context does not hold text and trees.
    """
    model = opened.session.engine.target
    layers = _layers_by_kind(model)
    needed = text_tokens + max(node_counts)
    if needed > opened.session.engine.context_tokens:
        raise OptionError(
            f"{text_tokens} tokens and a tree of {max(node_counts)} nodes need a context of {needed}, and it holds "
            f"{opened.session.engine.context_tokens}; give a larger --context, or fewer --nodes"
        )
    source = np.random.default_rng(0)
    text = source.integers(_FIRST_ID, model.parts.model.config.vocab_size, text_tokens).tolist()
    opened.session.engine.truncate(0)
    for start in range(0, text_tokens, _PREFILL_TOKENS):
        model.run_pass(chain_input(text[start : start + _PREFILL_TOKENS], num_cached=start), num_wanted=1)
    yield f"read a text of {text_tokens} tokens"
    trees = {num_nodes: _random_tree(text, num_nodes, source) for num_nodes in node_counts}
    times: dict[int, list[_Times]] = {num_nodes: [] for num_nodes in node_counts}
    root = text_tokens - 1
    for turn in range(num_turns + 1):
        for num_nodes, tree in trees.items():
            if model.cache.truncate(root) != root:
                raise AssertionError("a root that was accepted can be taken back")
            with _timed(layers, opened.plan.device) as found:
                model.run_pass(verify_input(text, tree, num_cached=root))
            model.cache.compact(root, [root])
            if turn:
                times[num_nodes].append(found)
        yield f"turn {turn} of {num_turns}" if turn else "warmed up"
    model.cache.truncate(0)
    dtype = opened.plan.dtype
    delta = opened.plan.target.workspace(dtype).delta
    assert delta is not None
    return {
        "text_tokens": text_tokens,
        "compute_dtype": str(dtype).removeprefix("torch."),
        "num_recurrent_layers": len(layers["recurrent"]),
        "num_attention_layers": len(layers["attention"]),
        "trees": [
            {
                "num_nodes": each,
                **_record(times[each], layers),
                "counted_bytes": delta.layer_bytes(each, dtype.itemsize, num_nodes=each - 1),
            }
            for each in node_counts
        ],
    }


def _record(times: Sequence[_Times], layers: _Layers) -> dict[str, float]:
    """Return medians of one layer's seconds, and those of the ratios, which are taken pass by pass."""
    record = {}
    for part in ("layer", "mixer"):
        each = [{kind: found[kind][part] / len(layers[kind]) for kind in layers} for found in times]
        for kind in layers:
            record[f"{kind}_{part}_seconds"] = statistics.median(found[kind] for found in each)
        record[f"{part}_ratio"] = statistics.median(found["recurrent"] / found["attention"] for found in each)
    return record


def _random_tree(text: Sequence[int], num_nodes: int, source: np.random.Generator) -> TokenTree:
    """Return a tree of random shape on the last token of a text, of its tokens."""
    tree = TokenTree(random_topology(num_nodes, source), source.choice(text, num_nodes))
    tree.token_ids[0] = text[-1]
    return tree


def random_topology(num_nodes: int, source: np.random.Generator) -> TreeTopology:
    """Return a tree of random shape."""
    parents = [-1]
    for node in range(1, num_nodes):
        parents.append(int(source.integers(max(parents[-1], 0), node)))
    return TreeTopology(np.array(parents, dtype=np.int64))


def _layers_by_kind(model: StreamedModel) -> _Layers:
    """Return the layers of each kind with their mixers. Raises OptionError if one is missing."""
    found: _Layers = {"recurrent": [], "attention": []}
    for layer in model.parts.layers:
        mixer = delta_module(layer)
        kind = "attention" if mixer is None else "recurrent"
        found[kind].append((layer, layer.get_submodule("self_attn") if mixer is None else mixer))
    for kind, layers in found.items():
        if not layers:
            raise OptionError(
                f"the target has no layer of the kind {kind}; give a hybrid such as Qwen3.5, or leave --target out"
            )
    return found


@contextmanager
def _timed(layers: _Layers, device: torch.device) -> Iterator[_Times]:
    """Measure each layer and its mixer within; what is yielded is filled as they return.

    A layer that streams is there before its time begins.
    """
    times = {kind: {"layer": 0.0, "mixer": 0.0} for kind in layers}
    begun: dict[nn.Module, float] = {}

    def begin(module: nn.Module, *_: object) -> None:
        wait_for_device(device)
        begun[module] = time.perf_counter()

    def end_of(seconds: dict[str, float], part: str) -> Callable[..., None]:
        def end(module: nn.Module, *_: object) -> None:
            wait_for_device(device)
            seconds[part] += time.perf_counter() - begun.pop(module)

        return end

    hooks = []
    for kind, pairs in layers.items():
        for pair in pairs:
            for part, module in zip(("layer", "mixer"), pair, strict=True):
                hooks.append(module.register_forward_pre_hook(begin))
                hooks.append(module.register_forward_hook(end_of(times[kind], part)))
    try:
        yield times
    finally:
        for hook in hooks:
            hook.remove()
