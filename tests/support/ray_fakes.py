"""Sessions for the nodes of a Ray cluster, whose processes import this by name."""

import os
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

from profiles.errors import OverstoryError
from runtime.config import EngineConfig
from runtime.events import Event, Finished
from runtime.prompts.headless import GenerateAll, one_by_one
from runtime.prompts.prompt_file import PromptRequest
from tests.support.answer_fakes import echo, question
from tui.commands.on_ray import open_on_node

SECONDS_PER_ANSWER = 0.05


def open_echo(config: EngineConfig, stack: ExitStack, requests: Sequence[PromptRequest]) -> Any:
    """A session that says what it is told, in capitals; "poison" ends its process, "trouble" costs an answer."""
    return _session(one_by_one(_answer))


def open_slow(config: EngineConfig, stack: ExitStack, requests: Sequence[PromptRequest]) -> Any:
    """A real session that takes its time."""
    opened = open_on_node(config, stack, requests)

    def slowly(asked: Iterable[PromptRequest]) -> Generator[tuple[PromptRequest, Event | OverstoryError], None, None]:
        for request, event in opened.session.generate_all(asked):
            time.sleep(SECONDS_PER_ANSWER * isinstance(event, Finished))
            yield request, event

    return _session(slowly, num_texts=opened.plan.need.num_texts)


def open_broken(config: EngineConfig, stack: ExitStack, requests: Sequence[PromptRequest]) -> Any:
    """A session with a fault of the program."""
    raise ZeroDivisionError("by nothing")


def _session(generate_all: GenerateAll, *, num_texts: int = 1) -> Any:
    plan = SimpleNamespace(advice=SimpleNamespace(sentence="it fits"), need=SimpleNamespace(num_texts=num_texts))
    return SimpleNamespace(session=SimpleNamespace(generate_all=generate_all), plan=plan, notes=("quickly",))


def _answer(request: PromptRequest) -> Generator[Event, None, None]:
    time.sleep(SECONDS_PER_ANSWER)
    if question(request) == "poison":
        os._exit(1)
    if question(request) == "trouble":
        raise OverstoryError("this one cannot be answered")
    yield from echo(request)
