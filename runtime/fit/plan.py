"""Answers `plan`: places the bytes, prices every tree, and tries the formats and machines beside the one asked about.

How likely a draft's children are accepted is known for pairs that were measured here or published, at the nearest
temperature; for others there is a vector to plan with.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offload.errors import BudgetError
from offload.formats.stored_sizes import QUANTIZED_FORMATS
from offload.residency_plan import ResidencyPlan, Tier
from offload.stage_ring import plan_stages
from offload.units import format_bytes
from profiles.builtin_profiles import builtin_pairs
from profiles.pair_profile import PairProfile
from runtime.config import ACCELERATOR_MAX_NODES, DEFAULT_MAX_NODES, MAX_TREE_LEVELS, TreeSearch
from runtime.errors import OptionError
from runtime.fit.advice import advise
from runtime.fit.machine import Basis, DeviceSpeed, Machine, free_bytes_for, judged_alike
from runtime.fit.models import ModelShape, find_shape
from runtime.fit.place import MemoryNeed, Placement, place
from runtime.fit.plan_question import PlanQuestion
from runtime.fit.plan_report import Acceptance, PlanOption, PlanReport
from runtime.planner.costs import CostTable, RoundCosts, costs_from_profiles
from runtime.planner.growth import builtin_chances, chances_of, choose_growth
from runtime.planner.known_pairs import stored_pairs
from runtime.planner.tree_choice import TreeChoice, TreeRanking, choose_tree
from runtime.speculation.acceptance import acceptance_of, builtin_acceptance
from runtime.speculation.tree_search import make_non_increasing

DP_LEVELS = 32
"""Most levels of the trees that the dynamic program searches, which takes seconds for more."""
MORE_DEVICE_BYTES = 10**9
"""Device memory that a what-if adds."""
_BUILTIN_RATIO = 3.1
"""Sizes of the pair whose acceptance is built in: Qwen2.5-Coder-1.5B and 0.5B."""
_MISSES_PER_DOUBLING = 0.03
"""How much rarer the first child is accepted where a draft is half as large: a line through the two pairs that are
known, 0.82 at a ratio of 3.1 and 0.77 at 8.8 (Llama-3-70B and 8B)."""
_HEAD_VISITS = 2
_LOGIT_READS = 3
"""Choosing a level's children passes over its logits: to scale them, to normalise them, to take the best."""


def plan_with_profiles(question: PlanQuestion, machine: Machine, *, cache_folder: Path) -> PlanReport:
    """Return the answer of `make_plan` with what was measured of these models on this machine, if anything was.

    Raises:
        BudgetError: what is asked for does not fit the machine; the sentence says what would.
        CheckpointError: a model folder cannot be read.
    """
    pairs, problems = stored_pairs(question, machine.identity, cache_folder=cache_folder)
    return make_plan(replace(question, notes=(*question.notes, *problems)), machine, pairs)


def make_plan(question: PlanQuestion, machine: Machine, pairs: Mapping[str, PairProfile] | None = None) -> PlanReport:
    """Return the whole answer; `pairs` are profiles of the models as they are stored, by how the draft is held.

    Raises:
        BudgetError: what is asked for does not fit the machine; the sentence says what would.
    """
    planning = _Planning(question, machine, pairs or {})
    if question.request.draft == "auto" and question.is_substitute and not pairs and question.request.tree == "auto":
        whole = _try(planning.option, question.format_name, None)
        if isinstance(whole, PlanOption) and not whole.streams:  # as a session decides: see `LoadPlan.build`
            question = replace(question, draft=None, is_substitute=False)
            planning = replace(planning, question=question)
    main = planning.best(question.format_name)
    if question.request.search == "dp":
        main = planning.option(main.format_name, main.draft_held, search="dp")
    plain = main if question.draft is None else _try(planning.option, main.format_name, None)
    others = {name: _try(planning.best, name) for name in question.format_names if name != main.format_name}
    return PlanReport(question, machine, main, plain, others, dict(planning.what_ifs(main)))


def held_format(question: PlanQuestion, machine: Machine, format_name: str | None = None) -> str:
    """Return how the question's draft is held beside a target in that format, in a session and in its plan alike.

    `auto` is on a processor what was measured to multiply fastest. On an accelerator it is what plans best there if
    every card had the speeds of one (see `judged_alike`): the bytes of a step against those that no longer stay on the
    device. Where nothing fits it is the smallest.
    """
    formats, draft = question.held_formats, question.draft
    assert draft is not None
    if len(formats) == 1:
        return formats[0]
    if machine.is_cpu and machine.speed is not None and machine.speed.fastest_draft is not None:
        fastest = machine.speed.fastest_draft
        return fastest if fastest in formats else "int8"
    planning = _judging(question, machine if machine.is_cpu else judged_alike(machine))
    found = [_try(planning.option, format_name or question.format_name, held) for held in formats]
    options = [option for option in found if isinstance(option, PlanOption)]
    if not options:
        return min(formats, key=draft.held_bytes)
    best = min(options, key=lambda option: option.seconds_per_token).draft_held
    assert best is not None
    return best


def priced(question: PlanQuestion, machine: Machine) -> PlanOption:
    """Return the question's pair on a machine of that memory, if all machines had the same speeds. Raises BudgetError.

    For choosing between drafts: a link is taken at its word where it is given, as an emulated one is.
    """
    judged = judged_alike(machine)
    held = None if question.draft is None else held_format(question, judged)
    return _judging(question, judged).option(question.format_name, held)


def _judging(question: PlanQuestion, machine: Machine) -> "_Planning":
    """Return what prices the best tree of the question's size, whatever shape it asks for."""
    shape, request = question.tree_shape, replace(question.request, tree="auto")
    return _Planning(replace(question, request=request), machine, {}, most_nodes=None if shape is None else shape[0])


def _try(plan: Callable[..., PlanOption], *asked: str | None) -> PlanOption | BudgetError:
    try:
        return plan(*asked)
    except BudgetError as error:
        return error


@dataclass(frozen=True, slots=True)
class _Planning:
    """One question and the machine it is asked about."""

    question: PlanQuestion
    machine: Machine
    pairs: Mapping[str, PairProfile]
    most_nodes: int | None = None
    """Of the largest tree; None is the machine's default."""

    @property
    def _max_nodes(self) -> int:
        if self.most_nodes is not None:
            return self.most_nodes
        return DEFAULT_MAX_NODES if self.machine.is_cpu else ACCELERATOR_MAX_NODES

    def best(self, format_name: str) -> PlanOption:
        """Return the format with the draft held as a session would hold it. Raises BudgetError."""
        question = self.question
        return self.option(
            format_name, None if question.draft is None else held_format(question, self.machine, format_name)
        )

    def what_ifs(self, main: PlanOption) -> Iterator[tuple[str, float]]:
        """Yield (change, seconds per token) for more device memory, a faster link, and host memory for a disk."""
        if not main.streams:
            return
        for words, changed in _changes(self.machine, main):
            option = _try(replace(self, machine=changed).best, main.format_name)
            if isinstance(option, PlanOption):
                yield words, option.seconds_per_token

    def option(self, format_name: str, held: str | None, *, search: TreeSearch = "best-first") -> PlanOption:
        """Place the bytes and price the trees. Raises BudgetError."""
        question, machine = self.question, self.machine
        need, placement = self._place(format_name, held)
        if placement.disk_bytes and machine.disk is None:
            raise BudgetError(
                f"{format_bytes(placement.disk_bytes)} of {question.target.name} would be read from disk in every "
                "pass, and how fast was not found out; give --disk, as in 3.5GB/s"
            )
        profile = None
        if format_name == question.format_names[0]:  # plain passes cost what they cost beside any draft
            profile = next(iter(self.pairs.values()), None) if held is None else self.pairs.get(held)
        costs = self._costs(format_name, held, placement.residency, profile)
        accepted = None if held is None else self._acceptance(held, profile, search)
        probabilities = np.ones(1) if accepted is None else accepted.probabilities
        ranking = choose_tree(
            costs,
            probabilities,
            max_nodes=self._max_nodes,
            max_levels=MAX_TREE_LEVELS if search == "best-first" else DP_LEVELS,
            search=search,
            cost=question.request.cost,
        )
        return PlanOption(
            format_name=format_name,
            draft_held=held,
            placement=placement,
            measured_at=None if profile is None else profile.measured_at,
            is_read_directly=machine.link is None,
            max_nodes=need.max_nodes,
            costs=costs,
            acceptance=accepted,
            ranking=ranking,
            tree=ranking.best if held is None else self._tree(costs, probabilities, ranking, profile),
        )

    def _costs(
        self, format_name: str, held: str | None, residency: ResidencyPlan, profile: PairProfile | None
    ) -> RoundCosts:
        """Return a round's costs at half the context, as a session plans them."""
        question = self.question
        if profile is None:
            return reference_costs(
                question.target,
                residency,
                None if held is None or question.draft is None else (question.draft, held),
                format_name=format_name,
                context_tokens=question.context_tokens // 2,
                machine=self.machine,
            )
        copies, reads = copies_and_reads(residency, self.machine)
        num_stages, num_pieces = _stages(residency, reads)
        return costs_from_profiles(
            profile,
            copy_seconds=copies,
            num_slots=max(1, residency.num_slots),
            read_seconds=reads,
            num_stages=num_stages,
            num_pieces=num_pieces,
            context_tokens=question.context_tokens // 2,
        )

    def _acceptance(self, held: str, profile: PairProfile | None, search: TreeSearch) -> Acceptance:
        """Return what was measured here, at the nearest temperature, or else what is known beforehand."""
        if profile is None or not profile.believed_acceptance:
            return planned_acceptance(self.question, held)
        temperature = self.question.request.temperature
        table = profile.acceptance_near(temperature)
        return Acceptance(
            # The dynamic program takes no matrix by depth.
            acceptance_of(profile, temperature, by_depth=search == "best-first"),
            Basis.MEASURED,
            f"{profile.target.name} / {profile.draft.name}, {profile.draft.held}, at temperature "
            f"{table.temperature:g}, {table.num_positions[0]} positions (pair profile of "
            f"{profile.measured_at.isoformat()})",
        )

    def _tree(
        self, costs: RoundCosts, accepted: NDArray[np.float64], ranking: TreeRanking, profile: PairProfile | None
    ) -> TreeChoice:
        """Return the user's tree, or the best.

        Trees shaped by context are considered only where this pair's gain was measured, or where they are asked for.
        """
        question, within = self.question, ranking
        kind, shape = question.tree_kind, question.tree_shape
        if shape is not None:
            within = choose_tree(costs, accepted, max_nodes=shape[0], max_levels=shape[1], cost=question.request.cost)
        chances = None if profile is None else chances_of(profile, question.request.temperature)
        if kind == "dynamic":
            chances = chances or builtin_chances(substitute_held="int8" if question.is_substitute else None)
            return choose_growth(costs, chances, within, shape=shape) or ranking.best
        if shape is not None:
            if (found := within.of_shape(*shape)) is not None:
                return found
            raise OptionError(
                f"tree is {shape[0]}x{shape[1]}, but with {accepted.shape[-1]} children a node at most no tree of "
                f"{shape[1]} levels has so many nodes; give it more levels, or fewer nodes"
            )
        if kind == "static" or question.request.cost == "paper" or chances is None:
            return ranking.best
        grown = choose_growth(costs, chances, ranking)
        return grown if grown and grown.seconds_per_token < ranking.best.seconds_per_token else ranking.best

    def _place(self, format_name: str, held: str | None) -> tuple[MemoryNeed, Placement]:
        """Return what a session would hold, and where. Raises BudgetError."""
        question, machine, speed = self.question, self.machine, self.machine.speed
        assert speed is not None
        draft = None
        if held is not None and question.draft is not None:
            draft = question.draft.as_draft(
                speed.compute_item_bytes, held=held, is_substitute=question.is_substitute, is_cpu=machine.is_cpu
            )
        need = question.target.need(
            draft,
            context_tokens=question.context_tokens,
            max_nodes=self._max_nodes if question.tree_shape is None else question.tree_shape[0],
            compute_item_bytes=speed.compute_item_bytes,
            is_cpu=machine.is_cpu,
        )
        if question.target.folder is not None:
            need = replace(need, file_bytes=0)
        need = need.in_format(format_name)
        placement = place(need, machine)
        if not placement.can_run:
            with_draft = "" if held is None else f" with draft {question.draft_name} ({held})"
            raise BudgetError(
                f"{question.target.name} in {format_name}{with_draft} does not fit {machine.name}: "
                f"{advise(need, machine).sentence}"
            )
        return need, placement


def _changes(machine: Machine, main: PlanOption) -> Iterator[tuple[str, Machine]]:
    """Yield (words, machine) for what could be bought; a budget of the user's grows with the memory."""
    kind, free = ("memory", "host_free_bytes") if machine.is_cpu else ("device memory", "device_free_bytes")
    budget_bytes = machine.device_budget_bytes
    if budget_bytes != 0:  # --device-memory min takes no more, whatever there is
        larger: dict[str, Any] = {free: machine.free_bytes + MORE_DEVICE_BYTES}
        if budget_bytes is not None:
            larger["device_budget_bytes"] = budget_bytes + MORE_DEVICE_BYTES
        yield f"{format_bytes(MORE_DEVICE_BYTES)} more {kind}", replace(machine, **larger)
    name, link = ("disk", machine.disk) if machine.link is None else ("link", machine.link)
    assert link is not None, "layers stream"
    generation = machine.pcie_generation
    words = "a disk twice as fast" if name == "disk" else "a link twice as fast (one PCIe generation)"
    if generation is not None:
        words = f"PCIe {generation + 1}.0 instead of {generation}.0"
    speed = replace(link.speed, bytes_per_second=2 * link.speed.bytes_per_second)
    faster: dict[str, Any] = {name: replace(link, speed=speed)}
    yield words, replace(machine, **faster)
    missing_bytes = main.placement.disk_bytes
    if missing_bytes and name == "link":
        host_bytes = machine.host_budget_bytes
        yield (
            f"{format_bytes(missing_bytes)} more host memory (no disk)",
            replace(
                machine,
                host_free_bytes=machine.host_free_bytes + free_bytes_for(missing_bytes),
                host_budget_bytes=None if host_bytes is None else host_bytes + missing_bytes,
            ),
        )


def planned_acceptance(question: PlanQuestion, held: str) -> Acceptance:
    """Return what is known beforehand of the question's draft, held like this, at the nearest temperature."""
    if question.is_substitute:
        return Acceptance(
            builtin_acceptance(substitute_held=held),
            Basis.ASSUMED,
            "as of SmolLM2-135M's and Qwen2.5-Coder-1.5B's own substitutes, greedy",
        )
    sizes = [None if shape is None else shape.num_parameters for shape in (question.target, question.draft)]
    for pair in builtin_pairs().values():
        known = find_shape(pair.target_shape), find_shape(pair.draft_shape)
        if [shape and shape.num_parameters for shape in known] == sizes:
            acceptance = pair.acceptance_near(question.request.temperature)
            temperature = "" if acceptance.temperature is None else f", at temperature {acceptance.temperature:g}"
            return Acceptance(
                make_non_increasing(acceptance.by_rank),
                Basis.PUBLISHED if acceptance.is_measured else Basis.ASSUMED,
                f"{pair.name}{temperature}: {acceptance.source}",
            )
    target_size, draft_size = (size or 1 for size in sizes)
    num_doublings = max(0.0, math.log2(target_size / draft_size / _BUILTIN_RATIO))
    return Acceptance(
        with_more_misses(builtin_acceptance(substitute_held=None), _MISSES_PER_DOUBLING * num_doublings),
        Basis.ASSUMED,
        "as of Qwen2.5-Coder-1.5B/0.5B, greedy, less 0.03 for each doubling of the ratio of sizes: nothing is known of "
        "this pair",
    )


def with_more_misses(by_rank: NDArray[np.float64], misses: float) -> NDArray[np.float64]:
    """Return an acceptance vector (R,) whose first child is accepted less often; the others get their share of it.

    The first rank's chance falls by `misses`, to 0.1 at least; the others keep their part of what it leaves.
    """
    first = max(0.1, float(by_rank[0]) - misses)
    changed = by_rank * (1 - first) / (1 - float(by_rank[0]))
    changed[0] = first
    result: NDArray[np.float64] = make_non_increasing(changed)
    return result


def reference_costs(
    target: ModelShape,
    residency: ResidencyPlan,
    draft: tuple[ModelShape, str] | None,
    *,
    format_name: str,
    context_tokens: int,
    machine: Machine,
) -> RoundCosts:
    """Return every part of a round whose text is `context_tokens` long, with the layers as `residency` says.

    `draft`: its sizes, and whether it is held as stored, in int8 or in nf4; None for plain passes. A forward over n
    tokens takes as long as reading its weights or as its multiplications, whichever is longer, and then its attention.
    Head and walk read the head twice: for the likeliest path and for its end. Launching kernels is not counted.
    """
    device = machine.speed
    assert device is not None
    copies, reads = copies_and_reads(residency, machine)
    num_stages, num_pieces = _stages(residency, reads)
    weights_per_second = device.target_weights_per_second[format_name]
    head_seconds = float(_head_seconds(target, np.ones(1), device)[0])
    return RoundCosts(
        copy_seconds=copies,
        pass_seconds=_table(_layers_seconds(target, _sizes(), weights_per_second, context_tokens, device)),
        draft_step_seconds=None if draft is None else _draft_steps(*draft, context_tokens, device),
        walk_seconds=CostTable((1.0,), (_HEAD_VISITS * head_seconds,)),
        num_slots=max(1, residency.num_slots),
        read_seconds=reads,
        num_stages=num_stages,
        num_pieces=num_pieces,
        compute_slowdown=device.compute_slowdown,
        copy_slowdown=device.copy_slowdown,
    )


def copies_and_reads(
    residency: ResidencyPlan, machine: Machine
) -> tuple[tuple[float | None, ...], tuple[float | None, ...]]:
    """Return (copy, read) seconds of each layer; without a link to a device, reading is the copy."""
    link, disk = machine.link, machine.disk
    sizes = list(zip(residency.layer_bytes, residency.tiers, strict=True))
    reads: tuple[float | None, ...] = (None,) * len(sizes)
    if Tier.DISK in residency.tiers:
        assert disk is not None, "the disk's speed is known where layers come from it"
        reads = tuple(disk.speed.copy_seconds(size) if tier is Tier.DISK else None for size, tier in sizes)
    if link is None:
        return reads, ()
    copies = tuple(None if tier is Tier.RESIDENT else link.speed.copy_seconds(size) for size, tier in sizes)
    return copies, reads if Tier.DISK in residency.tiers else ()


def _stages(residency: ResidencyPlan, reads: Sequence[float | None]) -> tuple[int, tuple[int, ...]]:
    """Return the stages behind these reads, and the pieces in which each layer passes through them."""
    if not reads:
        return 0, ()
    sizes = residency.layer_bytes
    ring = plan_stages(max(size for size, read in zip(sizes, reads, strict=True) if read is not None))
    return ring.num_stages, tuple(map(ring.num_pieces, sizes))


def _draft_steps(shape: ModelShape, held: str, context_tokens: int, device: DeviceSpeed) -> CostTable:
    """Return what a draft forward costs with its head and the choice of children, by width."""
    widths, published = _sizes(), shape.formats[0].name
    weights_per_second = device.draft_weights_per_second[published if published in QUANTIZED_FORMATS else held]
    seconds = _layers_seconds(shape, widths, weights_per_second, context_tokens, device)
    logit_bytes = _LOGIT_READS * 4 * shape.vocab_size * widths
    return _table(seconds + _head_seconds(shape, widths, device) + logit_bytes / device.memory_bytes_per_second)


def _layers_seconds(
    shape: ModelShape, tokens: NDArray[np.float64], weights_per_second: float, context: int, device: DeviceSpeed
) -> NDArray[np.float64]:
    """Return the seconds (C,) that a forward of all decoder layers over `tokens` (C,) takes."""
    num_weights = shape.num_layers * shape.num_layer_parameters
    multiplying = np.maximum(num_weights / weights_per_second, 2 * num_weights * tokens / device.flops)
    attended = context + tokens
    products = 4 * shape.num_layers * shape.num_heads * shape.head_dim * tokens * attended
    cache_bytes = shape.cache_bytes_per_token(device.compute_item_bytes) * attended
    seconds: NDArray[np.float64] = multiplying + products / device.flops + cache_bytes / device.memory_bytes_per_second
    return seconds


def _head_seconds(shape: ModelShape, rows: NDArray[np.float64], device: DeviceSpeed) -> NDArray[np.float64]:
    num_weights = shape.vocab_size * shape.hidden_size
    seconds: NDArray[np.float64] = np.maximum(
        num_weights * shape.item_bytes / device.memory_bytes_per_second, 2 * num_weights * rows / device.flops
    )
    return seconds


def _sizes() -> NDArray[np.float64]:
    """Return sizes so close that straight lines between them follow the bend from reading to multiplying."""
    return np.unique(np.geomspace(1, 4096, 64).round())


def _table(seconds: NDArray[np.float64]) -> CostTable:
    return CostTable(tuple(_sizes().tolist()), tuple(seconds.tolist()))
