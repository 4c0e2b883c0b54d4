"""Makes text safe to print on a terminal, where escapes are removed, or made visible; and words for counts and times.

A model can emit escape sequences that move the cursor, rewrite the screen, set the clipboard or ask the terminal to
type. Sequences as in ECMA-48: CSI, the string sequences (OSC, DCS, SOS, PM, APC) and two-byte escapes.
"""

import re
from datetime import timedelta

_SEQUENCE = re.compile(
    r"""
      (?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]                                 # CSI: parameters, intermediates, final byte
    | (?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x80-\x9f]*(?:\x07|\x1b\\|\x9c)  # strings, with their end
    | \x1b[ -/]*[0-Z\\^-~]                                              # other escapes, such as a charset change
    """,
    re.VERBOSE,
)
_BIDI_CONTROLS = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))  # embeddings, overrides, isolates and their ends
_PICTURES = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"},  # ESC becomes ␛
    0x7F: "␡",
    **{code: f"␛{chr(code - 0x40)}" for code in range(0x80, 0xA0)},  # a C1 control is short for ESC and this
    **{code: f"⟨U+{code:04X}⟩" for code in (*_BIDI_CONTROLS, *range(0xD800, 0xE000))},
}
_SIGNS_IN_PLACE = {code: sign[0] for code, sign in _PICTURES.items()} | dict.fromkeys((0x2028, 0x2029), "␤")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def strip_terminal_escapes(text: str) -> str:
    r"""The text without escape sequences and without C0 and C1 controls, but with \n and \t.

    An unterminated sequence loses its introducer, so that what is left of it prints as ordinary characters.
    """
    return _CONTROL.sub("", _SEQUENCE.sub("", text))


def show_terminal_escapes(text: str) -> str:
    r"""The text with a visible sign for all that a terminal would obey, such as `␛[2J`; \n and \t stay as they are.

    Signs take the place of C0 and C1 controls, of bidirectional overrides, which let code read otherwise than it runs,
    and of halves of surrogate pairs, which cannot be printed. Each character has its sign whatever stands beside it:
    the pieces of a text, each made visible, are the whole text made visible, wherever a sequence was cut.
    """
    return text.translate(_PICTURES)


def shown_text(text: str) -> str:
    """Return the text as it is drawn: line ends of one kind, and signs for what a terminal would obey."""
    return show_terminal_escapes(text.replace("\r\n", "\n").replace("\u2028", "\n").replace("\u2029", "\n"))


def show_escapes_in_place(text: str) -> str:
    """Return the text with one visible character for each that a terminal would obey: for lines with a cursor."""
    return text.translate(_SIGNS_IN_PLACE)


def one_line(text: str) -> str:
    """The text on one line, safe to print: for error messages, which promise to be one line."""
    return " ".join(strip_terminal_escapes(text).split())


def counted(number: int, noun: str) -> str:
    """Return `1 node` or `1,200 nodes`, for nouns whose plural is regular."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def seconds_text(seconds: float) -> str:
    """Return `1.2 s` or `12 ms`."""
    return f"{seconds:.3g} s" if seconds >= 0.01 else f"{1000 * seconds:.3g} ms"


def clock_text(seconds: float) -> str:
    """Return `0:12:31`, with the days before it where there are any."""
    return str(timedelta(seconds=round(seconds)))
