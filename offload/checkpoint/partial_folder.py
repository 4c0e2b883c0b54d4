"""A folder that appears under its name complete or not at all, and whose making can be interrupted and taken up again.

Everything happens in the neighbour `NAME.partial`. Its journal says what was asked for and which files are finished,
with their sizes and digests; a file is entered only after it is on the disk under its name. Does not know what the
files hold. Killed at any moment, it leaves a folder that the same request can finish.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from offload.checkpoint.safetensors_writer import WrittenFile, create_file, write_failure
from profiles.errors import BadInputError

JOURNAL_NAME = "overstory-preparation.json"
SCHEMA_VERSION = 1
_PIECE_BYTES = 4 << 20


@dataclass(slots=True)
class PartialFolder:
    """The folder `target` in the making; nothing is written before `begin`.

    Raises:
        BadInputError: `target` holds something, or what was begun was another request or cannot be understood.
    """

    target: Path
    """The final name."""
    request: Mapping[str, Any]
    """Whatever determines the result, as JSON; what was begun under another request is refused."""
    files: dict[str, WrittenFile] = field(init=False, default_factory=dict)
    """Finished files by name."""

    def __post_init__(self) -> None:
        self._load()

    @property
    def folder(self) -> Path:
        """Where it is made."""
        return self.target.with_name(f"{self.target.name}.partial")

    @property
    def is_published(self) -> bool:
        """Whether all is done but the removal of the journal."""
        return (self.target / JOURNAL_NAME).is_file()

    @property
    def kept_bytes(self) -> int:
        """Bytes of the files that the journal calls finished and that have their size."""
        sizes = ((self.folder / name, written.num_bytes) for name, written in self.files.items())
        return sum(size for file, size in sizes if file.is_file() and file.stat().st_size == size)

    @contextmanager
    def begin(self) -> Iterator[None]:
        """Make or take up the folder, for this process alone. Raises WriteError or BadInputError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(self.folder):
                self._load()
                for leftover in self.folder.rglob("*.tmp"):
                    leftover.unlink()
                self._save_journal()
                yield
        except OSError as error:
            raise write_failure(self.folder, error) from error

    def is_finished(self, name: str) -> bool:
        """Whether that file is there and its bytes are those that were written; if not, it is forgotten."""
        if name not in self.files:
            return False
        written, file = self.files[name], self.folder / name
        if file.is_file() and file.stat().st_size == written.num_bytes and _sha256(file) == written.sha256:
            return True
        del self.files[name]
        self._save_journal()
        return False

    def temporary(self, name: str) -> Path:
        """Where the file of that name is written before `accept`."""
        return self.folder / f"{name}.tmp"

    def accept(self, name: str, written: WrittenFile) -> None:
        """The temporary file of that name is complete and on the disk: give it its name and remember it."""
        self._rename(name)
        self.files[name] = written
        self._save_journal()

    def write_file(self, name: str, content: bytes) -> None:
        """Write a small file, which is written anew by every run."""
        file = self.folder / name
        file.parent.mkdir(exist_ok=True)
        try:
            with create_file(self.temporary(name)) as opened:
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
        except OSError as error:
            with suppress(OSError):
                self.temporary(name).unlink(missing_ok=True)
            raise write_failure(file, error) from error
        self._rename(name)

    def publish(self) -> None:
        """Give the folder its final name; the journal goes last, so that nothing is lost if this is interrupted."""
        if not self.is_published:
            if self.target.is_dir():
                self.target.rmdir()
            self.folder.rename(self.target)
            _sync_folder(self.target.parent)
        (self.target / JOURNAL_NAME).unlink()

    def _rename(self, name: str) -> None:
        self.temporary(name).replace(self.folder / name)
        _sync_folder((self.folder / name).parent)

    def _save_journal(self) -> None:
        files = {name: asdict(written) for name, written in self.files.items()}
        journal = {"schema_version": SCHEMA_VERSION, "request": self.request, "files": files}
        self.write_file(JOURNAL_NAME, json.dumps(journal, indent=1).encode())

    def _load(self) -> None:
        self.files = {}
        folder = self.target if self.is_published else self.folder
        if not self.is_published:
            _refuse_occupied(self.target)
        try:
            journal = json.loads((folder / JOURNAL_NAME).read_bytes())
            found = (journal["schema_version"], journal["request"])
            files = {name: WrittenFile.from_record(fields) for name, fields in journal["files"].items()}
        except (FileNotFoundError, NotADirectoryError):
            if folder.exists() and (not folder.is_dir() or any(file.suffix != ".tmp" for file in folder.iterdir())):
                raise BadInputError(f"{folder} exists and is not ours to go on with; delete it") from None
            return
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadInputError(f"{folder / JOURNAL_NAME} cannot be read; delete {folder} to begin again") from error
        if found[0] != SCHEMA_VERSION:
            raise BadInputError(f"{folder} was begun by another version of this program; delete it to begin again")
        self._refuse_other_request(found[1], folder)
        self.files = files

    def _refuse_other_request(self, begun: Mapping[str, Any], folder: Path) -> None:
        asked = json.loads(json.dumps(self.request))
        for name in asked:
            if begun.get(name) != asked[name]:
                found = ""
                if isinstance(asked[name], str | int | float | bool):
                    found = f" ({begun.get(name)} then, {asked[name]} now)"
                raise BadInputError(
                    f"{folder} was begun with another {name.replace('_', ' ')}{found}; "
                    "delete it to begin again, or choose another output"
                )


def _refuse_occupied(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        kind = "is not empty" if target.is_dir() else "is not a folder"
        raise BadInputError(f"the output {target} exists and {kind}; choose another output, or delete it")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder against other processes; the system lets go of it however this one ends."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInputError(f"another process is at work on {folder}; wait for it, or end it") from error
        yield
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Put names on the disk; Windows has no such call."""
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while piece := opened.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()
