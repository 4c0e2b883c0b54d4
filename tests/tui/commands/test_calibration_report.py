"""What a calibration looks like to people and to programs."""

import json
from dataclasses import replace

from profiles.calibrator import CalibrationResult
from profiles.costs import Overlap
from tests.support.profile_factory import PAIR, machine_profile
from tui.commands.calibration_report import calibration_lines, calibration_record

OVERLAP = Overlap(
    copy_seconds=2.0,
    copy_slowdown=0.25,
    compute_slowdown=None,
    link_bound_tokens=20,
    compute_bound_tokens=None,
)
MACHINE = machine_profile(disk_bytes_per_second=1.5e9, disk_latency_seconds=2e-4)
RESULT = CalibrationResult(machine=MACHINE, pair=PAIR, num_texts=12, overlap=OVERLAP, seconds=35.4)


def test_fitted_figures_stand_in_brackets() -> None:
    lines = calibration_lines(RESULT)
    assert "pass behind 128 tokens, ms by size: 1: 100, (64: 200)" in lines
    assert "draft step, ms by width: 1: 10, 8: 20" in lines


def test_what_was_not_measured_says_so() -> None:
    lines = calibration_lines(RESULT)
    assert "copies to the device: not measured" in lines
    assert "reads past the page cache: 1.50 GB/s after 200 us" in lines
    assert "computing slows copies: 0.25 s each second (passes of 20 tokens)" in lines
    assert "copying slows computation: not seen, counted as 0" in lines
    assert "no layer streams, so nothing was copied during passes" in calibration_lines(replace(RESULT, overlap=None))


def test_acceptance_is_shown_with_its_errors_and_by_depth() -> None:
    lines = calibration_lines(RESULT)
    by_rank = "acceptance by rank 0.800 (±0.010) 0.100 (±0.020), any 0.900"
    assert f"temperature 0: {by_rank}, over 200 positions of 8 texts" in lines
    assert "temperature 1: acceptance by rank 0.700 (±0.010) 0.100, any 0.800, over 200 positions of 8 texts" in lines
    assert "temperature 0: first child by depth, of positions: 0: 0.700 of 100, 1: 0.900 of 100" in lines


def test_a_name_cannot_write_to_the_terminal() -> None:
    pair = replace(PAIR, target=replace(PAIR.target, name="big\x1b[31m"))
    assert not any("\x1b" in line for line in calibration_lines(replace(RESULT, pair=pair)))


def test_the_record_is_json_and_counts_what_was_measured() -> None:
    record = json.loads(json.dumps(calibration_record(RESULT), allow_nan=False))
    assert (record["num_measured_passes"], record["num_fitted_passes"]) == (1, 1)
    assert record["acceptance"][0]["first_by_depth"] == [0.7, 0.9]
    assert (record["copy_slowdown"], record["compute_slowdown"]) == (0.25, None)
    assert calibration_record(replace(RESULT, overlap=None))["copy_seconds"] is None
