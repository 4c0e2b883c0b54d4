"""What a session holds at its peak is what its plan counts, in both directions, on the simulated accelerator.

Heads, MLP and vocabulary have the proportions of a large model (32 query heads on 4 key heads, keys and values of a
quarter of the hidden state, 3.5 of it in the MLP, 15.6 in the vocabulary) and the context is long, so that copies of
keys, masks and logits would show.
"""

import functools
import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runtime.config import SamplingParams
from runtime.engine.growing_tree import WantedTree
from runtime.engine.row_ranking import rank_on_device
from runtime.events import Round
from runtime.fit.machine import RESERVED_BYTES
from runtime.fit.workspace import Workspace
from runtime.model.pass_shapes import most_ranked, widest_level
from runtime.speculation.logit_processors import LogitProcessor
from runtime.speculation.schemes import AdjustedRows, Coupled, Place, scheme_for
from runtime.speculation.tree_search import best_first
from tests.support.accelerator_sessions import DEVICE, opened_on, quick_sessions, scratch
from tests.support.hybrids import save_hybrid
from tests.support.model_factory import save_tiny_model, save_tiny_tokenizer
from tests.support.sim_checks import SimChecks

CHECKS = SimChecks(__file__, quick_sessions, is_alone=True)
check = CHECKS.check

VOCAB_SIZE = 4000
GROUPED = {
    "hidden_size": 256,
    "intermediate_size": 896,
    "vocab_size": VOCAB_SIZE,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 16384,
}
TOLERANCE = 0.05
NUM_ROUNDS = 3
NUM_NODES = 64
BLOCK_BYTES = 4096
"""More than a few allocations are rounded up by."""


@functools.cache
def grouped_folder(num_layers: int, dtype: torch.dtype = torch.float32) -> Path:
    folder = scratch() / f"grouped-{num_layers}-{dtype}"
    saved = save_tiny_model("llama", folder, dtype=dtype, num_hidden_layers=num_layers, **GROUPED)
    return save_tiny_tokenizer(saved, VOCAB_SIZE)


@functools.cache
def hybrid_folder(num_layers: int, dtype: torch.dtype = torch.float32) -> Path:
    """Three heads of values for each of keys, and recurrences a little wider than hidden states, as in Qwen3.5-27B."""
    assert dtype == torch.float32
    folder = scratch() / f"hybrid-{num_layers}"
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 6}
    widths = {"linear_key_head_dim": 48, "linear_value_head_dim": 48, "head_dim": 16}
    kinds = [("linear_attention", "full_attention")[(index + 1) % 4 == 0] for index in range(num_layers)]
    sizes = GROUPED | heads | widths | {"num_hidden_layers": num_layers, "layer_types": kinds}
    return save_tiny_tokenizer(save_hybrid(folder, **sizes), VOCAB_SIZE)


@dataclass(frozen=True)
class Held:
    """Bytes above those that were there before, at their peaks."""

    allocated: int
    reserved: int


class Watch:
    """What the device's allocator gives from now on."""

    def __init__(self) -> None:
        gc.collect()
        torch.accelerator.empty_cache()
        self._allocated = torch.accelerator.memory_allocated(DEVICE)
        self._reserved = torch.accelerator.memory_reserved(DEVICE)
        torch.accelerator.reset_peak_memory_stats(DEVICE)

    def peak(self) -> Held:
        return Held(
            torch.accelerator.max_memory_allocated(DEVICE) - self._allocated,
            torch.accelerator.max_memory_reserved(DEVICE) - self._reserved,
        )


def peak_is_what_is_counted(
    context_tokens: int,
    num_layers: int,
    has_draft: bool,
    *,
    dtype: torch.dtype = torch.float32,
    folder_of: Callable[..., Path] = grouped_folder,
    num_nodes: int = NUM_NODES,
    most_spare: float = TOLERANCE,
    **settings: Any,
) -> int:
    """A prompt that fills the context, so that its last slice is as wide as any, then a few rounds.

    Returns the bytes by which the peak is above what is counted.
    """
    draft = grouped_folder(1, dtype) if has_draft else "none"
    settings |= {"tree": f"{num_nodes}x6"} if has_draft else {}
    watch, rng = Watch(), np.random.default_rng(0)
    with opened_on(
        folder_of(num_layers, dtype),
        draft=draft,
        context_tokens=context_tokens,
        **{"num_residents": 0, **settings},
    ) as opened:
        placement = opened.placement
        assert bool(placement.residency.travelling) == (settings.get("kv_cache") == "host")
        room = num_nodes - 1 if has_draft else NUM_ROUNDS + 1
        prompt = rng.integers(10, VOCAB_SIZE - 10, context_tokens - room).tolist()
        events = opened.session.engine.generate(prompt, SamplingParams(max_new_tokens=40), rng)
        num_rounds = 0
        while num_rounds < NUM_ROUNDS:
            num_rounds += isinstance(next(events), Round)
        events.close()
        peak = watch.peak()
    share = peak.allocated / placement.device_bytes
    assert -most_spare <= share - 1 <= TOLERANCE, f"{share:.3f}: {peak} where {placement.entries()} are counted"
    assert peak.reserved <= placement.device_bytes + RESERVED_BYTES
    return peak.allocated - placement.device_bytes


for _tokens, _num_layers, _has_draft in ((2048, 4, True), (4096, 8, True), (4096, 4, False), (8192, 4, True)):
    _name = f"peak_is_what_is_counted: {_tokens} tokens, {'with a draft' if _has_draft else 'plain'}"
    CHECKS[_name] = functools.partial(peak_is_what_is_counted, _tokens, _num_layers, _has_draft)
    if _tokens > 2048:
        CHECKS.slow.add(_name)


for _tokens, _num_nodes in ((2048, 64), (2048, 400), (4096, 0)):
    _name = f"peak_of_a_hybrid_is_what_is_counted: {_tokens} tokens, {_num_nodes} nodes"
    CHECKS[_name] = functools.partial(
        peak_is_what_is_counted,
        _tokens,
        4,
        bool(_num_nodes),
        folder_of=hybrid_folder,
        num_nodes=_num_nodes,
        most_spare=0.25 if _num_nodes > NUM_NODES else TOLERANCE,  # no pass is both a whole piece and a large tree
    )
    CHECKS.slow.add(_name)


@check
def keys_and_values_that_travel_are_counted() -> None:
    """With int8 also the place in which they are widened: the peaks differ by what the plans differ by."""
    settings = {"kv_cache": "host", "num_residents": None, "device_memory_bytes": 0}
    exact, narrow = (
        peak_is_what_is_counted(2048, 4, True, kv_format=kv_format, **settings) for kv_format in ("exact", "int8")
    )
    assert abs(exact - narrow) <= BLOCK_BYTES, f"{exact} bytes more than counted, and {narrow} with int8"


@check
def packed_layers_are_counted() -> None:
    """Slots of three quarters, two chunks that layers are unpacked and widened to, and what has no code."""
    settings = {"compute_dtype": "float32", "num_residents": None, "device_memory_bytes": 0, "kv_cache": "device"}
    peak_is_what_is_counted(1024, 6, False, dtype=torch.bfloat16, pack="on", **settings)


@check
def ranking_holds_what_is_counted() -> None:
    """Sampled candidates of a level: the logits, what a penalty makes of them, and the noise of two positions."""
    num_rows = 32
    processor = LogitProcessor(SamplingParams(repetition_penalty=1.1), prompt=[1, 2], vocab_size=20_000)
    scheme = AdjustedRows(Coupled(seed=3), processor)
    sizes = Workspace(hidden_size=1, head_dim=1, inner_size=1, vocab_size=20_000, item_bytes=2)
    watch = Watch()
    logits = torch.randn(num_rows, 20_000, device=DEVICE)
    positions = [5] * 16 + [6] * 16
    params = SamplingParams(temperature=0.8)
    places = [Place(params, position, (7,) * (position - 5)) for position in positions]
    rank_on_device(scheme, logits, positions, lambda: places, params=params, num_candidates=8)
    assert abs(watch.peak().allocated / sizes.ranking_bytes(num_rows) - 1) <= TOLERANCE


@check
def a_wide_level_holds_no_more_than_is_counted_for_its_tree() -> None:
    """Half of the nodes in one level, which is ranked in parts: at once it would hold twice as many logits."""
    folder = scratch() / "wide vocabulary"
    save_tiny_tokenizer(save_tiny_model("llama", folder, **(GROUPED | {"vocab_size": 20_000})), 20_000)
    topology = best_first([0.03] * 32, 65, 3).topology(65)
    params, rng = SamplingParams(temperature=0.8), np.random.default_rng(0)
    with opened_on(folder, draft=folder, context_tokens=256, num_residents=0, tree="65x3") as opened:
        drafter, need = opened.session.engine.drafter, opened.plan.need
        watch = Watch()
        wanted = WantedTree(text=[5, 6, 7], shape=topology, params=params, rng=rng, scheme=scheme_for(params))
        growth = drafter.grow([wanted])
        widths = [level.width for level in growth]
        peak = watch.peak()
    counted = need.draft.workspace.ranking_bytes(most_ranked(65))
    assert widths == [1, widest_level(65)]
    assert 0.5 * counted < peak.allocated <= (1 + TOLERANCE) * counted, f"{peak} where {counted} are counted"


test_on_accelerator = CHECKS.as_test()


if __name__ == "__main__":
    CHECKS.run(sys.argv[1:])
