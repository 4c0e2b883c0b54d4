"""What `plan` found: where the bytes would lie, which tree, how fast, what bounds it, and what would change it.

Values, their JSON, and what they mean in sentences.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offload import llama_cpp
from offload.errors import BudgetError
from offload.formats.stored_sizes import PACKED, QUANTIZED_FORMATS
from offload.units import format_bytes
from profiles.builtin_profiles import unmeasured_pair
from runtime.fit.file_formats import PERPLEXITY_MORE
from runtime.fit.first_token import FirstToken
from runtime.fit.machine import Basis, Machine
from runtime.fit.place import Placement
from runtime.fit.plan_question import PlanQuestion
from runtime.planner.costs import RoundCosts
from runtime.planner.tree_choice import TreeChoice, TreeRanking

SCHEMA_VERSION = 1
QUALITY = {"int8": "perplexity +0.05 %", "nf4": "perplexity +2.5 %"}
"""What a format costs, against bf16: Qwen2.5-Coder-1.5B, 29.503 in bf16, 29.518 in int8, 30.254 in NF4.

From `overstory bench perplexity` on the first 1,800 characters of its packaged text.
"""
_CLEARLY = 0.95
"""Share of the time above which an option is not called faster."""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """How likely the child of each rank is the accepted one."""

    probabilities: NDArray[np.float64]
    """(R,), or (D, R) by depth of the parent; not increasing with rank."""
    basis: Basis
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOption:
    """One way to run the target, and what it is predicted to cost."""

    format_name: str
    draft_held: str | None
    """How the draft is held; None for plain streaming."""
    placement: Placement
    max_nodes: int
    """Nodes of the largest tree that memory was kept for."""
    costs: RoundCosts = field(repr=False)
    is_read_directly: bool
    """Whether the device reads the disk itself, so that no other link lies between."""
    measured_at: date | None = None
    """When the parts of its rounds were measured on this machine; None if they are computed from speeds."""
    acceptance: Acceptance | None = field(repr=False)
    """What the expected tokens rest on; None without a draft."""
    ranking: TreeRanking = field(repr=False)
    tree: TreeChoice
    """The user's tree, or the best."""
    is_gain_measured: bool = False
    """Whether what trees shaped by context gain was measured with this pair; else it is that of another one."""

    @property
    def seconds_per_token(self) -> float:
        return self.tree.seconds_per_token

    @property
    def is_packed(self) -> bool:
        """Whether its layers lie packed in memory."""
        return self.placement.format_name == PACKED

    @property
    def streams(self) -> bool:
        return self.placement.streamed_bytes > 0

    @property
    def bound(self) -> str:
        """What limits a round: link, disk, compute or draft."""
        return "disk" if self.is_read_directly and self.tree.bound == "link" else self.tree.bound

    @property
    def part_seconds(self) -> dict[str, float]:
        """Seconds of a round's parts, each on its own: they overlap."""
        parts = self.costs.part_seconds(self.tree.num_nodes, self.tree.draft_seconds)
        return parts | {"link": 0.0, "disk": parts["link"]} if self.is_read_directly else parts

    def to_record(self) -> dict[str, Any]:
        placed = self.placement
        return {
            "format": self.format_name,
            "is_packed": self.is_packed,
            "draft_format": self.draft_held,
            "tiers": {
                "resident": {"layers": placed.num_resident_layers, "bytes": placed.resident_bytes},
                "host": {"layers": placed.num_host_layers, "bytes": placed.host_bytes - placed.travelling_bytes},
                "disk": {"layers": placed.num_disk_layers, "bytes": placed.disk_bytes},
            },
            "host_table_bytes": placed.table_bytes,
            "device_bytes": placed.device_bytes,
            "device_budget_bytes": placed.device_budget_bytes,
            "fixed_bytes": placed.fixed_bytes,
            "ring": {"slots": placed.residency.num_slots, "bytes": placed.ring_bytes},
            "bytes_per_pass": round(placed.usual_pass_bytes),
            "kv_cache": {
                "format": "int8" if placed.residency.widened_bytes else "exact",
                "travelling_layers": len(placed.residency.travelling),
                "host_bytes": placed.travelling_bytes,
                "device_bytes": placed.cached_bytes,
            },
            "max_nodes": self.max_nodes,
            "part_seconds": self.part_seconds,
            **_tree_record(self.tree),
            "bound": self.bound,
        }


@dataclass(frozen=True, slots=True)
class PlanReport:
    """The whole answer."""

    question: PlanQuestion
    machine: Machine
    main: PlanOption
    """As asked."""
    plain: PlanOption | BudgetError
    """Plain streaming, with the draft's memory for layers, or why it does not run."""
    others: Mapping[str, PlanOption | BudgetError]
    """The target's other formats, by name."""
    what_ifs: Mapping[str, float]
    """Seconds per token, with the tree chosen anew, by a change of the machine: "1.00 GB more device memory"."""
    first_tokens: Mapping[int, FirstToken | BudgetError]
    """What prompts of a few lengths take until their answer begins, as asked, by their tokens; or why they do not."""
    other_packing: PlanOption | BudgetError | None = None
    """The same with layers as stored if they are packed, and packed if they are not; None where they cannot be."""

    def saved_share(self, seconds_per_token: float) -> float:
        """Return the share by which the seconds per token would fall."""
        return round(1 - seconds_per_token / self.main.seconds_per_token, 9)

    @property
    def all_tokens_per_second(self) -> float:
        """Return the tokens per second of all prompts that are answered together."""
        return self.question.request.num_prompts / self.main.seconds_per_token

    @property
    def basis_lines(self) -> tuple[tuple[str, Basis, str], ...]:
        """(what, basis, words) for every figure that the prediction rests on."""
        machine, main = self.machine, self.main
        links = {"link": machine.link, "disk": machine.disk if main.placement.disk_bytes else None}
        lines = [
            (name, link.basis, f"{format_bytes(link.speed.bytes_per_second)}/s, {link.source}")
            for name, link in links.items()
            if link is not None
        ]
        if machine.device_memory_source:
            lines.insert(0, ("device memory", Basis.ASSUMED, machine.device_memory_source))
        if main.measured_at is not None:
            words = f"draft steps, layers, head and walk, on {main.measured_at.isoformat()} (pair profile)"
            lines.append(("computing", Basis.MEASURED, words))
        elif machine.speed is not None:
            lines.append(("computing", machine.speed.basis, machine.speed.source))
        if main.acceptance is not None:
            lines.append(("acceptance", main.acceptance.basis, main.acceptance.source))
        if main.tree.is_dynamic and not main.is_gain_measured:
            words = (
                "what a tree gains by taking its shape from context is that of " + unmeasured_pair().confidence_source
            )
            lines.append(("trees", Basis.CARRIED_OVER, words))
        return tuple(lines)

    @property
    def verdicts(self) -> tuple[str, ...]:
        return tuple(_verdicts(self, self.main))

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(_notes(self, self.main))

    def to_record(self) -> dict[str, Any]:
        question, main = self.question, self.main
        second = main.ranking.second
        return {
            "schema_version": SCHEMA_VERSION,
            "machine": self.machine.name,
            "target": question.target.name,
            "draft": question.draft_name,
            "context_tokens": question.context_tokens,
            "temperature": question.request.temperature,
            "num_prompts": question.request.num_prompts,
            "all_tokens_per_second": self.all_tokens_per_second,
            "search": question.request.search,
            "cost": question.request.cost,
            "plan": main.to_record(),
            "second": None if second is None else _tree_record(second),
            "plain": _option_record(main.format_name, self.plain),
            "other_formats": [_option_record(name, option) for name, option in self.others.items()],
            "other_packing": None
            if self.other_packing is None
            else _option_record(main.format_name, self.other_packing),
            "what_if": [
                {
                    "change": change,
                    "seconds_per_token": seconds,
                    "saved_seconds_per_token": main.seconds_per_token - seconds,
                    "saved_percent": 100 * self.saved_share(seconds),
                }
                for change, seconds in self.what_ifs.items()
            ],
            "first_token": [
                {"prompt_tokens": num_tokens, "problem": str(found)}
                if isinstance(found, BudgetError)
                else found.to_record()
                for num_tokens, found in self.first_tokens.items()
            ],
            "rests_on": [{"what": what, "basis": basis, "source": words} for what, basis, words in self.basis_lines],
            "verdicts": list(self.verdicts),
            "notes": list(self.notes),
        }


def _option_record(format_name: str, option: PlanOption | BudgetError) -> dict[str, Any]:
    if isinstance(option, BudgetError):
        return {"format": format_name, "problem": str(option)}
    return option.to_record()


def _tree_record(tree: TreeChoice) -> dict[str, Any]:
    return {
        "tree": {"nodes": tree.num_nodes, "levels": tree.num_levels, "is_dynamic": tree.is_dynamic},
        "expected_tokens": tree.expected_tokens,
        "round_seconds": tree.round_seconds,
        "draft_seconds": tree.draft_seconds,
        "seconds_per_token": tree.seconds_per_token,
        "tokens_per_second": 1 / tree.seconds_per_token,
        "bound": tree.bound,
    }


def _verdicts(report: PlanReport, main: PlanOption) -> Iterator[str]:
    """Yield what to do, first whether streaming is the right choice at all."""
    options = [option for option in report.others.values() if isinstance(option, PlanOption)]
    faster = [option for option in options if option.seconds_per_token < _CLEARLY * main.seconds_per_token]
    whole = [option for option in faster if not option.streams]
    if main.streams and whole:
        best = whole[0]  # the largest format, which costs the least quality
        held = f"{format_bytes(best.placement.device_bytes)} of {format_bytes(best.placement.device_budget_bytes)}"
        yield (
            f"Streaming {main.format_name} is the wrong choice here: {best.format_name} fits whole on the device "
            f"({held}) and runs at {1 / best.seconds_per_token:.3g} tokens/s, {_ratio(main, best)}; "
            f"{_quality(best.format_name)}."
        )
    elif faster:
        best = min(faster, key=lambda option: option.seconds_per_token)
        yield (
            f"{best.format_name} would run at {best.seconds_per_token:.3g} s/token, {_ratio(main, best)}; "
            f"{_quality(best.format_name)}."
        )
    target, is_cpu = report.question.target, report.machine.is_cpu
    elsewhere = llama_cpp.for_model(target.gguf_file, streams=main.streams, is_cpu=is_cpu, hub_name=target.hub_name)
    if not main.streams:
        yield "Nothing streams: every layer stays on the device."
    if elsewhere is not None:
        yield f"{elsewhere[0].upper()}{elsewhere[1:]}."
    if main.streams and main.placement.disk_bytes:
        yield f"Every pass reads {format_bytes(main.placement.disk_bytes)} from disk: memory is too small for it."
    if main.draft_held is not None and main.tree.num_nodes == 1:
        yield "No tree pays here: plain decoding is the fastest."
    elif isinstance(report.plain, PlanOption) and report.plain.seconds_per_token < main.seconds_per_token:
        yield "Without a draft, its memory would hold more layers and plain passes would be faster: --draft none."
    published = report.question.format_names[0]
    if main.format_name in QUANTIZED_FORMATS and main.format_name != published:
        yield f"{main.format_name} instead of {published}: {_quality(main.format_name)}."


def _notes(report: PlanReport, main: PlanOption) -> Iterator[str]:
    question, host_bytes = report.question, main.placement.host_bytes
    yield from question.notes
    if main.format_name in PERPLEXITY_MORE:
        yield f"{main.format_name} as llama-quantize mixes it by itself; {_quality(main.format_name)}"
    if report.machine.speed is not None and main.format_name not in report.machine.speed.target_weights_per_second:
        yield f"products of {main.format_name} were not measured: they count as those of int8 rows or of NF4"
    yield f"speeds are those of a text of {question.context_tokens // 2} tokens"
    if main.draft_held is not None and question.tree_shape is None and main.tree.num_nodes == main.max_nodes:
        yield f"the best tree is the largest that a session keeps memory for, {main.max_nodes} nodes"
    if (kv_format := question.request.kv_format) != "exact":
        yield (
            f"keys and values that travel are {kv_format}, with which the text may differ"
            if main.placement.residency.travelling
            else f"no keys and values travel, so that --kv-format {kv_format} does nothing"
        )
    if report.machine.is_host_assumed and host_bytes:
        held = format_bytes(host_bytes)
        yield f"host memory is assumed to hold the {held} of layers that wait there; say --host-memory"
    if main.draft_held not in (None, "stored") and not question.is_substitute and main.measured_at is None:
        yield "acceptance is that of the draft as published; a quantized one is accepted a little less often"


def _ratio(slow: PlanOption, fast: PlanOption) -> str:
    return f"{slow.seconds_per_token / fast.seconds_per_token:.3g} times as fast"


def _quality(format_name: str) -> str:
    if (more := PERPLEXITY_MORE.get(format_name)) is not None:
        return f"perplexity +{more:g} on Llama-3-8B (by llama.cpp's own list)"
    words = QUALITY.get(format_name)
    return "quality was not measured" if words is None else f"{words} (measured on a 1.5B model)"
