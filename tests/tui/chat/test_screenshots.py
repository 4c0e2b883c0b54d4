"""The README's pictures are what the script makes now, come out the same each time, and could have been measured."""

import asyncio

import pytest

from tests.support.paths import EXAMPLES
from tests.support.screenshot_script import ESTIMATES, LOADED, MODELS, PIECES, PROMPT, reports_of_answer
from tests.support.screenshots import SCENES, make_screenshot
from tui.chat.engine.messages import Answered, RoundDone, TextArrived

STORED = EXAMPLES / "screenshots"


@pytest.mark.parametrize("name", SCENES)
def test_a_picture_comes_out_as_it_is_stored(tmp_path, name):
    scene, setup = SCENES[name]
    path = asyncio.run(make_screenshot(name, scene, tmp_path, **setup))
    again = asyncio.run(make_screenshot(name, scene, tmp_path / "..", **setup))
    assert path.read_text() == again.read_text()
    again.unlink()
    stored = (STORED / path.name).read_text()
    assert path.read_text() == stored, "run python -m tests.support.screenshots examples/screenshots, and look at them"


def test_every_path_follows_the_tree():
    for report in reports_of_answer(1, PROMPT, is_whole=True):
        if isinstance(report, RoundDone):
            assert all(
                report.parents[child] == parent for parent, child in zip(report.path, report.path[1:], strict=False)
            )
            assert report.num_emitted == len(report.path)


def test_the_answer_is_whole_or_under_way():
    whole = reports_of_answer(1, PROMPT, is_whole=True)
    assert "".join(each.text for each in whole if isinstance(each, TextArrived)) == "".join(PIECES)
    assert isinstance(whole[-1], Answered)
    assert not any(isinstance(each, Answered) for each in reports_of_answer(1, PROMPT, is_whole=False))


def test_the_streamed_layers_and_the_estimates_agree_with_the_model():
    assert LOADED.num_resident_layers == len(LOADED.resident_layers)
    assert set(ESTIMATES) <= {model.target for model in MODELS}
