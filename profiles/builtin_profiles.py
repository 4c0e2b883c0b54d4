"""The reference machines and pairs that come with the program, looked up as people spell them.

They stand in for profiles where nothing was measured: to plan for a machine that is not there, and to start with a pair
that nobody has calibrated. Their files are part of the package and read as strictly as a user's.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import TypeVar

from profiles.errors import ProfileError, quote
from profiles.field_checks import check_entries
from profiles.profile_records import from_record, parse_record
from profiles.reference_figures import (
    ReferenceMachine,
    ReferencePair,
)

BUILTIN_SCHEMA_VERSION = 1
"""Raised whenever a field of the files is added, dropped or changes its meaning."""
DEFAULT_PAIR_KEY = "llama-3-70b-8b"
"""Whose acceptance may stand for that of a pair about which nothing is known."""

_MACHINES_FILE = "machines.json"
_PAIRS_FILE = "pairs.json"
_VENDOR_WORDS = re.compile(r"nvidia|geforce|rtx")
_GIB = 1 << 30
_NUM_NEAR_NAMES = 3

_Reference = TypeVar("_Reference", ReferenceMachine, ReferencePair)
_File = TypeVar("_File")


@dataclass(frozen=True, slots=True)
class MachinesFile:
    """What machines.json holds."""

    machines: tuple[ReferenceMachine, ...]
    """In the order in which they are listed to people."""

    def __post_init__(self) -> None:
        check_entries("machines", self.machines, ReferenceMachine)
        _check_keys([machine.key for machine in self.machines])


@dataclass(frozen=True, slots=True)
class PairsFile:
    """What pairs.json holds."""

    pairs: tuple[ReferencePair, ...]
    """In the order in which they are listed to people."""

    def __post_init__(self) -> None:
        check_entries("pairs", self.pairs, ReferencePair)
        _check_keys([pair.key for pair in self.pairs])


def builtin_machines() -> dict[str, ReferenceMachine]:
    """Every reference machine by its key. Raises ProfileError if the program's own file is damaged."""
    return {machine.key: machine for machine in _load(_MACHINES_FILE, MachinesFile).machines}


def builtin_machine(name: str) -> ReferenceMachine:
    """The machine that goes by `name`, however it is spelled: "4090", "RTX 4090", "NVIDIA GeForce RTX 4090".

    Raises:
        ProfileError: there is none; the message says which are near and which there are.
    """
    return _find(name, builtin_machines(), _machine_spellings, what="built-in machine")


def builtin_pairs() -> dict[str, ReferencePair]:
    """Every reference pair by its key. Raises ProfileError if the program's own files are damaged."""
    pairs = {pair.key: pair for pair in _load(_PAIRS_FILE, PairsFile).pairs}
    machines = builtin_machines()
    for pair in pairs.values():
        for key in (pair.machine_key, *(result.machine_key for result in pair.published)):
            if key is not None and key not in machines:
                raise _damaged(_PAIRS_FILE, f"{pair.key} names the machine {quote(key)}, which is not there")
    return pairs


def builtin_pair(name: str) -> ReferencePair:
    """The pair that goes by `name`, however it is spelled: "llama-3-70b-8b", "Llama 3 70B/8B".

    Raises:
        ProfileError: there is none; the message says which are near and which there are.
    """
    return _find(name, builtin_pairs(), lambda pair: {_plain(pair.key), _plain(pair.name)}, what="built-in pair")


def _find(
    name: str, known: Mapping[str, _Reference], spell: Callable[[_Reference], set[str]], *, what: str
) -> _Reference:
    by_spelling = {spelling: reference for reference in known.values() for spelling in spell(reference)}
    wanted = _plain(name)
    if wanted in by_spelling:
        return by_spelling[wanted]
    within = [spelling for spelling in by_spelling if spelling in wanted]
    close = difflib.get_close_matches(wanted, by_spelling, n=len(by_spelling), cutoff=0.6)
    near = list(dict.fromkeys(by_spelling[spelling].key for spelling in within + close))[:_NUM_NEAR_NAMES]
    hint = f" (near it: {', '.join(near)})" if near else ""
    raise ProfileError(f"{quote(name)} is not a {what}{hint}; choose one of {', '.join(known)}")


def _machine_spellings(machine: ReferenceMachine) -> set[str]:
    """With and without the size of its memory: a card of another size is another machine."""
    memory = f"{machine.device_memory_bytes.value / _GIB:.0f}gb"
    bare = _plain(machine.name).removesuffix(memory)
    return {_plain(machine.key), bare, bare + memory}


def _plain(name: str) -> str:
    """Small letters and digits, without what all cards of a vendor are called."""
    return re.sub(r"[^a-z0-9]", "", _VENDOR_WORDS.sub("", name.lower()))


def _load(file_name: str, kind: type[_File]) -> _File:
    try:
        raw = resources.files("profiles").joinpath("builtin", file_name).read_bytes()
        return from_record(kind, parse_record(raw), version=BUILTIN_SCHEMA_VERSION, needs_all=False)
    except OSError as error:
        raise _damaged(file_name, f"it cannot be read ({error.strerror or error})") from error
    except ProfileError as error:
        raise _damaged(file_name, str(error)) from error


def _damaged(file_name: str, reason: str) -> ProfileError:
    return ProfileError(f"the program's own file {file_name} is damaged: {reason}; install overstory again")


def _check_keys(keys: list[str]) -> None:
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ProfileError(f"the key {quote(twice[0])} stands twice")
