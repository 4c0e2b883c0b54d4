"""The app as a whole: themes, no colours, and an end that leaves nothing behind."""

import asyncio
import gc
import time
from collections.abc import Iterator

import pytest

from tests.support.chat_fakes import FakeEngine, endless
from tests.support.chat_stories import tell, telling
from tui.chat.app import RARELY, collect_rarely
from tui.chat.settings.file import RememberedSettings
from tui.chat.settings.settings import ChatSettings
from tui.chat.terminal_input import TerminalBackground
from tui.chat.themes import DARK, LIGHT


@pytest.mark.parametrize(("told", "name"), [("0;15", LIGHT.name), ("15;0", DARK.name)])
def test_the_theme_follows_the_terminal(tmp_path, told, name):
    async def story():
        async with telling(tmp_path, environment={"COLORFGBG": told}) as teller:
            assert teller.app.theme == name

    tell(story)


def test_a_remembered_theme_comes_first(tmp_path):
    async def story():
        settings = RememberedSettings(ChatSettings(theme="nord"))
        async with telling(tmp_path, settings=settings, environment={"COLORFGBG": "0;15"}) as teller:
            assert teller.app.theme == "nord"

    tell(story)


def test_without_colours_all_is_grey(tmp_path, monkeypatch):
    """https://no-color.org: what colours say must be said by words and signs as well."""
    monkeypatch.setenv("NO_COLOR", "1")

    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("One?")
            colors = {
                color.get_truecolor()
                for strip in teller.app.screen._compositor.render_strips()
                for segment in strip.apply_filter(teller.app._filters[0], teller.app.screen.background_colors[1])
                for color in (segment.style.color, segment.style.bgcolor)
                if segment.style is not None and color is not None
            }
            assert colors and all(color.red == color.green == color.blue for color in colors)

    tell(story)


def test_a_prompt_that_is_sent_before_the_engine_is_there_waits_for_it(tmp_path):
    """People type at once; starting a process takes longer than that on a busy machine."""

    class LateEngine(FakeEngine):
        is_wanted = asyncio.Event()

        async def start(self):
            await self.is_wanted.wait()
            await super().start()

    async def story():
        engine = LateEngine()
        async with telling(tmp_path, engine=engine, is_loaded=False) as teller:
            await teller.type("One?")
            await teller.press("enter")
            await teller.until(
                lambda: [each.text for each in teller.dialogue.waiting] == ["One?"], "the prompt's waiting"
            )
            assert engine.num_starts == 0
            engine.is_wanted.set()
            await teller.until(lambda: teller.contents == ["One?", "Hello there."])
            assert teller.chat.prompt.text == "" and not teller.chat.notice.display

    tell(story)


@pytest.fixture
def own_thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def test_garbage_is_collected_once_after_each_activity(tmp_path, monkeypatch) -> None:
    """A full collection takes 0.2 s after a long answer: not while somebody types or an answer is written."""
    num_collections = 0

    def collect() -> None:
        nonlocal num_collections
        num_collections += 1

    monkeypatch.setattr("tui.chat.app.gc.collect", collect)

    async def story():
        async with telling(tmp_path, script=endless) as teller:
            monkeypatch.setattr("tui.chat.app.IDLE_SECONDS", 1e9)
            await teller.ask("Tell.", is_awaited=False)
            monkeypatch.setattr("tui.chat.app.IDLE_SECONDS", 0.05)
            await teller.press("a")
            await teller.pilot.pause(0.2)
            assert num_collections == 0 and teller.dialogue.is_answering
            await teller.press("escape")
            await teller.until(lambda: num_collections == 1, "a collection")
            await teller.pilot.pause(0.2)
            assert num_collections == 1

    tell(story)


def test_the_interpreter_leaves_the_oldest_objects_alone(own_thresholds: None) -> None:
    collect_rarely()
    assert gc.get_threshold()[2] == RARELY
    assert gc.get_freeze_count() > 0


def test_a_theme_that_does_not_exist_is_told(tmp_path):
    async def story():
        settings = RememberedSettings(ChatSettings(theme="nrod"))
        async with telling(tmp_path, settings=settings, environment={"COLORFGBG": "0;15"}) as teller:
            await teller.until(lambda: "there is no theme nrod" in teller.chat.notice.sentence)
            assert teller.app.theme == LIGHT.name

    tell(story)


def test_the_terminals_background_decides_in_time_and_is_not_remembered(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            assert teller.app.theme == DARK.name
            teller.app.post_message(TerminalBackground(0.9))
            await teller.pilot.pause()
            assert teller.app.theme == DARK.name, "nobody had asked"
            teller.app._asked_at = time.monotonic()
            teller.app.post_message(TerminalBackground(0.9))
            await teller.until(lambda: teller.app.theme == LIGHT.name)
            assert teller.services_settings.theme == "auto"
            await teller.command("/theme nord")
            await teller.until(lambda: teller.app.theme == "nord")
            teller.app.post_message(TerminalBackground(0.1))
            await teller.pilot.pause()
            assert teller.app.theme == "nord"
            await teller.command("/theme light")
            await teller.until(lambda: teller.app.theme == LIGHT.name)
            assert teller.services_settings.theme == "light"
            await teller.command("/set theme Dark")
            await teller.until(lambda: teller.app.theme == DARK.name)
            await teller.command("/theme drak")
            await teller.hears("there is no theme drak; did you mean dark?")
            await teller.command("/theme auto")
            await teller.until(lambda: teller.app.theme in (LIGHT.name, DARK.name))

    tell(story)
