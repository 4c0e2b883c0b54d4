"""The whole validation on tiny models: every link, every tree, one report."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from offload.device import identify_device
from profiles.calibration_probes import CalibrationScope
from profiles.pair_profile import AcceptanceTable, PairProfile
from profiles.profile_store import save_pair_profile
from runtime.bench import validation
from runtime.bench.round_check import LinkCheck
from runtime.bench.validation import SHAPES, ValidationReport, run_validation
from runtime.engine.loading import OpenSession, open_session
from runtime.engine_config import EngineConfig
from runtime.errors import OptionError
from runtime.planner.initial_plan import pair_identity
from tests.support.profile_factory import PAIR
from tests.support.session_factory import request, save_tiny_folder

PROMPTS = [request(max_new_tokens=60), request("in the end", max_new_tokens=60)]
OTHERS = [request("the sun and the sea", max_new_tokens=40)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    parent = tmp_path_factory.mktemp("models")
    return save_tiny_folder(parent / "target", seed=37), save_tiny_folder(parent / "draft", seed=37)


def config_of(folders: tuple[Path, Path], **options: object) -> EngineConfig:
    target, draft = folders
    choices = {"draft": str(draft), "draft_format": "stored", "context_tokens": 256, "device_memory_bytes": 0}
    return EngineConfig(target=str(target), **(choices | options))  # type: ignore[arg-type]


def test_every_link_has_its_trees_and_the_report_its_tokens(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A draft that is never wrong, on a link that is the longest part of every round."""
    short = CalibrationScope(budget_seconds=6.0, temperatures=(0.0,), contexts=(32,), tree_sizes=(1, 4, 16, 64, 128))
    monkeypatch.setattr(validation, "TEXT_SCOPE", short)
    monkeypatch.setattr(validation, "COST_SCOPE", short)
    *steps, report = run_validation(
        config_of(folders),
        PROMPTS,
        calibration_requests=OTHERS,
        links=["1MB/s", "2MB/s"],
        cache_folder=tmp_path,
        num_turns=1,
    )
    assert isinstance(report, ValidationReport)
    assert report.links == tuple(step for step in steps if isinstance(step, LinkCheck))
    slow, fast = report.links
    assert (slow.link, fast.link) == ("1MB/s", "2MB/s")
    assert slow.copy_seconds == pytest.approx(2 * fast.copy_seconds, rel=0.1)
    measured = {(shape.num_nodes, shape.num_levels): shape for shape in slow.shapes}
    assert set(SHAPES) <= set(measured)
    assert measured[16, 16].measured_tokens == 16.0  # the target drafts for itself
    assert slow.choice_over_best < 1.2
    chain = report.yields.chains[-1]
    assert chain.measured == chain.num_nodes
    record = json.loads(json.dumps(report.to_record()))
    assert len(record["links"]) == 2 and record["draft"] == "draft"


def test_what_cannot_be_validated_is_a_sentence(folders: tuple[Path, Path], tmp_path: Path) -> None:
    def run(config: EngineConfig, requests: list[object]) -> None:
        list(run_validation(config, requests, calibration_requests=OTHERS, links=[None], cache_folder=tmp_path))  # type: ignore[arg-type]

    with pytest.raises(OptionError, match="--draft none"):
        run(config_of(folders, draft="none"), [*PROMPTS])
    with pytest.raises(OptionError, match="no prompt"):
        run(config_of(folders), [])
    with pytest.raises(OptionError, match="no layer streams"):
        run(config_of(folders, device_memory_bytes=None), [*PROMPTS])


def test_a_profile_that_a_calibration_left_is_what_is_validated(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its acceptance, .5 of 4000 positions, is told apart from the measured one of a draft that is never wrong."""
    short = CalibrationScope(budget_seconds=4.0, temperatures=(0.0,), contexts=(32,), tree_sizes=(1, 4, 16))
    monkeypatch.setattr(validation, "TEXT_SCOPE", short)
    monkeypatch.setattr(validation, "COST_SCOPE", short)
    monkeypatch.setattr(validation, "SHAPES", ((1, 1), (4, 4)))
    table = AcceptanceTable(0.0, (0.5,), (0.1,), (4000,), ((0.5,),), (4000,), 70)

    def keep(opened: OpenSession) -> PairProfile:
        target, draft = pair_identity(opened.plan)
        device = identify_device(opened.plan.device)
        return replace(PAIR, device=device, target=target, draft=draft, compute_dtype="float32", acceptance=(table,))

    config = config_of(folders)
    with open_session(replace(config, link="1MB/s")) as opened:
        save_pair_profile(tmp_path, keep(opened))
    *steps, report = run_validation(
        config, PROMPTS, calibration_requests=OTHERS, links=["1MB/s"], cache_folder=tmp_path, num_turns=1
    )
    assert isinstance(report, ValidationReport)
    assert "predicting tokens from the profile of 2026-01-31" in steps
    assert (report.yields.num_predicted_positions, report.yields.num_predicted_texts) == (4000, 70)
    chain = report.yields.chains[1]
    assert chain.by_rank == pytest.approx(1 + 0.5 + 0.25 + 0.125)
    assert chain.by_depth_error == pytest.approx((1 + 0.6 + 0.36 + 0.216 - 1 - 0.4 - 0.16 - 0.064) / 2)
