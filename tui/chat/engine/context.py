"""What makes room for a conversation that the context does not hold: counted in tokens, so that it works."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from offload.units import format_bytes
from profiles.errors import BadInputError
from runtime.events import Finished
from runtime.prompts.prompt_file import Message, PromptRequest
from tui.chat.engine.messages import ContextFull, Loaded

if TYPE_CHECKING:
    from runtime.engine.loading import OpenSession

_ROOM_SHARE = 4
"""An answer gets a quarter of the context, unless fewer tokens are wanted of it."""
_LEAST_ROOM_TOKENS = 16
_MOST_CONTEXT_TOKENS = 1 << 20
"""For a model that states no limit of its own."""


def context_full(opened: "OpenSession", request: PromptRequest, finished: Finished | None = None) -> ContextFull:
    """Return what would make room for a request, and for as much of its answer as has been written."""
    parts = None if finished is None else finished.parts
    is_apart = parts is not None and bool(parts.content)  # else it is thinking as it stands
    text = "" if finished is None else parts.content if parts is not None and is_apart else finished.text
    engine = opened.session.engine
    messages = request.messages or (Message("user", request.prompt or ""),)
    if text and (request.is_continued or request.prompt is not None):
        messages = (*messages[:-1], replace(messages[-1], content=messages[-1].content + text))
    elif text:
        thought = parts.reasoning_content if parts is not None and is_apart else None
        messages = (*messages, Message("assistant", text, reasoning_content=thought))
    is_continued = messages[-1].role == "assistant"

    def count_tokens(kept: Sequence[Message]) -> int:
        if request.prompt is not None:
            asked = replace(request, prompt="".join(each.content for each in kept))
        else:
            asked = replace(request, messages=tuple(kept), is_continued=is_continued)
        return len(opened.session.format_prompt(asked))

    return room_for(
        messages,
        count_tokens,
        num_wanted_tokens=request.params.max_new_tokens,
        context_tokens=engine.context_tokens,
        largest_context_tokens=largest_context(opened),
    )


def room_for(
    messages: Sequence[Message],
    count_tokens: Callable[[Sequence[Message]], int],
    *,
    num_wanted_tokens: int,
    context_tokens: int,
    largest_context_tokens: int,
) -> ContextFull:
    """Return what would make room for messages, of which `count_tokens` says how much they take."""
    room = max(_LEAST_ROOM_TOKENS, min(num_wanted_tokens, context_tokens // _ROOM_SHARE))
    system = [message for message in messages[:1] if message.role == "system"]
    turns = messages[len(system) :]
    starts = [index for index, message in enumerate(turns) if message.role == "user"]  # of what could be kept
    num_tokens = count_tokens(messages)

    def has_room(start: int) -> bool:
        return count_tokens([*system, *turns[start:]]) + room <= context_tokens

    place = bisect_left(starts, True, lo=min(1, len(starts)), key=has_room)
    if place == len(starts):  # perhaps the last prompt leaves room for a shorter answer
        place -= 1
    last_tokens = count_tokens([*system, *turns[starts[-1] :]])
    fits_alone = last_tokens + _LEAST_ROOM_TOKENS <= context_tokens
    return ContextFull(
        num_tokens=num_tokens,
        context_tokens=context_tokens,
        largest_context_tokens=largest_context_tokens,
        wanted_context_tokens=_round_up(num_tokens + room, largest_context_tokens),
        num_left_out=starts[place] if fits_alone else 0,
        fits_alone=fits_alone,
    )


def _round_up(num_tokens: int, most: int) -> int:
    """Return the next power of two, or the most where that holds it too."""
    rounded = 1 << (num_tokens - 1).bit_length()
    return most if num_tokens <= most < rounded else rounded


def largest_context(opened: "OpenSession") -> int:
    """Return the largest context that the model was made for and the budget has memory for."""
    from runtime.model.architecture import max_positions

    plan, context_tokens = opened.plan, opened.session.engine.context_tokens
    limit = max_positions(plan.target.config) or max(_MOST_CONTEXT_TOKENS, context_tokens)
    budget_bytes = plan.placement.device_budget_bytes

    def is_too_large(num_tokens: int) -> bool:
        return replace(plan.need, context_tokens=num_tokens).least_bytes > budget_bytes

    sizes = range(context_tokens, limit + 1)
    return max(context_tokens, context_tokens + bisect_left(sizes, True, key=is_too_large) - 1)


def larger_contexts(opened: "OpenSession") -> tuple[tuple[int, int], ...]:
    """Return larger contexts, twice as large each time and the largest last, with the bytes more that each takes."""
    need, context_tokens, most = opened.plan.need, opened.session.engine.context_tokens, largest_context(opened)
    sizes = [1 << power for power in range(context_tokens.bit_length(), most.bit_length())]
    sizes += [most] * (context_tokens < most not in sizes)
    return tuple((size, replace(need, context_tokens=size).fixed_bytes - need.fixed_bytes) for size in sizes)


def context_report(model: Loaded, num_tokens: int | None) -> str:
    """Say how large the context is, what a conversation of `num_tokens` takes of it, and what a larger one costs."""
    held = model.context_tokens
    used = "" if num_tokens is None else f", of which this conversation takes {num_tokens:,} ({num_tokens / held:.0%})"
    what = f"the context holds {held:,} tokens, prompt and answer together{used}"
    if not model.larger_contexts:
        return f"{what}; it is the largest that the model and the memory allow"
    (size, num_bytes), (most, most_bytes) = model.larger_contexts[0], model.larger_contexts[-1]
    takes = f"would take {format_bytes(num_bytes)} more memory"
    limit = f"{most:,}, the most that fits,"
    costs = f"{limit} {takes}" if most == size else f"{size:,} {takes}, and {limit} {format_bytes(most_bytes)}"
    return f"{what}; {costs}; /context {size} opens the model with {size:,}"


def check_context(model: Loaded, num_tokens: int) -> None:
    """Raise BadInputError for a context that the model or the memory does not allow, with the most that fits."""
    most = max([model.context_tokens, *(size for size, _ in model.larger_contexts)])
    if num_tokens > most:
        raise BadInputError(
            f"a context of {num_tokens:,} tokens does not fit; {most:,} is the most that the model and the memory allow"
            + (f": /context {most}" if most > model.context_tokens else ", and it is open")
        )


def context_words(full: ContextFull) -> str:
    """Say what is the matter and what can be typed about it."""
    what = (
        f"this conversation has {full.num_tokens} tokens and the context holds {full.context_tokens}, answer included"
    )
    if full.wanted_context_tokens <= full.largest_context_tokens:
        return f"{what}; /context {full.wanted_context_tokens} makes room for all of it"
    if full.fits_alone:
        return f"{what}, and {full.largest_context_tokens} is the most that the model and the memory allow"
    return f"{what}, {full.largest_context_tokens} at most; /edit takes the last prompt back, to be shortened"
