"""Make a folder that appears under its name complete or not at all, and whose making can be taken up again.

Everything happens in the neighbour `NAME.partial`. Every file is written beside its name, flushed and renamed; only
then does the journal call a shard finished, with its digest. The journal also says what was asked for, so that another
request is refused. Killed at any moment, this leaves a folder that the same request can finish.
"""

import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from offload.errors import WriteError
from profiles.errors import BadInputError
from profiles.files import lock

JOURNAL_NAME = "overstory-preparation.json"
SCHEMA_VERSION = 2


@dataclass(frozen=True, slots=True)
class FinishedShard:
    """A safetensors file that is complete and on the disk, as the journal remembers it."""

    sha256: str
    tensor_names: list[str]
    """What it holds."""
    tensor_bytes: int
    """All tensors together, without the header."""


@dataclass(slots=True)
class PartialFolder:
    """The folder `target` in the making; nothing is written before `begin`.

    Raises BadInputError if `target` holds something, or what was begun was another request or cannot be understood.
    """

    target: Path
    """The final name."""
    request: Mapping[str, Any]
    """Whatever determines the result, as JSON; what was begun under another request is refused."""
    shards: dict[str, FinishedShard] = field(init=False, default_factory=dict)
    """Finished shards by file name."""
    _descriptor: int | None = field(init=False, default=None)
    """The folder that is being worked on, wherever it is moved; None where it cannot be held."""

    def __post_init__(self) -> None:
        try:
            self._load()
        except OSError as error:  # a name that no file can have, or a folder that may not be looked into
            raise BadInputError(
                f"the output {self.target} cannot be used: {error.strerror or error}; choose another output"
            ) from error

    @property
    def folder(self) -> Path:
        return self.target.with_name(f"{self.target.name}.partial")

    @property
    def is_published(self) -> bool:
        """Whether all is done but the removal of the journal."""
        return (self.target / JOURNAL_NAME).is_file()

    @property
    def kept_bytes(self) -> int:
        """Bytes of the files that the journal calls finished and that are there."""
        return sum(file.stat().st_size for name in self.shards if (file := self.folder / name).is_file())

    @contextmanager
    def begin(self) -> Iterator[None]:
        """Make or take up the folder, for this process alone. Raises WriteError or BadInputError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(self.folder) as self._descriptor:
                self._check_place()
                self._load()
                for leftover in filter(_is_leftover, self.folder.rglob("*")):
                    leftover.unlink()
                self._save_journal()
                yield
        except OSError as error:
            raise _write_failure(self.folder, error) from error
        except BadInputError:
            with suppress(OSError):
                self.folder.rmdir()  # if nothing is in it
            raise
        finally:
            self._descriptor = None

    def is_finished(self, name: str) -> bool:
        """Return whether that shard is there with the bytes that were written."""
        known, file = self.shards.get(name), self.folder / name
        return known is not None and file.is_file() and _sha256(file) == known.sha256

    def write_shard(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        """Write a safetensors file and remember it as finished. Raises WriteError.

        Its digest is made while the disk takes it.
        """
        with self._replaced(name) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
            with ThreadPoolExecutor(1, thread_name_prefix="digest") as hashing:
                digest = hashing.submit(_sha256, temporary)
                _sync_file(temporary)
            sha256 = digest.result()
        tensor_bytes = sum(tensor.nbytes for tensor in tensors.values())
        self.shards[name] = FinishedShard(sha256, list(tensors), tensor_bytes)
        self._save_journal()

    def write_file(self, name: str, content: bytes) -> None:
        """Write a small file, which is written anew by every run. Raises WriteError."""
        with self._replaced(name) as temporary:
            temporary.write_bytes(content)
            _sync_file(temporary)

    def publish(self) -> None:
        """Give the folder its final name; the journal goes last, so that nothing is lost if this is interrupted.

        Raises WriteError if somebody took a shard away.
        """
        if not self.is_published:
            self._check_place()
            for name in self.shards:
                if not (self.folder / name).is_file():
                    raise WriteError(f"{self.folder / name} was removed; run the same command again to make it again")
            if self.target.is_dir():
                self.target.rmdir()
            self.folder.rename(self.target)
            _sync_folder(self.target.parent)
        (self.target / JOURNAL_NAME).unlink(missing_ok=True)

    @contextmanager
    def _replaced(self, name: str) -> Iterator[Path]:
        """Yield where to write the file of that name and put it on the disk; it then gets the name."""
        file = self.folder / name
        temporary = file.with_name(f"{file.name}.tmp")
        try:
            self._check_place()
            if file.parent != self.folder:
                file.parent.mkdir(exist_ok=True)
            yield temporary
            temporary.replace(file)
            _sync_folder(file.parent)
        except (OSError, SafetensorError) as error:
            self._check_place()
            raise _write_failure(file, error) from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _check_place(self) -> None:
        """Raise WriteError if the folder is not the one that was begun: what is finished would not be in the result."""
        if self._descriptor is None:
            return
        with suppress(OSError):
            if os.path.samestat(os.fstat(self._descriptor), self.folder.stat()):
                return
        raise WriteError(
            f"{self.folder} was moved or removed while it was written; move it back if you have it, and run the same "
            "command again"
        )

    def _save_journal(self) -> None:
        shards = {name: asdict(shard) for name, shard in self.shards.items()}
        journal = {"schema_version": SCHEMA_VERSION, "request": self.request, "shards": shards}
        self.write_file(JOURNAL_NAME, json.dumps(journal, indent=1).encode())

    def _load(self) -> None:
        folder = self.target if self.is_published else self.folder
        if not self.is_published and self.target.exists() and (not self.target.is_dir() or any(self.target.iterdir())):
            kind = "is not empty" if self.target.is_dir() else "is not a folder"
            raise BadInputError(f"the output {self.target} exists and {kind}; choose another output, or delete it")
        self.shards = {}
        try:
            journal = json.loads((folder / JOURNAL_NAME).read_bytes())
            if journal["schema_version"] != SCHEMA_VERSION:
                raise BadInputError(f"{folder} was begun by another version of this program; delete it to begin again")
            shards = {name: FinishedShard(**fields) for name, fields in journal["shards"].items()}
            begun = dict(journal["request"])
        except (FileNotFoundError, NotADirectoryError):
            if folder.exists() and (not folder.is_dir() or not all(map(_is_leftover, folder.iterdir()))):
                raise BadInputError(f"{folder} exists and is not ours to go on with; delete it") from None
            return
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadInputError(f"{folder / JOURNAL_NAME} cannot be read; delete {folder} to begin again") from error
        for name, asked in json.loads(json.dumps(self.request)).items():
            if begun.get(name) != asked:
                found = f" ({begun.get(name)} then, {asked} now)" if isinstance(asked, str | bool) else ""
                raise BadInputError(
                    f"{folder} was begun with another {name.replace('_', ' ')}{found}; "
                    "delete it to begin again, or choose another output"
                )
        self.shards = shards


def _is_leftover(file: Path) -> bool:
    """Return whether the file was never finished: ours end in .tmp, those of safetensors begin with it."""
    return file.suffix == ".tmp" or file.name.startswith(".tmp")


def _write_failure(file: Path, error: OSError | SafetensorError) -> WriteError:
    found = re.search(r"([^:\s][^:]*) \(os error (\d+)\)", str(error))  # safetensors' way of saying it
    number, reason = getattr(error, "errno", None), getattr(error, "strerror", None) or error
    if found is not None:
        number, reason = int(found[2]), found[1]
    is_full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    cure = "make room" if is_full else "mend that"
    return WriteError(
        f"{file} cannot be written: {reason}; {cure} and run the same command again to go on (what is finished is kept)"
    )


@contextmanager
def _locked(folder: Path) -> Iterator[int | None]:
    """Hold the folder against other processes, however this one ends; yield its descriptor."""
    if sys.platform == "win32":
        yield None
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            lock(descriptor)
        except BlockingIOError as error:
            raise BadInputError(f"{error} is at work on {folder}; wait for it, or end it") from error
        yield descriptor
    finally:
        os.close(descriptor)


def _sync_file(file: Path) -> None:
    """Put its bytes on the disk."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


def _sync_folder(folder: Path) -> None:
    """Put names on the disk; Windows has no such call."""
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
