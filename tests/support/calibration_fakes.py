"""A machine and a pair of models that cost what laws say, on a clock of their own, for the calibrator's tests."""

from collections.abc import Mapping, Sequence

import numpy as np

from profiles.acceptance import ForcedPosition
from profiles.calibration_probes import PairFacts
from profiles.costs import CostLaw
from profiles.machine_profile import MachineProfile
from tests.support.fakes import VirtualClock
from tests.support.profile_factory import PAIR, machine_profile

LINK_BYTES_PER_SECOND, DISK_BYTES_PER_SECOND = 20e9, 1.5e9
LATENCY_SECONDS = 1e-4
PASS_LAW = CostLaw(base_seconds=0.35, token_seconds=0.02, attention_seconds=5e-7)
STEP_LAW = CostLaw(base_seconds=0.05, token_seconds=0.005, attention_seconds=0.0)
WALK_LAW = CostLaw(base_seconds=0.05, token_seconds=0.0002, attention_seconds=0.0)
COPY_SECONDS, COPY_SLOWDOWN, COMPUTE_SLOWDOWN = 1.6, 0.3, 0.2


class LawfulProbes:
    """See CalibrationProbes; everything takes its time on `clock`, `slower` times as long as the laws say."""

    def __init__(
        self, clock: VirtualClock, *, slower: float = 1.0, is_streamed: bool = True, num_steps: int = 1 << 30
    ) -> None:
        self.clock = clock
        self.slower = slower
        self.is_streamed = is_streamed
        self.has_pinned_memory = True
        self.num_steps = num_steps
        self.cells: list[tuple[int, int]] = []
        self.num_texts: Mapping[float, int] = {}
        self.max_pass_tokens, self.cache_tokens = 256, 2304

    def take(self, seconds: float) -> float:
        self.clock.now += seconds * self.slower
        return seconds * self.slower

    def machine(self) -> MachineProfile:
        return machine_profile()

    def pair(self) -> PairFacts:
        return PairFacts(
            target=PAIR.target,
            draft=PAIR.draft,
            compute_dtype="float32",
            max_pass_tokens=self.max_pass_tokens,
            cache_tokens=self.cache_tokens,
            context_tokens=2048,
            prompt_tokens=tuple(30 + 20 * count for count in range(16)),
            is_streamed=self.is_streamed,
        )

    def time_link(self, num_bytes: int) -> float | None:
        if not self.has_pinned_memory:
            return None
        return self.take(LATENCY_SECONDS + num_bytes / LINK_BYTES_PER_SECOND)

    def time_disk(self, num_bytes: int) -> float | None:
        return self.take(LATENCY_SECONDS + num_bytes / DISK_BYTES_PER_SECOND)

    def time_draft_step(self, width: int, context_tokens: int) -> float:
        return self.take(STEP_LAW(width, context_tokens))

    def time_pass(self, num_tokens: int, context_tokens: int) -> float:
        self.cells.append((num_tokens, context_tokens))
        return self.take(PASS_LAW(num_tokens, context_tokens))

    def time_walk(self, num_nodes: int) -> float:
        return self.take(WALK_LAW(num_nodes))

    def time_copies(self) -> float:
        assert self.is_streamed
        return self.take(COPY_SECONDS)

    def time_streamed_pass(self, num_tokens: int, context_tokens: int) -> tuple[float, float]:
        computing = PASS_LAW(num_tokens, context_tokens)
        taken = self.take(max(COPY_SECONDS + COPY_SLOWDOWN * computing, computing + COMPUTE_SLOWDOWN * COPY_SECONDS))
        return taken, taken

    def begin_texts(self, num_texts: Mapping[float, int]) -> None:
        self.num_texts = num_texts
        num_prompts = min(max(num_texts.values()), len(self.pair().prompt_tokens))
        self.take(max(COPY_SECONDS, PASS_LAW(self.pair().prompt_tokens[num_prompts - 1])))

    def grow_texts(self) -> Sequence[ForcedPosition]:
        if self.num_steps == 0:
            return []
        self.num_steps -= 1
        rows = sum(self.num_texts.values())
        self.take(max(COPY_SECONDS, PASS_LAW(rows)) + STEP_LAW(rows))
        return [
            ForcedPosition(temperature, 100 * index + number, np.array([0.8, 0.1]), np.array([0.8, 0.1]))
            for index, (temperature, count) in enumerate(self.num_texts.items())
            for number in range(count)
        ]
