"""Makes the README's pictures: `python -m tests.support.screenshots examples/screenshots`.

The app runs without a terminal on a scripted engine and a store in memory, so the pictures come out the same each time.
Needs no model.
"""

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from textual.pilot import Pilot
from textual.widgets import Input

from runtime.config import EngineConfig
from tests.support.screenshot_script import ESTIMATES, LOADED, MODELS, OTHER_ANSWERS, PROMPT, loading, reports_of_answer
from tui.chat.app import ChatApp
from tui.chat.display import ChatServices
from tui.chat.engine.client import EngineDied
from tui.chat.engine.messages import Answer, LoadModel, Report, Request
from tui.chat.models import FitEstimate
from tui.chat.screen import ChatScreen
from tui.chat.settings.file import RememberedSettings
from tui.chat.settings.settings import ChatSettings
from tui.chat.store.store import ConversationStore
from tui.chat.widgets.picker import ModelPicker

Scene = Callable[[Pilot[int], "ScriptedEngine"], Awaitable[None]]
_MAX_PAUSES = 2000


class ScriptedEngine:
    """An engine that says what the script says, as soon as it is asked."""

    def __init__(self, answer: Callable[[int, str], Sequence[Report]], *, is_loading: bool = False) -> None:
        self._answer, self._is_loading = answer, is_loading
        self._queue: asyncio.Queue[Report | EngineDied | None] = asyncio.Queue()

    @property
    def is_alive(self) -> bool:
        """Always."""
        return True

    async def start(self) -> None:
        """There is nothing to start."""

    def send(self, request: Request) -> None:
        """Say what the script says to it."""
        reports: Sequence[Report] = ()
        if isinstance(request, LoadModel):
            reports = loading() if self._is_loading else (LOADED,)
        elif isinstance(request, Answer):
            reports = self._answer(request.answer_id, request.prompt.messages[-1].content)
        for report in reports:
            self._queue.put_nowait(report)

    async def reports(self) -> AsyncIterator[Report | EngineDied]:
        """What was said."""
        while (report := await self._queue.get()) is not None:
            yield report

    async def end_process(self) -> None:
        """Nothing is there to end."""

    async def close(self) -> None:
        """End the reports."""
        self._queue.put_nowait(None)


async def scripted_estimates(folders: Sequence[str], config: EngineConfig) -> AsyncGenerator[FitEstimate, None]:
    """Yield the script's words on each model of a machine that does not exist."""
    for folder in folders:
        if folder in ESTIMATES:
            yield ESTIMATES[folder]


async def _conversation(pilot: Pilot[int], engine: ScriptedEngine) -> None:
    await _ask(pilot, PROMPT)
    await pilot.press("f2")


async def _search(pilot: Pilot[int], engine: ScriptedEngine) -> None:
    for prompt in OTHER_ANSWERS:
        await _ask(pilot, prompt)
        await pilot.press("ctrl+n")
    await _ask(pilot, PROMPT)
    await pilot.press("ctrl+f", *"owl")


async def _models(pilot: Pilot[int], engine: ScriptedEngine) -> None:
    await pilot.press("f4")
    await _settle(pilot)


async def _settings(pilot: Pilot[int], engine: ScriptedEngine) -> None:
    await pilot.press("f5")


async def _nothing(pilot: Pilot[int], engine: ScriptedEngine) -> None:
    await _settle(pilot)


SCENES: Mapping[str, tuple[Scene, dict[str, Any]]] = {
    "conversation": (_conversation, {}),
    "loading": (_nothing, {"is_loading": True, "size": (80, 24)}),
    "search": (_search, {"is_whole": True, "size": (110, 30)}),
    "models": (_models, {"size": (110, 30)}),
    "settings": (_settings, {"theme": "overstory-light", "size": (100, 40)}),
}
"""Pictures by name: what happens, and how it is set up."""


async def make_screenshot(
    name: str,
    scene: Scene,
    folder: Path,
    *,
    size: tuple[int, int] = (130, 38),
    theme: str = "overstory-dark",
    is_whole: bool = False,
    is_loading: bool = False,
) -> Path:
    """Play a scene and write its picture."""
    engine = ScriptedEngine(partial(reports_of_answer, is_whole=is_whole), is_loading=is_loading)
    with ConversationStore(None) as store:
        app = ChatApp(
            ChatServices(
                store=store,
                engine=engine,
                settings=RememberedSettings(ChatSettings(theme=theme, target="/models/llama")),
                picker=partial(ModelPicker, find=lambda recent: MODELS, estimate=scripted_estimates),
            )
        )
        async with app.run_test(size=size) as pilot:
            await _settle(pilot)
            await scene(pilot, engine)
            await _settle(pilot)
            _show_cursors(app)
            await _settle(pilot)
            path = folder / f"{name}.svg"
            path.write_text(app.export_screenshot(title="overstory chat"), encoding="utf-8")
    return path


async def make_screenshots(folder: Path) -> list[Path]:
    """Write all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    return [await make_screenshot(name, scene, folder, **setup) for name, (scene, setup) in SCENES.items()]


async def _ask(pilot: Pilot[int], text: str) -> None:
    chat = _chat(pilot).chat
    chat.prompt.put(text)
    await pilot.press("enter")
    await _settle(pilot)


async def _settle(pilot: Pilot[int]) -> None:
    """Wait until all that was said is on the screen."""
    chat = _chat(pilot).chat
    for _ in range(_MAX_PAUSES):
        await pilot.pause(0.01)
        if not chat.view._smoother.num_waiting:
            break
    for _ in range(5):
        await pilot.pause(0.02)


def _show_cursors(app: ChatApp) -> None:
    """Stop every field's cursor from blinking, while it is shown."""
    for field in app.screen.query(Input):
        field.cursor_blink = False
        field._restart_blink()


def _chat(pilot: Pilot[int]) -> ChatScreen:
    assert isinstance(pilot.app, ChatApp)
    screen = pilot.app.screen_stack[0]
    assert isinstance(screen, ChatScreen)
    screen.chat.prompt.cursor_blink = False
    return screen


if __name__ == "__main__":
    for written in asyncio.run(make_screenshots(Path(sys.argv[1]))):
        print(written)
