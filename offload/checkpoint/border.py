"""Holds a model folder's border: where its links lead, what its names point at, how much its small files may weigh.

Whatever a folder holds was written by a stranger. Links may lead to other files of the folder and, in the hub's cache,
to the blobs of the same model; names in its files may name files of the folder. All else is refused before it is read.
"""

import os
import stat
from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PurePosixPath, PureWindowsPath

from offload.errors import CheckpointError
from offload.units import format_bytes
from profiles.errors import quote

MAX_SETTINGS_BYTES = 16 * 10**6
MAX_VOCABULARY_BYTES = 128 * 10**6
"""The largest vocabularies in use, of 262,144 tokens, are files of 33 MB."""
TEMPLATES_FOLDER = "additional_chat_templates"
_SETTINGS_FILES = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.json", "chat_template.jinja"),
)
_VOCABULARY_FILES = (
    *("tokenizer.json", "tokenizer.model", "tiktoken.model", "tekken.json", "spiece.model"),
    *("sentencepiece.bpe.model", "vocab.json", "vocab.txt", "merges.txt"),
)
_MAX_NAME_CHARACTERS = 255


def check_border(folder: Path) -> None:
    """Check the links in `folder` and the small files that a model is loaded with; opens none of them.

    Raises CheckpointError if a link leads out of the folder, or a small file is too large or no regular file.
    """
    templates = folder / TEMPLATES_FOLDER
    try:
        for path in chain(folder.iterdir(), templates.iterdir() if templates.is_dir() else ()):
            check_inside(path, folder)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {quote(str(error))}") from error
    for name in _SETTINGS_FILES:
        check_small_file(folder / name, max_bytes=MAX_SETTINGS_BYTES)
    for name in _VOCABULARY_FILES:
        check_small_file(folder / name, max_bytes=MAX_VOCABULARY_BYTES)
    if templates.is_dir():
        for path in templates.glob("*.jinja"):
            check_small_file(path, max_bytes=MAX_SETTINGS_BYTES)


def check_inside(path: Path, folder: Path) -> None:
    """Check that `path`, which lies in `folder`, does not lead out of it. Raises CheckpointError."""
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:  # links that go round in a circle
        raise CheckpointError(f"{path} is a link that leads nowhere; download the file again") from error
    if not any(target.is_relative_to(place) for place in link_places(folder)):
        raise CheckpointError(
            f"{path} leads out of the model folder, to {quote(str(target))}; put the file itself into the folder"
        )


def check_small_file(path: Path, *, max_bytes: int) -> None:
    """Check that `path`, if it is there, is a regular file of at most `max_bytes`. Raises CheckpointError."""
    try:
        status = path.stat()
    except OSError:  # missing, which may be right
        return
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is not a regular file; expected the file that the model's publisher offers")
    if status.st_size > max_bytes:
        raise CheckpointError(
            f"{path} has {format_bytes(status.st_size)}; expected at most {format_bytes(max_bytes)}, download it again"
        )


def is_inner_name(name: str) -> bool:
    """Return whether a name that a file of the folder gives stays in the folder, as POSIX and as Windows read it."""
    if not name.isprintable() or len(name) > _MAX_NAME_CHARACTERS:
        return False
    return not any(path.is_absolute() or path.drive or path.root or ".." in path.parts for path in _readings(name))


def _readings(name: str) -> Iterator[PurePosixPath | PureWindowsPath]:
    yield PurePosixPath(name)
    yield PureWindowsPath(name)


def link_places(folder: Path) -> list[Path]:
    """Return where a link may lead: the folder, and for one in the hub's cache the blobs of the same model."""
    root = Path(os.path.realpath(folder))
    repository = root.parent.parent
    is_cached = root.parent.name == "snapshots" and repository.name.startswith("models--")
    return [root, repository / "blobs"] if is_cached else [root]
