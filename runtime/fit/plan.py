"""Answers `plan`: places the bytes, prices every tree, and tries the formats and machines beside the one asked about.

Pure arithmetic over sizes, rates and acceptance: opens nothing and knows no torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offload.errors import BudgetError
from offload.residency_plan import NUM_STAGES, ResidencyPlan
from offload.units import format_bytes
from profiles.pair_profile import PairProfile
from runtime.config import ACCELERATOR_MAX_NODES, DEFAULT_MAX_NODES
from runtime.errors import OptionError
from runtime.fit.advice import advise
from runtime.fit.machine import Machine
from runtime.fit.need import DraftNeed, MemoryNeed
from runtime.fit.place import place
from runtime.fit.plan_acceptance import PlannedAcceptance, measured_acceptance, planned_acceptance
from runtime.fit.plan_question import PlanQuestion
from runtime.fit.plan_report import PlanOption, PlanReport, Refusal, WhatIf
from runtime.fit.plan_verdict import notes_of, verdicts_of
from runtime.fit.reference_costs import DraftModel, copies_and_reads, reference_costs
from runtime.planner.costs import RoundCosts
from runtime.planner.growth import ContextChances, builtin_chances, choose_growth
from runtime.planner.known_pairs import stored_pairs
from runtime.planner.profile_costs import chances_of, costs_from_profiles
from runtime.planner.tree_choice import CostModel, SearchMethod, TreeChoice, TreeRanking, choose_tree

MAX_LEVELS = 64
"""Of the trees that are searched."""
DP_LEVELS = 32
"""The same for the dynamic program, which takes seconds for more."""
MORE_DEVICE_BYTES = 10**9
"""What more of the device's memory would bring is told for so much."""
FASTER_LINK = 2.0
"""One step up in PCIe: each generation doubles the last."""


def make_plan(question: PlanQuestion, machine: Machine, pairs: Mapping[str, PairProfile] | None = None) -> PlanReport:
    """The whole answer; `pairs` are profiles of the models as they are stored, by how the draft is held.

    Raises:
        BudgetError: what is asked for does not fit the machine; the sentence says what would.
    """
    planning = _Planning(question, machine, pairs or {})
    main = planning.best(question.format_name, search=question.search)
    plain = main if question.is_plain else planning.plain()
    others = tuple(planning.other(name) for name in question.format_names if name != main.format_name)
    accepted = None if main.draft_held is None else planning.acceptance(main.format_name, main.draft_held)
    return PlanReport(
        question=question,
        machine=machine,
        main=main,
        plain=plain,
        others=others,
        what_ifs=tuple(planning.what_ifs(main)),
        acceptance=None if accepted is None else (accepted.basis, accepted.source),
        verdicts=tuple(verdicts_of(question, main, plain, others)),
        notes=tuple(notes_of(question, machine, main)),
    )


def plan_with_profiles(question: PlanQuestion, machine: Machine, *, cache_folder: Path) -> PlanReport:
    """Return the answer of `make_plan` with what was measured of these models on this machine, if anything was.

    Raises:
        BudgetError: what is asked for does not fit the machine; the sentence says what would.
        CheckpointError: a model folder cannot be read.
    """
    pairs, problems = stored_pairs(question, machine.identity, cache_folder=cache_folder)
    return make_plan(replace(question, notes=(*question.notes, *problems)), machine, pairs)


@dataclass(frozen=True, slots=True)
class _Planning:
    """One question and the machine it is asked about."""

    question: PlanQuestion
    machine: Machine
    pairs: Mapping[str, PairProfile]

    def best(self, format_name: str, *, search: SearchMethod = SearchMethod.BEST_FIRST) -> PlanOption:
        """The format with the draft held in the way that plans best. Raises BudgetError."""
        options, problem = [], None
        held_formats: Sequence[str | None] = (None,) if self.question.is_plain else self.question.held_formats
        if format_name == self.question.format_names[0] and self.pairs:
            held_formats = tuple(self.pairs)  # a prediction from measurements is not weighed against one from speeds
        for held in held_formats:
            try:
                options.append(self.option(format_name, held))
            except BudgetError as error:
                problem = error
        if not options:
            assert problem is not None
            raise problem
        best = min(options, key=lambda option: option.seconds_per_token)
        return best if search is SearchMethod.BEST_FIRST else self.option(format_name, best.draft_held, search=search)

    def other(self, format_name: str) -> PlanOption | Refusal:
        """The best of another format, or why there is none."""
        try:
            return self.best(format_name)
        except BudgetError as error:
            return Refusal(format_name, str(error))

    def plain(self) -> PlanOption | Refusal:
        """Without a draft, or why not."""
        try:
            return self.option(self.question.format_name, None)
        except BudgetError as error:
            return Refusal(self.question.format_name, str(error))

    def what_ifs(self, main: PlanOption) -> Iterator[WhatIf]:
        """More device memory, a faster link, and host memory for what is read from disk."""
        if not main.streams:
            return
        for words, changed in _changes(self.machine, main):
            option = replace(self, machine=changed).other(main.format_name)
            if isinstance(option, PlanOption):
                saved = round(1 - option.seconds_per_token / main.seconds_per_token, 9)
                yield WhatIf(words, option.seconds_per_token, saved)

    def option(
        self, format_name: str, held: str | None, *, search: SearchMethod = SearchMethod.BEST_FIRST
    ) -> PlanOption:
        """Place the bytes and price the trees. Raises BudgetError."""
        question = self.question
        need, machine = self._fitting_need(format_name, held)
        placement = place(need, machine)
        if placement.disk_bytes and machine.disk is None:
            raise BudgetError(
                f"{format_bytes(placement.disk_bytes)} of {question.target.name} would be read from disk in every "
                "pass, and how fast was not found out; give --disk, as in 3.5GB/s"
            )
        profile = self._profile(format_name, held)
        costs = self._costs(format_name, held, placement.residency, machine)
        accepted = np.ones(1) if held is None else self.acceptance(format_name, held, search=search).probabilities
        ranking = choose_tree(
            costs,
            accepted,
            max_nodes=need.max_nodes,
            max_levels=min(need.max_nodes, MAX_LEVELS if search is SearchMethod.BEST_FIRST else DP_LEVELS),
            search=search,
            cost=question.cost,
        )
        return PlanOption(
            format_name=format_name,
            draft_held=held,
            placement=placement,
            measured_at=None if profile is None else profile.measured_at,
            num_slots=placement.residency.num_slots,
            is_read_directly=machine.link is None,
            max_nodes=need.max_nodes,
            costs=costs,
            ranking=ranking,
            tree=ranking.best if held is None else self._tree(costs, accepted, ranking, profile),
        )

    def acceptance(
        self, format_name: str, held: str, *, search: SearchMethod = SearchMethod.BEST_FIRST
    ) -> PlannedAcceptance:
        """As measured here, or as planned for where too little was; the dynamic program takes no matrix by depth."""
        profile, temperature = self._profile(format_name, held), self.question.request.temperature
        if profile is None or not profile.believed_acceptance:
            return planned_acceptance(self.question, held)
        return measured_acceptance(profile, temperature, by_depth=search is SearchMethod.BEST_FIRST)

    def _profile(self, format_name: str, held: str | None) -> PairProfile | None:
        """What was measured here with the target as stored; plain passes cost what they cost beside any draft."""
        if format_name != self.question.format_names[0]:
            return None
        return next(iter(self.pairs.values()), None) if held is None else self.pairs.get(held)

    def _costs(self, format_name: str, held: str | None, residency: ResidencyPlan, machine: Machine) -> RoundCosts:
        """A round's costs at half the context, as a session plans them."""
        question, profile = self.question, self._profile(format_name, held)
        if profile is None:
            return reference_costs(
                question.target,
                residency,
                None if held is None else DraftModel(question.draft or question.target, held),
                format_name=format_name,
                context_tokens=question.context_tokens // 2,
                machine=machine,
            )
        copies, reads = copies_and_reads(residency, machine)
        return costs_from_profiles(
            profile,
            copy_seconds=copies,
            num_slots=max(1, residency.num_slots),
            read_seconds=reads,
            num_stages=NUM_STAGES if reads else 0,
            context_tokens=question.context_tokens // 2,
        )

    def _tree(
        self, costs: RoundCosts, accepted: NDArray[np.float64], ranking: TreeRanking, profile: PairProfile | None
    ) -> TreeChoice:
        """The user's tree, or the best."""
        shape = self.question.tree_shape
        if shape is None:
            return self._best(costs, ranking, profile)
        num_nodes, num_levels = shape
        within = choose_tree(costs, accepted, max_nodes=num_nodes, max_levels=num_levels, cost=self.question.cost)
        if self.question.tree_kind == "dynamic":
            grown = choose_growth(costs, self._chances(profile) or self._builtin_chances(), within, shape=shape)
            return grown or ranking.best
        found = within.of_shape(num_nodes, num_levels)
        if found is None:
            raise OptionError(
                f"tree is {num_nodes}x{num_levels}, but with {accepted.shape[-1]} children a node at most no tree of "
                f"{num_levels} levels has so many nodes; give it more levels, or fewer nodes"
            )
        return found

    def _best(self, costs: RoundCosts, ranking: TreeRanking, profile: PairProfile | None) -> TreeChoice:
        """Of static trees, and of dynamic ones where this pair's gain was measured or such trees are wished for."""
        question = self.question
        chances = self._chances(profile)
        if question.tree_kind == "dynamic":
            chances = chances or self._builtin_chances()
        if question.tree_kind == "static" or question.cost is not CostModel.PIPELINE or chances is None:
            return ranking.best
        grown = choose_growth(costs, chances, ranking)
        is_better = grown is not None and grown.seconds_per_token < ranking.best.seconds_per_token
        return grown if grown is not None and (is_better or question.tree_kind == "dynamic") else ranking.best

    def _chances(self, profile: PairProfile | None) -> ContextChances | None:
        return None if profile is None else chances_of(profile, self.question.request.temperature)

    def _builtin_chances(self) -> ContextChances:
        question = self.question
        return builtin_chances(substitute_held=None if question.draft is not None else "int8")

    def _fitting_need(self, format_name: str, held: str | None) -> tuple[MemoryNeed, Machine]:
        """What a session would hold, with room for the largest tree that fits, and the machine to hold it."""
        limit = DEFAULT_MAX_NODES if self.machine.link is None else ACCELERATOR_MAX_NODES
        shape = self.question.tree_shape
        least = 2 if shape is None else shape[0]
        max_nodes = max(limit, least)
        while True:
            need = self._need(format_name, held, max_nodes)
            machine = self.machine.for_layers(need.layers.total_bytes + need.stage_bytes)
            if place(need, machine).can_run:
                return need, machine
            if held is None or max_nodes <= least:
                raise BudgetError(f"{self._subject(format_name, held)}: {advise(need, machine).sentence}")
            max_nodes = max(least, max_nodes // 2)

    def _need(self, format_name: str, held: str | None, max_nodes: int) -> MemoryNeed:
        question, speed = self.question, self.machine.speed
        assert speed is not None
        item_bytes = speed.compute_item_bytes
        draft: DraftNeed | None = None
        if held is not None and question.draft is not None:
            draft = question.draft.as_draft(item_bytes, held=held)
        elif held is not None:
            draft = question.target.as_substitute(item_bytes, held=held)
        need = question.target.need(
            draft, context_tokens=question.context_tokens, max_nodes=max_nodes, compute_item_bytes=item_bytes
        )
        if question.target_folder is not None:
            need = replace(need, file_bytes=0)
        return need.in_format(format_name)

    def _subject(self, format_name: str, held: str | None) -> str:
        question = self.question
        with_draft = "" if held is None else f" with draft {question.draft_name} ({held})"
        return f"{question.target.name} in {format_name}{with_draft} does not fit {self.machine.name}"


def _changes(machine: Machine, main: PlanOption) -> Iterator[tuple[str, Machine]]:
    """(words, machine) of what could be bought."""
    is_cpu, more = machine.link is None, format_bytes(MORE_DEVICE_BYTES)
    kind = "memory" if is_cpu else "device memory"
    if machine.device_budget_bytes != 0:  # --device-memory min takes no more, whatever there is
        yield f"{more} more {kind}", machine.with_more_device_memory(MORE_DEVICE_BYTES)
    generation = machine.pcie_generation
    faster = "a disk twice as fast" if is_cpu else "a link twice as fast (one PCIe generation)"
    if generation is not None:
        faster = f"PCIe {generation + 1}.0 instead of {generation}.0"
    yield faster, machine.with_faster_link(FASTER_LINK)
    if main.placement.disk_bytes and not is_cpu:
        missing = main.placement.disk_bytes
        yield f"{format_bytes(missing)} more host memory (no disk)", machine.with_more_host_memory(missing)
