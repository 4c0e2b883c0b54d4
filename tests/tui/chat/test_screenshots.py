"""The README's pictures are what the script makes now, as it made them before, and could have been measured."""

import asyncio
from itertools import pairwise

import pytest

from runtime.events import Finished, Round, TextDelta
from tests.support.paths import EXAMPLES
from tests.support.screenshot_script import ESTIMATES, LOADED, MODELS, PIECES, PROMPT, events_of_answer
from tests.support.screenshots import SCENES, make_screenshot

STORED = EXAMPLES / "screenshots"


@pytest.mark.parametrize("name", SCENES)
def test_a_picture_comes_out_as_it_is_stored(tmp_path, name):
    scene, setup = SCENES[name]
    path = asyncio.run(make_screenshot(name, scene, tmp_path, **setup))
    stored = (STORED / path.name).read_text()
    assert path.read_text() == stored, "run python -m tests.support.screenshots examples/screenshots, and look at them"


def test_every_path_follows_the_tree():
    rounds = [event for event in events_of_answer(PROMPT, is_whole=True) if isinstance(event, Round)]
    assert rounds
    for each in rounds:
        assert all(each.parents[child] == parent for parent, child in pairwise(each.path))


def test_the_answer_is_whole_or_under_way():
    whole = events_of_answer(PROMPT, is_whole=True)
    assert "".join(each.text for each in whole if isinstance(each, TextDelta)) == "".join(PIECES)
    assert isinstance(whole[-1], Finished)
    assert not any(isinstance(each, Finished) for each in events_of_answer(PROMPT, is_whole=False))


def test_the_streamed_layers_and_the_estimates_agree_with_the_model():
    assert LOADED.num_resident_layers == len(LOADED.resident_layers)
    assert set(ESTIMATES) <= {model.target for model in MODELS}
