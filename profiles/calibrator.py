"""Calibrates a machine and a pair of models: decides what to measure, in which order, how long, and sums it up.

Every part has a share of the time; sizes come in order, one that would not end within its share is left out, and a law
fitted to the measured ones gives the rest of the grid, flagged. The texts that acceptance is measured on come last and
get all the time that is left. Where weights stream, the passes of a few texts more cost nothing until their computation
shows; but every text of the coolest temperature needs a prompt of its own, which both models read first.
"""

import math
import statistics
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from profiles.acceptance import ForcedPosition, acceptance_tables
from profiles.calibration_probes import CalibrationProbes, CalibrationScope, PairFacts
from profiles.costs import (
    LEAST_SECONDS,
    CostLaw,
    Overlap,
    fill_passes,
    fill_steps,
    fit_costs,
    measure_overlap,
    rate_and_latency,
)
from profiles.errors import BadInputError
from profiles.machine_profile import MachineProfile, TransferSample
from profiles.pair_profile import PairProfile, PassCost, WalkCost
from profiles.steps import relabel

_SAFETY_SECONDS = 1.0
"""Kept back for what comes after the last measurement."""
_TEXTS_MARGIN = 1.2
"""Texts take at most this many times as long as expected."""
_SLOWER = 2.0
"""Writing one more token of each text may take this much longer than with one text of each temperature."""
_JUDGING_SECONDS = 0.01
"""To compute what verification would do at one position, with a large vocabulary."""


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """Both profiles, and what the user should know about them."""

    machine: MachineProfile
    pair: PairProfile
    overlap: Overlap
    """How copies and computation slowed each other."""
    seconds: float
    """From the start of the command to the end."""
    unseen_temperatures: tuple[float, ...] = ()
    """Temperatures that no time was left for."""

    @property
    def doubts(self) -> tuple[str, ...]:
        """Say what is known too roughly to plan from, or not at all, a sentence each."""
        rough = tuple(
            f"only {table.num_positions[0]} positions were seen at temperature {table.temperature:g}, so its "
            "acceptance is rough; calibrate again when the machine is idle, with more prompts or without --quick"
            for table in self.pair.acceptance
            if table.is_rough
        )
        unseen = " and ".join(f"{temperature:g}" for temperature in self.unseen_temperatures)
        sentence = f"no time was left for texts at temperature {unseen}: trees follow the nearest one that was measured"
        return (*rough, f"{sentence}; calibrate again without --quick") if unseen else rough


Returned = TypeVar("Returned")
_Progress = Generator[str, None, Returned]


@dataclass(frozen=True, slots=True)
class TextPlan:
    """How many texts a calibration writes at a time, from what passes and draft steps cost."""

    facts: PairFacts
    scope: CalibrationScope
    target: CostLaw
    draft: CostLaw
    copy_seconds: float
    """Seconds of all copies of a pass, 0 where nothing streams."""

    def split(self, count: int, temperatures: Sequence[float]) -> dict[float, int]:
        """Return texts by temperature where a sampled one gets `count`; a single text is worth the same anywhere."""
        num_greedy = count * self.scope.greedy_per_sampled if count > 1 else 1
        return {temperature: num_greedy if temperature == 0 else count for temperature in temperatures}

    def prompt_seconds(self, texts: Mapping[float, int]) -> float:
        """Return how long the prompts of these texts take to read; texts of all temperatures share them."""
        prompts = self.facts.prompt_tokens
        return self._pass_seconds(prompts[min(max(texts.values()), len(prompts)) - 1])

    def step_seconds(self, texts: Mapping[float, int]) -> float:
        """Return how long one more token of each text takes."""
        rows = sum(texts.values())
        return self._pass_seconds(rows) + _JUDGING_SECONDS * rows

    def most_at_once(self, room_seconds: float, temperatures: Sequence[float]) -> dict[float, int]:
        """Return as many texts as hardly slow a step, or as all get their tokens; prompts may take a third of the room.

        A prediction's error shrinks with the number of texts more than with that of positions.
        """
        least = self.step_seconds(self.split(1, temperatures))

        def is_affordable(count: int) -> bool:
            texts = self.split(count, temperatures)
            prompt_seconds = self.prompt_seconds(texts)
            longest = max(_SLOWER * least, (room_seconds - prompt_seconds) / self.scope.min_text_steps)
            return self.step_seconds(texts) <= longest and prompt_seconds <= room_seconds / 3

        counts = range(1, self.scope.max_texts // self.scope.greedy_per_sampled + 1)
        return self.split(max(filter(is_affordable, counts), default=1), temperatures)

    def most_positions(self, room_seconds: float, temperatures: Sequence[float]) -> tuple[dict[float, int], int]:
        """Return the texts with which most positions are seen in the time, and the fewest positions of a temperature.

        Greedy texts of one prompt are all the same, so that there are no more than prompts. One text of each and no
        position if there is no time for any.
        """

        def num_positions(count: int) -> int:
            texts = self.split(count, temperatures)
            return count * max(0, math.floor((room_seconds - self.prompt_seconds(texts)) / self.step_seconds(texts)))

        most = min(self.scope.max_texts, len(self.facts.prompt_tokens)) // self.scope.greedy_per_sampled
        best = max(range(1, max(1, most) + 1), key=num_positions)
        return self.split(best, temperatures), num_positions(best)

    def _pass_seconds(self, num_tokens: int) -> float:
        return max(self.copy_seconds, self.target(num_tokens)) + self.draft(num_tokens)


@dataclass(slots=True)
class Calibrator:
    """One calibration, with `probes` that measure and a `clock` of which only differences count."""

    probes: CalibrationProbes
    scope: CalibrationScope
    clock: Callable[[], float]
    began: float
    """What the clock showed when the command began."""
    _measuring_since: float = field(init=False, default=0.0)

    def run(self) -> _Progress[CalibrationResult]:
        """Yield what is measured and the time left, and return the result.

        Raises BadInputError if the session has no room for a single token.
        """
        self._measuring_since = self.clock()
        facts, scope = self.probes.pair(), self.scope
        yield self._progress("memory and pin budget")
        machine = self.probes.machine()
        machine = yield from self._transfers(machine)
        steps = yield from self._draft_steps(facts)
        passes = yield from self._passes(facts)
        walks = yield from self._walks(facts)
        overlap = yield from self._overlap(facts, passes)
        plan = TextPlan(facts, scope, fit_costs(passes), fit_costs(steps), overlap.copy_seconds or 0.0)
        positions = yield from self._texts(plan)
        pair = PairProfile(
            device=machine.device,
            target=facts.target,
            draft=facts.draft,
            compute_dtype=facts.compute_dtype,
            measured_at=machine.measured_at,
            draft_steps=tuple(fill_steps(steps, widths=scope.widths)),
            pass_costs=tuple(fill_passes(passes, sizes=scope.tree_sizes, contexts=scope.contexts)),
            walk_costs=tuple(WalkCost(sample.num_tokens, sample.seconds) for sample in walks),
            acceptance=acceptance_tables(positions),
            compute_slowdown=overlap.compute_slowdown or 0.0,
            copy_slowdown=overlap.copy_slowdown or 0.0,
        )
        seen = {table.temperature for table in pair.acceptance}
        unseen = tuple(temperature for temperature in scope.temperatures if temperature not in seen)
        return CalibrationResult(machine, pair, overlap, self.clock() - self.began, unseen)

    @property
    def _deadline(self) -> float:
        return self.began + self.scope.budget_seconds - _SAFETY_SECONDS

    def _progress(self, what: str) -> str:
        return f"{what}; about {max(0.0, self._deadline - self.clock()):.0f} s left"

    def _until(self, share: float) -> float:
        """Return when a part that begins now, with this share of the time, must end; the texts' own share is kept."""
        measuring = max(0.0, self._deadline - self._measuring_since)
        return min(self._deadline - self.scope.texts_share * measuring, self.clock() + share * measuring)

    def _transfers(self, machine: MachineProfile) -> _Progress[MachineProfile]:
        link = yield from self._transfer_samples("copies to the device", self.probes.time_link)
        disk = yield from self._transfer_samples("reads from disk", self.probes.time_disk)
        (link_rate, link_latency), (disk_rate, disk_latency) = rate_and_latency(link), rate_and_latency(disk)
        return replace(
            machine,
            link_bytes_per_second=link_rate,
            link_latency_seconds=link_latency,
            disk_bytes_per_second=disk_rate,
            disk_latency_seconds=disk_latency,
            link_samples=link,
            disk_samples=disk,
        )

    def _transfer_samples(
        self, what: str, time_one: Callable[[int], float | None]
    ) -> _Progress[tuple[TransferSample, ...]]:
        """Return medians by size, as far as the time goes; () where it cannot be measured."""
        samples = list[TransferSample]()
        until = self._until(self.scope.transfers_share)
        for num_bytes in self.scope.transfer_bytes:
            yield self._progress(what)
            expected = samples[-1].seconds * num_bytes / samples[-1].num_bytes if samples else 0.0
            if samples and self.clock() + expected > until:
                break
            seconds = self._median(partial(time_one, num_bytes), until)
            if seconds is None:
                break
            samples.append(TransferSample(num_bytes, seconds))
        return tuple(samples)

    def _draft_steps(self, facts: PairFacts) -> _Progress[list[PassCost]]:
        context = max(0, min(self.scope.step_context_tokens, facts.cache_tokens - self.scope.widths[-1]))
        cells = [(width, context) for width in self.scope.widths if context + width <= facts.cache_tokens]
        until = self._until(self.scope.draft_share)
        return (yield from self._grid("draft steps of {0}", cells, self.probes.time_draft_step, until=until))

    def _passes(self, facts: PairFacts) -> _Progress[list[PassCost]]:
        """Time all sizes behind the first context, then a few behind the others, as far as memory and time go."""
        scope, until = self.scope, self._until(self.scope.passes_share)
        first, *later = [context for context in scope.contexts if _fits(facts, 1, context)] or [0]
        cells = [(size, first) for size in scope.tree_sizes if _fits(facts, size, first)]
        # The farthest context first: attention shows there most, and what lies between is well fitted.
        in_context = [(size, far) for size in scope.sizes_in_context for far in later[::-1] if _fits(facts, size, far)]
        label, time_one = "passes of {0} tokens behind {1}", self.probes.time_pass
        # Two thirds for the sizes: the largest that fits would otherwise leave no time for any context.
        first_until = self.clock() + (until - self.clock()) * 2 / 3
        samples = yield from self._grid(label, cells, time_one, until=first_until)
        return samples + (yield from self._grid(label, in_context, time_one, until=until, known=samples))

    def _walks(self, facts: PairFacts) -> _Progress[list[PassCost]]:
        cells = [(size, 0) for size in self.scope.walk_sizes if _fits(facts, size, 0)]
        until = self._until(self.scope.walks_share)
        return (
            yield from self._grid("walks over {0} nodes", cells, lambda n, _: self.probes.time_walk(n), until=until)
        )

    def _grid(
        self,
        label: str,
        cells: Sequence[tuple[int, int]],
        time_one: Callable[[int, int], float],
        *,
        until: float,
        known: Sequence[PassCost] = (),
    ) -> _Progress[list[PassCost]]:
        """Return medians of the cells (size, context), in order, without those that would not end in time.

        If nothing is known, the first, after a run that warms up, and the one in the middle come first and in any case:
        no law can be fitted to less. A cell is expected to take what the law of those before says, or what the largest
        of them took in proportion, whichever is more.
        """
        samples: list[PassCost] = []
        num_forced = 0 if known else 2
        if not known and cells:
            time_one(*cells[0])
            middle = len(cells) // 2
            cells = list(dict.fromkeys([cells[0], cells[middle], *cells]))
        for size, context in cells:
            before = [*known, *samples]
            if len(samples) >= num_forced:
                largest = max(before, key=lambda sample: sample.num_tokens)
                in_proportion = largest.seconds * min(1.0, size / largest.num_tokens)
                if self.clock() + max(fit_costs(before)(size, context), in_proportion) > until:
                    continue
            yield self._progress(label.format(size, context))
            seconds = self._median(partial(time_one, size, context), until)
            assert seconds is not None, "only copies and reads may be out of reach"
            samples.append(PassCost(size, context, seconds))
        return sorted(samples, key=lambda sample: (sample.context_tokens, sample.num_tokens))

    def _median(self, time_one: Callable[[], float | None], until: float) -> float | None:
        runs = list[float]()
        for seconds in iter(time_one, None):
            runs.append(seconds)
            is_enough = len(runs) == self.scope.max_repeats or sum(runs) >= self.scope.repeat_seconds
            if is_enough or self.clock() + seconds > until:
                return max(statistics.median(runs), LEAST_SECONDS)
        return None

    def _overlap(self, facts: PairFacts, passes: Sequence[PassCost]) -> _Progress[Overlap]:
        if not facts.is_streamed:
            return Overlap()
        until = self._until(self.scope.overlap_share)
        context = min(sample.context_tokens for sample in passes)
        looks = measure_overlap(
            self.probes,
            fit_costs(passes),
            max_tokens=min(facts.max_pass_tokens, facts.cache_tokens - context),
            context_tokens=context,
            num_looks=self.scope.overlap_looks,
            has_time=lambda seconds: self.clock() + seconds <= until,
        )
        return (yield from relabel(looks, self._progress))

    def _texts(self, plan: TextPlan) -> _Progress[list[ForcedPosition]]:
        """Write texts until the time is up, at least one token each, and return their positions.

        Where the time is too short for the positions that each temperature needs, the coolest gets all of it: half of
        what is needed at each would be believed at none.
        """
        temperatures, needed = self.scope.temperatures, self.scope.needed_positions
        room = self._deadline - self.clock()
        texts = plan.most_at_once(room, temperatures)
        if needed:
            texts, num_expected = plan.most_positions(room / _TEXTS_MARGIN, temperatures)
            if num_expected < needed:
                texts, _ = plan.most_positions(room / _TEXTS_MARGIN, temperatures[:1])
        yield self._progress("prompts")
        self.probes.begin_texts(texts)
        positions, longest_step = list[ForcedPosition](), 0.0
        while not positions or self.clock() + longest_step <= self._deadline:
            yield self._progress(f"texts of the target, {len(positions)} positions")
            begun = self.clock()
            grown = self.probes.grow_texts()
            if not grown:
                break
            positions += grown
            longest_step = max(longest_step, self.clock() - begun)
        if not positions:
            raise BadInputError("the context has no room for an answer to a prompt; give a larger --context")
        return positions


def _fits(facts: PairFacts, size: int, context: int) -> bool:
    return size <= facts.max_pass_tokens and size + context <= facts.cache_tokens
