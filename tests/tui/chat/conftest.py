"""A dialogue with an engine that says what a test scripts and a store in memory."""

import asyncio

import pytest

from runtime.config import EngineConfig, SamplingParams
from tests.support.chat_fakes import LOADED, FakeEngine
from tui.chat.dialogue import Dialogue
from tui.chat.store.store import ConversationStore


@pytest.fixture
def store():
    with ConversationStore(None) as opened:
        yield opened


@pytest.fixture
def engine():
    silent = FakeEngine(lambda request: ())
    asyncio.run(silent.start())
    return silent


@pytest.fixture
def dialogue(store, engine):
    ready = Dialogue(
        store,
        engine,
        params=lambda: SamplingParams(seed=5, temperature=0.5),
        unchosen=lambda: frozenset({"top_k"}),
    )
    ready.load(EngineConfig(target="tiny"))
    ready.take(LOADED)
    return ready
