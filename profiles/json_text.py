"""Reads JSON strictly: no key twice, nothing that is not finite, no depth that breaks the parser.

Files may have been damaged, edited by hand, or written by somebody who means harm. What is wrong is a ValueError whose
message is safe to print; the callers say where, and what to do next.
"""

import json
import math
from typing import Any

from profiles.errors import quote


def parse_json_text(raw: bytes) -> Any:
    """Return what the UTF-8 text `raw` holds. Raises ValueError for anything that is not strictly JSON."""
    try:
        return json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique_pairs,
            parse_constant=_finite_float,
            parse_float=_finite_float,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for name, value in pairs:
        if name in unique:
            raise ValueError(f"the key {quote(name)} stands twice")
        unique[name] = value
    return unique


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{quote(text)} is not a finite number")
    return number
