"""Makes text from models, files and other programs safe to print on a terminal.

A model can emit escape sequences that move the cursor, rewrite the screen, set the clipboard or ask the terminal to
type. Sequences as in ECMA-48: CSI, the string sequences (OSC, DCS, SOS, PM, APC) and two-byte escapes.
"""

import re

_SEQUENCE = re.compile(
    r"""
      (?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]                                 # CSI: parameters, intermediates, final byte
    | (?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x80-\x9f]*(?:\x07|\x1b\\|\x9c)  # strings, with their end
    | \x1b[ -/]*[0-Z\\^-~]                                              # other escapes, such as a charset change
    """,
    re.VERBOSE,
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def strip_terminal_escapes(text: str) -> str:
    r"""The text without escape sequences and without C0 and C1 controls, but with \n and \t.

    An unterminated sequence loses its introducer, so that what is left of it prints as ordinary characters.
    """
    return _CONTROL.sub("", _SEQUENCE.sub("", text))


def show_escapes(text: str) -> str:
    r"""The text with every control character but \n and \t as a sign that can be seen, so that nothing is executed.

    A reader sees what a model wrote: `\x1b[31m` becomes `␛[31m`. C1 controls and the marks that reorder text on the
    screen become `\x9b` and `\u202e`, spelled out.
    """
    return _HIDDEN.sub(lambda match: _sign(match[0]), text)


def _sign(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def one_line(text: str) -> str:
    """The text on one line, safe to print: for error messages, which promise to be one line."""
    return " ".join(strip_terminal_escapes(text).split())
