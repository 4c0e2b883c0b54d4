"""What a probe's process may do, and what the report then says."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from profiles.errors import BadInputError
from profiles.steps import finish
from runtime.bench.card import examination
from runtime.bench.card.child import PROBES, answer
from runtime.bench.card.examination import Command, run_card


@pytest.fixture(autouse=True)
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that nothing is asked of: the commands below are no probes."""
    monkeypatch.setattr(examination, "select_device", torch.device)


def saying(program: str) -> Command:
    return lambda arguments: (sys.executable, "-S", "-c", program, *arguments)


def examined(program: str, folder: Path, *names: str) -> dict:
    return finish(run_card("meta", names=names or ("pinning",), command=saying(program), folder=folder))


def test_every_probe_is_run_and_told_its_folder(tmp_path: Path) -> None:
    program = "import json, sys; print(json.dumps({'says': [sys.argv[1]], 'figures': {'folder': sys.argv[5]}}))"
    record = finish(run_card("meta", is_small=True, command=saying(program), folder=tmp_path))
    assert [report["says"] for report in record["probes"]] == [(name,) for name in PROBES]
    folders = {report["figures"]["folder"] for report in record["probes"]}
    assert len(folders) == len(PROBES) and {Path(folder).parent for folder in folders} == {tmp_path}
    assert record["num_failed"] == 0 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("program", "failure"),
    [
        ("import sys; sys.exit('no kernel image')", "its process ended with 1: no kernel image"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGABRT)", "its process ended by SIGABRT: it said nothing"),
        ("""print('{"failure": "BudgetError: too small"}')""", "BudgetError: too small"),
        ("print('hello')", "its answer was none: hello"),
        ("pass", "its process ended with 0: it said nothing"),
    ],
)
def test_what_fails_costs_only_its_own_answer(program: str, failure: str, tmp_path: Path) -> None:
    record = examined(program, tmp_path, "pinning", "alignment")
    assert [report["failure"] for report in record["probes"]] == [failure, failure]
    assert record["num_failed"] == 2
    json.dumps(record)


def test_a_probe_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(examination.PROBES, "pinning", replace(PROBES["pinning"], limit_seconds=0.2))
    (report,) = examined("import time; time.sleep(60)", tmp_path)["probes"]
    assert report["failure"] == "it took more than 0.2 s" and report["seconds"] < 30


def test_a_disk_without_room_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(examination.PROBES, "prefill", replace(PROBES["prefill"], file_bytes=1 << 60))
    (report,) = examined("raise SystemExit(3)", tmp_path, "prefill")["probes"]
    assert "free" in report["failure"] and "TMPDIR" in report["failure"]


@pytest.mark.parametrize(("device", "names", "words"), [("cpu", (), "overstory doctor"), ("meta", ("x",), "no probe")])
def test_what_cannot_be_examined_is_refused(device: str, names: Sequence[str], words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        next(run_card(device, names=names))


def test_an_error_of_the_device_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(setting: object) -> None:
        raise RuntimeError("CUDA error:\n misaligned address")

    monkeypatch.setitem(examination.PROBES, "pinning", replace(PROBES["pinning"], find_out=fails))
    found = answer(("pinning", "meta", "small", "0", str(tmp_path)))
    assert found == {"failure": "RuntimeError: CUDA error: misaligned address"}
