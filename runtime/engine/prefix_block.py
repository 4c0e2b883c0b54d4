"""A block of the prefix store: what a model keeps of some tokens of a text, in one file that is whole or worthless.

First a JSON line, padded to whole pages: version, model, tokens, names and sizes of the parts. Then the parts, one
behind the other, and the SHA-256 of all of it. Whoever reads a block knows its line before, so that no number of a file
is ever believed: what is not, byte for byte, what was written is no block. A part may be anything that has a name and a
size, not only keys and values.
"""

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

SCHEMA_VERSION = 1
SUFFIX = ".block"
PARTIAL_SUFFIX = ".partial"
"""Of what is being written, or was when somebody ended the program."""
_PAGE_BYTES = 4096
_DIGEST_BYTES = hashlib.sha256().digest_size
_BYTES_AT_ONCE = 4 << 20
"""That are read, and hashed while they are in the processor's cache."""


@dataclass(frozen=True, slots=True)
class BlockForm:
    """What all blocks of one model, as one session holds it, are like."""

    identity: str
    """64 hexadecimal digits of all that the bytes depend on but the tokens."""
    num_tokens: int
    """Of a block."""
    parts: tuple[tuple[str, int], ...]
    """(name, bytes), in their order."""

    @classmethod
    def of(cls, model: Mapping[str, object], *, num_tokens: int, parts: Sequence[tuple[str, int]]) -> "BlockForm":
        """Return the form of a model's blocks; `model` says, in JSON's types, all that decides their bytes."""
        record = {"schema_version": SCHEMA_VERSION, "model": dict(model), "tokens": num_tokens, "parts": list(parts)}
        identity = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
        return cls(identity, num_tokens, tuple(parts))

    @property
    def num_bytes(self) -> int:
        """Of the parts together."""
        return sum(size for _, size in self.parts)

    @property
    def file_bytes(self) -> int:
        return len(self._header(self.identity)) + self.num_bytes + _DIGEST_BYTES

    def names(self, token_ids: Sequence[int], *, known: Sequence[str] = ()) -> list[str]:
        """Return the name of every whole block of a text; each stands for all tokens up to the block's end.

        `known` are the first ones, of blocks that the text had before.
        """
        found = list(known)
        for start in range(len(found) * self.num_tokens, len(token_ids) - self.num_tokens + 1, self.num_tokens):
            tokens = np.asarray(token_ids[start : start + self.num_tokens], dtype="<i8")
            before = found[-1] if found else self.identity
            found.append(hashlib.sha256(before.encode() + tokens.tobytes()).hexdigest())
        return found

    def write(self, folder: Path, name: str, content: npt.NDArray[np.uint8]) -> None:
        """Write a block to a neighbour of its own, and rename it. Raises OSError."""
        header = self._header(name)
        handle, neighbour = tempfile.mkstemp(prefix=f"{name}.", suffix=PARTIAL_SUFFIX, dir=folder)  # of mode 0600
        try:
            digest = hashlib.sha256(header)
            digest.update(content.data)
            with os.fdopen(handle, "wb") as file:
                file.write(header)
                file.write(content.data)
                file.write(digest.digest())
            Path(neighbour).replace(folder / f"{name}{SUFFIX}")
        except BaseException:
            Path(neighbour).unlink(missing_ok=True)
            raise

    def read(self, folder: Path, name: str) -> npt.NDArray[np.uint8]:
        """Return the parts of a block, one behind the other.

        Raises FileNotFoundError where there is none, OSError where it cannot be read, and ValueError where the file is
        not what was written.
        """
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(folder / f"{name}{SUFFIX}", flags), "rb", buffering=0) as file:
            found, header = os.fstat(file.fileno()), self._header(name)
            if not stat.S_ISREG(found.st_mode) or found.st_size != self.file_bytes:
                raise ValueError("it is not a file of the size that was written")
            if file.read(len(header)) != header:
                raise ValueError("it is of another model, text or version")
            digest, content, start = hashlib.sha256(header), np.empty(self.num_bytes, dtype=np.uint8), 0
            while start < len(content):
                count = file.readinto(content[start : start + _BYTES_AT_ONCE].data)
                if not count:
                    raise ValueError("it ends too soon")
                digest.update(content[start : start + count].data)
                start += count
            if file.read(_DIGEST_BYTES) != digest.digest():
                raise ValueError("its bytes are not those that were written")
        return content

    def _header(self, name: str) -> bytes:
        record = {
            "schema_version": SCHEMA_VERSION,
            "model": self.identity,
            "text": name,
            "tokens": self.num_tokens,
            "parts": self.parts,
        }
        line = json.dumps(record).encode()
        return line.ljust(-(-(len(line) + 1) // _PAGE_BYTES) * _PAGE_BYTES - 1) + b"\n"
