"""This engine as one of those that answer in turn: a session in a child process, told and telling by lines of JSON.

The child loads what `overstory run` would load, with the same defaults. Only the child imports torch.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from profiles.child_process import child_command, child_environment, own_streams
from profiles.errors import OverstoryError
from runtime.bench.peers.runner import Answer, Question, WatchedProcess, bytes_between
from runtime.config import EngineConfig, SamplingParams
from runtime.errors import PeerError
from runtime.events import Finished, Round
from runtime.prompts.prompt_file import Message, PromptRequest

if TYPE_CHECKING:
    from runtime.engine.loading import OpenSession

_MODULE = "runtime.bench.peers.own_engine"


class OwnEngine:
    """A `Runner`: this engine, with the given choices."""

    name = "overstory"

    def __init__(self, config: EngineConfig, *, max_new_tokens: int, state_folder: Path | None = None) -> None:
        """`state_folder`: where profiles of this machine are kept, as `load_session` takes it."""
        self._config = config
        self._max_new_tokens = max_new_tokens
        self._state_folder = state_folder
        self._process: WatchedProcess | None = None
        self.disk_rates: list[float] = []
        """Bytes per second of the bare disk, past the page cache, at the start of each turn in which layers stream."""

    def start(self, questions: Sequence[Question]) -> None:
        self._process = WatchedProcess(child_command(_MODULE), environment=child_environment(), has_pipes=True)
        opening = {
            "config": asdict(self._config),
            "max_new_tokens": self._max_new_tokens,
            "state_folder": self._state_folder and str(self._state_folder),
            "requests": [_to_record(question.request) for question in questions],
        }
        try:
            self._tell(opening)
            if (rate := self._heard("ready")["disk_bytes_per_second"]) is not None:
                self.disk_rates.append(rate)
        except BaseException:
            self.close()
            raise

    def answer(self, question: Question) -> Answer:
        assert self._process is not None, "it was started"
        bytes_before, begun = self._process.bytes_read(), time.perf_counter()
        self._tell({"answer": question.request.id})
        self._heard("first")
        first = time.perf_counter()
        told = self._heard("answer")
        ended = time.perf_counter()
        return Answer(
            text=told["text"],
            token_ids=tuple(told["token_ids"]),
            num_tokens=told["num_tokens"],
            num_passes=told["num_passes"],
            first_seconds=first - begun,
            decode_seconds=ended - first,
            decode_tokens=told["decode_tokens"],
            told_seconds_per_token=told["seconds_per_token"],
            bytes_read=bytes_between(bytes_before, self._process.bytes_read()),
        )

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()

    def _tell(self, record: dict[str, Any]) -> None:
        assert self._process is not None and self._process.child.stdin is not None
        try:
            self._process.child.stdin.write(json.dumps(record) + "\n")
            self._process.child.stdin.flush()
        except OSError as error:
            raise PeerError(f"this engine's process {self._process.ending()}") from error

    def _heard(self, name: str) -> Any:
        """Return what the child says next, which should be of this name. Raises PeerError with what it says instead."""
        assert self._process is not None and self._process.child.stdout is not None
        line = self._process.child.stdout.readline()
        if not line:
            raise PeerError(f"this engine's process {self._process.ending()}")
        told = json.loads(line)
        if "failure" in told:
            raise PeerError(told["failure"])
        return told[name]


def serve(lines: Iterable[str], reply: Callable[[dict[str, Any]], object]) -> None:
    """Be the child: open the session that the first line describes; answer the request that each further one names."""
    from runtime.engine.loading import open_session

    told = iter(lines)
    opening = json.loads(next(told))
    params = SamplingParams(max_new_tokens=opening["max_new_tokens"])
    requests = {record["id"]: _from_record(record, params) for record in opening["requests"]}
    folder = opening["state_folder"]
    try:
        with open_session(
            EngineConfig(**opening["config"]),
            requests=list(requests.values()),
            state_folder=None if folder is None else Path(folder),
        ) as opened:
            reply({"ready": {"disk_bytes_per_second": _disk_rate(opened)}})
            for task in map(json.loads, told):
                _answer(opened, requests[task["answer"]], reply)
    except OverstoryError as error:
        reply({"failure": str(error)})


def _answer(opened: "OpenSession", request: PromptRequest, reply: Callable[[dict[str, Any]], object]) -> None:
    session, is_first = opened.session, True
    with closing(session.generate(request)) as events:
        for event in events:
            if isinstance(event, Round) and is_first:
                reply({"first": {}})
                is_first = False
    assert isinstance(event, Finished), "the engine's last event is Finished"
    costs = event.statistics
    answer = {
        "text": event.text,
        "token_ids": session.format_prompt(request),
        "num_tokens": costs.new_tokens,
        "num_passes": costs.rounds,
        "decode_tokens": costs.decode_tokens,
        "seconds_per_token": costs.seconds_per_token,
    }
    reply({"answer": answer})


def _disk_rate(opened: "OpenSession") -> float | None:
    """Return the bytes per second of the bare disk before the first pass; None where no layer streams from one."""
    from offload.checkpoint.layer_layout import LayerLayout
    from offload.copying.rates import measure_raw_link

    ranges = [piece for layer in opened.streamer.layers if isinstance(layer, LayerLayout) for piece in layer.ranges]
    if not ranges:
        return None
    reader = opened.reader
    return measure_raw_link(ranges, block_bytes=reader.block_bytes, num_threads=reader.num_threads).bytes_per_second


def _to_record(request: PromptRequest) -> dict[str, Any]:
    return {
        "id": request.id,
        "prompt": request.prompt,
        "messages": request.messages and list(map(asdict, request.messages)),
        "tools": request.tools,
        "thinking": request.thinking,
    }


def _from_record(record: dict[str, Any], params: SamplingParams) -> PromptRequest:
    messages = msgspec.convert(record["messages"], tuple[Message, ...] | None)
    how = {key: record[key] for key in ("id", "prompt", "tools", "thinking")}
    return PromptRequest(messages=messages, params=params, **how)


def main() -> None:
    """Serve on what were stdin and stdout, which libraries do not reach any more."""
    requests, replies = own_streams()
    with os.fdopen(requests, encoding="utf-8") as lines, os.fdopen(replies, "w", encoding="utf-8") as out:

        def reply(record: dict[str, Any]) -> None:
            out.write(json.dumps(record) + "\n")
            out.flush()

        serve(lines, reply)


if __name__ == "__main__":
    main()
