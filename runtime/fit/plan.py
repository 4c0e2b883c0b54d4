"""Answers `plan`: places the bytes, prices every tree, and tries the formats and machines beside the one asked about.

How likely a draft's children are accepted is known for pairs that were measured here or published, at the nearest
temperature; for others there is a vector to plan with.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offload.errors import BudgetError
from offload.formats.stored_sizes import COLUMN_MULTIPLE, PACKED
from offload.residency_plan import ResidencyPlan
from offload.units import format_bytes
from profiles.builtin_profiles import builtin_pairs
from profiles.pair_profile import PairProfile
from runtime.config import MAX_TREE_LEVELS, Pack, TreeSearch
from runtime.errors import OptionError
from runtime.fit.advice import advise
from runtime.fit.first_token import (
    PROMPT_TOKENS,
    FirstToken,
    SecondsOf,
    context_for,
    predict_first_token,
    seconds_by_speed,
)
from runtime.fit.machine import Basis, Machine, free_bytes_for, judged_alike
from runtime.fit.models import find_shape
from runtime.fit.place import MemoryNeed, Placement, kv_cache_on, place
from runtime.fit.plan_question import PlanQuestion
from runtime.fit.plan_report import Acceptance, PlanOption, PlanReport
from runtime.fit.reference_costs import copies_and_reads, reference_costs, stages_of
from runtime.planner.costs import CostTable, RoundCosts, costs_from_profiles, passes_of_profile
from runtime.planner.growth import ContextChances, builtin_chances, chances_of, choose_growth
from runtime.planner.known_pairs import stored_pairs
from runtime.planner.tree_choice import TreeChoice, TreeRanking, choose_tree
from runtime.speculation.acceptance import acceptance_of, builtin_acceptance
from runtime.speculation.tree_search import make_non_increasing

DP_LEVELS = 32
"""Most levels of the trees that the dynamic program searches, which takes seconds for more."""
MORE_DEVICE_BYTES = 10**9
"""Device memory that a what-if adds."""
PACKS = "bfloat16"
"""The format whose layers may lie packed in memory."""
_EITHER: tuple[Pack, Pack] = ("off", "on")
_CLEARLY = 0.95
"""Share of the time of layers as stored that packed ones may take at most."""
_BUILTIN_RATIO = 3.1
"""Sizes of the pair whose acceptance is built in: Qwen2.5-Coder-1.5B and 0.5B."""
_MISSES_PER_DOUBLING = 0.03
"""How much rarer the first child is accepted where a draft is half as large: a line through the two pairs that are
known, 0.82 at a ratio of 3.1 and 0.77 at 8.8 (Llama-3-70B and 8B)."""


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
    question = packing_settled(question, machine)
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
    other: PlanOption | BudgetError | None = None
    if main.format_name == PACKS:
        turned = replace(planning, question=question.with_packing("off" if main.is_packed else "on"))
        other = _try(turned.best, main.format_name)
    what_ifs, first_tokens = dict(planning.what_ifs(main)), dict(planning.first_tokens(main))
    return PlanReport(question, machine, main, plain, others, what_ifs, first_tokens, other)


def packing_settled(question: PlanQuestion, machine: Machine) -> PlanQuestion:
    """Return the question with the choice of packing that `auto` makes, in a session and in its plan alike.

    Layers of bfloat16 are packed where the passes of the question are predicted to take clearly less time so, if every
    card had the speeds of one (see `judged_alike`), or where they do not run otherwise. What unpacking takes of a
    processor is measured.
    """
    if question.request.pack != "auto":
        return question
    if question.format_name != PACKS:
        return question.with_packing("off")
    judged = judged_alike(machine)
    if machine.is_cpu and judged.speed is not None:
        speed = machine.speed
        if speed is None:
            from offload.formats.packed import measure_rates

            rates = measure_rates()
        else:
            rates = speed.target_weights_per_second
        rates = {**judged.speed.target_weights_per_second, PACKS: rates[PACKS], PACKED: rates[PACKED]}
        judged = replace(judged, speed=replace(judged.speed, target_weights_per_second=rates))
    held = None if question.draft is None else held_format(question.with_packing("off"), judged)
    stored, packed = (
        _try(_judging(question.with_packing(pack), judged).option, question.format_name, held) for pack in _EITHER
    )
    if isinstance(packed, BudgetError):
        return question.with_packing("off")
    is_faster = isinstance(stored, BudgetError) or packed.seconds_per_token < _CLEARLY * stored.seconds_per_token
    return question.with_packing("on" if is_faster else "off")


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


@dataclass(frozen=True, slots=True)
class PlacedPlan:
    """What a session costs whose bytes lie like this, by how many texts share its passes."""

    _planning: "_Planning"
    _need: MemoryNeed
    _placement: Placement
    _held: str | None
    _profile: PairProfile | None

    @classmethod
    def of(
        cls,
        question: PlanQuestion,
        machine: Machine,
        need: MemoryNeed,
        placement: Placement,
        *,
        held: str | None,
        profile: PairProfile | None,
    ) -> "PlacedPlan":
        """`held`: how the draft is, None without one; `profile`: of the pair, None where it was not measured."""
        return cls(_Planning(question, machine, {}), need, placement, held, profile)

    def option(self, num_texts: int) -> PlanOption:
        """Return the round while so many texts have one together. Raises BudgetError."""
        question = self._planning.question
        request = replace(question.request, num_prompts=num_texts)
        planning = replace(self._planning, question=replace(question, request=request))
        need = replace(self._need, num_texts=num_texts)
        return planning.placed_option(question.format_name, self._held, need, self._placement, self._profile)

    def reading(self) -> tuple[RoundCosts, SecondsOf, SecondsOf | None]:
        """Return a single text's costs, and what target and draft compute over the tokens of a prompt."""
        name, held, profile = self._placement.format_name, self._held, self._profile
        costs = self._planning._text_costs(name, held, self._placement.residency, profile)
        return costs, *self._planning._reading(name, held, costs, profile)


def _judging(question: PlanQuestion, machine: Machine) -> "_Planning":
    """Return what prices the best tree of the question's size, whatever shape it asks for."""
    shape, request = question.tree_shape, replace(question.request, tree="auto")
    return _Planning(replace(question, request=request), machine, {}, most_nodes=None if shape is None else shape[0])


def _share(need: MemoryNeed) -> int:
    """Return the most nodes of a text's tree while all texts have one."""
    return max(1, min(need.text_nodes, need.max_nodes // need.num_texts))


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
    """Of the largest tree; None is what `auto` considers."""

    def best(self, format_name: str) -> PlanOption:
        """Return the format with the draft held as a session would hold it. Raises BudgetError."""
        question = self.question
        return self.option(
            format_name, None if question.draft is None else held_format(question, self.machine, format_name)
        )

    def what_ifs(self, main: PlanOption) -> Iterator[tuple[str, float]]:
        """Yield (change, seconds per token) for more device memory, a faster link, and host memory for a disk.

        The draft is held as in `main`: deciding that anew for each would take as long as all the rest.
        """
        if not main.streams:
            return
        for words, changed in _changes(self.machine, main):
            option = _try(replace(self, machine=changed).option, main.format_name, main.draft_held)
            if isinstance(option, PlanOption):
                yield words, option.seconds_per_token

    def first_tokens(self, main: PlanOption) -> Iterator[tuple[int, FirstToken | BudgetError]]:
        """Yield (prompt tokens, what they take until the answer begins, or why they cannot be asked)."""
        question = self.question
        for num_tokens in PROMPT_TOKENS:
            try:
                context_tokens = context_for(num_tokens, question.context_tokens, question.target)
                longer = replace(self, question=replace(question, context_tokens=context_tokens))
                yield num_tokens, longer.first_token(num_tokens, main)
            except BudgetError as error:
                yield num_tokens, error

    def first_token(self, num_tokens: int, main: PlanOption) -> FirstToken:
        """Return what a prompt of `num_tokens` takes in a session like `main`. Raises BudgetError."""
        held = main.draft_held
        need, placement = self._place(main.format_name, held)
        name = placement.format_name
        profile = self._profile(name, held)
        costs = self._text_costs(name, held, placement.residency, profile)
        target_seconds, reading_seconds = self._reading(name, held, costs, profile)
        return predict_first_token(
            num_tokens,
            need,
            costs,
            main.tree,
            target_seconds=target_seconds,
            reading_seconds=reading_seconds,
        )

    def _reading(
        self, name: str, held: str | None, costs: RoundCosts, profile: PairProfile | None
    ) -> tuple[SecondsOf, SecondsOf | None]:
        """Return what the layers of target and draft compute over the tokens of a prompt."""
        question, speed = self.question, self.machine.speed
        assert speed is not None
        draft = None if held is None or question.draft is None else (question.draft, held)
        target_seconds, reading_seconds = seconds_by_speed(question.target, name, draft, speed)
        if profile is not None:
            target_seconds = partial(_profiled_seconds, profile)
            if (steps := costs.draft_step_seconds) is not None and draft is not None:
                reading_seconds = partial(_step_seconds, steps)
        return target_seconds, reading_seconds

    def _profile(self, format_name: str, held: str | None) -> PairProfile | None:
        if format_name != self.question.format_names[0]:
            return None
        # Plain passes cost what they cost beside any draft.
        return next(iter(self.pairs.values()), None) if held is None else self.pairs.get(held)

    def option(self, format_name: str, held: str | None, *, search: TreeSearch = "best-first") -> PlanOption:
        """Place the bytes and price the trees. Raises BudgetError."""
        need, placement = self._place(format_name, held)
        profile = self._profile(placement.format_name, held)
        return self.placed_option(format_name, held, need, placement, profile, search=search)

    def placed_option(
        self,
        format_name: str,
        held: str | None,
        need: MemoryNeed,
        placement: Placement,
        profile: PairProfile | None,
        *,
        search: TreeSearch = "best-first",
    ) -> PlanOption:
        """Price the trees of what lies like this. Raises BudgetError."""
        question, machine = self.question, self.machine
        if placement.disk_bytes and machine.disk is None:
            raise BudgetError(
                f"{format_bytes(placement.disk_bytes)} of {question.target.name} would be read from disk in every "
                "pass, and how fast was not found out; give --disk, as in 3.5GB/s"
            )
        costs = self._costs(placement.format_name, held, placement.residency, profile)
        accepted = None if held is None else self._acceptance(held, profile, search)
        probabilities = np.ones(1) if accepted is None else accepted.probabilities
        ranking = choose_tree(
            costs,
            probabilities,
            max_nodes=self.most_nodes or _share(need.with_largest_tree(is_cpu=machine.is_cpu)),
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
            max_nodes=_share(need),
            costs=costs,
            acceptance=accepted,
            ranking=ranking,
            tree=ranking.best if held is None else self._tree(costs, probabilities, ranking, profile),
            is_gain_measured=self._measured_chances(profile) is not None,
        )

    def _costs(
        self, format_name: str, held: str | None, residency: ResidencyPlan, profile: PairProfile | None
    ) -> RoundCosts:
        """Return what a round of all texts costs, by the tree of each, at half the context, as a session plans it."""
        costs = self._text_costs(format_name, held, residency, profile)
        num_texts = self.question.request.num_prompts
        return costs if num_texts == 1 else costs.for_texts(num_texts)

    def _text_costs(
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
        num_stages, num_pieces = stages_of(residency, reads)
        return costs_from_profiles(
            profile,
            copy_seconds=copies,
            num_slots=max(1, residency.num_slots),
            read_seconds=reads,
            num_stages=num_stages,
            num_pieces=num_pieces,
            context_tokens=question.context_tokens // 2,
        ).with_token_multiple(COLUMN_MULTIPLE if self.machine.is_cpu else 1)

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

        What trees shaped by context gain is this pair's where it was measured, else that of a measured pair, as in a
        session; nothing is known of a substitute's, so that its trees are static unless others are asked for.
        """
        question, within = self.question, ranking
        kind, shape = question.tree_kind, question.tree_shape
        if shape is not None:
            within = choose_tree(costs, accepted, max_nodes=shape[0], max_levels=shape[1], cost=question.request.cost)
        chances = self._measured_chances(profile)
        if chances is None and (kind == "dynamic" or not question.is_substitute):
            chances = builtin_chances(substitute_held="int8" if question.is_substitute else None)
        if kind == "dynamic" and chances is not None:
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

    def _measured_chances(self, profile: PairProfile | None) -> ContextChances | None:
        return None if profile is None else chances_of(profile, self.question.request.temperature)

    def _place(self, format_name: str, held: str | None) -> tuple[MemoryNeed, Placement]:
        """Return what a session would hold, and where. Raises BudgetError."""
        question, machine, speed = self.question, self.machine, self.machine.speed
        assert speed is not None
        draft = None
        if held is not None and question.draft is not None:
            draft = question.draft.as_draft(
                speed.compute_item_bytes, held=held, is_substitute=question.is_substitute, is_cpu=machine.is_cpu
            )
        most_nodes = self.most_nodes if question.tree_shape is None else question.tree_shape[0]
        num_texts = question.request.num_prompts
        need = question.target.need(
            draft,
            context_tokens=question.context_tokens,
            max_nodes=(most_nodes or 1) * num_texts,
            compute_item_bytes=speed.compute_item_bytes,
            is_cpu=machine.is_cpu,
        )
        if question.target.folder is not None:
            need = replace(need, file_bytes=0)
        is_apart = not machine.is_cpu or machine.is_link_emulated
        kv_cache = kv_cache_on(
            question.request.kv_cache, is_apart=is_apart, has_states=question.target.recurrence is not None
        )
        rows = question.target.row_layer_bytes(question.request.kv_format)
        if num_texts > 1:  # keys and values that travel are those of one text
            kv_cache, need = "device", replace(need, num_texts=num_texts)
        need = replace(need.in_format(format_name), kv_cache=kv_cache, row_layer_bytes=rows)
        if question.is_packed and format_name == PACKS:
            need = question.target.packed(need, speed.compute_item_bytes, is_cpu=machine.is_cpu)
        if most_nodes is None and draft is not None:
            need = need.with_largest_tree(is_cpu=machine.is_cpu)
        placement = place(need, machine)
        if not placement.can_run:
            with_draft = "" if held is None else f" with draft {question.draft_name} ({held})"
            raise BudgetError(
                f"{question.target.name} in {format_name}{with_draft} does not fit {machine.name}: "
                f"{advise(need, machine).sentence}"
            )
        return need, placement


def _profiled_seconds(profile: PairProfile, num_tokens: int, context_tokens: int) -> float:
    return float(passes_of_profile(profile, context_tokens)(num_tokens))


def _step_seconds(steps: CostTable, num_tokens: int, context_tokens: int) -> float:
    """Return a draft's forward, which a profile measured behind one context."""
    return float(steps(num_tokens))


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
