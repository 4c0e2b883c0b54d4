"""What the picker is told of a model before it is loaded."""

import asyncio
import json
import sys
from collections.abc import Coroutine
from dataclasses import asdict
from typing import Any

import psutil
import pytest

from runtime.config import EngineConfig
from tests.support.plan_fakes import measured_machines, planned
from tests.support.session_factory import save_tiny_folder
from tui.chat.models import FitEstimate, estimate_fits, estimate_of, make_estimates

CHILD = """
import json, os, sys
folders, config = json.loads(sys.stdin.readline())
for folder in folders[:LIMIT]:
    print(json.dumps({"folder": folder, "fit": "streams", "seconds_per_token": 0.5,
                      "sentence": f"{os.getpid()} {config['draft']}"}), flush=True)
TAIL
"""


def child(*, limit: int = 99, tail: str = "") -> list[str]:
    """A process that gives at most `limit` estimates, and then does `tail`."""
    return [sys.executable, "-c", CHILD.replace("LIMIT", str(limit)).replace("TAIL", tail)]


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


def test_estimates_come_in_order_and_the_settings_reach_the_planner():
    async def story() -> None:
        found = [one async for one in estimate_fits(["b", "a"], EngineConfig(draft="none"), command=child())]
        sentence = found[0].sentence
        assert sentence.endswith(" none")
        assert found == [FitEstimate(folder, "streams", 0.5, sentence) for folder in ("b", "a")]

    run(story())


def test_a_planner_that_dies_leaves_the_rest_unknown():
    async def story() -> None:
        estimates = estimate_fits(["a", "b", "c"], EngineConfig(), command=child(limit=1, tail="os._exit(9)"))
        found = [(one.folder, one.fit, one.seconds_per_token) async for one in estimates]
        assert found == [("a", "streams", 0.5), ("b", "unknown", None), ("c", "unknown", None)]

    run(story())


def test_who_stops_asking_ends_the_process():
    async def story() -> None:
        estimates = estimate_fits(["a"], EngineConfig(), command=child(tail="import signal; signal.pause()"))
        process_id = int((await anext(estimates)).sentence.split()[0])
        assert psutil.pid_exists(process_id)
        await estimates.aclose()
        assert not psutil.pid_exists(process_id)

    run(story())


@pytest.fixture
def measured(monkeypatch):
    """Of a made-up machine in place of this one: what it was measured with, each time."""
    return measured_machines(monkeypatch)


def test_models_are_planned_on_this_machine_which_is_measured_once(tmp_path, measured):
    folders = [save_tiny_folder(tmp_path / name) for name in ("a", "b")]
    names = [str(tmp_path / "missing"), *map(str, folders)]
    missing, *found = make_estimates(names, EngineConfig())
    assert (missing.fit, missing.seconds_per_token) == ("unusable", None)
    assert [(one.folder, one.fit) for one in found] == [(name, "resident") for name in names[1:]]
    assert all(one.seconds_per_token and "tokens/s" in one.sentence for one in found)
    assert [where for _, where in measured] == [folders[0]]


def test_budgets_of_the_settings_are_those_of_the_plan(tmp_path, measured):
    folder = str(save_tiny_folder(tmp_path / "a"))
    (streamed,) = make_estimates([folder], EngineConfig(device_memory_bytes=0, context_tokens=64))
    assert streamed.fit == "streams"
    assert "in every pass" in streamed.sentence
    (too_small,) = make_estimates([folder], EngineConfig(device_memory_bytes=1000))
    assert (too_small.fit, too_small.seconds_per_token) == ("does not fit", None)
    assert "\n" not in too_small.sentence


def test_the_sentence_says_what_streams_and_how_fast():
    report = planned()
    estimate = estimate_of("x", report)
    assert (estimate.fit, estimate.seconds_per_token) == ("streams", report.main.seconds_per_token)
    assert estimate.sentence.startswith("streams ") and estimate.sentence.endswith("s/token")
    assert json.loads(json.dumps(asdict(estimate)))["folder"] == "x"


def real_estimates(*folders):
    async def story() -> list[tuple[str, str]]:
        return [(one.folder, one.fit) async for one in estimate_fits(folders, EngineConfig(device="cpu"))]

    return asyncio.run(story())


def test_the_real_planner_answers_from_a_process_of_its_own(tmp_path):
    """Of what is no model it says so without measuring the machine."""
    folders = [str(tmp_path / "missing"), str(tmp_path)]
    assert real_estimates(*folders) == [(folder, "unusable") for folder in folders]


@pytest.mark.slow
def test_the_real_planner_measures_the_real_machine(tmp_path):
    folder = str(save_tiny_folder(tmp_path / "a"))
    assert real_estimates(folder) == [(folder, "resident")]
