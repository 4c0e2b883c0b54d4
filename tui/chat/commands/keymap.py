"""Which key does what: a name for every binding, and what the settings file's `[keys]` makes of them.

Textual's own keymap holds the keys that were chosen (`App.set_keymap`); whoever writes a key on the screen asks here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from textual.binding import Binding
from textual.dom import DOMNode
from textual.keys import REPLACED_KEYS, Keys, _character_to_key, key_to_character

from profiles.errors import quote
from tui.chat.commands.registry import COMMANDS, key_text
from tui.terminal_text import one_line

NO_KEY = "none"
"""Stands for a key where there is none; no terminal sends it."""
EVERYWHERE = "everywhere"
_PROMPT = {
    **{"send": "enter", "new_line": "shift+enter,ctrl+j", "complete": "tab", "older": "up", "newer": "down"},
    **{"undo_typing": "ctrl+underscore", "suspend": "ctrl+z", "back": "escape", "interrupt": "ctrl+c", "choices": "f6"},
    **{"page_up": "pageup", "page_down": "pagedown", "first_turn": "ctrl+home", "last_turn": "ctrl+end"},
}
PLACES: Mapping[str, Mapping[str, str]] = {
    EVERYWHERE: {"quit": "ctrl+q", "palette": "ctrl+p"},
    "prompt": {each.name: each.key or NO_KEY for each in COMMANDS if each.name != "quit"} | _PROMPT,
    "list": {
        **{"list_close": "escape", "list_enter": "down", "list_delete": "delete", "list_rename": "r"},
        "list_undo": "ctrl+z",
    },
    "attached": {"attachment_remove": "delete,backspace"},
    "thinking": {"fold": "enter,space"},
    "notice": {"choice_before": "left", "choice_after": "right", "notice_close": "escape"},
    "dialog": {"keep": "ctrl+s", "cancel": "escape", "field_before": "up", "field_after": "down"},
    "value": {"value_before": "left", "value_after": "right,space"},
    "help": {"help_close": "escape,enter,q,f1"},
    "models": {
        **{"model_before": "up", "model_after": "down", "model_load": "enter", "model_forget": "delete"},
        "cancel": "escape",
    },
    "deleted": {"deleted_remove": "delete", "deleted_close": "escape"},
}
"""Every binding by its name with its keys, by where they are pressed; a name has the same keys in all places."""
DEFAULT_KEYS: Mapping[str, str] = {name: keys for place in PLACES.values() for name, keys in place.items()}
NEEDED = ("send", "quit")
"""What must have a key."""
_UNTYPED = {"list", "attached", "thinking", "notice", "value", "help", "deleted"}
"""Places where nothing is typed, so that a letter may be a key."""
_MODIFIERS = {"alt", "ctrl", "hyper", "meta", "shift", "super"}
_SPELLINGS = {
    **{"esc": "escape", "del": "delete", "return": "enter", "pgup": "pageup", "page_up": "pageup", "bksp": "backspace"},
    **{"pgdn": "pagedown", "page_down": "pagedown", "control": "ctrl", "option": "alt", "cmd": "super"},
}
_SAME_BYTES = {"ctrl+i": "Tab", "ctrl+m": "Enter", "ctrl+h": "Backspace", "ctrl+left_square_bracket": "Esc"}
"""Keys for which most terminals send what they send for these."""
_BASES = {*REPLACED_KEYS, *(key.value.rpartition("+")[2] for key in Keys if not set("<-") & set(key.value))}


@dataclass(frozen=True, slots=True)
class Keymap:
    """The keys that were chosen, and those that are without one for it."""

    chosen: Mapping[str, str]
    """Keys by name, as `App.set_keymap` takes them."""
    problems: tuple[str, ...] = ()
    """What of the choices does not hold, or takes a key from something else; a sentence each."""


NOTHING_CHOSEN = Keymap({})


def bind(
    name: str, action: str, description: str, *, show: bool = False, priority: bool = False, tooltip: str
) -> Binding:
    """Return the binding of that name, with its keys as long as no others are chosen."""
    return Binding(DEFAULT_KEYS[name], action, description, show=show, priority=priority, tooltip=tooltip, id=name)


def keys_now(node: DOMNode, name: str) -> tuple[str, ...]:
    """Return the keys that do it in the app of a node, as Textual names keys."""
    return _split(node.app._keymap.get(name, DEFAULT_KEYS[name]))


def key_now(node: DOMNode, name: str) -> str:
    """Return the first of them as it is written on the keyboard; for a command without one, how it is typed."""
    return _written(name, keys_now(node, name))


def usual_key(name: str) -> str:
    """Return the same where no keys were chosen."""
    return _written(name, _split(DEFAULT_KEYS[name]))


def _split(keys: str) -> tuple[str, ...]:
    return tuple(key for key in keys.split(",") if key != NO_KEY)


def _written(name: str, keys: Sequence[str]) -> str:
    if not keys and any(each.name == name for each in COMMANDS):
        return f"/{name}"
    return key_text(keys[0]) if keys else "no key"


def bindings_of(node: DOMNode, key: str) -> tuple[list[Binding], list[Binding]]:
    """Return what a key does at a node because it was chosen for it, and what it does besides.

    Where ours has left the key, it is again that of the class below, such as up to move a cursor.
    """
    keymap, bindings = node.app._keymap, node._bindings.key_to_bindings
    usual = bindings.get(key, [])
    if not keymap:
        return [], usual
    if usual and all(each.id in keymap for each in usual):
        inherited = (each for base in type(node).__mro__ for each in vars(base).get("BINDINGS", ()))
        usual = [each for each in Binding.make_bindings(inherited) if each.key == key]
    named = {each.id: each for group in bindings.values() for each in group if each.id is not None}
    chosen = [each for name, each in named.items() if key in keymap.get(name, "").split(",")]
    return chosen, [each for each in usual if each.id not in keymap]


def make_keymap(choices: object) -> Keymap:
    """Return what `[keys]` of the settings file comes to: names with a key, several, or `none`; nothing is raised."""
    if not isinstance(choices, Mapping):
        said = 'keys in the settings is no table; begin it with [keys], one line a name, such as new = "ctrl+n"'
        return Keymap({}, (said,))
    maker = _KeymapMaker(choices)
    return Keymap(maker.keys_of_changed(), tuple(f"[keys] in the settings: {each}" for each in maker.problems))


class _KeymapMaker:
    """Takes the choices one after the other; each that can hold does, and takes its keys from what has them."""

    def __init__(self, choices: Mapping[str, Any]) -> None:
        self.problems: list[str] = []
        self._keys = {name: tuple(keys.split(",")) for name, keys in DEFAULT_KEYS.items()}
        self._chosen: dict[str, tuple[str, ...]] = {}
        for name, value in choices.items():
            if (keys := self._read(name, value)) is not None:
                self._chosen[name] = keys
        self._refuse_twice()
        while (refused := self._taking_needed()) is not None:
            self._refuse(*refused)
        self._keys |= self._chosen
        for name in self._chosen:
            self._take_from_others(name)

    def keys_of_changed(self) -> dict[str, str]:
        """Return the keys of every name that has others than usual."""
        now = {name: ",".join(keys) or NO_KEY for name, keys in self._keys.items()}
        return {name: keys for name, keys in now.items() if keys != DEFAULT_KEYS[name]}

    def _read(self, name: str, value: Any) -> tuple[str, ...] | None:
        """Return the keys that are meant; None, with a sentence, where that is not known."""
        shown = one_line(name)
        if name not in DEFAULT_KEYS:
            near = get_close_matches(name, DEFAULT_KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else "/help lists the names"
            self.problems.append(f"nothing is called {shown}; {hint}")
            return None
        texts = value.split(",") if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
            self.problems.append(f'{shown} is {quote(value)}; give a key such as "ctrl+n", several, or "none"')
            return None
        keys = [normal_key(text) for text in texts if text.strip().lower() not in ("", NO_KEY)]
        if not keys and name in NEEDED:
            self.problems.append(f"{shown} must have a key; it keeps {_shown(self._keys[name])}")
            return None
        for text, key in zip(texts, keys, strict=False):
            if (reason := self._reason_against(name, key)) is not None:
                self.problems.append(f"{shown} is {quote(text)}, {reason}; it keeps {_shown(self._keys[name])}")
                return None
        return tuple(dict.fromkeys(filter(None, keys)))

    @staticmethod
    def _reason_against(name: str, key: str | None) -> str | None:
        if key is None:
            return "which is no key; keys are written as ctrl+n, alt+x, f12 or pageup"
        if key in _SAME_BYTES:
            return f"which a terminal cannot tell from {_SAME_BYTES[key]}"
        is_typed = any(name in names for place, names in PLACES.items() if place not in _UNTYPED)
        if is_typed and (key_to_character(key) or "\t").isprintable():
            return "which is for writing; add ctrl or alt, or take a key such as f12"
        return None

    def _refuse_twice(self) -> None:
        """Let a key that was chosen for two things in one place be the first one's."""
        names = list(self._chosen)
        for number, name in enumerate(names):
            for other in names[:number]:
                is_both = other in self._chosen and _meet(name, other)
                if is_both and (shared := set(self._chosen[name]) & set(self._chosen[other])):
                    both = f"{_shown(sorted(shared))} is chosen for both {other} and {name}"
                    self._refuse(name, f"{both}; {other} has it")
                    break

    def _taking_needed(self) -> tuple[str, str] | None:
        """Return a name, and what tells against it, that would leave what must have a key without one."""
        for other in NEEDED:
            for name, keys in self._chosen.items():
                if other not in self._chosen and _meet(name, other) and set(keys).issuperset(self._keys[other]):
                    return name, f"{_shown(self._keys[other])} is chosen for {name}, but {other} must have a key"
        return None

    def _refuse(self, name: str, reason: str) -> None:
        del self._chosen[name]
        self.problems.append(f"{reason}, and {name} keeps {_shown(self._keys[name])}")

    def _take_from_others(self, name: str) -> None:
        taken = set(self._keys[name])
        for other in self._keys:
            if other in self._chosen or not _meet(name, other) or not (lost := taken & set(self._keys[other])):
                continue
            self._keys[other] = tuple(key for key in self._keys[other] if key not in lost)
            is_command = any(each.name == other for each in COMMANDS)
            way = f"/{other} still does it" if is_command else f'give {other} another key, or "none"'
            self.problems.append(f"{_shown(sorted(lost))} is for {name} now, no longer for {other}; {way}")


def _meet(one: str, other: str) -> bool:
    """Return whether two names are pressed in the same place."""
    if one == other:
        return False
    places = [names for place, names in PLACES.items() if place != EVERYWHERE]
    anywhere = PLACES[EVERYWHERE]
    return one in anywhere or other in anywhere or any(one in names and other in names for names in places)


def normal_key(text: str) -> str | None:
    """Return a key as Textual names it, for `Ctrl+N`, `esc` or `?`; None for what is none."""
    *modifiers, base = [_SPELLINGS.get(part, part) for part in text.strip().lower().split("+")]
    if base == "" and modifiers[-1:] == [""]:  # the key + itself, as in ctrl++
        modifiers, base = modifiers[:-1], "plus"
    if len(base) == 1:
        base = _character_to_key(base)
    is_known = base in _BASES or key_to_character(base) is not None
    if not is_known or not _MODIFIERS.issuperset(modifiers):
        return None
    return "+".join((*sorted(set(modifiers)), base))


def _shown(keys: Sequence[str]) -> str:
    known = [key_text(key) for key in keys if key != NO_KEY]
    return " and ".join(known) or "no key"
