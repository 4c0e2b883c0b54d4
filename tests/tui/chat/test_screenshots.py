"""The README's pictures are what the script makes now, and come out the same each time."""

import asyncio

import pytest

from tests.support.paths import EXAMPLES
from tui.chat.screenshots import SCENES, make_screenshot

STORED = EXAMPLES / "screenshots"


@pytest.mark.parametrize("name", SCENES)
def test_a_picture_comes_out_as_it_is_stored(tmp_path, name):
    scene, setup = SCENES[name]
    path = asyncio.run(make_screenshot(name, scene, tmp_path, **setup))
    again = asyncio.run(make_screenshot(name, scene, tmp_path / "..", **setup))
    assert path.read_text() == again.read_text()
    again.unlink()
    stored = (STORED / path.name).read_text()
    assert path.read_text() == stored, "run python -m tui.chat.screenshots examples/screenshots, and look at them"
