"""Values of one line of a prompt file, checked: each raises PromptFileError, in a sentence that names the key.

What a sentence shows of a value is short, whatever a file put into it.
"""

import math
from typing import Any, TypeGuard

from runtime.errors import PromptFileError

_JSON_TYPE_NAMES = {str: "a long text", int: "a long number", list: "a long list", dict: "an object"}


def option_value(kind: Any, value: object, key: str) -> Any:
    """Return the value of a field of `SamplingParams` of this kind."""
    if kind is float:
        return number_value(value, key)
    if kind is int:
        return whole_number(value, key)
    if kind == int | None:
        return None if value is None else whole_number(value, key)
    if kind == tuple[int, ...]:
        if not isinstance(value, list) or not all(map(_is_whole_number, value)):
            raise PromptFileError(
                f"{key} is {describe(value)}; it must be a list of token ids, which are whole numbers"
            )
        return tuple(value)
    if kind == tuple[str, ...]:
        return tuple(text_value(text, key) for text in (value if isinstance(value, list) else [value]))
    return text_value(value, key)


def whole_number(value: object, key: str, *, least: int | None = None, most: int | None = None) -> int:
    """Return a whole number within the bounds, both included."""
    if not _is_whole_number(value):
        raise PromptFileError(f"{key} is {describe(value)}; it must be a whole number")
    if (least is not None and value < least) or (most is not None and value > most):
        bounds = f"{least} or more" if most is None else f"from {least} to {most}"
        raise PromptFileError(f"{key} is {describe(value)}; it must be {bounds}")
    return value


def number_value(value: object, key: str, *, least: float = -math.inf, most: float = math.inf) -> float:
    """Return a number within the bounds, both included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PromptFileError(f"{key} is {describe(value)}; it must be a number")
    if not least <= value <= most:
        raise PromptFileError(f"{key} is {describe(value)}; it must be from {least:g} to {most:g}")
    try:
        return float(value)
    except OverflowError as error:
        raise PromptFileError(f"{key} has hundreds of digits; it must be an ordinary number") from error


def text_value(value: object, name: str) -> str:
    """Return a text that can be encoded."""
    if not isinstance(value, str):
        raise PromptFileError(f"{name} is {describe(value)}; it must be text")
    return encodable(value, name)


def encodable(text: str, name: str) -> str:
    """Return the text itself.

    JSON, and an argument that is not UTF-8, can hold half of a surrogate pair, which no tokenizer and no file can take.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptFileError(
            f"{name} holds half of a surrogate pair (\\ud800 to \\udfff), or is not UTF-8; remove it"
        ) from error
    return text


def describe(value: object) -> str:
    """Return a short value as it stands in the file, otherwise what kind of value it is."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    shown = ascii(value)
    return shown if len(shown) <= 40 else _JSON_TYPE_NAMES.get(type(value), "a long value")


def _is_whole_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
