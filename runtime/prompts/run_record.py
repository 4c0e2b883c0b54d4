"""What a run over a prompt file did, gathered from its events in bounded memory: for a report of hours or of days.

Time is cut into bins, of which there are never more than MOST_BINS: where a run outgrows them each pair becomes one.
Events that the passes of many texts share are counted once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappush, heappushpop

from offload.pass_statistics import PassStatistics
from runtime.config import MAX_TREE_LEVELS
from runtime.events import Finished, GenerationStatistics, Round
from runtime.prompts.headless import HeadlessEvent, PromptEvent, PromptResult

MOST_BINS = 240
FIRST_BIN_SECONDS = 0.25
MOST_SLOWEST, MOST_FAILED = 10, 100
LONGEST_TEXT = 500
"""Characters that are kept of an id, or of what is said of a prompt that failed."""


@dataclass(slots=True)
class Bin:
    """What happened within one stretch of time."""

    num_tokens: int = 0
    """Emitted, the few behind an answer's end included."""
    num_passes: int = 0
    link_bytes: int = 0
    link_seconds: float = 0.0
    """With a copy in flight, of the passes that ended in it."""
    num_answer_tokens: int = 0
    """Of the answers that ended in it."""
    num_results: int = 0

    def add(self, other: "Bin") -> None:
        """Take in what happened in another stretch."""
        self.num_tokens += other.num_tokens
        self.num_passes += other.num_passes
        self.link_bytes += other.link_bytes
        self.link_seconds += other.link_seconds
        self.num_answer_tokens += other.num_answer_tokens
        self.num_results += other.num_results


@dataclass(slots=True)
class Depth:
    """How often a node of one depth was accepted, of those that the draft proposed."""

    num_tried: int = 0
    """Accepted nodes that had children of the draft's."""
    num_accepted: int = 0
    """Of them, those one of whose children was accepted."""


@dataclass(frozen=True, slots=True, order=True)
class SlowPrompt:
    """An answer that took long."""

    seconds: float
    """From its start to its end, beside others where passes were shared."""
    id: str
    line_number: int
    prompt_tokens: int
    new_tokens: int
    prefill_seconds: float


@dataclass(slots=True)
class RunRecord:
    """The sums of a run, brought up to date with each of its events."""

    clock: Callable[[], float] = time.monotonic
    bins: list[Bin] = field(default_factory=list)
    bin_seconds: float = FIRST_BIN_SECONDS
    """Length of each."""
    depths: list[Depth] = field(default_factory=list)
    """The draft's children of the root first."""
    slowest: list[SlowPrompt] = field(default_factory=list)
    """A heap of the slowest answers."""
    failed: list[tuple[str, int, str]] = field(default_factory=list)
    """(id, line, why) of the first that have no answer."""
    num_failed: int = 0
    num_answered: int = 0
    total: GenerationStatistics = field(default_factory=lambda: GenerationStatistics.total(()))
    """Of all answers."""
    finish_reasons: dict[str, int] = field(default_factory=dict)
    num_tokens: int = 0
    """That rounds emitted."""
    num_rounds: int = 0
    """Of single texts; several share a pass."""
    num_passes: int = 0
    num_loading: int = 0
    """Of them, passes that waited for layers which were still being loaded."""
    pass_seconds: float = 0.0
    draft_seconds: float = 0.0
    round_seconds: float = 0.0
    """Of the passes with rounds, drafting included."""
    link_bytes: int = 0
    link_seconds: float = 0.0
    num_nodes: int = 0
    """Of all trees that were verified."""
    num_grafted: int = 0
    begun: float | None = None
    latest: float = 0.0
    _last_pass: PassStatistics | None = None

    @property
    def seconds(self) -> float:
        """Return the time from the first event to the last."""
        return 0.0 if self.begun is None else self.latest - self.begun

    def observe(self, event: HeadlessEvent) -> None:
        """Take in one event of `run_prompts`, or a result alone."""
        now = self.clock()
        self.begun = now if self.begun is None else self.begun
        self.latest = now
        if isinstance(event, PromptEvent) and isinstance(event.event, Round):
            self._observe_round(event.event)
        elif isinstance(event, PromptResult):
            self._observe_result(event)

    def _bin(self) -> Bin:
        """Return the bin of the latest event."""
        place = int(self.seconds / self.bin_seconds)
        while place >= MOST_BINS:
            self._halve()
            place = int(self.seconds / self.bin_seconds)
        while len(self.bins) <= place:
            self.bins.append(Bin())
        return self.bins[place]

    def _halve(self) -> None:
        for first, second in zip(self.bins[::2], self.bins[1::2], strict=False):
            first.add(second)
        self.bins = self.bins[::2]
        self.bin_seconds *= 2

    def _observe_round(self, done: Round) -> None:
        found = self._bin()
        found.num_tokens += done.num_emitted
        self.num_tokens += done.num_emitted
        self.num_rounds += 1
        self.num_nodes += done.num_nodes
        self.num_grafted += done.num_grafted
        for depth, (rank, num_children) in enumerate(zip(done.accepted_ranks, done.num_children, strict=True)):
            if depth < MAX_TREE_LEVELS and num_children:
                while len(self.depths) <= depth:
                    self.depths.append(Depth())
                self.depths[depth].num_tried += 1
                self.depths[depth].num_accepted += rank > 0
        if done.pass_statistics is not self._last_pass:  # one for all texts
            self._last_pass = done.pass_statistics
            self._observe_pass(done, found)

    def _observe_pass(self, done: Round, found: Bin) -> None:
        of_pass = done.pass_statistics
        found.num_passes += 1
        found.link_bytes += of_pass.link_bytes
        found.link_seconds += of_pass.link_busy_seconds
        self.num_passes += 1
        self.num_loading += of_pass.is_loading
        self.pass_seconds += of_pass.seconds
        self.draft_seconds += done.draft_seconds
        self.round_seconds += done.seconds
        self.link_bytes += of_pass.link_bytes
        self.link_seconds += of_pass.link_busy_seconds

    def _observe_result(self, result: PromptResult) -> None:
        self._bin().num_results += 1
        if result.finished is None:
            self.num_failed += 1
            if len(self.failed) < MOST_FAILED:
                self.failed.append((_short(result.id), result.line_number, _short(result.error or "")))
            return
        self._observe_answer(result, result.finished)

    def _observe_answer(self, result: PromptResult, finished: Finished) -> None:
        costs, reason = finished.statistics, finished.finish_reason
        self.num_answered += 1
        self._bin().num_answer_tokens += costs.new_tokens
        self.total = GenerationStatistics.total((self.total, costs))
        self.finish_reasons[reason] = self.finish_reasons.get(reason, 0) + 1
        slow = SlowPrompt(
            seconds=costs.prefill_seconds + costs.decode_seconds,
            id=_short(result.id),
            line_number=result.line_number,
            prompt_tokens=costs.prompt_tokens,
            new_tokens=costs.new_tokens,
            prefill_seconds=costs.prefill_seconds,
        )
        if len(self.slowest) < MOST_SLOWEST:
            heappush(self.slowest, slow)
        else:
            heappushpop(self.slowest, slow)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"
