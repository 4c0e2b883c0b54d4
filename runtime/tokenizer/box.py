"""The tokenizer as the rest of the program sees it: every use goes to a process of its own, the box.

One process serves all sessions of a program. What a model folder holds may make it run for ever, fill its memory or
crash; then it is ended, the prompt or the load that did it is refused in a sentence, and the next use starts another.
"""

import atexit
import functools
import itertools
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from offload.errors import CheckpointError
from offload.units import format_bytes
from profiles.child_process import child_command, child_environment
from profiles.errors import OverstoryError
from runtime.errors import OptionError
from runtime.events import TokenLogprob, TokenLogprobs
from runtime.prompts.prompt_file import Message, PromptRequest
from runtime.tokenizer import messages as m
from runtime.tokenizer.answer_forms import AnswerForm
from runtime.tokenizer.limits import MEMORY_BYTES, WAITING_FACTOR, WAITING_SECONDS

_R = TypeVar("_R", bound=m.Reply)
_LEAST_PATIENCE_SECONDS = 0.001
_COMPILING_SECONDS = 3.0
"""Of computing, for a schema."""
_PATIENCE = 0.05
"""Of the time between two rounds, how much one may wait for the text of its tokens."""
_FREED_BY_THE_LIBRARIES = {"HF_HUB_OFFLINE": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class BoxFailedError(Exception):
    """The process broke a limit, or was ended; the message says how, as the rest of a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxLimits:
    """How much a model folder may cost."""

    load_seconds: float = 60.0
    """Of computing. The largest vocabularies in use take two."""
    use_seconds: float = 5.0
    """For a prompt or a part of an answer, and as much again for each megabyte of it. A thousand tokens take 1 ms."""
    memory_bytes: int = MEMORY_BYTES
    """Beyond what the process needs without a model."""


@dataclass(slots=True)
class Posted:
    """A task whose reply may still be on its way."""

    seconds: float
    reply: m.Reply | None = None
    failure: BoxFailedError | None = None


class TokenizerBox:
    """The process: started early or when first used, and again after it was ended. For any number of threads."""

    def __init__(self, limits: BoxLimits | None = None) -> None:
        """Nothing is started yet."""
        self.limits = limits or BoxLimits()
        self.num_started = 0
        """Which process it is that runs: what an earlier one knew, this one does not."""
        self.dropped_keys: deque[int] = deque()
        """What the process need not keep any longer."""
        self.keys = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        self._posted: Posted | None = None
        """What awaits its reply."""
        self._is_ready = False
        self._owner_id = os.getpid()
        self._lock = threading.RLock()

    def start(self) -> None:
        """Start the process, which takes a second, without waiting for it."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return
            self.close()
            self.num_started += 1
            self._process = subprocess.Popen(
                child_command("runtime.tokenizer.child", str(self.limits.memory_bytes)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=child_environment(**_FREED_BY_THE_LIBRARIES),
                start_new_session=True,  # the terminal's signals are for the program that asks
            )

    def close(self) -> None:
        """End the process at once: it holds nothing that is not in a model folder. It starts again when it is used."""
        with self._lock:
            process, self._process, self._is_ready = self._process, None, False
            self._fail(BoxFailedError("it was ended while it worked"))
            if process is None:
                return
            if os.getpid() == self._owner_id:  # and not in a fork of the program
                process.kill()
                process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                with suppress(OSError):
                    stream.close()

    def ask(self, task: m.Task, *, seconds: float) -> m.Reply:
        """Return the reply to a task that may compute for that long. Raises BoxFailedError."""
        with self._lock:
            reply = self.collect(self.post(task, seconds=seconds))
            assert reply is not None
            return reply

    def post(self, task: m.Task, *, seconds: float) -> "Posted":
        """Hand a task over without waiting for its reply, once the one before has its own. Raises BoxFailedError."""
        with self._lock:
            self.start()
            if self._posted is not None:
                self._receive(None)
            self.start()
            posted = Posted(seconds)
            self._posted = posted
            with self._told_ends(posted):
                process = self._get_ready()
                dropped = [self.dropped_keys.popleft() for _ in range(len(self.dropped_keys))]
                assert process.stdin is not None
                process.stdin.write(m.to_frame(m.Request(task, seconds, dropped)))
                process.stdin.flush()
            return posted

    def collect(self, posted: "Posted", *, patience_seconds: float | None = None) -> m.Reply | None:
        """Return the reply to what was posted; None if it takes longer than `patience_seconds`.

        Raises BoxFailedError.
        """
        with self._lock:
            if posted is self._posted:
                self._receive(patience_seconds)
            if posted.failure is not None:
                raise posted.failure
            return posted.reply

    def _get_ready(self) -> "subprocess.Popen[bytes]":
        process = self._process
        assert process is not None and process.stdout is not None
        if not self._is_ready:
            reply = m.read_reply(process.stdout)
            if isinstance(reply, m.Refused):
                raise OverstoryError(reply.sentence)
            self._is_ready = True
        return process

    def _receive(self, patience_seconds: float | None) -> None:
        """Wait for the reply to what was posted last, for as long as it may take or the patience lasts."""
        posted, process = self._posted, self._process
        assert posted is not None and process is not None and process.stdout is not None
        with self._told_ends(posted):
            waiting_seconds = posted.seconds * WAITING_FACTOR + WAITING_SECONDS
            is_patient = patience_seconds is None
            if not _is_readable(process.stdout.fileno(), waiting_seconds if is_patient else patience_seconds or 0.0):
                if is_patient:
                    self._fail(BoxFailedError(f"it was not done after {waiting_seconds:.0f} s"))
                    self.close()
                return
            reply = m.read_reply(process.stdout)
            if isinstance(reply, m.Refused) and reply.ends:
                self._fail(BoxFailedError(reply.sentence or self._memory_reason()))
                self.close()
                return
            posted.reply, self._posted = reply, None

    @contextmanager
    def _told_ends(self, posted: "Posted") -> Iterator[None]:
        """Turn an end of the process into the failure of what was posted."""
        try:
            yield
        except (EOFError, OSError):  # its end of the pipe is closed
            self._fail(BoxFailedError(self._explain_end(posted.seconds)))
            self.close()
        except BaseException:  # among them Ctrl-C: the next reply would be that of this task
            self.close()
            raise

    def _fail(self, failure: BoxFailedError) -> None:
        if self._posted is not None:
            self._posted.failure, self._posted = failure, None

    def _explain_end(self, seconds: float) -> str:
        process = self._process
        assert process is not None
        with suppress(subprocess.TimeoutExpired):
            process.wait(WAITING_SECONDS)
        code = process.returncode
        if code == -getattr(signal, "SIGPROF", 0) or (sys.platform == "win32" and code == 1):
            return f"it computed for more than {seconds:.3g} s"
        if code == -getattr(signal, "SIGKILL", 9):
            return "its process was killed, most likely by the system because memory ran out"
        return f"{self._memory_reason()}, or crashed a library (exit code {code})"

    def _memory_reason(self) -> str:
        return f"it needed more than {format_bytes(self.limits.memory_bytes)} of memory"


@functools.cache
def shared_box() -> TokenizerBox:
    """Return the box of this program, which is ended with it."""
    box = TokenizerBox()
    atexit.register(box.close)
    return box


@functools.lru_cache(maxsize=256)  # most lines of a file share a few
def check_schema(schema: str) -> None:
    """Compile a schema in a box of its own. Raises OptionError."""
    try:
        reply = _schema_box().ask(m.CheckSchema(schema), seconds=_COMPILING_SECONDS)
    except BoxFailedError as error:
        raise OptionError(f"the JSON schema is too much to compile: {error}; make it smaller or simpler") from error
    except ValueError as error:  # half of a surrogate pair
        raise OptionError(f"the JSON schema is no text: {error}; mend it") from error
    if isinstance(reply, m.Refused):
        raise OptionError(reply.sentence)


@functools.cache
def _schema_box() -> TokenizerBox:
    """Return the box that holds no answer: what a schema breaks there costs its own line alone."""
    box = TokenizerBox()
    atexit.register(box.close)
    return box


class Tokenizer:
    """The tokenizer of a model folder; nothing that the folder holds is run or read in this process."""

    def __init__(self, folder: Path, box: TokenizerBox | None = None) -> None:
        """Load it. Raises CheckpointError if its files are missing, damaged or too much for the box."""
        self._folder = folder
        self._box = shared_box() if box is None else box
        self._key = next(self._box.keys)
        self._too_much: dict[m.Task, OptionError] = {}
        weakref.finalize(self, self._box.dropped_keys.append, self._key)
        self._load()

    @property
    def eos_token_id(self) -> int | None:
        return self._loaded.eos_token_id

    @property
    def has_chat_template(self) -> bool:
        return self._loaded.has_chat_template

    @property
    def thinking_marks(self) -> m.ThinkingMarks | None:
        """The tokens around the model's thinking; None where none are known."""
        return self._loaded.thinking

    @property
    def answer_form(self) -> AnswerForm:
        """Return which marks of thinking and of calls its answers may have."""
        return AnswerForm.named(self._loaded.marks)

    def __len__(self) -> int:
        """Return how many ids it knows."""
        return self._loaded.num_tokens

    def encode(self, text: str) -> list[int]:
        """Return the ids of a raw text. Raises OptionError, also where the text holds no token."""
        return self._encoded(m.Encode(self._key, text), num_characters=len(text))

    def encode_conversation(self, request: PromptRequest) -> list[int]:
        """Return the ids of a request's turns in the model's chat template, open for the answer. Raises OptionError."""
        assert request.messages is not None
        task = m.EncodeConversation(
            self._key,
            request.messages,
            request.is_continued,
            tools=request.tools,
            thinking=request.thinking,
            reasoning_effort=request.reasoning_effort,
        )
        num_characters = sum(len(text) for turn in request.messages for text in _texts(turn)) + len(request.tools or "")
        return self._encoded(task, num_characters=num_characters)

    def encode_pair(self, context: str | None, continuation: str) -> tuple[list[int], list[int]]:
        """Return the ids of a context and of its continuation, each at least one, as `formatting.encode_pair` does.

        Raises OptionError.
        """
        task = m.EncodePair(self._key, context, continuation)
        seconds = self._seconds(len(context or "") + len(continuation))
        pair = self._use(task, m.EncodedPair, seconds=seconds)
        return pair.context_ids, pair.continuation_ids

    def name(self, token_id: int) -> str:
        """Return what an id stands for, as it may be printed."""
        return self._use(m.Name(self._key, token_id), m.Text).text

    def contents(self, token_ids: Sequence[int], *, is_first: bool = False) -> list[tuple[str, bytes | None]]:
        """Return what each id adds to a text: see `token_contents`. Raises OptionError."""
        task = m.Describe(self._key, list(token_ids), is_first)
        return self._use(task, m.Described, seconds=self._seconds(100 * len(token_ids))).contents

    def named(self, logprobs: Sequence[TokenLogprobs], *, is_first: bool = False) -> Iterator[TokenLogprobs]:
        """Yield them with what each token adds to a text, or with which it begins one if it `is_first`."""
        if not logprobs:
            return
        token_ids = sorted({token.token_id for each in logprobs for token in (each.chosen, *each.likeliest)})
        contents = dict(zip(token_ids, self.contents(token_ids, is_first=is_first), strict=True))

        def described(token: TokenLogprob) -> TokenLogprob:
            text, content = contents[token.token_id]
            return replace(token, text=text, content=content)

        for each in logprobs:
            yield TokenLogprobs(described(each.chosen), tuple(map(described, each.likeliest)))

    def beside(self, folder: Path) -> "Tokenizer":
        """Return the tokenizer of another folder, in the same box. Raises CheckpointError."""
        return Tokenizer(folder, self._box)

    def first_difference(self, other: "Tokenizer") -> m.Difference | None:
        """Return the first id that stands for another string in `other`, which is in the same box."""
        other._ensure_loaded()
        difference = self._use(m.Compare(self._key, other._key), m.Difference, seconds=self._box.limits.load_seconds)
        return None if difference.token_id < 0 else difference

    def begin_answer(
        self,
        stop: Sequence[str] = (),
        *,
        behind: Sequence[int] = (),
        kept: Sequence[str] = (),
        tail: Sequence[int] = (),
        has_ends: bool = False,
    ) -> "BoxedAnswer":
        """Begin the text of an answer; `behind`: the last tokens of a text that is written on.

        `kept`: tokens whose text stays although they are special; `tail`: the prompt's last ones, whose text it tells.
        `has_ends`: whether it tells where each token ends.
        """
        task = m.Begin(
            self._key, next(self._box.keys), list(stop), list(behind), list(kept), list(tail), has_ends=has_ends
        )
        return BoxedAnswer(self, task)

    def _load(self) -> None:
        try:
            task = m.Load(self._key, os.fsencode(self._folder.absolute()))
            loaded = self._box.ask(task, seconds=self._box.limits.load_seconds)
        except BoxFailedError as error:
            raise CheckpointError(
                f"the tokenizer in {self._folder} cannot be loaded: {error}; "
                "expected tokenizer.json and tokenizer_config.json, or a GGUF file, from the model's publisher"
            ) from error
        if isinstance(loaded, m.Refused):
            raise CheckpointError(loaded.sentence)
        assert isinstance(loaded, m.Loaded)
        self._loaded = loaded
        self._process_number = self._box.num_started

    def _encoded(self, task: m.Encode | m.EncodeConversation, *, num_characters: int) -> list[int]:
        if task in self._too_much:  # which is asked twice: to size the caches, and to answer
            raise self._too_much[task]
        try:
            return self._use(task, m.Encoded, seconds=self._seconds(num_characters)).token_ids
        except _TooMuchError as error:
            self._too_much[task] = error
            raise

    def _seconds(self, num_characters: int) -> float:
        return self._box.limits.use_seconds * (1 + num_characters / 1e6)

    def _use(self, task: m.Task, expected: type[_R], *, seconds: float | None = None) -> _R:
        reply = self._collect(self._post(task, seconds=seconds), expected)
        assert reply is not None
        return reply

    def _post(self, task: m.Task, *, seconds: float | None = None) -> Posted:
        with _in_sentences():
            self._ensure_loaded()
            return self._box.post(task, seconds=seconds or self._box.limits.use_seconds)

    def _collect(self, posted: Posted, expected: type[_R], *, patience_seconds: float | None = None) -> _R | None:
        with _in_sentences():
            reply = self._box.collect(posted, patience_seconds=patience_seconds)
        if isinstance(reply, m.Refused):
            raise OptionError(reply.sentence)
        assert reply is None or isinstance(reply, expected), f"{type(reply).__name__} is no {expected.__name__}"
        return reply

    def _ensure_loaded(self) -> None:
        self._box.start()
        if self._process_number != self._box.num_started:  # what broke the limits took every tokenizer with it
            self._load()


def _texts(turn: Message) -> Iterator[str]:
    yield turn.content
    yield turn.reasoning_content or ""
    yield from (call.arguments for call in turn.tool_calls)


class _TooMuchError(OptionError):
    """What was asked broke a limit."""


@contextmanager
def _in_sentences() -> Iterator[None]:
    try:
        yield
    except BoxFailedError as error:
        raise _TooMuchError(
            f"the target's tokenizer or chat template failed: {error}; download the model's tokenizer files again"
        ) from error
    except ValueError as error:  # a text too long, or of half surrogate pairs
        raise OptionError(f"the text cannot be given to the tokenizer: {error}; shorten or mend it") from error


class BoxedAnswer:
    """An answer's text as its tokens come, told by the box: no character is split, no stop string shown.

    Without stop strings nothing waits for the box for long, which on a busy machine is scheduled late: the text then
    comes with that of later tokens. Raises OptionError where the tokenizer breaks a limit.
    """

    def __init__(self, tokenizer: Tokenizer, task: m.Begin) -> None:
        """See `Tokenizer.begin_answer`."""
        self._tokenizer = tokenizer
        self._has_stop = bool(task.stop)
        self._is_continued = bool(task.behind)
        self._key = task.answer_key
        self._added: Posted | None = None
        self._last_seconds = time.perf_counter()
        self.token_ids: list[int] = []
        self.token_ends: list[int] = []
        """Of each token whose text was released, how many characters the text has with it, if that is wanted."""
        self.text = ""
        """The whole text, once it was finished."""
        self.num_tokens = 0
        """How many of the tokens are its own, likewise: those of a stop string are not."""
        self.stop_string: str | None = None
        """The stop string that ended it, likewise."""
        self.is_stopped = False
        """Whether a stop string was found; later tokens change nothing."""
        weakref.finalize(self, tokenizer._box.dropped_keys.append, self._key)
        self.tail_text = tokenizer._use(task, m.Text).text
        """What the prompt's last tokens are, those that were given with it."""

    def add(self, token_ids: Sequence[int]) -> str:
        """Append tokens and return the text they release; stop after the token that completes a stop string."""
        if self.is_stopped or not token_ids:
            return ""
        now = time.perf_counter()
        patience_seconds = max(_LEAST_PATIENCE_SECONDS, _PATIENCE * (now - self._last_seconds))
        self._last_seconds = now
        released = self._collect()
        self._added = self._tokenizer._post(m.Add(self._key, list(token_ids)))
        if self._has_stop:
            num_before = len(self.token_ids)
            released += self._collect()
            self.token_ids.extend(token_ids[: self._num_taken - num_before])
            return released
        self.token_ids.extend(token_ids)
        return released + self._collect(patience_seconds)

    def finish(self) -> str:
        """Return the text held back so far, once no token follows."""
        released = self._collect()
        ended = self._tokenizer._use(m.End(self._key), m.Ended)
        self.text, self.num_tokens, self.stop_string = ended.text, ended.num_tokens, ended.stop_string
        return released + ended.released

    def named(self, logprobs: Sequence[TokenLogprobs]) -> tuple[TokenLogprobs, ...]:
        """Return those of the text's own tokens, of which `logprobs` has all, with what each token adds to a text.

        Once the text was finished.
        """
        own = logprobs[: self.num_tokens]
        num_begun = 0 if self._is_continued else 1
        return (*self._tokenizer.named(own[:num_begun], is_first=True), *self._tokenizer.named(own[num_begun:]))

    def _collect(self, patience_seconds: float | None = None) -> str:
        """Return what the tokens added last release, if the box says it in time."""
        if self._added is None:
            return ""
        reply = self._tokenizer._collect(self._added, m.Released, patience_seconds=patience_seconds)
        if reply is None:
            return ""
        self._added = None
        self._num_taken, self.is_stopped = reply.num_taken, reply.is_stopped
        self.token_ends += reply.ends
        return reply.text


def _is_readable(descriptor: int, seconds: float) -> bool:
    """Return whether something can be read within that time; Windows' pipes cannot be asked, and count as readable."""
    if sys.platform == "win32":
        return True
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(1000 * seconds))
