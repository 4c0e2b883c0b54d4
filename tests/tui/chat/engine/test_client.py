"""Whatever the engine's process does, the app hears of it in order, in sentences, and is never left with a process."""

import asyncio
import os
import sys
from collections.abc import Coroutine
from typing import Any

import psutil
import pytest

from runtime.config import EngineConfig
from runtime.events import TextDelta
from tui.chat.engine.client import EngineClient, EngineDied
from tui.chat.engine.messages import Failed, LoadModel, OfAnswer, Report

PREAMBLE = """
import os, signal, sys
from runtime.events import TextDelta
from tui.chat.engine.messages import *
def say(report): sys.stdout.buffer.write(to_line(report)); sys.stdout.buffer.flush()
def hear(): return from_line(sys.stdin.buffer.readline())
def text(words): say(OfAnswer(0, TextDelta(words)))
"""
ECHO = """
while not isinstance(request := hear(), Quit):
    text(request.config.target)
"""
DEAF = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
text("deaf")
while True: signal.pause()
"""


def told(text: str) -> OfAnswer:
    return OfAnswer(0, TextDelta(text))


def client(program: str, **patience: float) -> EngineClient:
    return EngineClient((sys.executable, "-P", "-c", PREAMBLE + program), **patience)


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


async def first_report(link: EngineClient) -> Report | EngineDied:
    return await anext(aiter(link.reports()))


def test_requests_are_answered_in_order():
    async def story() -> None:
        link = client(ECHO)
        await link.start()
        for name in ("a", "zeile\nzwei", "ü\x1b"):
            link.send(LoadModel(EngineConfig(target=name)))
        texts = [await first_report(link) for _ in range(3)]
        assert texts == [told("a"), told("zeile\nzwei"), told("ü\x1b")]
        await link.close()

    run(story())


def test_a_report_may_be_far_longer_than_a_pipe_holds():
    async def story() -> None:
        link = client('text("x" * 3_000_000); hear()')
        await link.start()
        assert await first_report(link) == told("x" * 3_000_000)
        await link.close()

    run(story())


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed (SIGKILL), most likely"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the engine was ended by SIGSEGV"),
        ("raise ValueError('the last straw')", "exit code 1; its last words: ValueError: the last straw"),
        ("sys.exit(0)", "the engine ended with exit code 0"),
        ("sys.stdout.write('hello\\n'); sys.stdout.flush(); hear()", "could not be understood"),
    ],
    ids=["killed", "segfault", "exception", "quiet end", "nonsense"],
)
def test_death_becomes_one_sentence(program: str, sentence: str):
    async def story() -> None:
        link = client(program)
        await link.start()
        died = await first_report(link)
        assert isinstance(died, EngineDied)
        assert sentence in died.sentence and "\n" not in died.sentence
        assert not link.is_alive
        await link.close()

    run(story())


def test_only_the_end_of_a_long_complaint_is_kept_and_nothing_stalls():
    async def story() -> None:
        link = client('sys.stderr.write("y" * 5_000_000 + "\\n" * 9 + "the end"); sys.exit(3)')
        await link.start()
        died = await first_report(link)
        assert isinstance(died, EngineDied)
        assert died.sentence == "the engine ended with exit code 3; its last words: the end"
        await link.close()

    run(story())


def test_after_a_death_requests_are_dropped_and_a_new_process_takes_the_next():
    async def story() -> None:
        link = client('text("here"); hear(); sys.exit(1)')
        await link.start()
        assert await first_report(link) == told("here")
        first_id = link.process_id
        link.send(LoadModel(EngineConfig()))
        assert isinstance(await first_report(link), EngineDied)
        link.send(LoadModel(EngineConfig()))
        await link.start()
        assert link.is_alive and link.process_id != first_id
        assert await first_report(link) == told("here")
        await link.close()

    run(story())


def test_starting_twice_makes_one_process():
    async def story() -> None:
        link = client(ECHO)
        await asyncio.gather(link.start(), link.start())
        first_id = link.process_id
        await link.start()
        assert link.process_id == first_id
        await link.close()
        await link.start()
        assert not link.is_alive

    run(story())


def test_closing_lets_the_process_quit_and_ends_the_reports():
    async def story() -> None:
        link = client(ECHO + 'say(Failed("bye", "input"))')
        await link.start()
        await link.close()
        await link.close()
        assert [report async for report in link.reports()] == [Failed("bye", "input")]
        assert link.process_id is not None and not psutil.pid_exists(link.process_id)

    run(story())


def test_a_process_that_neither_quits_nor_terminates_is_killed():
    async def story() -> None:
        link = client(DEAF, quit_seconds=0.01, terminate_seconds=0.01)
        await link.start()
        assert await first_report(link) == told("deaf")
        await link.close()
        assert [report async for report in link.reports()] == []
        assert link.process_id is not None and not psutil.pid_exists(link.process_id)

    run(story())


def test_a_process_that_hangs_is_ended_on_request_and_its_end_is_no_trouble():
    async def story() -> None:
        link = client(DEAF, quit_seconds=0.01, terminate_seconds=0.01)
        heard: list[Report | EngineDied] = []

        async def hear() -> None:
            async for report in link.reports():
                heard.append(report)

        await link.end_process()  # nothing to end yet
        hearing = asyncio.create_task(hear())
        await link.start()
        first_id = link.process_id
        while not heard:
            await asyncio.sleep(0.01)
        await link.end_process()
        assert first_id is not None and not psutil.pid_exists(first_id) and not link.is_alive
        await link.start()
        while len(heard) < 2:
            await asyncio.sleep(0.01)
        assert heard == [told("deaf")] * 2 and link.process_id != first_id
        await link.close()
        await hearing
        await link.end_process()  # all is closed

    run(story())


def test_all_that_a_process_said_is_heard_before_it_counts_as_ended():
    async def story() -> None:
        link = client("hear()\nfor number in range(500): text(str(number))")
        heard: list[Report | EngineDied] = []

        async def hear() -> None:
            async for report in link.reports():
                await asyncio.sleep(0)
                heard.append(report)

        hearing = asyncio.create_task(hear())
        await link.start()
        await link.end_process()
        assert len(heard) == 500
        await link.close()
        await hearing

    run(story())


def test_closing_what_never_started_ends_the_reports():
    async def story() -> None:
        link = client(ECHO)
        await link.close()
        assert [report async for report in link.reports()] == []

    run(story())


def test_the_process_finds_our_packages_from_any_folder(tmp_path, monkeypatch):
    """A folder called tui where the user happens to be must not be taken for ours."""
    (tmp_path / "tui").mkdir()
    (tmp_path / "tui" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)

    async def story() -> None:
        link = client('import tui; text(tui.__file__ + " " + os.getcwd()); hear()')
        await link.start()
        report = await first_report(link)
        assert isinstance(report, OfAnswer) and isinstance(report.event, TextDelta)
        assert report.event.text.endswith(str(tmp_path)) and not report.event.text.startswith(str(tmp_path))
        await link.close()

    run(story())


def test_the_process_has_a_session_of_its_own():
    """Ctrl-C in the terminal is for the app."""

    async def story() -> None:
        link = client("text(str(os.getsid(0))); hear()")
        await link.start()
        assert await first_report(link) == told(str(link.process_id))
        assert os.getsid(0) != link.process_id
        await link.close()

    run(story())
