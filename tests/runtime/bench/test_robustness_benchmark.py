"""Every setting gets its positions, and figures hang together; formulas are in test_scheme_acceptance.py."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.bench.robustness_benchmark import (
    TEMPERATURES,
    TOP_PS,
    RobustnessReport,
    SettingRobustness,
    all_settings,
    run_robustness_benchmark,
)
from runtime.bench.scheme_acceptance import SCHEME_NAMES
from tests.support.session_factory import open_tiny, request, save_tiny_folder

PROMPTS = [replace(request(text), id=text) for text in ("the cat and the dog", "the cat ran", "once upon a time")]


def measured(target: Path, draft: Path, *, num_positions: int = 8, context_tokens: int = 1024) -> RobustnessReport:
    with open_tiny(target, draft=draft, context_tokens=context_tokens, tree="6x3") as opened:
        *steps, report = run_robustness_benchmark(opened, PROMPTS, num_positions=num_positions, tree_nodes=16)
    assert isinstance(report, RobustnessReport)
    assert tuple(step for step in steps if isinstance(step, SettingRobustness)) == report.settings
    return report


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A target and a draft of its own mind."""
    base = tmp_path_factory.mktemp("models")
    return save_tiny_folder(base / "target", seed=2), save_tiny_folder(base / "draft", seed=3)


def test_every_setting_has_its_positions_and_every_scheme_its_figures(folders: tuple[Path, Path]) -> None:
    report = measured(*folders)
    found = [(setting.temperature, setting.top_p) for setting in report.settings]
    assert found == [(0.0, 1.0), *((heat, top_p) for heat in TEMPERATURES[1:] for top_p in TOP_PS)]
    assert (report.target, report.draft) == ("target", "draft")
    for setting in report.settings:
        assert setting.num_positions >= 3
        assert setting.temperature == 0 or setting.num_positions >= 8
        assert tuple(scheme.scheme for scheme in setting.schemes) == SCHEME_NAMES
        for scheme in setting.schemes:
            assert len(scheme.rejection) == len(scheme.rejection_errors) == 16
            assert all(0 <= rate <= 1 for rate in scheme.rejection)
            assert list(scheme.rejection) == sorted(scheme.rejection, reverse=True)
            assert 1 <= scheme.tokens_per_pass <= 16
    assert json.loads(json.dumps(report.to_record()))["settings"][3]["top_p"] == 1.0


def test_a_draft_that_is_the_target_is_accepted_at_once(folders: tuple[Path, Path]) -> None:
    target, _ = folders
    for setting in measured(target, target).settings:
        for scheme in setting.schemes[:3]:
            assert scheme.rejection[0] == pytest.approx(0, abs=2e-3), (setting.temperature, scheme.scheme)
            assert scheme.tokens_per_pass > 15


def test_texts_begin_again_where_the_caches_are_full(folders: tuple[Path, Path]) -> None:
    """88 texts and 260 slots: three steps or so at a time."""
    report = measured(*folders, num_positions=20, context_tokens=260)
    assert all(setting.num_positions >= 20 for setting in report.settings[1:])


def test_temperature_0_is_one_setting() -> None:
    assert [params.top_p for params in all_settings() if params.is_greedy] == [1.0]
