"""A server that answers with a tiny model, in a thread of the tests' own process, and clients for it."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai

from runtime.config import EngineConfig, SamplingParams, options_of
from runtime.engine.loading import load_session
from runtime.prompts.prompt_file import LineDefaults
from runtime.serving.dispatcher import Dispatcher, Load
from tui.server.app import build_app
from tui.server.exchange import Service
from tui.server.listening import listen, serve_until_end
from tui.server.log import ServerLog

UNCHOSEN = frozenset(options_of(SamplingParams))
MODEL = "tiny"


def tiny_load(folder: Any, **settings: Any) -> Load:
    """What loads a tiny model of which every layer streams."""
    options = {
        "context_tokens": 128,
        "draft": "none",
        "draft_format": "stored",
        "device_memory_bytes": 0,
        "num_texts": 4,
    }
    config = EngineConfig(target=str(folder), **{**options, **settings})
    return lambda stack: load_session(config, stack)


@dataclass(frozen=True, slots=True)
class Served:
    """A server that listens."""

    url: str
    dispatcher: Dispatcher
    clients: list[openai.OpenAI] = field(default_factory=list)

    def client(self, **options: Any) -> openai.OpenAI:
        """A client that is closed with the server."""
        options = {"api_key": "any", "max_retries": 0, "timeout": 60, **options}
        self.clients.append(openai.OpenAI(base_url=f"{self.url}/v1", **options))
        return self.clients[-1]

    def wait(self, is_so: Callable[[Any], bool]) -> Any:
        """Wait until something is so of the state, and return it."""
        for _ in range(3000):
            if is_so(state := self.dispatcher.state):
                return state
            time.sleep(0.01)
        raise AssertionError(f"it never came to be: {state}")


@contextmanager
def served(
    load: Load,
    *,
    api_key: str | None = None,
    params: SamplingParams | None = None,
    chosen: frozenset[str] = frozenset(),
    log: ServerLog | None = None,
    **options: Any,
) -> Iterator[Served]:
    """A server with the dispatcher's `options`, which has ended when this returns.

    While it loads no other thread may make a model: transformers are told for all threads where weights go.
    """
    log = log or ServerLog()
    dispatcher = Dispatcher(load, tell=log.tell, **options)
    common = LineDefaults(params=params or SamplingParams(), unchosen=UNCHOSEN - chosen)
    service = Service(dispatcher=dispatcher, common=common, model=MODEL, created=1, log=log)
    app = build_app(service, api_key=api_key)
    listening: socket.socket = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    loop = asyncio.new_event_loop()
    task = loop.create_task(serve_until_end(app, dispatcher, listening))
    errors: list[BaseException] = []

    def run() -> None:
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            errors.append(error)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        running = Served(url, dispatcher)
        yield running
    finally:
        for client in running.clients:
            client.close()
        loop.call_soon_threadsafe(task.cancel)
        thread.join(60)
        assert not thread.is_alive(), "the server did not end"
        if errors:
            raise errors[0]


def get(served: Served, path: str, **options: Any) -> httpx2.Response:
    return httpx2.get(f"{served.url}{path}", **options)


def post(served: Served, path: str, **options: Any) -> httpx2.Response:
    return httpx2.post(f"{served.url}{path}", timeout=60, **options)
