"""The line under an answer: how it ended and what it took. Knows no widget."""

from collections.abc import Mapping
from typing import Any

from tui.chat.store.records import Message
from tui.terminal_text import one_line

_ENDS = {"length": "reached the most tokens", "context": "the context is full"}
_BEFORE_ANYTHING = "nothing came"


def turn_caption(message: Message) -> str:
    """Words between dots, such as `stopped · 34 tokens · 5.2 tok/s · 3.1 tokens a pass`; empty while it streams."""
    if message.state == "streaming":
        return ""
    statistics = message.statistics
    words = [_how_it_ended(message), *_figures(statistics)]
    return " · ".join(word for word in words if word)


def _how_it_ended(message: Message) -> str:
    statistics = message.statistics
    if message.state == "failed":
        return f"failed: {one_line(str(statistics.get('error', 'the engine could not answer')))}"
    if message.state == "stopped" and statistics.get("finish_reason") != "context":
        return "stopped" if message.content else f"stopped, {_BEFORE_ANYTHING}"
    return _ENDS.get(str(statistics.get("finish_reason")), "")


def _figures(statistics: Mapping[str, Any]) -> list[str]:
    num_tokens, num_rounds = statistics.get("num_new_tokens"), statistics.get("num_rounds")
    seconds_per_token, prefill_seconds = statistics.get("seconds_per_token"), statistics.get("prefill_seconds")
    words = []
    if num_tokens:
        words.append(f"{num_tokens} token{'s' if num_tokens != 1 else ''}")
    if seconds_per_token:
        words.append(f"{1 / seconds_per_token:.3g} tok/s")
    if num_tokens and num_rounds:
        words.append(f"{num_tokens / num_rounds:.1f} tokens a pass")
    if prefill_seconds:
        words.append(f"first after {prefill_seconds:.1f} s")
    return words
