"""What a plan means, in sentences: whether streaming is the right choice at all, and what limits the answer.

Only words about figures that others computed.
"""

from collections.abc import Iterator, Sequence

from offload.formats.stored_sizes import QUANTIZED_FORMATS
from offload.units import format_bytes
from runtime.fit.machine import Machine
from runtime.fit.plan_question import PlanQuestion
from runtime.fit.plan_report import PlanOption, Refusal

QUALITY = {"int8": "perplexity +0.05 %", "nf4": "perplexity +2.5 %"}
"""What a format costs, against bf16: Qwen2.5-Coder-1.5B, 29.503 in bf16, 29.518 in int8, 30.254 in NF4.

From `overstory bench perplexity` on the first 1,800 characters of profiles/builtin/prompts/perplexity.txt.
"""
_CLEARLY = 0.95
"""What takes more than this share of the time is not called faster."""


def verdicts_of(
    question: PlanQuestion, main: PlanOption, plain: PlanOption | Refusal, others: Sequence[PlanOption | Refusal]
) -> Iterator[str]:
    """What to do, the most important first."""
    faster = [
        option
        for option in others
        if isinstance(option, PlanOption) and option.seconds_per_token < _CLEARLY * main.seconds_per_token
    ]
    whole = [option for option in faster if not option.streams]
    if main.streams and whole:
        best = whole[0]  # the largest format, which costs the least quality
        yield (
            f"Streaming {main.format_name} is the wrong choice here: {best.format_name} fits whole on the device "
            f"({format_bytes(best.placement.device_bytes)} of {format_bytes(best.placement.device_budget_bytes)}) and "
            f"runs at {1 / best.seconds_per_token:.3g} tokens/s, {_ratio(main, best)}; {_quality(best.format_name)}."
        )
    elif faster:
        best = min(faster, key=lambda option: option.seconds_per_token)
        yield (
            f"{best.format_name} would run at {best.seconds_per_token:.3g} s/token, {_ratio(main, best)}; "
            f"{_quality(best.format_name)}."
        )
    if not main.streams:
        yield "Nothing streams: every layer stays on the device."
    elif main.placement.disk_bytes:
        yield f"Every pass reads {format_bytes(main.placement.disk_bytes)} from disk: memory is too small for it."
    if main.draft_held is not None and main.tree.num_nodes == 1:
        yield "No tree pays here: plain decoding is the fastest."
    elif isinstance(plain, PlanOption) and plain.seconds_per_token < main.seconds_per_token:
        yield "Without a draft, its memory would hold more layers and plain passes would be faster: --draft none."
    if main.format_name in QUANTIZED_FORMATS and main.format_name != question.format_names[0]:
        yield f"{main.format_name} instead of {question.format_names[0]}: {_quality(main.format_name)}."


def notes_of(question: PlanQuestion, machine: Machine, main: PlanOption) -> Iterator[str]:
    """What limits the answer."""
    yield from question.notes
    kernels = "" if main.measured_at is not None else "; launching kernels is not counted"
    yield f"speeds are those of a text of {question.context_tokens // 2} tokens{kernels}"
    if main.draft_held is not None and question.tree_shape is None and main.tree.num_nodes == main.max_nodes:
        yield f"the best tree is the largest that a session keeps memory for, {main.max_nodes} nodes"
    if machine.is_host_assumed and main.placement.host_bytes:
        held = main.placement.host_bytes
        yield f"host memory is assumed to hold the {format_bytes(held)} of layers that wait there; say --host-memory"
    if main.draft_held not in (None, "stored") and question.draft is not None and main.measured_at is None:
        yield "acceptance is that of the draft as published; a quantized one is accepted a little less often"


def _ratio(slow: PlanOption, fast: PlanOption) -> str:
    return f"{slow.seconds_per_token / fast.seconds_per_token:.3g} times as fast"


def _quality(format_name: str) -> str:
    words = QUALITY.get(format_name)
    return "quality was not measured" if words is None else f"{words} (measured on a 1.5B model)"
