"""Every setting gets its positions, figures hang together, and formulas are what the shipped schemes really accept."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from profiles.steps import finish
from runtime.bench.robustness import (
    SCHEME_NAMES,
    TEMPERATURES,
    TOP_PS,
    best_tree_tokens,
    position_acceptance,
    rejection_of,
    robustness_lines,
    run_robustness,
)
from runtime.config import SamplingParams
from runtime.speculation.sampling import logits_to_probs
from runtime.speculation.schemes import Place, scheme_for
from runtime.speculation.tree_search import dynamic_program, make_non_increasing
from tests.support.session_factory import open_tiny, request, save_tiny_folder

NUM_PLAYED = 1500
PROMPTS = [replace(request(text), id=text) for text in ("the cat and the dog", "the cat ran", "once upon a time")]


def measured(target: Path, draft: Path, *, num_positions: int = 8, context_tokens: int = 1024) -> dict[str, Any]:
    with open_tiny(target, draft=draft, context_tokens=context_tokens, tree="6x3") as opened:
        return finish(run_robustness(opened, PROMPTS, num_positions=num_positions, tree_nodes=16))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A target and a draft of its own mind."""
    base = tmp_path_factory.mktemp("models")
    return save_tiny_folder(base / "target", seed=2), save_tiny_folder(base / "draft", seed=3)


def test_every_setting_has_its_positions_and_every_scheme_its_figures(folders: tuple[Path, Path]) -> None:
    report = measured(*folders)
    found = [(setting["temperature"], setting["top_p"]) for setting in report["settings"]]
    assert found == [(0.0, 1.0), *((heat, top_p) for heat in TEMPERATURES for top_p in TOP_PS)]
    assert (report["target"], report["draft"]) == ("target", "draft")
    for setting in report["settings"]:
        assert setting["num_positions"] >= 3
        assert setting["temperature"] == 0 or setting["num_positions"] >= 8
        assert tuple(scheme["scheme"] for scheme in setting["schemes"]) == SCHEME_NAMES
        for scheme in setting["schemes"]:
            assert len(scheme["rejection"]) == len(scheme["rejection_errors"]) == 16
            assert all(0 <= rate <= 1 for rate in scheme["rejection"])
            assert scheme["rejection"] == sorted(scheme["rejection"], reverse=True)
            assert 1 <= scheme["tokens_per_pass"] <= 16
    json.dumps(report, allow_nan=False)


def test_a_draft_that_is_the_target_is_accepted_at_once(folders: tuple[Path, Path]) -> None:
    target, _ = folders
    for setting in measured(target, target)["settings"]:
        for scheme in setting["schemes"][:3]:
            assert scheme["rejection"][0] == pytest.approx(0, abs=2e-3), (setting["temperature"], scheme["scheme"])
            assert scheme["tokens_per_pass"] > 15


def test_texts_begin_again_where_the_caches_are_full(folders: tuple[Path, Path]) -> None:
    """88 texts and 260 slots: three steps or so at a time."""
    report = measured(*folders, num_positions=20, context_tokens=260)
    assert all(setting["num_positions"] >= 20 for setting in report["settings"][1:])


def test_people_read_a_line_for_each_scheme() -> None:
    def scheme(name: str, rate: float) -> dict[str, Any]:
        return {"scheme": name, "rejection": [rate / count for count in range(1, 17)], "tokens_per_pass": 3.456}

    schemes = [scheme("sequoia", 0.2), scheme("top-k", 0.4)]
    settings = [{"temperature": heat, "top_p": 1.0, "schemes": schemes} for heat in (0.0, 0.6)]
    _, header, *lines = robustness_lines({"tree_nodes": 64, "settings": settings})
    assert header.split() == ["T", "top-p", "scheme", "1", "2", "4", "8", "16", "tokens"]
    assert [line.split()[2] for line in lines] == ["sequoia", "top-k"] * 2
    assert lines[3].split() == ["0.6", "1", "top-k", "0.400", "0.200", "0.100", "0.050", "0.025", "3.46"]


def rows_for(params: SamplingParams) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    target = rng.standard_normal(9).astype(np.float32) * 1.5
    return target, (0.7 * target + rng.standard_normal(9)).astype(np.float32)


def played_rejection(name: str, num_children: int, params: SamplingParams) -> float:
    """How often the shipped scheme accepts no child."""
    target, draft = rows_for(params)
    chosen = SamplingParams(temperature=params.temperature, top_p=params.top_p, verification=name)
    scheme, rng, rejected = scheme_for(chosen), np.random.default_rng(8), 0
    for position in range(NUM_PLAYED):
        place = Place(chosen, position)
        rejected += scheme.judge(scheme.place(draft, num_children, place, rng), target, place, rng).child is None
    return rejected / NUM_PLAYED


@pytest.mark.parametrize("params", [SamplingParams(temperature=1), SamplingParams(temperature=1, top_p=0.6)], ids=str)
def test_rejections_are_those_of_the_shipped_schemes(params: SamplingParams) -> None:
    """1, 2 and 5 children, 1,500 nodes each, seeds 8 and 9, within 4.5 standard errors; top-p leaves few tokens."""
    target, draft = rows_for(params)
    probs = (logits_to_probs(target, params), logits_to_probs(draft, params))
    rng = np.random.default_rng(9)
    found = [position_acceptance(*probs, draft, 5, rng) for _ in range(400)]
    for name in SCHEME_NAMES:
        rejection = np.mean([rejection_of(by_scheme[name]) for by_scheme in found], axis=0)
        for num_children in (1, 2, 5):
            expected = rejection[num_children - 1]
            error = np.sqrt(max(expected * (1 - expected), 1e-6) * 2 / NUM_PLAYED)
            played = played_rejection(name, num_children, params)
            assert played == pytest.approx(expected, abs=4.5 * error), (name, num_children)


def test_equal_models_are_never_rejected_where_children_are_drawn() -> None:
    params = SamplingParams(temperature=1)
    target, _ = rows_for(params)
    probs = logits_to_probs(target, params)
    found = position_acceptance(probs, probs, target, 3, np.random.default_rng(0))
    for name in ("sequoia", "coupled", "specinfer"):
        assert rejection_of(found[name]) == pytest.approx(0, abs=1e-6), name
    assert rejection_of(found["top-k"])[0] == pytest.approx(1 - probs.max())


@pytest.mark.parametrize("vector", [[0.7, 0.2, 0.05], [0.9], [0.3, 0.3, 0.2, 0.1], [0.5, 0.1, 0.2]], ids=str)
@pytest.mark.parametrize("num_nodes", [1, 2, 7, 40])
def test_the_best_tree_is_that_of_the_search(vector: list[float], num_nodes: int) -> None:
    """The last vector is one as it may be measured: its ranks are pooled."""
    expected = dynamic_program(make_non_increasing(vector), num_nodes, num_nodes).expected_tokens[-1, -1]
    assert best_tree_tokens(np.array(vector), num_nodes) == pytest.approx(expected)
