"""Reads slash commands, says how one is used, and what could come next while one is typed.

`/name arguments` on one line. A word with a second slash, such as a path, is no command, and `//` begins a message with
one slash.
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from runtime.errors import OptionError
from tui.chat.commands.registry import COMMANDS, TO_THE_END, Argument, Command, find_command, key_text
from tui.chat.settings.settings import TYPED_SETTINGS, find_setting

MAX_PATHS = 50


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A command that was asked for, with what was given to it."""

    command: Command
    values: tuple[str, ...] = ()
    """Its arguments as they were written, quotes around paths removed; those left out are not there."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One thing that could follow what is typed."""

    text: str
    """The whole line with it."""
    label: str
    help: str = ""


@dataclass(frozen=True, slots=True)
class CompletionSources:
    """What completes a command and only the app knows."""

    themes: Sequence[str] = ()
    models: Sequence[str] = ()
    """Names or folders of models, the most recent first."""
    paths: Sequence[str] = ()
    """What `paths_for` the line found."""


def is_command(text: str) -> bool:
    """Return whether a prompt is a command, rather than a message for the model."""
    first_word = text.split(maxsplit=1)[0] if text.strip() else ""
    return text.startswith("/") and "\n" not in text.strip() and "/" not in first_word[1:]


def message_text(text: str) -> str:
    """Return what the model is sent for a prompt that is no command: `//` at its start is one slash."""
    return text[1:] if text.startswith("//") else text


def parse_command(text: str) -> CommandLine:
    """Read the command that a line asks for. Raises OptionError with how it is used, or with a near name."""
    name, _, rest = text[1:].strip().partition(" ")
    command = _known_command(name)
    if rest.strip() and not command.arguments:
        raise OptionError(f"/{command.name} takes no argument; found {rest.strip()!r}")
    values = _split(command.arguments, rest.strip())
    missing = [argument.name for argument in command.arguments[len(values) :] if argument.is_required]
    if missing:
        raise OptionError(f"/{command.name} needs {' and '.join(missing)}: {command.usage}")
    return CommandLine(command, values)


def complete_command(text: str, sources: CompletionSources) -> tuple[Completion, ...]:
    """Return what could follow what is typed so far, the best first; nothing where everything may."""
    if not is_command(text):
        return ()
    name, space, rest = text[1:].partition(" ")
    if not space:
        return _complete_name(name)
    command = find_command(name)
    if command is None or not command.arguments:
        return ()
    index, typed = _argument_at(command.arguments, rest)
    before = text[: len(text) - len(typed)]
    candidates = _candidates(command.arguments[index], typed, rest=rest, sources=sources)
    return tuple(Completion(before + value, value, words) for value, words in candidates if value != typed)


async def paths_for(text: str) -> Sequence[str]:
    """Return the paths that could complete a line: none for most, so that a folder is read only where it matters.

    In a thread, since a disk may be slow or gone.
    """
    name, space, rest = text[1:].partition(" ")
    command = find_command(name) if is_command(text) and space else None
    if command is None or not any(argument.kind in ("path", "model") for argument in command.arguments):
        return ()
    return await asyncio.to_thread(paths_from, rest.strip().lstrip("\"'"))


def paths_from(start: str) -> tuple[str, ...]:
    """Return paths that begin with `start`, in order, folders with a slash at their end; hidden ones if asked for."""
    head, name = os.path.split(start)
    folder = Path(head).expanduser() if head else Path()
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                is_wanted = entry.name.startswith(name) and (name.startswith(".") or not entry.name.startswith("."))
                if is_wanted:
                    found.append(os.path.join(head, entry.name) + ("/" if entry.is_dir() else ""))  # noqa: PTH118
    except OSError:  # no such folder, or not ours to read
        return ()
    return tuple(sorted(found)[:MAX_PATHS])


def command_help(name: str) -> str:
    """Say how one command is used, in a few sentences. Raises OptionError for a name that is none."""
    command = _known_command(name.removeprefix("/"))
    others = f" Also {', '.join(f'/{alias}' for alias in command.aliases)}." if command.aliases else ""
    key = f" Key: {key_text(command.key)}." if command.key else ""
    settings = f" Names: {', '.join(TYPED_SETTINGS)}." if command.name == "set" else ""
    return f"{command.usage}: {command.help}{key}{others}{settings}"


def _known_command(name: str) -> Command:
    """Return the command, or raise OptionError with a near one if there is one."""
    if (command := find_command(name)) is not None:
        return command
    names = [known for command in COMMANDS for known in (command.name, *command.aliases)]
    near = get_close_matches(name.lower(), names, n=1)
    hint = f"did you mean /{near[0]}?" if near else "/help lists them"
    raise OptionError(f"there is no command /{name}; {hint} (to send it as a message, begin with //)")


def _split(arguments: Sequence[Argument], rest: str) -> tuple[str, ...]:
    values: list[str] = []
    for argument in arguments:
        if not rest:
            break
        if argument.kind in TO_THE_END:
            value, rest = rest, ""
        else:
            value, _, rest = rest.partition(" ")
            rest = rest.strip()
        values.append(_unquoted(value) if argument.kind in ("path", "model") else value)
    if rest:
        expected = " ".join(argument.usage for argument in arguments)
        raise OptionError(f"found {rest!r} after {values[-1]!r}; expected only {expected}")
    return tuple(values)


def _unquoted(value: str) -> str:
    is_quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if is_quoted else value


def _complete_name(typed: str) -> tuple[Completion, ...]:
    wanted = typed.lower()
    found = [command for command in COMMANDS if command.name.startswith(wanted)]
    found += [
        command
        for command in COMMANDS
        if command not in found and any(alias.startswith(wanted) for alias in command.aliases)
    ]
    return tuple(Completion(_line(command), command.usage, command.help) for command in found)


def _line(command: Command) -> str:
    return f"/{command.name} " if command.arguments else f"/{command.name}"


def _argument_at(arguments: Sequence[Argument], rest: str) -> tuple[int, str]:
    """Return which argument is being typed, and what of it there is."""
    for index, argument in enumerate(arguments):
        rest = rest.lstrip()
        _, space, after = rest.partition(" ")
        if argument.kind in TO_THE_END or not space or index == len(arguments) - 1:
            return index, rest
        rest = after
    raise AssertionError("a command without arguments completes none")


def _candidates(argument: Argument, typed: str, *, rest: str, sources: CompletionSources) -> list[tuple[str, str]]:
    if argument.kind == "path":
        return [(path, "") for path in sources.paths if path.startswith(typed)]
    if argument.kind == "model":
        recent = [(name, "recent") for name in sources.models]
        return _that_begin(recent, typed) + [(path, "") for path in sources.paths if typed and path.startswith(typed)]
    if argument.kind == "command":
        return _that_begin([(command.name, command.help) for command in COMMANDS], typed)
    if argument.kind == "setting":
        return _that_begin([(f"{each.name} ", each.help) for each in TYPED_SETTINGS.values()], typed)
    return _that_begin([(value, "") for value in _values(argument, rest, sources)], typed)


def _values(argument: Argument, rest: str, sources: CompletionSources) -> Sequence[str]:
    if argument.kind == "theme":
        return sources.themes
    if argument.kind not in ("tree", "value"):
        return ()
    try:
        setting = find_setting("tree" if argument.kind == "tree" else rest.split(maxsplit=1)[0])
    except (OptionError, IndexError):
        return ()
    return sources.themes if setting.name == "theme" else setting.suggestions


def _that_begin(candidates: Sequence[tuple[str, str]], typed: str) -> list[tuple[str, str]]:
    return [each for each in candidates if each[0].lower().startswith(typed.lower())]
