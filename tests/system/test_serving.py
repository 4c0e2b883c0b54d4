"""Many clients at once, of whom some go away whenever they like: nobody's answer is lost or another's, memory is flat.

OVERSTORY_SERVING_SECONDS sets how long the long version runs (60 by default).
"""

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from runtime.config import SamplingParams
from runtime.prompts.prompt_file import PromptRequest
from tests.support.served import Served, served, tiny_load
from tests.support.session_factory import open_tiny, save_target_and_drafts

NUM_CLIENTS = 32
WORDS = ["the", "cat", "and", "dog", "a"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_target_and_drafts(tmp_path_factory.mktemp("served"))


def bodies(count: int) -> list[dict[str, Any]]:
    """Prompts of all lengths, greedy and sampled."""
    rng = random.Random(1)
    return [
        {
            "prompt": " ".join(rng.choices(WORDS, k=rng.randint(1, 12))),
            "max_tokens": rng.randint(1, 16),
            "temperature": rng.choice([0, 0, 0.9]),
            "seed": number,
        }
        for number in range(count)
    ]


def expected_texts(folder: Path, asked: list[dict[str, Any]]) -> list[str]:
    with open_tiny(folder, num_residents=0) as opened:
        return [list(opened.session.generate(request_of(body)))[-1].text for body in asked]


def request_of(body: dict[str, Any]) -> PromptRequest:
    names = {"max_tokens": "max_new_tokens", "temperature": "temperature", "seed": "seed"}
    params = SamplingParams(**{ours: body[theirs] for theirs, ours in names.items()})
    return PromptRequest(id="1", prompt=body["prompt"], params=params)


class Crowd:
    """Clients that ask for so long, and until so many were answered, and count what became of it."""

    def __init__(
        self, running: Served, asked: list[dict[str, Any]], expected: list[str], *, seconds: float, least: int
    ) -> None:
        self.running, self.asked, self.expected = running, asked, expected
        self.until, self.least = time.monotonic() + seconds, least
        self.counts: Counter[str] = Counter()
        self.held: list[int] = []
        """Bytes that the process and its children held, twice a second."""

    def run(self) -> None:
        """Run all clients, in the server's own process: its threads must not wait 5 ms for each other's every step."""
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-4)
        try:
            asyncio.run(self.ask())
        finally:
            sys.setswitchinterval(interval)

    async def ask(self) -> None:
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(base_url=self.running.url, timeout=120, limits=limits) as client:
            watching = asyncio.create_task(self.watch())
            await asyncio.gather(*(self.client(client, random.Random(number)) for number in range(NUM_CLIENTS)))
            watching.cancel()

    async def watch(self) -> None:
        here = psutil.Process()
        while True:
            self.held.append(sum(each.memory_info().rss for each in (here, *here.children())))
            await asyncio.sleep(0.5)

    async def client(self, client: httpx2.AsyncClient, rng: random.Random) -> None:
        while time.monotonic() < self.until or self.counts["answered"] < self.least:
            number = rng.randrange(len(self.asked))
            body = {**self.asked[number], "stream": rng.random() < 0.6}
            try:
                async with asyncio.timeout(rng.uniform(0, 0.3) if rng.random() < 0.3 else 120):
                    found = await self.streamed(client, body, rng) if body["stream"] else await self.whole(client, body)
            except TimeoutError:
                self.counts["gone"] += 1
                continue
            if found is None:
                self.counts["gone"] += 1
            elif found == 429:
                self.counts["refused"] += 1
                await asyncio.sleep(0.2)
            else:
                assert found == self.expected[number], "an answer that is lost, cut, or another's"
                self.counts["answered"] += 1

    async def whole(self, client: httpx2.AsyncClient, body: dict[str, Any]) -> str | int:
        answer = await client.post("/v1/completions", json=body)
        if answer.status_code == 429:
            return 429
        assert answer.status_code == 200, answer.text
        text: str = answer.json()["choices"][0]["text"]
        return text

    async def streamed(self, client: httpx2.AsyncClient, body: dict[str, Any], rng: random.Random) -> str | int | None:
        leaves_after = rng.randint(0, 4) if rng.random() < 0.3 else 10**6
        pieces: list[str] = []
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code == 429:
                return 429
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    return "".join(pieces)
                if line.startswith("data: "):
                    pieces.append(json.loads(line[6:])["choices"][0]["text"])
                if len(pieces) > leaves_after:
                    return None
        raise AssertionError("a stream that does not end")


def serve_a_crowd(folders: dict[str, Path], *, seconds: float = 0, least: int = 40) -> Crowd:
    asked = bodies(40)
    expected = expected_texts(folders["target"], asked)
    load = tiny_load(folders["target"], draft=str(folders["unrelated"]), tree="4x3", num_texts=4)
    with served(load, most_waiting=24) as running:
        running.wait(lambda state: state.phase == "ready")
        crowd = Crowd(running, asked, expected, seconds=seconds, least=least)
        crowd.run()
        state = running.wait(lambda state: state.num_running == state.num_waiting == 0)
        ended = state.tally.num_ended
        assert "error" not in ended and state.phase == "ready" and state.tally.num_loads == 1
        assert ended.get("refused", 0) >= crowd.counts["refused"] > 0
        num_given = sum(number for how, number in ended.items() if how not in ("refused", "dropped"))
        assert num_given >= crowd.counts["answered"] >= least and ended["dropped"] > 0
    return crowd


def test_a_crowd_is_answered_whoever_goes_away(folders: dict[str, Path]) -> None:
    serve_a_crowd(folders)


@pytest.mark.slow
def test_memory_does_not_grow_with_a_crowd(folders: dict[str, Path]) -> None:
    crowd = serve_a_crowd(folders, seconds=float(os.environ.get("OVERSTORY_SERVING_SECONDS", "60")))
    third = len(crowd.held) // 3
    assert max(crowd.held[-third:]) < max(crowd.held[:third]) + (24 << 20), crowd.counts
