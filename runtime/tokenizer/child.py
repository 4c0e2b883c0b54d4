"""The tokenizer's process: loads what strangers wrote, encodes, fills chat templates and decodes, within limits.

Started as `python -m runtime.tokenizer.child BYTES`, with how far it may grow; requests come on stdin, replies go to
stdout. It has transformers' tokenizers without torch, which they do not need: a third of the time and the memory. It
ends when its stdin does, and without a word where a limit is broken.
"""

import os
import sys
import warnings
from typing import TYPE_CHECKING, BinaryIO

from profiles.child_process import own_streams
from runtime.tokenizer import messages as m
from runtime.tokenizer.limits import FileGuard, ignore_signals, limit_memory, limited_time

if TYPE_CHECKING:
    from runtime.tokenizer.desk import Desk


def main() -> None:
    """Serve until stdin ends."""
    ignore_signals()
    requests, replies = own_streams()
    with os.fdopen(requests, "rb") as reading, os.fdopen(replies, "wb") as writing:
        desk = _open_desk(int(sys.argv[1]), writing)
        while (request := m.read_request(reading)) is not None:
            with limited_time(request.seconds):
                reply = desk.reply(request)
            _write(reply, writing)
            if isinstance(reply, m.Refused) and reply.ends:
                return


def hide_torch() -> None:
    """Have transformers do without torch, as long as the process lives, and leave no trace of it to other packages."""
    sys.modules["torch"] = None  # type: ignore[assignment]
    from transformers.utils import is_torch_available

    is_torch_available()  # which is looked up once
    del sys.modules["torch"]


def _open_desk(memory_bytes: int, writing: BinaryIO) -> "Desk":
    """Import what takes long and say so; from then on the limits hold."""
    try:
        hide_torch()
        from runtime.tokenizer.desk import Desk
    except Exception as error:
        _write(m.Refused(f"the tokenizer's process cannot start ({error}); reinstall the program", ends=True), writing)
        raise
    warnings.simplefilter("ignore")
    limit_memory(memory_bytes)
    guard = FileGuard()
    guard.start()
    _write(m.Ready(), writing)
    return Desk(guard)


def _write(reply: m.Reply, writing: BinaryIO) -> None:
    try:
        frame = m.to_frame(reply)
    except (ValueError, MemoryError) as error:
        frame = m.to_frame(m.Refused(f"the tokenizer's result cannot be used ({error})"))
    writing.write(frame)
    writing.flush()


if __name__ == "__main__":
    main()
