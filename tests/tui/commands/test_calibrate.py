"""The command from its arguments to two files, one JSON line and sentences; nothing is written too early."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from profiles import calibration_probes, pair_profile
from profiles.calibration_probes import QUICK, CalibrationScope
from profiles.calibrator import CalibrationResult
from profiles.costs import Overlap
from profiles.pair_profile import PairProfile
from profiles.profile_store import save_profile
from profiles.records import from_record
from runtime.calibration.probes import SessionProbes
from runtime.config import EngineConfig
from runtime.engine.load_plan import LoadPlan
from runtime.errors import OptionError
from tests.support.profile_factory import PAIR, machine_profile
from tests.support.session_factory import save_tiny_folder
from tui.cli import execute
from tui.commands.calibrate import acceptance_line, calibration_record

TINY_SCOPE = replace(
    QUICK,
    budget_seconds=0.5,  # the least that gives profiles
    transfer_bytes=(1 << 16,),
    widths=(1, 4),
    tree_sizes=(1, 4),
    walk_sizes=(1, 4),
    max_texts=2,
    needed_positions=0,
    repeat_seconds=0.01,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model") / "target", seed=2)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OVERSTORY_CACHE", str(tmp_path / "state"))
    monkeypatch.setattr(calibration_probes, "QUICK", TINY_SCOPE)
    return tmp_path / "state"


def arguments(folder: Path, tmp_path: Path, text: str = "the cat\nthe dog\n") -> list[str]:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": line}) + "\n" for line in text.splitlines()))
    return ["calibrate", "--quick", "--target", str(folder), "--prompts", str(prompts), "--context", "200"]


@pytest.mark.parametrize("link", [(), ("--device-memory", "min", "--emulate-link", "20MB/s")])
def test_both_profiles_are_kept_and_the_last_line_says_where(
    folder: Path, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], link: tuple[str, ...]
) -> None:
    assert execute([*arguments(folder, tmp_path), *link]) == 0
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    record = json.loads(line)
    pair = from_record(PairProfile, json.loads(Path(record["pair_profile"]).read_text()))
    assert pair.target.name == "target"
    assert record["target"] == f"target (float32, {pair.target.content_digest[:12]})"
    assert record["draft"] == f"target (int8, {pair.draft.content_digest[:12]})"
    assert [table.temperature for table in pair.acceptance] == [0.0, 0.6, 1.0]
    assert [item["num_positions"] for item in record["acceptance"]] == [
        table.num_positions[0] for table in pair.acceptance
    ]
    assert (record["copy_seconds"] is None) == (not link)
    assert {path.parent for path in map(Path, (record["machine_profile"], record["pair_profile"]))} == {state}
    assert "acceptance by rank" in captured.err
    assert f"saved {record['pair_profile']}" in captured.err


def test_each_length_has_its_scope_and_context(
    folder: Path, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def remember(probes: SessionProbes, scope: CalibrationScope, **_: object) -> None:
        seen.append((scope, probes.pair().context_tokens))
        raise OptionError("enough")

    monkeypatch.setattr("profiles.calibrator.Calibrator", remember)
    without_context = [item for item in arguments(folder, tmp_path) if item != "--quick"][:-2]
    for length in ("--quick", None, "--thorough"):
        assert execute([*without_context, *([length] if length else [])]) == 2
    assert [scope.budget_seconds for scope, _ in seen] == [TINY_SCOPE.budget_seconds, 170.0, 590.0]
    assert [context for _, context in seen] == sorted(context for _, context in seen)


def test_quiet_leaves_one_line(folder: Path, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute([*arguments(folder, tmp_path), "--quiet"]) == 0
    captured = capsys.readouterr()
    assert (len(captured.out.splitlines()), captured.err) == (1, "")


def test_where_no_draft_fits_one_sentence_says_what_to_give(
    folder: Path, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found: the default was the substitute even there, and the refusal named an option that would have been right."""
    config = EngineConfig(target=str(folder), draft="none", context_tokens=200, device_memory_bytes=0)
    least_bytes = LoadPlan.build(config).placement.device_bytes
    assert execute([*arguments(folder, tmp_path), "--device-memory", f"{least_bytes}B"]) == 2
    error = capsys.readouterr().err
    assert (
        "a draft is needed here, but nothing drafts" in error and "; give --draft the folder or hub name of a" in error
    )
    assert len(error.strip().splitlines()) == 1
    assert execute([*arguments(folder, tmp_path), "--draft", "substitute", "--device-memory", f"{least_bytes}B"]) == 2
    assert "; --draft auto takes a smaller model of its family, if one is here" in capsys.readouterr().err


def test_an_interrupt_leaves_old_profiles_as_they_were(
    folder: Path, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert execute(arguments(folder, tmp_path)) == 0
    before = {path: path.read_bytes() for path in state.iterdir()}

    def interrupt(self: SessionProbes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SessionProbes, "grow_texts", interrupt)
    assert execute(arguments(folder, tmp_path)) == 130
    assert {path: path.read_bytes() for path in state.iterdir()} == before
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["--draft", "none"], "bench stream"),
        (["--draft", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--device-memory", "1KB"], "the budget is 1.00 KB"),
        (["--thorough"], "--quick and --thorough exclude each other"),
    ],
)
def test_what_cannot_be_calibrated_is_one_sentence(
    folder: Path,
    state: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    extra: list[str],
    expected: str,
) -> None:
    assert execute([*arguments(folder, tmp_path), *extra]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.strip().splitlines()) == 1
    assert not state.exists()


@pytest.mark.parametrize(
    ("content", "expected"), [("", "holds no prompt"), ("{\n", "line 1"), ('{"prompt": ""}\n', "prompt")]
)
def test_prompts_that_cannot_be_used_are_one_sentence(
    folder: Path, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, expected: str
) -> None:
    command_line = arguments(folder, tmp_path)
    (tmp_path / "p.jsonl").write_text(content)
    assert execute(command_line) == 2
    assert expected in capsys.readouterr().err


def test_a_prompt_longer_than_the_context_is_one_sentence(
    folder: Path, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command_line = arguments(folder, tmp_path, text="the cat and the dog " * 30)
    assert execute(command_line) == 2
    assert "--context" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_a_sentence(
    folder: Path, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state.write_text("a file where the folder would be")
    assert execute(arguments(folder, tmp_path)) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_an_emulated_link_and_few_positions_leave_what_was_known_better(
    folder: Path, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_profile, "FEW_POSITIONS", 1 << 40)
    assert execute([*arguments(folder, tmp_path), "--device-memory", "min", "--emulate-link", "20MB/s"]) == 0
    path = Path(json.loads(capsys.readouterr().out)["pair_profile"])
    first = from_record(PairProfile, json.loads(path.read_text()))
    assert (first.compute_slowdown, first.copy_slowdown) == (0.0, 0.0)
    tables = tuple(replace(table, num_positions=(4000,) * len(table.num_positions)) for table in first.acceptance)
    save_profile(state, replace(first, acceptance=tables, compute_slowdown=0.25, copy_slowdown=0.5))
    assert execute([*arguments(folder, tmp_path), "--device-memory", "min", "--emulate-link", "20MB/s"]) == 0
    captured = capsys.readouterr()
    second = from_record(PairProfile, json.loads(path.read_text()))
    assert (second.compute_slowdown, second.copy_slowdown) == (0.25, 0.5)
    assert second.acceptance == tables
    assert "saw more positions and is kept" in captured.err


OVERLAP = Overlap(copy_seconds=2.0, copy_slowdown=0.25, compute_slowdown=None)
MACHINE = machine_profile(disk_bytes_per_second=1.5e9, disk_latency_seconds=2e-4)
RESULT = CalibrationResult(machine=MACHINE, pair=PAIR, overlap=OVERLAP, seconds=35.4)


def test_acceptance_is_shown_with_its_errors() -> None:
    greedy, sampled = map(acceptance_line, PAIR.acceptance)
    by_rank = "acceptance by rank 0.800 (±0.010) 0.100 (±0.020), any 0.900"
    assert greedy == f"temperature 0: {by_rank}, over 200 positions of 8 texts"
    assert sampled == "temperature 1: acceptance by rank 0.700 (±0.010) 0.100, any 0.800, over 200 positions of 8 texts"


def test_the_record_is_json_and_counts_what_was_measured() -> None:
    record = json.loads(json.dumps(calibration_record(RESULT), allow_nan=False))
    assert (record["num_measured_passes"], record["num_fitted_passes"]) == (1, 1)
    assert record["acceptance"][0]["first_by_depth"] == [0.7, 0.9]
    assert (record["copy_slowdown"], record["compute_slowdown"]) == (0.25, None)
    assert calibration_record(replace(RESULT, overlap=Overlap()))["copy_seconds"] is None
