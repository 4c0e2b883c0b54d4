"""Packed folders stream on the simulated accelerator as their originals do: the same text, and no memory in a pass."""

import functools
import sys
from pathlib import Path

import torch

from runtime.model.streamed_model import chain_input
from tests.support.accelerator_sessions import (
    FEW_TIERS,
    SEED,
    TIERS,
    WIDE,
    answer_under_watch,
    cpu_text,
    in_layers,
    opened_on,
    quick_sessions,
    scratch,
)
from tests.support.packed_factory import save_packed_folder
from tests.support.sim_checks import SimChecks

CHECKS = SimChecks(__file__, quick_sessions)


@functools.cache
def folders() -> tuple[Path, Path]:
    return save_packed_folder(scratch() / "of packing", seed=SEED, sizes=WIDE)


def text_is_the_originals(tiers: str, draft: str) -> None:
    """In float32, where a chunk's products are those of the whole matrix."""
    original, packed = folders()
    settings = in_layers(TIERS[tiers], packed)
    with opened_on(packed, draft=draft, tree="8x4", compute_dtype="float32", **settings) as opened:
        assert answer_under_watch(opened) == cpu_text(original)


for _tiers in FEW_TIERS:
    for _draft in ("none", "substitute"):
        CHECKS[f"text_is_the_originals {_tiers}, draft {_draft}"] = functools.partial(
            text_is_the_originals, _tiers, _draft
        )


@CHECKS.check
def rows_are_unpacked_where_they_are_multiplied() -> None:
    """In the model's own type: nothing as large as a slot is allocated, and the logits are the original's."""
    found = []
    for folder in folders():
        with opened_on(folder, num_residents=1) as opened:
            answer_under_watch(opened)
            target = opened.session.engine.target
            target.cache.truncate(0)
            found.append(target.logits(target.run_pass(chain_input([3, 5, 8, 13], num_cached=0))).cpu())
    torch.testing.assert_close(found[1], found[0], rtol=0.05, atol=0.02)


test_on_accelerator = CHECKS.as_test()


if __name__ == "__main__":
    CHECKS.run(sys.argv[1:])
