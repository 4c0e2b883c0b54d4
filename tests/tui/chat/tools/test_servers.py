"""Servers over their pipes, with a real one, and what may happen to their calls, with one that is made up."""

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from runtime.prompts.prompt_file import ToolCall
from tests.support.paths import ROOT
from tests.support.tool_fakes import FILES, FakeSession, connecting
from tui.chat.tools import servers as module
from tui.chat.tools.results import MAX_RESULT_CHARACTERS
from tui.chat.tools.servers import CallEnded, ServerError, ToolServers
from tui.chat.tools.settings import ServerSettings

PROGRAM = str(ROOT / "tests" / "support" / "tool_server.py")
REAL = ServerSettings(name="real", command=sys.executable, args=(PROGRAM,), timeout_seconds=30)


async def settled(servers):
    """Let servers start, or fail to."""
    servers.start()
    async for _ in servers.reports():
        if all(each.phase != "starting" for each in servers.states):
            return


async def result_of(servers, name, **arguments):
    servers.call(7, ToolCall("1", name, json.dumps(arguments)))
    return await ended_call(servers)


async def ended_call(servers):
    async for report in servers.reports():
        if isinstance(report, CallEnded):
            assert report.answer_id == 7
            return report.result


def running(*settings, connect=None):
    """Servers that are closed at the end."""

    @asynccontextmanager
    async def opened():
        servers = ToolServers(settings, connect=connect)
        try:
            await settled(servers)
            yield servers
        finally:
            await servers.close()

    return opened()


def is_there(process_id):
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_real_server_names_its_tools_answers_and_ends_with_the_app(tmp_path):
    pytest.importorskip("mcp")

    async def story():
        settings = replace(REAL, args=(*REAL.args, str(tmp_path)), off=frozenset({"wait"}))
        async with running(settings) as servers:
            (state,) = servers.states
            assert state.words == "ready with 6 tools, 1 of them off"
            told = [each["function"]["name"] for each in json.loads(servers.offered())]
            assert told == [f"real__{name}" for name in ("add", "read", "draw", "fail", "die")]
            assert (await result_of(servers, "real__add", a=1, b=2)).text == "3"
            picture = await result_of(servers, "real__draw")
            assert (picture.text, picture.outcome) == ("here it is\n[image left out: image/png, 100 bytes]", "done")
            failed = await result_of(servers, "real__fail", reason="because")
            assert failed.outcome == "failed" and "fail" in failed.text
            long = await result_of(servers, "real__read", path="long")
            assert MAX_RESULT_CHARACTERS < len(long.text) < MAX_RESULT_CHARACTERS + 100
            off = await result_of(servers, "real__wait")
            assert off.outcome == "failed" and off.text.startswith("There is no tool real__wait now")
            (process_id,) = (int(file.name) for file in tmp_path.iterdir())
            assert is_there(process_id)
        assert not is_there(process_id)

    asyncio.run(story())


def test_a_real_server_that_dies_in_the_middle_is_told_to_the_model_and_in_the_list():
    pytest.importorskip("mcp")

    async def story():
        async with running(REAL) as servers:
            died = await result_of(servers, "real__die")
            assert (died.text, died.outcome) == ("This call failed: its server ended in the middle", "failed")
            while servers.states[0].phase == "ready":
                await anext(servers.reports())
            assert servers.states[0].words == "failed: it ended by itself; it said last: goodbye"
            assert servers.offered() is None

    asyncio.run(story())


def test_what_a_server_said_last_is_read_before_its_end_is_told():
    """A thread reads it, which may come to its turn late."""

    async def story():
        for _ in range(50):
            words = module._LastWords()
            with words.pipe() as stderr:
                os.write(stderr.fileno(), b"first\ngoodbye")
                assert await words.behind("it is gone", stderr) == "it is gone; it said last: goodbye"
        words = module._LastWords()
        with words.pipe() as stderr:
            assert await words.behind("it is gone", stderr) == "it is gone"

    asyncio.run(story())


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (ServerSettings(name="a", command="no-such-program"), "its command is not there; give the path of a program"),
        (
            ServerSettings(name="a", command=sys.executable, args=("-c", "raise SystemExit('set KEY')")),
            "it said last: set KEY",
        ),
    ],
)
def test_a_server_that_cannot_start_says_why(settings, reason):
    pytest.importorskip("mcp")

    async def story():
        async with running(settings) as servers:
            assert servers.states[0].phase == "failed" and reason in servers.states[0].reason

    asyncio.run(story())


def test_without_the_package_the_way_to_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp", None)

    async def story():
        async with running(REAL) as servers:
            assert servers.states[0].reason.endswith("pip install 'overstory[mcp]'")

    asyncio.run(story())


def test_a_call_ends_in_time_and_when_it_is_stopped():
    async def story():
        session = FakeSession()
        async with running(replace(FILES, timeout_seconds=0.05), connect=connecting(session)) as servers:
            late = await result_of(servers, "files__wait")
            assert (late.text, late.outcome) == ("This call took longer than 0.05 s and was ended.", "failed")
        async with running(FILES, connect=connecting(FakeSession())) as servers:
            for num_steps in range(3):  # also before it has begun
                servers.call(7, ToolCall("1", "files__wait", "{}"))
                for _ in range(num_steps):
                    await asyncio.sleep(0)
                servers.stop(7)
                stopped = await ended_call(servers)
                assert (stopped.text, stopped.outcome) == ("The person stopped this call before it ended.", "stopped")

    asyncio.run(story())


def test_a_server_that_never_names_its_tools_fails(monkeypatch):
    monkeypatch.setattr(module, "START_SECONDS", 0.05)

    class Silent(FakeSession):
        async def list_tools(self):
            await asyncio.Event().wait()

    async def story():
        async with running(FILES, connect=connecting(Silent())) as servers:
            assert servers.states[0].phase == "failed" and "named no tools within" in servers.states[0].reason

    asyncio.run(story())


def test_tools_that_no_model_can_call_are_counted():
    class Odd(FakeSession):
        async def list_tools(self):
            return [*await super().list_tools(), {"name": "a b"}, {"name": "read", "description": "again"}]

    async def story():
        async with running(FILES, connect=connecting(Odd())) as servers:
            assert servers.states[0].words.startswith("ready with 2 tools; 1 more cannot be called: ")

    asyncio.run(story())


def test_tools_and_servers_are_switched_off_and_on():
    async def story():
        session = FakeSession()
        async with running(FILES, replace(FILES, name="idle", enabled=False), connect=connecting(session)) as servers:
            assert [each.phase for each in servers.states] == ["ready", "off"]
            assert servers.switch_tool(servers.states[0].tools[0]).off == {"read"}
            assert "files__read" not in servers.offered()
            assert servers.switch_tool(servers.states[0].tools[0]).off == set()
            assert not servers.switch_server("files", may_start=True).enabled
            assert servers.offered() is None and servers.states[0].phase == "off"
            assert servers.switch_server("idle", may_start=False).enabled
            assert servers.states[1].phase == "waiting"

    asyncio.run(story())


def test_a_server_that_does_not_start_any_more_fails_with_the_reason():
    @asynccontextmanager
    async def connect(settings):
        raise ServerError("so it is\x1b[2J")
        yield

    async def story():
        async with running(FILES, connect=connect) as servers:
            assert servers.states[0].words == "failed: so it is"

    asyncio.run(story())
