"""Files in OpenAI's batch format."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def chat_line(custom_id: str, text: str = "the cat", **body: Any) -> dict[str, Any]:
    """A line that asks for a turn behind one of the user's."""
    messages = [{"role": "user", "content": text}]
    return batch_line(custom_id, CHAT, {"model": "any", "messages": messages, **body})


def completion_line(custom_id: str, prompt: Any = "the cat", **body: Any) -> dict[str, Any]:
    """A line that asks to write on."""
    return batch_line(custom_id, COMPLETIONS, {"model": "any", "prompt": prompt, **body})


def batch_line(custom_id: str, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": dict(body)}


def write_lines(path: Path, *lines: Any) -> Path:
    """Write lines, each a JSON value or text as it stands."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(text + "\n" for text in texts))
    return path
