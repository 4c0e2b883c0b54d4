"""The whole validation on tiny models, the arithmetic of its comparison, and ranks of texts against real rounds."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from offload.device import identify_device
from offload.pass_statistics import PassStatistics
from profiles.calibration_probes import CalibrationScope
from profiles.pair_profile import AcceptanceTable, PairProfile
from profiles.profile_store import save_profile
from profiles.steps import finish
from runtime.bench import validation
from runtime.bench.rounds import TimedRound
from runtime.bench.trees import WrittenText
from runtime.bench.validation import (
    SHAPES,
    check_link,
    check_tree,
    count_yields,
    predict_seconds,
    rank_tokens,
    run_validation,
)
from runtime.config import EngineConfig, SamplingParams
from runtime.engine.loading import OpenSession, open_session
from runtime.errors import OptionError
from runtime.events import Round
from runtime.planner.costs import CostTable, RoundCosts
from runtime.planner.initial_plan import pair_identity
from runtime.speculation.token_tree import TreeTopology
from tests.support.profile_factory import PAIR
from tests.support.session_factory import answer, open_tiny, request, save_tiny_folder
from tests.support.trees import tree_of_counts

PROMPTS = [request(max_new_tokens=60), request("in the end", max_new_tokens=60)]
OTHERS = [request("the sun and the sea", max_new_tokens=40)]
COSTS = RoundCosts(
    copy_seconds=(0.1, None, 0.1),
    pass_seconds=CostTable((1, 100), (0.01, 0.01)),
    draft_step_seconds=CostTable((1, 3), (0.02, 0.04)),
    walk_seconds=CostTable((1,), (0.005,)),
    num_slots=2,
)
TREES = (tree_of_counts([3, 1, 1, 0, 0, 0]), TreeTopology.chain(4), TreeTopology.single())


@pytest.fixture
def short_calibrations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else computes, a calibration ends after so many looks at its clock, and measures as much each time."""
    short = CalibrationScope(budget_seconds=4.0, temperatures=(0.0,), contexts=(32,), tree_sizes=(1, 4, 16, 64, 128))
    monkeypatch.setattr(validation, "TEXT_SCOPE", short)
    monkeypatch.setattr(validation, "COST_SCOPE", short)
    monkeypatch.setattr(validation, "monotonic", itertools.count(0.0, 0.05).__next__)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    parent = tmp_path_factory.mktemp("models")
    return save_tiny_folder(parent / "target", seed=37), save_tiny_folder(parent / "draft", seed=37)


def config_of(folders: tuple[Path, Path], **options: object) -> EngineConfig:
    target, draft = folders
    choices = {"draft": str(draft), "draft_format": "stored", "context_tokens": 256, "device_memory_bytes": 0}
    return EngineConfig(target=str(target), **(choices | options))  # type: ignore[arg-type]


@pytest.mark.usefixtures("short_calibrations")
def test_every_link_has_its_trees_and_the_report_its_tokens(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """A draft that is never wrong, on a link that is the longest part of every round."""
    said = list[str]()
    links = ["2MB/s", "4MB/s"]
    steps = run_validation(
        config_of(folders), PROMPTS, calibration_requests=OTHERS, links=links, cache_folder=tmp_path, num_turns=1
    )
    report = finish(steps, said.append)
    slow, fast = report["links"]
    counted = [sentence for sentence in said if sentence.endswith("counted")]
    assert len(counted) == len(slow["shapes"]) + len(fast["shapes"])
    assert counted[0].startswith(f"2MB/s: {slow['choice']} {slow['shapes'][0]['predicted_seconds']:.3f} s predicted")
    assert (slow["link"], fast["link"]) == ("2MB/s", "4MB/s")
    assert slow["copy_seconds"] > 0.06 and fast["copy_seconds"] > 0.03  # 148 KB; two slots may be there already
    measured = {(shape["num_nodes"], shape["num_levels"]): shape for shape in slow["shapes"]}
    assert set(SHAPES) <= set(measured)
    assert measured[16, 16]["measured_tokens"] == 16.0  # the target drafts for itself
    promised = [shape["predicted_seconds_per_token"] for shape in slow["shapes"]]
    assert promised[0] < 1.05 * min(promised)  # the planner's choice, priced with the copies of that turn
    chain = report["yields"]["chains"][-1]
    assert chain["measured"] == chain["num_nodes"]
    assert report["draft"] == "draft"
    json.dumps(report, allow_nan=False)


def test_what_does_not_stream_cannot_be_validated(folders: tuple[Path, Path], tmp_path: Path) -> None:
    config = config_of(folders, device_memory_bytes=None)
    steps = run_validation(config, PROMPTS, calibration_requests=OTHERS, links=[None], cache_folder=tmp_path)
    with pytest.raises(OptionError, match="no layer streams"):
        next(steps)


@pytest.mark.usefixtures("short_calibrations")
def test_a_profile_that_a_calibration_left_is_what_is_validated(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its acceptance, .5 of 4000 positions, is told apart from the measured one of a draft that is never wrong."""
    monkeypatch.setattr(validation, "SHAPES", ((1, 1), (4, 4)))
    table = AcceptanceTable(0.0, (0.5,), (0.1,), (4000,), ((0.5,),), (4000,), 70)

    def keep(opened: OpenSession) -> PairProfile:
        target, draft = pair_identity(opened.plan)
        device = identify_device(opened.plan.device)
        return replace(PAIR, device=device, target=target, draft=draft, compute_dtype="float32", acceptance=(table,))

    config = config_of(folders)
    with open_session(replace(config, link="2MB/s")) as opened:
        save_profile(tmp_path, keep(opened))
    said = list[str]()
    steps = run_validation(
        config, PROMPTS, calibration_requests=OTHERS, links=["2MB/s"], cache_folder=tmp_path, num_turns=1
    )
    report = finish(steps, said.append)
    assert "predicting tokens from the profile of 2026-01-31" in said
    yields = report["yields"]
    assert (yields["num_predicted_positions"], yields["num_predicted_texts"]) == (4000, 70)
    chain = yields["chains"][1]
    assert chain["by_rank"] == pytest.approx(1 + 0.5 + 0.25 + 0.125)
    assert chain["by_depth_error"] == pytest.approx((1 + 0.6 + 0.36 + 0.216 - 1 - 0.4 - 0.16 - 0.064) / 2)


def test_predictions_add_the_draft_by_width_and_scale_the_copies() -> None:
    # the tree drafts 1 node, then 2 of the level of 3: 0.02 + 0.03 s; copies 0.2 s hide behind nothing else
    assert predict_seconds(TREES[0], COSTS, 0.2) == pytest.approx(0.2)
    assert predict_seconds(TREES[0], COSTS, 0.02) == pytest.approx(0.01 + 0.02 + 0.03 + 0.005, abs=0.002)
    assert predict_seconds(TREES[2], COSTS, 0.4) == pytest.approx(0.4)


def test_errors_and_the_choice_are_held_against_the_measurement() -> None:
    def rounds(*pairs: tuple[float, float]) -> list[TimedRound]:
        passed = PassStatistics(0.0, 0.0, 0.0, 0, 0, 0, 0.0)
        done = Round((-1,), (0,), 0.0, 0.0, passed, 1)
        return [TimedRound(replace(done, verify_seconds=seconds), copying) for seconds, copying in pairs]

    timed = [rounds((0.25, 0.2), (0.35, 0.3)), *[rounds((0.2, 0.2), (0.3, 0.3))] * 2]
    by_depth, ranks = np.array([[0.5, 0.1]]), [np.array([1, 1, 2, 1, 0, 1, 1])]
    first, second, third = shapes = [
        check_tree(tree, of_tree, COSTS, by_depth=by_depth, ranks=ranks)
        for tree, of_tree in zip(TREES, timed, strict=True)
    ]
    assert [shape["measured_tokens"] for shape in shapes] == [2.2, 2.0, 1.0]
    assert [shape["predicted_tokens"] for shape in shapes] == pytest.approx([1.9, 1.875, 1.0])
    assert (first["num_nodes"], first["num_levels"], first["num_rounds"]) == (6, 3, 2)
    assert first["measured_seconds"] == pytest.approx(0.3)
    assert first["predicted_seconds"] == pytest.approx(0.25)
    assert first["round_error"] == pytest.approx(abs(0.25 / 0.3 - 1))
    assert first["token_error"] == pytest.approx(abs((0.25 / 1.9) / (0.3 / 2.2) - 1))
    assert third["measured_seconds_per_token"] == pytest.approx(0.25)
    assert second["num_levels"] == 4
    record = check_link("disk", shapes, 0.25)
    assert record["choice_over_best"] == pytest.approx((0.3 / 2.2) / (0.25 / 2.0))
    assert record["choice"] == "6x3"
    assert record["worst_round_error"] == pytest.approx(first["round_error"])
    assert record["median_round_error"] == pytest.approx(float(np.median([s["round_error"] for s in shapes])))
    assert check_link("disk", shapes[1:2], 0.25)["choice_over_best"] == 1.0  # nothing beats it


def written(token_ids: list[int], num_prompt: int) -> WrittenText:
    return WrittenText(token_ids, num_prompt, SamplingParams())


def test_a_greedy_answer_is_first_in_the_models_own_order_everywhere(tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "model", seed=37)
    with open_tiny(folder) as opened:
        _, tokens = answer(opened, request())
        text = list(opened.session.engine.text)
        opened.session.engine.truncate(0)
        ranks = rank_tokens(opened.session.engine.target, written(text, len(text) - len(tokens)))
    assert ranks.tolist() == [1] * len(tokens)


def test_ranks_count_the_likelier_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against sorting; and a token that the model does not know has none."""
    monkeypatch.setattr("runtime.bench.validation._CHUNK_ROWS", 3)
    folder = save_tiny_folder(tmp_path / "model", seed=3)
    with open_tiny(folder) as opened:
        model = opened.session.engine.target
        text = [1, 5, 9, 2, 7, 7, 3, model.vocab_size + 4, 2]
        ranks = rank_tokens(model, written(text, 2))
        assert ranks[5] == 0
        for position in range(2, 7):
            alone = rank_tokens(model, written(text[: position + 1], position))
            assert ranks[position - 2] == alone[0]
        assert (ranks[:5] >= 1).all()
        assert (ranks <= model.vocab_size).all()


def test_counted_yields_are_what_a_session_emits(tmp_path: Path) -> None:
    """Real greedy rounds with a tree, against the same tree counted on the ranks of the text that they wrote."""
    target, draft = (save_tiny_folder(tmp_path / name, seed=seed) for name, seed in (("target", 37), ("draft", 38)))
    with open_tiny(target, draft=draft, tree="16x4") as opened:
        engine = opened.session.engine
        finished, tokens = answer(opened, request(max_new_tokens=48))
        text, topology = list(engine.text), engine.planner.topology(max_levels=4)
        engine.truncate(0)
        assert engine.drafter is not None
        ranks = rank_tokens(engine.drafter.model, written(text, len(text) - len(tokens)))
    start = num_rounds = 0
    while start < len(tokens):
        reach = ranks[start : start + topology.num_levels - 1]
        padded = np.concatenate([reach, np.zeros(topology.num_levels - 1 - len(reach), dtype=np.int64)])
        start += int(count_yields(topology, [np.append(padded, 0)])[0][-1])
        num_rounds += 1
    assert num_rounds == finished.statistics.rounds
