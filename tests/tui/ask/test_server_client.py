"""What a server says becomes pieces; whatever else it does is told in a sentence."""

from dataclasses import replace

import pytest

from runtime.errors import OptionError
from tests.support.fake_chat_server import ANSWER, USAGE, FakeServer, chunk, running
from tui.ask.pieces import Ended, Said, Waits
from tui.ask.server_client import ServerClient, ServerFailedError

TURNS = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0.5}


def test_an_answer_comes_as_it_is_streamed() -> None:
    fake = FakeServer()
    with running(fake, api_key="secret") as server:
        waits, *pieces = ServerClient(server).ask(TURNS)
    assert waits == Waits(f"{server.base_url} reads the prompt")
    assert pieces == [
        Said("They greet. ", is_thinking=True),
        Said("I greet.", is_thinking=True),
        Said("Hello "),
        Said("**there**."),
        Ended(finish_reason="stop", usage=USAGE),
    ]
    asked = {"model": "tiny", "stream": True, "stream_options": {"include_usage": True}, **TURNS}
    assert (fake.asked, fake.keys) == ([asked], ["Bearer secret"])


def test_a_server_is_there_if_it_has_the_model() -> None:
    fake = FakeServer()
    with running(fake) as server:
        assert ServerClient(server).has_model()
        assert not ServerClient(replace(server, model="other")).has_model()
        for models in (b"", b"[]", b'{"data": 1}', b'{"data": [{}]}'):
            fake.models = models
            assert not ServerClient(server).has_model(), models
    assert not ServerClient(server).has_model(), "it has ended"


def test_closing_hangs_up() -> None:
    fake = FakeServer(stream=(chunk(content="Once "),), is_endless=True)
    with running(fake) as server:
        pieces = ServerClient(server).ask(TURNS)
        assert [next(pieces), next(pieces)][1] == Said("Once ")
        pieces.close()
        assert fake.is_hung_up.wait(10)


def test_a_server_that_is_busy_is_asked_again() -> None:
    busy = (429, {"Retry-After": "3"}, b'{"error": {"message": "8 requests wait"}}')
    loading = (503, {"Retry-After": "soon"}, b"")
    pauses: list[float] = []
    with running(FakeServer(refusals=[busy, loading, (503, {"Retry-After": "999"}, b"")])) as server:
        pieces = list(ServerClient(server, pause=pauses.append).ask(TURNS))
    assert pauses == [3, 1, 10]
    assert Waits(f"{server.base_url} is busy (8 requests wait); asking again in 3 s") in pieces
    assert isinstance(pieces[-1], Ended)


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (400, b'{"error": {"message": "temperature is 9"}}', OptionError, "says: temperature is 9"),
        (401, b'{"error": "no key"}', OptionError, "says: no key"),
        (404, b"<html>", OptionError, "says: 404 Not Found"),
        (500, b"{}", ServerFailedError, "says: no reason is given"),
    ],
)
def test_what_it_refuses_is_said(status: int, body: bytes, kind: type[Exception], message: str) -> None:
    with running(FakeServer(refusals=[(status, {}, body)])) as server, pytest.raises(kind, match=message):
        list(ServerClient(server).ask(TURNS))


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (ANSWER[:5], "ended the answer .it stopped in the middle.*--no-server"),
        ((), "it stopped in the middle"),
        ((b"data: {broken\n\n",), "it sent"),
        ((chunk(content="a"), b'data: {"error": {"message": "out of memory"}}\n\n'), "broke the answer off: out of"),
    ],
)
def test_an_answer_that_breaks_off_is_no_answer(stream: tuple[bytes, ...], message: str) -> None:
    with running(FakeServer(stream=stream)) as server, pytest.raises(ServerFailedError, match=message):
        list(ServerClient(server).ask(TURNS))


def test_no_server_is_told() -> None:
    with running(FakeServer()) as server:
        pass
    with pytest.raises(ServerFailedError, match="ended the answer"):
        list(ServerClient(server).ask(TURNS))
