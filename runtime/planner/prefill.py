"""Chooses how much of a prompt one pass computes: as much as hides the stream of the weights behind the computation.

The stream of a pass takes as long as it takes, the computation grows with the tokens, and both run at once. A longer
pass than one that computes for so long brings nothing, and is lost as a whole where somebody stops it.
"""

import statistics
from collections import deque

from offload.pass_statistics import PassStatistics
from runtime.planner.costs import RoundCosts

COVER = 2.0
"""Times the stream's seconds that a pass over a prompt should compute.

At 1 they would end together, if computation and stream were as they are believed to be and never waited for each other;
twice as long a pass costs nothing but the sight of its end.
"""
NUM_KEPT = 8
"""Latest passes over prompts that speak for the next one."""


class PrefillPlanner:
    """Learns what passes over prompts cost, and cuts prompts into passes."""

    def __init__(self, *, slice_tokens: int, most_tokens: int, first_tokens: int, is_streamed: bool) -> None:
        """Take the bounds of a pass, in prompt tokens.

        Args:
            slice_tokens: what a layer computes at once; no pass but the last of a prompt is shorter.
            most_tokens: what there is memory for.
            first_tokens: of the first pass, before anything is known.
            is_streamed: whether any layer streams; else every pass is a slice.
        """
        self.slice_tokens = slice_tokens
        self.most_tokens = max(slice_tokens, most_tokens)
        self._first_tokens = min(max(slice_tokens, first_tokens), self.most_tokens)
        self._is_streamed = is_streamed
        self._seen: deque[tuple[float, float]] = deque(maxlen=NUM_KEPT)
        """Seconds that a token computes, and that a stream takes."""

    def observe(self, num_tokens: int, done: PassStatistics) -> None:
        """Learn from a pass of `num_tokens` tokens; short ones say more about weights than about tokens."""
        if num_tokens >= self.slice_tokens and self._is_streamed:
            stream_seconds = max(done.link_busy_seconds, done.disk_busy_seconds)
            self._seen.append((done.compute_seconds / num_tokens, stream_seconds))

    def next_tokens(self, num_left: int, costs: RoundCosts | None) -> int:
        """Return how many of the prompt's last `num_left` tokens the next pass computes: all of them, if it ends it.

        `costs` of rounds, where they are known, serve until passes over prompts were measured. The passes that are left
        are about equally long, so that none of them waits for its weights.
        """
        chunk = self.chunk_tokens(costs)
        num_passes = max(1, num_left // chunk, -(-num_left // self.most_tokens))
        if num_passes == 1:
            return num_left
        if not self._is_streamed:
            return self.slice_tokens
        num_slices = max(1, round(num_left / (num_passes * self.slice_tokens)))
        return min(num_slices * self.slice_tokens, self.most_tokens)

    def chunk_tokens(self, costs: RoundCosts | None = None) -> int:
        """Return the least tokens of a pass that compute COVER times as long as its stream takes, as far as allowed."""
        if not self._is_streamed:
            return self.slice_tokens
        if self._seen:
            token_seconds, stream_seconds = (statistics.median(values) for values in zip(*self._seen, strict=True))
        elif costs is not None:
            token_seconds = float(costs.pass_seconds(self.slice_tokens)) / self.slice_tokens
            stream_seconds = stream_seconds_of(costs)
        else:
            return self._first_tokens
        if token_seconds <= 0:
            return self.most_tokens
        wanted = COVER * stream_seconds / token_seconds
        num_slices = -int(-min(wanted, self.most_tokens) // self.slice_tokens)
        return min(max(1, num_slices) * self.slice_tokens, self.most_tokens)


def stream_seconds_of(costs: RoundCosts) -> float:
    """Return what a pass waits for if it computes nothing: the link or the disk, whichever is the slower one."""
    return max(sum(filter(None, costs.copy_seconds)), sum(filter(None, costs.read_seconds)))
