"""Calibrates a machine and a pair of models: what to measure, in which order, for how long, and how to summarise it.

Every part has a share of the time; sizes come in order, one that would not end within its share is left out, and a law
fitted to the measured ones gives the rest of the grid, flagged. The texts that acceptance is measured on come last and
get all the time that is left. Is handed probes and a clock; knows no torch, no file and no terminal.
"""

import statistics
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial

from profiles.acceptance import AcceptanceSummary
from profiles.calibration_probes import CalibrationProbes, CalibrationScope, MachineFacts, PairFacts
from profiles.cost_fit import CostSample, fill_passes, fill_steps, fit_costs, rate_and_latency
from profiles.errors import BadInputError
from profiles.machine_profile import MachineProfile, TransferSample
from profiles.pair_profile import PairProfile, WalkCost
from profiles.slowdown import Overlap, OverlapLimits, measure_overlap
from profiles.steps import relabel
from profiles.text_plan import TextPlan

_SAFETY_SECONDS = 1.0
"""Kept back for what comes after the last measurement."""
_TEXTS_MARGIN = 1.2
"""Texts take at most so many times what they are expected to."""
_MAX_TRANSFERS = 32
"""Runs of one size of copy or read."""


@dataclass(frozen=True, slots=True)
class CalibrationProgress:
    """What is being measured now."""

    what: str
    """In a few words."""
    done_seconds: float
    """Since the command began."""
    left_seconds: float
    """Until it ends, as planned."""


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """Both profiles, and what the user should know about them."""

    machine: MachineProfile
    """Facts about the machine."""
    pair: PairProfile
    """Facts about the pair on it."""
    num_texts: int
    """Texts that the target wrote."""
    overlap: Overlap | None
    """How copies and computation slowed each other; None where nothing streams."""
    seconds: float
    """Of all, from the start of the command."""
    unseen_temperatures: tuple[float, ...] = ()
    """Those that no time was left for."""

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is known too roughly to plan from, or not at all, a sentence each."""
        rough = tuple(
            f"only {table.num_positions[0]} positions were seen at temperature {table.temperature:g}, so its "
            "acceptance is rough; calibrate again when the machine is idle, with more prompts or without --quick"
            for table in self.pair.acceptance
            if table.is_rough
        )
        unseen = " and ".join(f"{temperature:g}" for temperature in self.unseen_temperatures)
        sentence = f"no time was left for texts at temperature {unseen}: trees follow the nearest one that was measured"
        return (*rough, f"{sentence}; calibrate again without --quick") if unseen else rough


_Progress = Generator[CalibrationProgress, None, list[CostSample]]


@dataclass(slots=True)
class Calibrator:
    """One calibration; iterate over `run`."""

    probes: CalibrationProbes
    """What it measures with."""
    scope: CalibrationScope
    """How far it goes."""
    clock: Callable[[], float]
    """Seconds; only differences count."""
    began: float
    """What the clock showed when the command began."""
    today: date
    """The day that the profiles are dated."""
    _measuring_since: float = field(init=False, default=0.0)

    def run(self) -> Iterator[CalibrationProgress | CalibrationResult]:
        """Yield progress, and last the result. Raises BadInputError if the session has no room for a single token."""
        self._measuring_since = self.clock()
        facts = self.probes.pair()
        yield self._progress("memory and pin budget")
        machine = self.probes.machine()
        link = yield from self._transfers("copies to the device", self.probes.time_link)
        disk = yield from self._transfers("reads from disk", self.probes.time_disk)
        steps = yield from self._draft_steps(facts)
        passes = yield from self._passes(facts)
        walks = yield from self._walks(facts)
        overlap = yield from self._overlap(facts, passes)
        summary = AcceptanceSummary()
        copy_seconds = 0.0 if overlap is None else overlap.copy_seconds
        scope = self.scope
        plan = TextPlan(
            facts,
            target=fit_costs(passes),
            draft=fit_costs(steps),
            copy_seconds=copy_seconds,
            max_texts=scope.max_texts,
            greedy_per_sampled=scope.greedy_per_sampled,
            min_text_steps=scope.min_text_steps,
        )
        num_texts = yield from self._texts(summary, plan)
        pair = PairProfile(
            device=machine.device,
            target=facts.target,
            draft=facts.draft,
            compute_dtype=facts.compute_dtype,
            measured_at=self.today,
            draft_steps=tuple(fill_steps(steps, widths=scope.widths)),
            pass_costs=tuple(fill_passes(passes, sizes=scope.tree_sizes, contexts=scope.contexts)),
            walk_costs=tuple(WalkCost(sample.num_tokens, sample.seconds) for sample in walks),
            acceptance=tuple(summary.table(temperature) for temperature in summary.temperatures),
            compute_slowdown=0.0 if overlap is None else overlap.compute_slowdown or 0.0,
            copy_slowdown=0.0 if overlap is None else overlap.copy_slowdown or 0.0,
        )
        profile = _machine_profile(machine, link, disk, self.today)
        unseen = tuple(sorted(set(scope.temperatures) - set(summary.temperatures)))
        yield CalibrationResult(profile, pair, num_texts, overlap, self.clock() - self.began, unseen)

    @property
    def _deadline(self) -> float:
        return self.began + self.scope.budget_seconds - _SAFETY_SECONDS

    def _progress(self, what: str) -> CalibrationProgress:
        now = self.clock()
        return CalibrationProgress(what, now - self.began, max(0.0, self._deadline - now))

    def _until(self, share: float) -> float:
        """When a part with this share of the measuring time ends that begins now; the texts' own share is kept."""
        measuring = max(0.0, self._deadline - self._measuring_since)
        return min(self._deadline - self.scope.texts_share * measuring, self.clock() + share * measuring)

    def _transfers(
        self, what: str, time_one: Callable[[int], float | None]
    ) -> Generator[CalibrationProgress, None, tuple[TransferSample, ...]]:
        """Medians by size, as far as the time goes; () where it cannot be measured."""
        sizes, samples = self.scope.transfer_bytes, list[TransferSample]()
        until = self._until(self.scope.transfers_share)
        seconds_each = (until - self.clock()) / len(sizes)
        for num_bytes in sizes:
            yield self._progress(what)
            expected = samples[-1].seconds * num_bytes / samples[-1].num_bytes if samples else 0.0
            if samples and self.clock() + expected > until:
                break
            runs, begun = list[float](), self.clock()
            while len(runs) < _MAX_TRANSFERS:
                spent = self.clock() - begun
                if runs and spent + spent / len(runs) > seconds_each:
                    break
                if (seconds := time_one(num_bytes)) is None:
                    return tuple(samples)
                runs.append(seconds)
            samples.append(TransferSample(num_bytes, statistics.median(runs)))
        return tuple(samples)

    def _draft_steps(self, facts: PairFacts) -> _Progress:
        context = max(0, min(self.scope.step_context_tokens, facts.cache_tokens - self.scope.widths[-1]))
        cells = [(width, context) for width in self.scope.widths if context + width <= facts.cache_tokens]
        until = self._until(self.scope.draft_share)
        return (yield from self._grid("draft steps of {0}", cells, self.probes.time_draft_step, until=until))

    def _passes(self, facts: PairFacts) -> _Progress:
        """All sizes behind the first context, then a few behind the others, as far as memory and time go."""
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

    def _walks(self, facts: PairFacts) -> _Progress:
        cells = [(size, 0) for size in self.scope.walk_sizes if _fits(facts, size, 0)]
        until = self._until(self.scope.walks_share)
        return (yield from self._grid("walks over {0} nodes", cells, self._time_walk, until=until))

    def _time_walk(self, num_nodes: int, context_tokens: int) -> float:
        return self.probes.time_walk(num_nodes)

    def _grid(
        self,
        label: str,
        cells: Sequence[tuple[int, int]],
        time_one: Callable[[int, int], float],
        *,
        until: float,
        known: Sequence[CostSample] = (),
    ) -> _Progress:
        """Medians of the cells (size, context), in order, without those that would not end in time.

        If nothing is known, the first, after a run that warms up, and the one in the middle come first and in any case:
        no law can be fitted to less. A cell is expected to take what the law of those before says, or what the largest
        of them took in proportion, whichever is more.
        """
        samples: list[CostSample] = []
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
            samples.append(CostSample(size, context, self._median(partial(time_one, size, context), until)))
        return sorted(samples, key=lambda sample: (sample.context_tokens, sample.num_tokens))

    def _median(self, time_one: Callable[[], float], until: float) -> float:
        """Median of a few runs: more of quick ones, one of those that take long."""
        runs = [time_one()]
        while len(runs) < self.scope.max_repeats and sum(runs) < self.scope.repeat_seconds:
            if self.clock() + runs[-1] > until:
                break
            runs.append(time_one())
        return statistics.median(runs)

    def _overlap(
        self, facts: PairFacts, passes: Sequence[CostSample]
    ) -> Generator[CalibrationProgress, None, Overlap | None]:
        if not facts.is_streamed:
            return None
        until = self._until(self.scope.overlap_share)
        context = min(sample.context_tokens for sample in passes)
        limits = OverlapLimits(
            max_tokens=min(facts.max_pass_tokens, facts.cache_tokens - context),
            context_tokens=context,
            num_looks=self.scope.overlap_looks,
            has_time=lambda seconds: self.clock() + seconds <= until,
        )
        looks = measure_overlap(self.probes, fit_costs(passes), limits)
        return (yield from relabel(looks, self._progress))

    def _texts(self, summary: AcceptanceSummary, plan: TextPlan) -> Generator[CalibrationProgress, None, int]:
        """Write texts until the time is up, at least one token each; returns how many were begun.

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
        seen: set[tuple[float, int]] = set()
        num_positions, longest_step = 0, 0.0
        while num_positions == 0 or self.clock() + longest_step <= self._deadline:
            yield self._progress(f"texts of the target, {num_positions} positions")
            begun = self.clock()
            positions = self.probes.grow_texts()
            if not positions:
                break
            for position in positions:
                summary.add(position)
                seen.add((position.temperature, position.text))
            num_positions += len(positions)
            longest_step = max(longest_step, self.clock() - begun)
        if not num_positions:
            raise BadInputError("the context has no room for an answer to a prompt; give a larger --context")
        return len(seen)


def _fits(facts: PairFacts, size: int, context: int) -> bool:
    return size <= facts.max_pass_tokens and size + context <= facts.cache_tokens


def _machine_profile(
    facts: MachineFacts, link: Sequence[TransferSample], disk: Sequence[TransferSample], today: date
) -> MachineProfile:
    link_rate, link_latency = _rate(link)
    disk_rate, disk_latency = _rate(disk)
    return MachineProfile(
        device=facts.device,
        device_memory_bytes=facts.device_memory_bytes,
        host_memory_bytes=facts.host_memory_bytes,
        pin_budget_bytes=facts.pin_budget_bytes,
        pin_budget_source=facts.pin_budget_source,
        measured_at=today,
        link_bytes_per_second=link_rate,
        link_latency_seconds=link_latency,
        disk_bytes_per_second=disk_rate,
        disk_latency_seconds=disk_latency,
        link_samples=tuple(link),
        disk_samples=tuple(disk),
    )


def _rate(samples: Sequence[TransferSample]) -> tuple[float, float] | tuple[None, None]:
    return rate_and_latency([(item.num_bytes, item.seconds) for item in samples]) if samples else (None, None)
