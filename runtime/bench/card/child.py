"""One probe of a card in a process of its own: `python -m runtime.bench.card.child NAME DEVICE SIZES SEED FOLDER`.

Writes one JSON line, of what the probe found or of the sentence that it failed with, and is of no use to people.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from profiles.child_process import own_streams
from profiles.errors import OverstoryError
from runtime.bench.card import kernels, sessions, transfers
from runtime.bench.card.setting import FULL, SMALL, Findings, Setting


@dataclass(frozen=True, slots=True)
class Probe:
    """Something to find out about a card."""

    settles: str
    """The question, for a person."""
    find_out: Callable[[Setting], Findings]
    limit_seconds: float = 120.0
    """The process is ended after this time."""
    file_bytes: int = 0
    """Disk that it takes in full size."""


PROBES: dict[str, Probe] = {
    "environment": Probe("what this card, its driver and the packages are", transfers.describe_environment, 60),
    "alignment": Probe("what a matrix costs that lies at 8 or 2 bytes instead of 16", kernels.time_alignment),
    "odd-codes": Probe("whether the fused 4-bit product survives codes at an odd address", kernels.read_odd_codes),
    "graph-memory": Probe("what recorded passes hold: one stream and pool against new ones", kernels.weigh_graphs),
    "grouped-queries": Probe("what attention costs with and without copies of keys and values", kernels.time_attention),
    "contention": Probe("how long small copies queue behind a stream of large ones", transfers.time_small_copies),
    "pinning": Probe("how fast host memory is pinned and let go of", transfers.time_pinning),
    "nf4-chunks": Probe("how much of a 4-bit matrix to widen at a time", kernels.time_chunks, 180),
    "draft-layers": Probe("how a draft is best held, replayed and eager", kernels.time_draft_layers, 240),
    "prefill": Probe(
        "how long a long prompt takes, and memory against the accounting", sessions.time_prefill, 300, 16 << 30
    ),
    "chat": Probe("what the chat's sampling costs beside greedy rounds", sessions.time_chat, 300, 16 << 30),
}
"""By name, in the order in which they run."""


def answer(arguments: Sequence[str]) -> dict[str, Any]:
    """Run the probe that the arguments name; return what it found, or the sentence that it failed with."""
    name, device, sizes, seed, folder = arguments
    setting = Setting(torch.device(device), SMALL if sizes == "small" else FULL, int(seed), Path(folder))
    try:
        with torch.inference_mode():
            found = PROBES[name].find_out(setting)
    except (OverstoryError, RuntimeError, OSError) as error:  # RuntimeError: what torch raises of any device
        return {"failure": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
    return {"says": list(found.says), "figures": found.figures}


def run_child(arguments: Sequence[str]) -> None:
    """Be the child: answer on what was stdout, which libraries do not reach any more."""
    _, replies = own_streams()
    line = json.dumps(answer(arguments)) + "\n"
    with os.fdopen(replies, "w", encoding="utf-8") as out:
        out.write(line)
    os._exit(0)  # whatever a broken context would do on its way out


if __name__ == "__main__":
    run_child(sys.argv[1:])
