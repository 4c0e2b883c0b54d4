"""The examination of a card, in small, on the simulated accelerator."""

import functools
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from profiles.steps import finish
from runtime.bench.card import kernels, sessions, transfers
from runtime.bench.card.child import PROBES, answer
from runtime.bench.card.examination import run_card
from runtime.bench.card.setting import SMALL, Findings, Setting
from tests.support import simulated_device as sim
from tests.support.accelerator_sessions import DEVICE, quick_sessions, scratch
from tests.support.sim_checks import SimChecks

CHECKS = SimChecks(__file__, quick_sessions, is_alone=True)
check = CHECKS.check
ON_SIMULATED = (
    "import sys; from tests.support import simulated_device; simulated_device.load(); "
    "from runtime.bench.card.child import run_child; run_child(sys.argv[1:])"
)


def on_simulated(arguments: Sequence[str]) -> Sequence[str]:
    return (sys.executable, "-c", ON_SIMULATED, *arguments)


def a_probe_finds_something_out(name: str) -> None:
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        found = answer((name, DEVICE, "small", "0", folder))
    assert "failure" not in found, found
    assert found["says"] and found["figures"]
    assert sim.hazards() == []


for _name in PROBES:
    CHECKS[f"a_probe_finds_something_out {_name}"] = functools.partial(a_probe_finds_something_out, _name)


def found_by(find_out: Callable[[Setting], Findings]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=scratch()) as folder, torch.inference_mode():
        return find_out(Setting(torch.device(DEVICE), SMALL, 0, Path(folder))).figures


@check
def attention_without_copies_takes_less_memory() -> None:
    rows = found_by(kernels.time_attention)["attentions"]
    assert len(rows) == 2 * len(SMALL.num_keys)
    assert all(row["grouped_bytes"] < row["repeated_bytes"] for row in rows)


@check
def a_session_streams_all_of_its_layers_and_keeps_to_its_memory() -> None:
    found = found_by(sessions.time_prefill)
    layer_bytes = 2 * sum(rows * columns for rows, columns in SMALL.target.matrices)
    assert found["second"]["bytes_streamed"] >= SMALL.session_layers * layer_bytes
    memory = found["memory"]
    assert 0 < memory["allocated_bytes"] <= memory["reserved_bytes"]


@check
def pinned_memory_is_pinned_and_given_back() -> None:
    before = sim.registered_bytes()
    (slab,) = found_by(transfers.time_pinning)["slabs"]
    assert slab["is_pinned"] and slab["refused"] is None
    assert sim.registered_bytes() == before


@check
def a_probe_answers_from_a_process_of_its_own() -> None:
    folder = scratch() / "card"
    folder.mkdir()
    steps = run_card(DEVICE, names=["alignment"], is_small=True, command=on_simulated, folder=folder)
    said: list[str] = []
    record = finish(steps, said.append)
    (report,) = record["probes"]
    assert report["failure"] is None and record["num_failed"] == 0
    assert report["figures"]["products"] and len(said) == 1 + len(report["says"])
    assert list(folder.iterdir()) == []


@check
def a_probe_that_cannot_run_is_a_sentence() -> None:
    sim.set_capacity_bytes(1 << 16)
    try:
        found = answer(("alignment", DEVICE, "full", "0", str(Path())))
    finally:
        sim.set_capacity_bytes(1 << 30)
    assert set(found) == {"failure"} and "\n" not in found["failure"]


test_on_accelerator = CHECKS.as_test()


if __name__ == "__main__":
    CHECKS.run(sys.argv[1:])
