"""Parts measured apart, and what the recurrence makes of them with and without shared cores."""

from dataclasses import replace
from pathlib import Path

import pytest

from runtime.bench.round_parts import RoundParts, measure_parts, predict_round
from tests.support.session_factory import open_tiny, save_tiny_folder

PARTS = RoundParts(
    link_seconds=0.4,
    disk_seconds=0.0,
    compute_seconds=0.2,
    head_seconds=0.0,
    free_overlap_seconds=0.5,
    draft_seconds=0.0,
    predicted_seconds=0.0,
    shared_seconds=0.0,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model") / "target", seed=2)


def test_what_a_free_overlap_takes_beyond_the_longer_part_is_charged_to_it(folder: Path) -> None:
    with open_tiny(folder, num_residents=0) as opened:
        assert predict_round(opened, PARTS) == pytest.approx(0.4)
        assert predict_round(opened, PARTS, is_shared=True) == pytest.approx(0.5)
        longer = replace(PARTS, compute_seconds=0.8, free_overlap_seconds=1.0)
        assert predict_round(opened, longer) == pytest.approx(0.8)
        assert predict_round(opened, longer, is_shared=True) == pytest.approx(1.0)
        quicker = replace(PARTS, free_overlap_seconds=0.3)  # noise cannot make a pass shorter than its parts
        assert predict_round(opened, quicker, is_shared=True) == pytest.approx(0.4)


def test_an_emulated_link_shares_nothing_with_the_computation(folder: Path) -> None:
    with open_tiny(folder, draft=folder, tree="8x4", link="4MB/s") as opened:
        parts = measure_parts(opened, 1)
    assert parts.free_overlap_seconds == max(parts.link_seconds, parts.compute_seconds)
    assert parts.shared_seconds == parts.predicted_seconds > 0


def test_a_disk_is_read_while_the_pass_computes(folder: Path) -> None:
    with open_tiny(folder, draft=folder, tree="8x4", num_residents=1) as opened:
        parts = measure_parts(opened, 2)
    assert parts.free_overlap_seconds > 0.5 * parts.compute_seconds > 0
    assert parts.describe().startswith(f"apart: link {parts.link_seconds:.3f} s")
