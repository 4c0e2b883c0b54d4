"""The command line on the simulated accelerator: run, doctor and calibrate."""

import contextlib
import io
import json
import os
import sys
from dataclasses import replace
from unittest import mock

from profiles import calibration_probes
from tests.support import simulated_device as sim
from tests.support.accelerator_sessions import (
    DEVICE,
    config_of,
    fixed_bytes,
    folder_of,
    layer_bytes,
    quick_sessions,
    scratch,
)
from tests.support.sim_checks import SimChecks
from tui import cli

CHECKS = SimChecks(__file__, quick_sessions)
check = CHECKS.check


def run_command(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.execute(arguments)
    return code, out.getvalue(), err.getvalue()


@check
def the_run_command_takes_the_device() -> None:
    folder = folder_of("llama")
    prompts = scratch() / "prompts.txt"
    prompts.write_text("the cat and the dog\na dog\n", encoding="utf-8")
    options = ["run", str(prompts), "--target", str(folder), "--draft", "none", "--raw", "--max-new-tokens", "12"]
    records = {}
    for device in ("cpu", "sim:0", "auto"):
        sim.reset_counters()
        code, out, err = run_command(*options, "--device", device, "--device-memory", "min")
        assert code == 0, err
        records[device] = [json.loads(line) for line in out.splitlines()]
        assert sim.hazards() == []
    texts = {device: [record["text"] for record in found] for device, found in records.items()}
    assert texts["cpu"] == texts["sim:0"] == texts["auto"] and all(texts["cpu"])
    assert all(record["bytes_streamed"] > 0 for record in records["sim:0"])


@check
def a_device_that_is_not_there_is_a_sentence() -> None:
    for device in ("sim:7", "cuda", "sim:x"):
        code, out, err = run_command("run", "-", "--target", str(folder_of("llama")), "--device", device)
        assert code == 2 and out == "" and err.count("\n") == 1, err


@check
def the_doctor_examines_the_device() -> None:
    with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(scratch()), "OVERSTORY_CACHE": str(scratch())}):
        code, out, err = run_command(
            "doctor", "--device", DEVICE, "--json", "--target", str(folder_of("llama")), "--draft", "none"
        )
    assert code in (0, 1), err
    record = json.loads(out)
    assert "sim:0" in json.dumps(record["devices"])
    pinned, pageable = record["link"]["value"]
    assert pinned["speed"]["bytes_per_second"] > 0 and pageable["speed"]["bytes_per_second"] > 0, record["link"]


@check
def a_calibration_measures_the_device() -> None:
    scope = replace(calibration_probes.QUICK, budget_seconds=3.0, transfer_bytes=(1 << 16, 1 << 20), max_texts=2)
    target, state = folder_of("llama"), scratch() / "state"
    budget = layer_bytes(target) * 2 + fixed_bytes(config_of(target, draft=target, context_tokens=200))
    with (
        mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(scratch()), "OVERSTORY_CACHE": str(state)}),
        mock.patch.object(calibration_probes, "QUICK", scope),
    ):
        code, out, err = run_command(
            *("calibrate", "--quick", "--device", DEVICE, "--target", str(target), "--draft", str(target)),
            *("--draft-format", "stored", "--context", "200", "--device-memory", f"{budget}B"),
        )
    assert code == 0, err
    record = json.loads(out)
    assert "(sim)" in record["device"], record["device"]
    assert record["link_bytes_per_second"] > 0
    assert record["copy_seconds"] > 0
    # Three seconds see all temperatures on an idle machine, and the coolest alone on a busy one.
    assert [table["temperature"] for table in record["acceptance"]] in ([0.0, 0.6, 1.0], [0.0])
    assert all(table["by_rank"][0] > 0.99 for table in record["acceptance"])  # the draft is the target
    assert len(list(state.glob("*.json"))) == 2


test_on_accelerator = CHECKS.as_test()


if __name__ == "__main__":
    CHECKS.run(sys.argv[1:])
