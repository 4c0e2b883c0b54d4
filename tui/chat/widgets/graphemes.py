"""Where text may be cut without splitting what a reader sees as one character.

The rules of Unicode's UAX 29 that matter for text on a screen: marks, variation selectors, joined and toned emoji,
flags and Hangul. Prepended marks and Indic conjuncts are left out.
"""

import unicodedata

_JOINER = "\u200d"
_MARKS = ("Mn", "Me", "Mc")


def next_boundary(text: str, index: int) -> int:
    """The first place from `index` on at which `text` may be cut; its end is one."""
    while 0 < index < len(text) and _continues(text, index):
        index += 1
    return index


def last_whole(text: str) -> int:
    """How much of `text` is whole characters, whatever follows; what comes next may join what is after that."""
    if text.endswith(_JOINER):
        index = len(text) - 1
        while index > 0 and _continues(text, index):
            index -= 1
        return index
    return len(text) - _num_flags_before(text, len(text)) % 2


def _continues(text: str, index: int) -> bool:
    before, after = text[index - 1], text[index]
    if after == _JOINER or before == _JOINER or unicodedata.category(after) in _MARKS or _is_skin_tone(after):
        return True
    if _is_flag(after):
        return _num_flags_before(text, index) % 2 == 1
    return (
        (before == "\r" and after == "\n") or _is_one_syllable(before, after) or "\U000e0020" <= after <= "\U000e007f"
    )


def _is_skin_tone(character: str) -> bool:
    return "\U0001f3fb" <= character <= "\U0001f3ff"


def _is_flag(character: str) -> bool:
    """Whether it is a regional indicator: two of them are one flag."""
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _num_flags_before(text: str, index: int) -> int:
    start = index
    while start > 0 and _is_flag(text[start - 1]):
        start -= 1
    return index - start


def _is_one_syllable(before: str, after: str) -> bool:
    """Whether two Hangul pieces join: leading consonant, vowel, trailing consonant."""
    if "\u1160" <= after <= "\u11a7":
        return "\u1100" <= before <= "\u11a7" or _is_open_syllable(before)
    if "\u11a8" <= after <= "\u11ff":
        return "\u1160" <= before <= "\u11ff" or "\uac00" <= before <= "\ud7a3"
    return "\u1100" <= before <= "\u115f" and ("\u1100" <= after <= "\u115f" or "\uac00" <= after <= "\ud7a3")


def _is_open_syllable(character: str) -> bool:
    return "\uac00" <= character <= "\ud7a3" and (ord(character) - 0xAC00) % 28 == 0
