"""Packed layers on the simulated accelerator: the text of the processor, no pass that waits, and what is counted."""

import functools
import sys
from pathlib import Path
from typing import Any

import torch

from offload.copying.copy_engine import HostSource
from offload.formats.stored_sizes import CHUNK_ELEMENTS
from tests.support import simulated_device as sim
from tests.support.accelerator_sessions import (
    ASKED,
    FEW_TIERS,
    SEED,
    TIERS,
    WIDE,
    answer_under_watch,
    in_layers,
    opened_on,
    quick_sessions,
    scratch,
)
from tests.support.model_factory import save_tiny_model, save_tiny_tokenizer
from tests.support.session_factory import answer
from tests.support.sim_checks import SimChecks

CHECKS = SimChecks(__file__, quick_sessions)
check = CHECKS.check


@functools.cache
def packable() -> Path:
    folder = scratch() / "packable"
    return save_tiny_tokenizer(save_tiny_model("llama", folder, seed=SEED, dtype=torch.bfloat16, **WIDE))


@functools.cache
def text_on_the_processor() -> list[int]:
    with opened_on(packable(), device="cpu") as opened:
        return answer(opened, ASKED)[1]


def text_is_the_cpus(settings: dict[str, Any]) -> None:
    """Slots are poisoned as soon as they are free, so that nothing is read but what was sent."""
    with opened_on(packable(), pack="on", compute_dtype="float32", **in_layers(settings, packable())) as opened:
        packed = opened._placed.packed
        assert len(packed) >= opened.placement.num_resident_layers + opened.placement.num_host_layers > 0
        assert all(str(part.device) == "sim:0" for layer in packed.values() for part in layer.escapes.values())
        assert answer_under_watch(opened) == text_on_the_processor()


WAYS: dict[str, dict[str, Any]] = {
    **{tiers: TIERS[tiers] for tiers in ("all resident", *FEW_TIERS)},
    "substitute": {"draft": "substitute", "num_residents": 1, "tree": "8x4"},
    "shared substitute": {"draft": "substitute", "share_layers": True, "tree": "8x4"},
}
for _name, _settings in WAYS.items():
    CHECKS[f"text_is_the_cpus: {_name}"] = functools.partial(text_is_the_cpus, _settings)


@check
def bfloat16_text_is_that_of_the_layers_as_stored() -> None:
    """Products in the type of the weights, which are unpacked to a chunk that dense ones do not need."""
    texts, scratch_bytes = {}, {}
    for pack in ("off", "on"):
        with opened_on(packable(), pack=pack, num_residents=1) as opened:
            texts[pack] = answer_under_watch(opened)
            scratch_bytes[pack] = opened.placement.fixed.get("upcast scratch", 0)
    assert scratch_bytes["on"] - scratch_bytes["off"] == 2 * CHUNK_ELEMENTS
    assert texts["on"] == texts["off"]


@check
def a_quarter_less_crosses_the_link_and_is_pinned() -> None:
    streamed, held = {}, {}
    for pack in ("off", "on"):
        with opened_on(packable(), pack=pack, device_memory_bytes=0) as opened:
            answer(opened, ASKED)
            streamed[pack] = opened.session.engine.target.last_pass.bytes_streamed
            sources = [layer for layer in opened.streamer.layers if isinstance(layer, HostSource)]
            held[pack] = sum(source.slab.numel() for source in sources) / max(len(sources), 1)
            assert streamed[pack] == sum(source.payload_bytes for source in sources) == opened.placement.streamed_bytes
            assert "pageable" not in " ".join(opened.notes)
            assert sim.hazards() == []
    assert 0.74 < streamed["on"] / streamed["off"] < 0.76
    assert 0.74 < held["on"] / held["off"] < 0.78


test_on_accelerator = CHECKS.as_test()


if __name__ == "__main__":
    CHECKS.run(sys.argv[1:])
