"""Reads slash commands, says how one is used, and what could come next while one is typed.

`/name arguments` on one line. A word with a second slash, such as a path, is no command, and `//` begins a message with
one slash.
"""

import asyncio
import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from runtime.errors import OptionError
from tui.chat.commands.registry import COMMANDS, Command, find_command
from tui.chat.settings.settings import TYPED_SETTINGS, Setting, find_setting

MAX_PATHS = 50
_PATHS = ("FILE", "MODEL")  # arguments that may be one


@dataclass(frozen=True, slots=True)
class Completion:
    """One thing that could follow what is typed."""

    text: str
    """The whole line with it."""
    label: str
    help: str = ""
    is_needed: bool = False
    """Whether what is typed so far means nothing by itself."""
    is_file: bool = False
    """Whether it is a path, which is taken in place of the `@` before the cursor."""


def is_command(text: str) -> bool:
    """Return whether a prompt is a command, rather than a message for the model."""
    first_word = text.split(maxsplit=1)[0] if text.strip() else ""
    return text.startswith("/") and "\n" not in text.strip() and "/" not in first_word[1:]


def message_text(text: str) -> str:
    """Return what the model is sent for a prompt that is no command: `//` at its start is one slash."""
    return text[1:] if text.startswith("//") else text


def parse_command(text: str) -> tuple[Command, tuple[str, ...]]:
    """Return the command that a line asks for, and its arguments as they were written, without quotes around paths.

    Raises OptionError with a near name, or for what takes no argument.
    """
    name, _, rest = text[1:].strip().partition(" ")
    command = known_command(name)
    if rest.strip() and not command.arguments:
        raise OptionError(f"/{command.name} takes no argument; found {rest.strip()!r}")
    values = rest.strip().split(maxsplit=len(command.arguments) - 1)
    if values and command.arguments[-1] in _PATHS:
        values[-1] = _unquoted(values[-1])
    return command, tuple(values)


def complete_command(text: str, known: Mapping[str, Sequence[str]]) -> tuple[Completion, ...]:
    """Return what could follow what is typed so far, the best first; nothing where everything may.

    `known` holds values of THEME and MODEL, the most recent first, and FILE: what `paths_for` the line found.
    """
    if not is_command(text):
        return ()
    name, space, rest = text[1:].partition(" ")
    if not space:
        return _complete_name(name.lower())
    command = find_command(name)
    if command is None or not command.arguments:
        return ()
    argument, typed = _argument_at(command.arguments, rest)
    before = text[: len(text) - len(typed)]
    candidates = _candidates(argument, typed, rest=rest, known=known)
    is_needed = bool(typed) and _is_closed(argument, rest) and typed not in {value.strip() for value, _ in candidates}
    return tuple(
        Completion(before + value, value, words, is_needed)
        for value, words in candidates
        if value.lower().startswith(typed.lower()) and value != typed
    )


async def paths_for(text: str) -> Sequence[str]:
    """Return the paths that could complete a line: none for most, so that a folder is read only where it matters.

    In a thread, since a disk may be slow or gone.
    """
    name, space, rest = text[1:].partition(" ")
    command = find_command(name) if is_command(text) and space else None
    if command is None or not set(_PATHS).intersection(command.arguments):
        return ()
    return await asyncio.to_thread(paths_from, rest.strip().lstrip("\"'"))


def paths_from(start: str) -> tuple[str, ...]:
    """Return paths that begin with `start`, in order, folders with a slash at their end; hidden ones if asked for."""
    head, name = os.path.split(start)
    folder = Path(os.path.expanduser(head))  # noqa: PTH111 - which leaves the home of an unknown user as it is
    found = sorted(glob.glob(f"{glob.escape(name)}*", root_dir=folder))[:MAX_PATHS]  # noqa: PTH207 - none if it fails
    return tuple(os.path.join(head, each) + ("/" if (folder / each).is_dir() else "") for each in found)  # noqa: PTH118


def whole_command(text: str) -> str:
    """Return the line with a command's name that was not typed to its end completed, as the list would have done.

    For keys that came too fast for the list.
    """
    name, space, rest = text[1:].partition(" ")
    completions = _complete_name(name.lower()) if find_command(name) is None else ()
    return completions[0].text.strip() + space + rest if completions else text


def as_typed_here(sentence: str) -> str:
    """Return the sentence with what can be typed in a chat instead of the command line's options, as far as there is.

    `--device-memory 2.7GB` becomes `/set device_memory 2.7GB`, and leaving it out `/set device_memory free`.
    """
    return _OPTION.sub(_set_here, _LEFT_OUT.sub(_unset_here, sentence))


_VALUE = r"(?: to)? (?:\d[\w.]*|none|min|free|auto|plain|substitute)\b"
_OPTION = re.compile(rf"(?P<verb>\b(?:add|give|raise|say|use) )?--(?P<name>[a-z][a-z-]*)(?P<value>{_VALUE})?")
_BARE = rf"--[a-z][a-z-]*\b(?!{_VALUE})"
_LEFT_OUT = re.compile(rf"\bleav(?:e|ing) out ({_BARE}(?:(?:,| and| or) {_BARE})*)")


def _set_here(option: re.Match[str]) -> str:
    name, value = option["name"].replace("-", "_"), (option["value"] or "").removeprefix(" to")
    verb, typed = option["verb"] or "", option[0].removeprefix(option["verb"] or "")
    if name == "target":
        return f"{verb}/model{value}"
    if _setting(name) is None:
        return f"start overstory chat {typed}" if verb else typed
    return f"/set {name}{value}" if value else f"{verb}{name.replace('_', ' ')} (/set {name})"


def _unset_here(options: re.Match[str]) -> str:
    def unset(option: re.Match[str]) -> str:
        setting = _setting(option["name"].replace("-", "_"))
        return option[0] if setting is None else f"{option[0]} {setting.word or setting.default}"

    return _OPTION.sub(unset, options[1])


def _setting(name: str) -> Setting | None:
    try:
        return find_setting(name)
    except OptionError:
        return None


def known_command(name: str) -> Command:
    """Return the command, or raise OptionError with a near one if there is one."""
    if (command := find_command(name)) is not None:
        return command
    names = [known for command in COMMANDS for known in (command.name, *command.aliases)]
    near = get_close_matches(name.lower(), names, n=1)
    hint = f"did you mean /{near[0]}?" if near else "/help lists them"
    raise OptionError(f"there is no command /{name}; {hint} (to send it as a message, begin with //)")


def _unquoted(value: str) -> str:
    is_quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if is_quoted else value


def _complete_name(typed: str) -> tuple[Completion, ...]:
    found = [each for each in COMMANDS if any(name.startswith(typed) for name in (each.name, *each.aliases))]
    found.sort(key=lambda command: not command.name.startswith(typed))  # aliases behind
    is_needed = find_command(typed) is None
    return tuple(
        Completion(f"/{each.name}" + " " * bool(each.arguments), each.usage, each.help, is_needed) for each in found
    )


def _argument_at(arguments: Sequence[str], rest: str) -> tuple[str, str]:
    """Return which argument is being typed, and what of it there is."""
    words = rest.split(maxsplit=len(arguments) - 1)
    if not words or (rest.endswith(" ") and len(words) < len(arguments)):
        words.append("")
    return arguments[len(words) - 1], words[-1]


def _candidates(
    argument: str, typed: str, *, rest: str, known: Mapping[str, Sequence[str]]
) -> Sequence[tuple[str, str]]:
    """Return values that an argument may have, each with a word about it."""
    match argument:
        case "COMMAND":
            return [(command.name, command.help) for command in COMMANDS]
        case "NAME":
            return [(f"{each.name} ", each.help) for each in TYPED_SETTINGS.values()]
        case "MODEL":
            recent = [(name, "recent") for name in known["MODEL"]]
            return recent + [(path, "") for path in known["FILE"] if typed]
        case "HOW":
            return [("once", "this call"), ("always", "this tool, in this conversation")]
        case "TREE" | "THINK" | "VALUE":
            name = rest.split()[0] if argument == "VALUE" else argument.lower()
            return [(value, "") for value in _suggestions(name, known)]
        case "TOKENS":
            return [(value, "") for value in _suggestions("context", known)]
    return [(value, "") for value in known.get(argument, ())]


def _is_closed(argument: str, rest: str) -> bool:
    """Return whether only the values that are known may stand there."""
    if argument != "VALUE":
        return argument in ("COMMAND", "NAME", "THEME")
    setting = _setting(rest.split()[0])
    return setting is not None and (setting.name == "theme" or bool(setting.choices))


def _suggestions(name: str, known: Mapping[str, Sequence[str]]) -> Sequence[str]:
    setting = _setting(name)
    if setting is None:
        return ()
    return known["THEME"] if setting.name == "theme" else setting.suggestions
