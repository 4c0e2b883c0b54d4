"""What answers prompts beside others: an engine in a process of its own, started for a turn and ended with it.

Nothing here imports torch: where memory is capped, the process that watches takes its share of it too.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from profiles.child_process import ending_words
from runtime.prompts.prompt_file import PromptRequest

_GRACE_SECONDS = 5.0
_QUOTED_SIGNS = 300


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, and its tokens once somebody has told them, so that every engine sees the same ones."""

    request: PromptRequest
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one prompt cost, by the clock of the process that asked."""

    text: str
    token_ids: tuple[int, ...]
    """Of the prompt."""
    num_tokens: int
    num_passes: int
    """Passes over the target that emitted them, the prompt's last one among them."""
    first_seconds: float
    """From the question to the first tokens."""
    decode_seconds: float
    """From there to the end."""
    decode_tokens: int
    """Tokens that came after the first ones."""
    told_seconds_per_token: float | None
    """The same by the engine's own account."""
    bytes_read: int | None
    """From disks, while it answered; None where the system does not count them."""

    @property
    def seconds_per_token(self) -> float | None:
        """Return the decoding time per token; None when all came at once."""
        return self.decode_seconds / self.decode_tokens if self.decode_tokens else None


class Runner(Protocol):
    """An engine with one setting. At most one is started at any time, since all are meant to have the whole memory."""

    @property
    def name(self) -> str: ...

    def start(self, questions: Sequence[Question]) -> None:
        """Return once it can answer these. Raises PeerError, and then holds nothing."""
        ...

    def answer(self, question: Question) -> Answer:
        """Answer one of the questions that it was started for, greedily. Raises PeerError."""
        ...

    def close(self) -> None:
        """End its process, if there is one; it may be started again."""
        ...


class WatchedProcess:
    """A child whose reads are counted, and whose last words are kept for the case that it fails."""

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str], has_pipes: bool = False) -> None:
        """Start it. `has_pipes`: with lines of text on stdin and stdout; else it has neither. Raises OSError."""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        pipe = subprocess.PIPE if has_pipes else None
        try:
            self.child: subprocess.Popen[str] = subprocess.Popen(
                list(command),
                env=dict(environment),
                stdin=pipe or subprocess.DEVNULL,
                stdout=pipe or self._said,
                stderr=self._said,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # Ctrl-C is for the program that asks, which then ends it
            )
        except OSError:
            self._said.close()
            raise

    @property
    def is_running(self) -> bool:
        return self.child.poll() is None

    def bytes_read(self) -> int | None:
        """Return what it and its own children have read from disks so far; None where that is not counted."""
        if not hasattr(psutil.Process, "io_counters"):  # macOS
            return None
        total = 0
        with suppress(psutil.Error):
            parent = psutil.Process(self.child.pid)
            for process in (parent, *parent.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    total += process.io_counters().read_bytes
            return total
        return None

    def end(self) -> None:
        """End it, at once if it does not go by itself."""
        self.child.terminate()
        try:
            self.child.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        for stream in (self.child.stdin, self.child.stdout):
            if stream is not None:
                with suppress(OSError):  # what was not sent
                    stream.close()
        self._said.close()

    def ending(self) -> str:
        """Wait for its end; say how that came about and what its last words were, as the end of a sentence."""
        try:
            exit_code = self.child.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return "stopped answering"
        self._said.seek(max(0, self._said.seek(0, os.SEEK_END) - 4 * _QUOTED_SIGNS))
        words = " ".join(self._said.read().decode(errors="replace").split())[-_QUOTED_SIGNS:]
        killed = " (the system does this where memory runs out)" if exit_code == -9 else ""
        return f"ended {ending_words(exit_code)}{killed}: {words or 'it said nothing'}"


def bytes_between(before: int | None, after: int | None) -> int | None:
    """Return how much has been read between two counts; None where one is missing."""
    return None if before is None or after is None else after - before


def forget_files(paths: Iterable[Path]) -> None:
    """Ask the system to drop these files from its page cache, if it can be asked, so that every turn starts alike."""
    if not hasattr(os, "posix_fadvise"):  # macOS, Windows
        return
    for path in paths:
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
