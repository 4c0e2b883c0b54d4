"""What is counted without the target against what rounds with the target really emit."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from profiles.steps import finish
from runtime.bench.trees import run_trees
from runtime.engine.loading import OpenSession
from runtime.errors import OptionError
from runtime.events import Round
from runtime.planner.growth import growth_limits
from tests.support.session_factory import open_tiny, request, save_tiny_folder

PROMPT = "the cat and the dog"
SIZE, LEVELS = 12, 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("models")
    return save_tiny_folder(base / "target", seed=2), save_tiny_folder(base / "draft", seed=3)


@pytest.fixture
def opened(folders: tuple[Path, Path]) -> Iterator[OpenSession]:
    target, draft = folders
    with open_tiny(target, draft=draft, context_tokens=256, tree=f"dynamic:{SIZE}x{LEVELS}") as session:
        yield session


def counted(opened: OpenSession, *, temperature: float, num_tokens: int = 40) -> dict[str, Any]:
    asked = [request(PROMPT, max_new_tokens=num_tokens)]
    said = list[str]()
    report = finish(run_trees(opened, asked, temperatures=[temperature], sizes=[SIZE], num_levels=LEVELS), said.append)
    static, grown = (tree["tokens_per_pass"] for tree in report["trees"])
    assert said[-1].endswith(f"12 nodes: {static:.2f} tokens per pass, {grown:.2f} with context")
    return report


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_rounds_without_the_target_emit_what_rounds_with_it_emit(opened: OpenSession, temperature: float) -> None:
    report = counted(opened, temperature=temperature)
    params = replace(request(PROMPT).params, temperature=temperature, seed=1, verification="coupled", max_new_tokens=40)
    engine = opened.session.engine
    for tree in report["trees"]:
        planner = engine.planner
        planner.kind = "dynamic" if tree["kind"] == "dynamic" else "static"
        planner.use_temperature(temperature, can_grow_in_context=tree["kind"] == "dynamic")
        planner._start()
        events = list(opened.session.generate(replace(request(PROMPT), params=params)))
        emitted = [event.num_emitted for event in events if isinstance(event, Round)]
        engine.truncate(0)
        played = emitted[: tree["num_rounds"]]
        assert sum(played) / len(played) == pytest.approx(tree["tokens_per_pass"])
    assert {tree["kind"] for tree in report["trees"]} == {"static", "dynamic"}


def test_the_gain_is_the_ratio_of_both(opened: OpenSession) -> None:
    report = counted(opened, temperature=0.0)
    static, dynamic = report["trees"]
    assert report["gains"] == [(0.0, SIZE, dynamic["tokens_per_pass"] / static["tokens_per_pass"])]
    assert dynamic["draft_steps"] <= growth_limits(SIZE, LEVELS).num_steps


def test_texts_too_short_for_one_round_are_refused(opened: OpenSession) -> None:
    with pytest.raises(OptionError, match="no answer has more than 4 tokens"):
        counted(opened, temperature=0.0, num_tokens=3)


def test_a_tree_beyond_the_sessions_room_is_refused(opened: OpenSession) -> None:
    steps = run_trees(opened, [request(PROMPT)], temperatures=[0.0], sizes=[SIZE + 1], num_levels=LEVELS)
    with pytest.raises(OptionError, match="13 nodes are more than the 12"):
        list(steps)
