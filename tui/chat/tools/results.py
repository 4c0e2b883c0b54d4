"""What a tool said, as a text that a model can read: pictures and the like are named, and a long one is cut."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tui.chat.store.records import Outcome, storable

MAX_RESULT_CHARACTERS = 20_000


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What came of a call."""

    text: str
    """For the model; never empty."""
    outcome: Outcome
    seconds: float = 0.0


def result_text(content: Iterable[Mapping[str, Any]], structured: object = None) -> str:
    """Return the parts of a result, as the protocol has them, as one text of at most MAX_RESULT_CHARACTERS.

    `structured` is what the tool says in JSON; most say the same as text, so that it counts only where no text is.
    """
    parts = [_part(each) for each in content]
    if structured is not None and not any(each.get("type") == "text" for each in content):
        parts.append(json.dumps(structured, ensure_ascii=False))
    return shortened("\n".join(parts)) or "(the tool said nothing)"


def shortened(text: str) -> str:
    """Return a text that can be stored, cut with a sentence if it is too long."""
    text = storable(text)
    if len(text) <= MAX_RESULT_CHARACTERS:
        return text
    return (
        f"{text[:MAX_RESULT_CHARACTERS]}\n"
        f"[cut here: these are the first {MAX_RESULT_CHARACTERS:,} of {len(text):,} characters]"
    )


def _part(part: Mapping[str, Any]) -> str:
    match part.get("type"):
        case "text":
            return str(part.get("text", ""))
        case "image" | "audio" as kind:
            return f"[{kind} left out: {part.get('mimeType')}, {_num_bytes(part.get('data'))} bytes]"
        case "resource":
            resource = part.get("resource") or {}
            if "text" in resource:
                return f"[{resource.get('uri')}]\n{resource['text']}"
            size = f"{resource.get('mimeType')}, {_num_bytes(resource.get('blob'))} bytes"
            return f"[left out: {resource.get('uri')}, {size}]"
        case "resource_link":
            return f"[a link to {part.get('name')}: {part.get('uri')}]"
        case kind:
            return f"[{kind} left out]"


def _num_bytes(base64_text: object) -> str:
    """Return how many bytes a text in base64 stands for."""
    text = base64_text if isinstance(base64_text, str) else ""
    return f"{len(text) * 3 // 4 - text[-2:].count('='):,}"
