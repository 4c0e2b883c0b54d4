"""The default model in the engine's own process: asked, stopped, asked again, killed, and started again."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from runtime.config import EngineConfig, SamplingParams
from runtime.events import Finished, PrefillProgress, Round, TextDelta
from runtime.prompts.prompt_file import Message, PromptRequest
from tui.chat.engine.client import EngineClient, EngineDied
from tui.chat.engine.messages import (
    Answer,
    Failed,
    Loaded,
    Loading,
    LoadModel,
    OfAnswer,
    PassRunning,
    Report,
    StopAnswer,
)

pytestmark = [pytest.mark.real, pytest.mark.slow]

QUESTION = Message("user", "Tell me a long story about the keeper of a lighthouse.")
SETTINGS: dict[str, Any] = {"context_tokens": 600, "device_memory_bytes": 0, "tree": "24x8", "device": "cpu"}


def ask(answer_id: int, *messages: Message, max_new_tokens: int, is_continued: bool = False) -> Answer:
    params = SamplingParams(max_new_tokens=max_new_tokens)
    return Answer(answer_id, PromptRequest(id="x", messages=messages, params=params, is_continued=is_continued))


async def until(reports: AsyncIterator[Report | EngineDied], kind: type) -> list[Any]:
    """What is said up to the first report or event of a kind; a failure or a death ends the wait, too."""
    seen: list[Any] = []
    async for report in reports:
        seen.append(report.event if isinstance(report, OfAnswer) else report)
        if isinstance(seen[-1], (kind, Failed, EngineDied)):
            break
    assert isinstance(seen[-1], kind), seen[-1]
    return seen


def text_of(seen: list[Any]) -> str:
    return "".join(one.text for one in seen if isinstance(one, TextDelta))


async def tell_a_story(demo_folder: Path) -> None:
    link = EngineClient()
    await link.start()
    reports = link.reports()
    try:
        link.send(LoadModel(EngineConfig(target=str(demo_folder), **SETTINGS)))
        *loading, loaded = await until(reports, Loaded)
        assert isinstance(loaded, Loaded) and (loaded.num_layers, loaded.num_resident_layers) == (30, 0)
        assert any(isinstance(report, Loading) and report.progress.num_done_bytes for report in loading)

        link.send(ask(1, QUESTION, max_new_tokens=300))
        begun = await until(reports, TextDelta)
        link.send(StopAnswer(1))
        begun += await until(reports, Finished)
        stopped = begun[-1]
        assert isinstance(stopped, Finished) and stopped.finish_reason == "stopped"
        assert any(isinstance(report, Round) and report.num_nodes == 24 for report in begun)
        running = [report for report in begun if isinstance(report, PassRunning)]
        assert running and all(0 <= report.num_done_layers <= 30 == report.num_layers for report in running)
        assert any(report.layers_in_slots for report in running)

        said = Message("assistant", text_of(begun))
        link.send(ask(2, QUESTION, said, Message("user", "Thanks."), max_new_tokens=8))
        again = await until(reports, Finished)
        prefill = next(report for report in again if isinstance(report, PrefillProgress))
        # All is reused but the answer's last token, which no pass has seen yet.
        assert prefill.num_done_tokens >= stopped.statistics.prompt_tokens + stopped.statistics.new_tokens - 1
        assert text_of(again)

        assert link.process_id is not None
        psutil.Process(link.process_id).kill()
        died = (await until(reports, EngineDied))[-1]
        assert isinstance(died, EngineDied) and "SIGKILL" in died.sentence and not link.is_alive

        await link.start()
        link.send(LoadModel(EngineConfig(target=str(demo_folder), **SETTINGS)))
        await until(reports, Loaded)
        link.send(ask(3, QUESTION, said, max_new_tokens=8, is_continued=True))
        assert text_of(await until(reports, Finished))
    finally:
        await link.close()
    assert not psutil.pid_exists(link.process_id or 0)


def test_a_conversation_outlives_its_engine(demo_folder: Path):
    asyncio.run(asyncio.wait_for(tell_a_story(demo_folder), 280))
