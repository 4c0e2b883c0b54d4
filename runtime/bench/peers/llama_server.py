"""llama.cpp's server as one of those that answer in turn: a process of its own that listens on the loopback address.

Its options have had several names over the years; which ones a build knows is read from its --help.
"""

import http.client
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from profiles.child_process import finish_child
from profiles.errors import quote
from runtime.bench.peers.runner import Answer, Question, WatchedProcess, bytes_between
from runtime.errors import PeerError

_HOST = "127.0.0.1"
_HELP_SECONDS = 60.0
LOAD_SECONDS = 600.0
"""How long it may take to load its models."""
SILENCE_SECONDS = 600.0
"""How long it may take to say the next thing about an answer."""
_POLL_SECONDS = 0.05
_SPARE_TOKENS = 16
_NOT_FOR_PEERS = ("GOMP_SPINCOUNT",)
"""Variables that this program sets for its own libraries, and that would slow another's threads down."""


@dataclass(frozen=True, slots=True)
class PeerBuild:
    """A server's program, and what it says of itself."""

    program: str
    version: str | None
    options: frozenset[str]
    """All that its --help mentions, dashes included."""
    words: frozenset[str]
    """And all other words."""

    @classmethod
    def find(cls, name: str) -> Self:
        """Ask the program of this name or path for its options. Raises PeerError if it is not there, or another one."""
        program = shutil.which(name)
        if program is None:
            raise PeerError(
                f"no llama.cpp to measure beside: {name} is neither a program on the PATH nor an executable file; "
                "build llama.cpp's llama-server, or name yours with --peer"
            )
        told = _told_by(program, "--help")
        words = frozenset(re.findall(r"[\w-]+", told))
        build = cls(program, _version(program), frozenset(word for word in words if word.startswith("-")), words)
        build.option("--ctx-size")
        return build

    def option(self, *names: str) -> str:
        """Return the first of these names of one option that the build knows. Raises PeerError if it knows none."""
        for name in names:
            if name in self.options:
                return name
        raise PeerError(f"{self.program} has no {' or '.join(names)}, so that it is no llama-server known here")


def peer_environment() -> dict[str, str]:
    """Return our environment without what was set in it for our own libraries."""
    return {name: value for name, value in os.environ.items() if name not in _NOT_FOR_PEERS}


class LlamaServer:
    """A `Runner`: a llama-server with so many drafted tokens at most, all else as its build has it by default."""

    def __init__(
        self,
        build: PeerBuild,
        target: Path,
        draft: Path,
        *,
        num_drafted: int,
        max_new_tokens: int,
        arguments: Sequence[str] = (),
    ) -> None:
        """`target` and `draft` are GGUF files; with 0 `num_drafted` the draft is not touched.

        `arguments` go to the server as they are, behind all others.
        """
        self._build = build
        self._target = target
        self._draft = draft if num_drafted else None
        self._num_drafted = num_drafted
        self._max_new_tokens = max_new_tokens
        self._arguments = arguments
        self._process: WatchedProcess | None = None
        self._port = 0

    @property
    def name(self) -> str:
        return f"peer, {self._num_drafted} drafted" if self._draft is not None else "peer, plain"

    def start(self, questions: Sequence[Question]) -> None:
        self._port = _free_port()
        longest = max(len(question.token_ids) for question in questions)
        context_tokens = longest + self._max_new_tokens + self._num_drafted + _SPARE_TOKENS
        try:
            self._process = WatchedProcess(self.command(context_tokens), environment=peer_environment())
        except OSError as error:
            raise PeerError(f"{self._build.program} cannot be started: {error.strerror or error}") from error
        try:
            self._wait_until_loaded(self._process)
        except BaseException:
            self.close()
            raise

    def answer(self, question: Question) -> Answer:
        assert self._process is not None, "it was started"
        bytes_before, begun = self._process.bytes_read(), time.perf_counter()
        first, ended, texts, last = 0.0, begun, list[str](), dict[str, Any]()
        for last in self._stream(self._process, question):
            ended = time.perf_counter()
            if text := last.get("content"):
                first = first or ended
                texts.append(str(text))
        first = first or ended
        bytes_read = bytes_between(bytes_before, self._process.bytes_read())
        num_tokens = self._number(last, "tokens_predicted", least=1)
        num_prompt_tokens = self._number(last, "tokens_evaluated")
        if num_prompt_tokens != len(question.token_ids):
            raise PeerError(
                f"{self.name}: it counted {num_prompt_tokens} tokens in a prompt of {len(question.token_ids)}; the two "
                "were not asked the same"
            )
        timings = found if isinstance(found := last.get("timings"), dict) else {}
        told_milliseconds = timings.get("predicted_per_token_ms")
        num_accepted = timings.get("draft_n_accepted")
        return Answer(
            text="".join(texts),
            token_ids=question.token_ids,
            num_tokens=num_tokens,
            num_passes=num_tokens - num_accepted if isinstance(num_accepted, int) else num_tokens,
            first_seconds=first - begun,
            decode_seconds=ended - first,
            decode_tokens=num_tokens - 1,
            told_seconds_per_token=told_milliseconds / 1e3 if isinstance(told_milliseconds, int | float) else None,
            bytes_read=bytes_read,
        )

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()

    def command(self, context_tokens: int) -> list[str]:
        """Return the command of a server for prompt and answer of so many tokens. Raises PeerError."""
        option, known = self._build.option, self._build.options
        command = [self._build.program, option("--model"), str(self._target)]
        command += [option("--host"), _HOST, option("--port"), str(self._port)]
        command += [option("--ctx-size"), str(context_tokens), option("--parallel"), "1"]
        num_threads = str(
            _num_cores()
        )  # as torch takes them; by itself it would leave out all but one thread of a core
        command += [option("--threads"), num_threads, option("--threads-batch"), num_threads]
        if "--cache-ram" in known:  # copies of earlier prompts' caches, which nobody asks for again
            command += ["--cache-ram", "0"]
        if self._draft is not None:
            command += [option("--model-draft", "--spec-draft-model"), str(self._draft)]
            command += [option("--spec-draft-n-max", "--draft-max", "--draft"), str(self._num_drafted)]
            if "--ctx-size-draft" in known:  # older builds otherwise take the draft's whole context
                command += ["--ctx-size-draft", str(context_tokens)]
            if "draft-simple" in self._build.words:
                command += [option("--spec-type"), "draft-simple"]
        return [*command, *self._arguments]

    def _wait_until_loaded(self, process: WatchedProcess) -> None:
        limit = time.monotonic() + LOAD_SECONDS
        while time.monotonic() < limit:
            if not process.is_running:
                raise PeerError(f"{self.name}: {self._build.program} {process.ending()}")
            connection = http.client.HTTPConnection(_HOST, self._port, timeout=SILENCE_SECONDS)
            try:
                connection.request("GET", "/health")
                if connection.getresponse().status == http.HTTPStatus.OK:
                    return
            except (OSError, http.client.HTTPException):
                pass  # it does not listen yet
            finally:
                connection.close()
            time.sleep(_POLL_SECONDS)
        raise PeerError(f"{self.name}: {self._build.program} did not load its models within {LOAD_SECONDS:g} s")

    def _stream(self, process: WatchedProcess, question: Question) -> Iterator[dict[str, Any]]:
        """Yield what the server says of the answer, piece by piece; the last piece says that it has stopped."""
        body = {
            "prompt": question.token_ids,
            "n_predict": self._max_new_tokens,
            "temperature": 0,
            "repeat_penalty": 1,
            "cache_prompt": False,
            "stream": True,
        }
        connection = http.client.HTTPConnection(_HOST, self._port, timeout=SILENCE_SECONDS)
        is_stopped = False
        try:
            connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                raise PeerError(
                    f"{self.name}: it refused the prompt: {quote(response.read(4096).decode(errors='replace'))}"
                )
            for line in response:
                if line.startswith(b"data:") and line[5:].strip().startswith(b"{"):
                    piece = json.loads(line[5:])
                    is_stopped = piece.get("stop") is True
                    yield piece
        except TimeoutError as error:
            raise PeerError(f"{self.name}: it said nothing for {SILENCE_SECONDS:g} s") from error
        except ValueError as error:
            raise PeerError(f"{self.name}: what it said is no JSON: {error}") from error
        except (OSError, http.client.HTTPException) as error:
            raise PeerError(f"{self.name}: {self._build.program} {process.ending()}") from error
        finally:
            connection.close()
        if not is_stopped:
            raise PeerError(f"{self.name}: {self._build.program} {process.ending()}")

    def _number(self, record: Mapping[str, Any], key: str, *, least: int = 0) -> int:
        found = record.get(key)
        if isinstance(found, bool) or not isinstance(found, int) or found < least:
            raise PeerError(f"{self.name}: its {key} is {quote(found)}; expected a whole number of {least} or more")
        return found


def _told_by(program: str, question: str) -> str:
    """Return what a program prints about itself. Raises PeerError."""
    try:
        told = finish_child([program, question], limit_seconds=_HELP_SECONDS, environment=peer_environment())
    except OSError as error:
        raise PeerError(
            f"{program} cannot be run: {error.strerror or error}; name a llama-server with --peer"
        ) from error
    if told.exit_code is None:
        raise PeerError(f"{program} {question} did not end within {_HELP_SECONDS:g} s; name a llama-server with --peer")
    return told.output + "\n" + told.complaints


def _version(program: str) -> str | None:
    lines = _told_by(program, "--version").splitlines()
    return next((line.strip()[:80] for line in lines if line.lower().startswith("version")), None)


def _num_cores() -> int:
    """Return how many processors this program, and with it its children, may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_port() -> int:
    """Return a port of the loopback address that nobody listens on now."""
    with socket.socket() as free:
        free.bind((_HOST, 0))
        port: int = free.getsockname()[1]
        return port
