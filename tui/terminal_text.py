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


def strip_terminal_escapes(text: str) -> str:
    r"""The text without escape sequences and without C0 and C1 controls, but with \n and \t.

    An unterminated sequence loses its introducer, so that what is left of it prints as ordinary characters.
    """
    return _CONTROL.sub("", _SEQUENCE.sub("", text))


def one_line(text: str) -> str:
    """The text on one line, safe to print: for error messages, which promise to be one line."""
    return " ".join(strip_terminal_escapes(text).split())
