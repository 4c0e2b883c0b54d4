"""Files that a prompt mentions with `@`: what is typed of a name, and the files of a folder that it could mean.

Hidden files and those that `.gitignore` leaves out are not proposed; nor are pictures, archives and other data by their
names. Files near the folder come first, so that a large one, of which a part is read, proposes what is likely.
"""

import math
import mimetypes
import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pathspec import GitIgnoreSpec
from textual.fuzzy import FuzzySearch

from profiles.files import read_regular_file
from tui.chat.commands.slash import Completion, paths_from

MAX_FILES = 20_000
LIST_SECONDS = 1.0
MATCH_SECONDS = 0.3
"""How long a folder may be read, and its files compared; what was found by then is proposed."""
MAX_PROPOSED = 50
FRESH_SECONDS = 5.0
"""How long a list of files is taken for what is there, while a name is being typed."""
_MAX_IGNORE_BYTES = 1 << 18
_MAX_WAYS = 2_000
"""In which letters may match a path, for Textual's matcher, which tries them all."""
_MENTION = re.compile(r"(?<!\S)@(?P<typed>[^\s@]*)$")
_MENTIONED = re.compile(r"(?<!\S)@(?P<path>[^\s@]+)")
_ELSEWHERE = ("/", "~", "./", "../")
"""A name that begins so is a path, of which the next part is proposed."""
_TEXT_SUFFIXES = (".svg", ".ts", ".mts", ".obj")
"""Which mimetypes takes for pictures, films and models."""
_DATA_KINDS = ("image", "audio", "video", "font", "model")
_DATA_SUFFIXES = (
    *(".7z", ".bin", ".class", ".db", ".dll", ".dylib", ".exe", ".gguf", ".jar", ".npy", ".npz", ".o", ".onnx"),
    *(".parquet", ".pdf", ".pt", ".pth", ".pyc", ".safetensors", ".so", ".sqlite", ".tar", ".tgz", ".whl", ".zip"),
)


def mention_at(line: str, column: int) -> str | None:
    """Return what is typed behind the `@` that the cursor stands in; None where it stands in none."""
    found = _MENTION.search(line[:column])
    return None if found is None else found["typed"]


def mentioned_files(text: str) -> Iterator[tuple[str, Path]]:
    """Yield the words of a text that are an `@` and the path of a file that is there, each with that path.

    Reads folders, so it belongs into a thread.
    """
    for found in _MENTIONED.finditer(text):
        for name in dict.fromkeys((found["path"], found["path"].rstrip(".,;:?!)"))):
            path = Path(os.path.expanduser(name))  # noqa: PTH111 - which leaves the home of an unknown user as it is
            if name and path.is_file():
                yield f"@{name}", path
                break


class NearbyFiles:
    """The files of a folder, read again when they may have changed."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` None is the one that the program works in."""
        self._folder = folder or Path()
        self._paths: tuple[str, ...] = ()
        self._read_at = -math.inf
        self._lock = threading.Lock()

    def propose(self, typed: str) -> tuple[Completion, ...]:
        """Return the files that could be meant, the likeliest first; to be called in a thread."""
        if typed.startswith(_ELSEWHERE):
            return tuple(Completion(path, path, is_file=True) for path in paths_from(typed))
        with self._lock:  # what is typed while a large folder is read waits for that
            if time.monotonic() - self._read_at > FRESH_SECONDS:
                self._paths, self._read_at = tuple(text_files(self._folder)), time.monotonic()
        return tuple(Completion(path, path, is_file=True) for path in closest_files(typed, self._paths))


def text_files(folder: Path, *, max_files: int = MAX_FILES, seconds: float = LIST_SECONDS) -> Iterator[str]:
    """Yield paths of files from the folder on, those near it first: at most so many, and for so long."""
    deadline, num_found = time.monotonic() + seconds, 0
    waiting = deque([("", _rules_above(folder))])
    while waiting and time.monotonic() < deadline:
        prefix, rules = waiting.popleft()
        names, folders = _entries(folder / prefix)
        rules = (*rules, *_rules_in(folder / prefix, prefix))
        for name in names:
            if num_found == max_files or time.monotonic() > deadline:
                return
            if not _is_data(name) and not _is_ignored(prefix + name, rules):
                num_found += 1
                yield prefix + name
        waiting += ((f"{prefix}{name}/", rules) for name in folders if not _is_ignored(f"{prefix}{name}/", rules))


def closest_files(typed: str, paths: Sequence[str], *, seconds: float = MATCH_SECONDS) -> list[str]:
    """Return the paths that hold these letters in this order, the likeliest first; the first ones for no letters."""
    wanted, deadline = typed.lower(), time.monotonic() + seconds
    possible = [path for path in paths if _holds(wanted, path.lower())] if wanted else list(paths[:MAX_PROPOSED])
    possible.sort(key=lambda path: (wanted not in path.lower().rpartition("/")[2], wanted not in path.lower()))
    search, scores = FuzzySearch(), dict.fromkeys(possible, 0.0)
    for path in possible if wanted else ():
        if time.monotonic() > deadline:
            break
        scores[path] = _score(search, wanted, path.lower())
    return sorted(possible, key=lambda path: (-scores[path], len(path)) if wanted else (0, 0))[:MAX_PROPOSED]


class _Rules(NamedTuple):
    """What one `.gitignore` says of the files from its folder on."""

    prefix: str
    """The folder, as paths name it that are asked about."""
    above: str
    """What comes before such a path, for a folder above."""
    spec: GitIgnoreSpec


def _rules_in(folder: Path, prefix: str, above: str = "") -> Iterator[_Rules]:
    try:
        lines = read_regular_file(folder / ".gitignore", max_bytes=_MAX_IGNORE_BYTES).decode(errors="replace")
        yield _Rules(prefix, above, GitIgnoreSpec.from_lines(lines.splitlines()))
    except (OSError, ValueError):  # none, or none that git would understand
        return


def _rules_above(folder: Path) -> tuple[_Rules, ...]:
    """Return the rules of the folders above, up to that of the repository; none outside of one."""
    here = folder.absolute()
    root = next((each for each in (here, *here.parents) if (each / ".git").exists()), here)
    between = [each for each in reversed(here.parents) if each.is_relative_to(root)]
    return tuple(rules for each in between for rules in _rules_in(each, "", f"{here.relative_to(each).as_posix()}/"))


def _is_ignored(path: str, rules: Sequence[_Rules]) -> bool:
    """Return what the nearest rules say that say anything of the path."""
    for each in reversed(rules):
        verdict = each.spec.check_file(each.above + path.removeprefix(each.prefix)).include
        if verdict is not None:
            return verdict
    return False


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of files and of folders that are not hidden, in order; links to folders are not followed."""
    names, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif entry.is_file():
                    names.append(entry.name)
    except OSError:  # another user's, or gone
        pass
    return sorted(names), sorted(folders)


def _is_data(name: str) -> bool:
    """Return whether a name says that the file is no text."""
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - a tenth of what a path takes
    kind, encoding = mimetypes.guess_type(name)
    is_data = (kind or "").split("/")[0] in _DATA_KINDS and suffix not in _TEXT_SUFFIXES
    return is_data or encoding is not None or suffix in _DATA_SUFFIXES


def _holds(letters: str, text: str) -> bool:
    rest = iter(text)
    return all(letter in rest for letter in letters)


def _score(search: FuzzySearch, wanted: str, path: str) -> float:
    """Return how well it matches by Textual's measure; a match within the file's name counts twice."""
    return max(2 * _score_of(search, wanted, path.rpartition("/")[2]), _score_of(search, wanted, path))


def _score_of(search: FuzzySearch, wanted: str, text: str) -> float:
    if not _holds(wanted, text):
        return 0.0
    if wanted in text or math.prod(map(text.count, wanted)) <= _MAX_WAYS:
        return search.match(wanted, text)[0]
    places: list[int] = []
    for letter in wanted:
        places.append(text.index(letter, places[-1] + 1 if places else 0))
    return search.score(text, places)
