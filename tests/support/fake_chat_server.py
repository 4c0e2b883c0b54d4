"""A stand-in for `overstory serve`: OpenAI's chat completions as a stream, with answers written down beforehand."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tui.chat.store.writers import writer_token
from tui.server.running import RunningServer

USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 3,
    "total_tokens": 10,
    "prompt_tokens_details": {"cached_tokens": 2},
}


def chunk(finish_reason: str | None = None, **delta: str) -> bytes:
    """One event of a stream."""
    record = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}
    return b"data: " + json.dumps(record).encode() + b"\n\n"


ANSWER = (
    b": still here\n\n",
    chunk(role="assistant", content=""),
    chunk(reasoning_content="They greet. "),
    chunk(reasoning_content="I greet."),
    chunk(content="Hello "),
    chunk(content="**there**."),
    chunk("stop"),
    b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n\n",
    b"data: [DONE]\n\n",
)


@dataclass(slots=True)
class FakeServer:
    """What it says, and what it was asked."""

    stream: tuple[bytes, ...] = ANSWER
    refusals: list[tuple[int, Mapping[str, str], bytes]] = field(default_factory=list)
    """Status, headers and body of the replies before it answers, or of all where it never does."""
    models: bytes = b'{"data": [{"id": "tiny"}]}'
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    is_hung_up: threading.Event = field(default_factory=threading.Event)
    """Set once the client has closed the connection in the middle of an endless answer."""
    is_endless: bool = False


@contextmanager
def running(fake: FakeServer, *, api_key: str | None = None) -> Iterator[RunningServer]:
    """Let it run on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            self._reply(200, {}, fake.models)

        def do_POST(self) -> None:
            fake.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            fake.keys.append(self.headers.get("Authorization"))
            if fake.refusals:
                self._reply(*fake.refusals.pop(0))
                return
            self._reply(200, {"Content-Type": "text/event-stream"}, b"".join(fake.stream))
            while fake.is_endless and not fake.is_hung_up.is_set():
                try:
                    self.wfile.write(b": still here\n\n")
                    fake.is_hung_up.wait(0.01)
                except OSError:
                    fake.is_hung_up.set()

        def _reply(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()  # without a length: the connection's end is the body's
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield RunningServer(
            host="127.0.0.1",
            port=server.server_address[1],
            model="tiny",
            target="/models/tiny",
            api_key=api_key,
            process=writer_token(),
        )
    finally:
        fake.is_hung_up.set()
        server.shutdown()
        server.server_close()
        thread.join()
