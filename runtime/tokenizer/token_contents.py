"""What single tokens add to a text, byte by byte: also the parts of characters, which decoding alone would lose."""

import re
from collections.abc import Sequence
from typing import Any

_UNREADABLE = "\ufffd"
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
_SHOWN_AS_THEMSELVES = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_BYTE_OF_SIGN = {chr(byte): byte for byte in _SHOWN_AS_THEMSELVES} | {
    chr(0x100 + number): byte for number, byte in enumerate(sorted(set(range(0x100)).difference(_SHOWN_AS_THEMSELVES)))
}
"""The alphabet of byte-level vocabularies (GPT-2's `bytes_to_unicode`)."""


def token_contents(tokenizer: Any, token_ids: Sequence[int], *, is_first: bool) -> list[tuple[str, bytes | None]]:
    """Return of each token the text and the bytes that it adds to a text, or with which it begins one if it `is_first`.

    Many tokenizers drop the space before a text's first word. Bytes that are no character by themselves stand in the
    text as `\\xf0`. A special token adds nothing: it has its name, and None for bytes.
    """
    behind: list[int] = [] if is_first else tokenizer("a", add_special_tokens=False)["input_ids"]
    before = tokenizer.decode(behind, skip_special_tokens=True)
    return [_content(tokenizer, token_id, behind, num_before=len(before)) for token_id in token_ids]


def _content(tokenizer: Any, token_id: int, behind: Sequence[int], *, num_before: int) -> tuple[str, bytes | None]:
    if token_id >= len(tokenizer):  # a row of the embedding that only pads it
        return "", None
    name: str = tokenizer.convert_ids_to_tokens(token_id) or ""
    added: str = tokenizer.decode([*behind, token_id], skip_special_tokens=True)[num_before:]
    if not added:
        return name, None
    content = _raw_bytes(name) if _UNREADABLE in added else None
    content = added.encode() if content is None else content
    return content.decode(errors="backslashreplace"), content


def _raw_bytes(name: str) -> bytes | None:
    """Return the bytes that a token's name stands for; None where it is no name of bytes."""
    if (match := _BYTE.fullmatch(name)) is not None:
        return bytes.fromhex(match[1])
    values = [_BYTE_OF_SIGN.get(sign) for sign in name]
    return None if None in values else bytes(values)  # type: ignore[arg-type]
