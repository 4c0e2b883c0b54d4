"""Chooses how much of a prompt one pass computes: as much as hides the stream of the weights behind the computation.

The stream of a pass takes as long as it takes, the computation grows with the tokens, and both run at once. A longer
pass than one that computes for so long brings nothing, and is lost as a whole where somebody stops it.
"""

import statistics
from collections import deque
from dataclasses import dataclass

from offload.pass_statistics import PassStatistics
from runtime.planner.costs import RoundCosts

COVER = 4.0
"""Times the stream's seconds that a pass over a prompt should compute.

At 1 they would end together, if both were as they are believed to be; at 4 either may be off by a factor of two. A
longer pass takes no longer for its tokens, and hardly more memory; it is only lost as a whole where somebody stops it.
"""
NUM_KEPT = 8
"""Latest passes over prompts that speak for the next one."""


@dataclass(frozen=True, slots=True)
class PassWidths:
    """How many tokens a layer computes at once."""

    slice_tokens: int
    """Of a prompt."""
    widest_tokens: int
    """Of the last slice, which holds the tree as well; what the activations of a pass are counted for."""

    def bounds(self, num_tokens: int, *, num_wanted: int) -> list[tuple[int, int]]:
        """Return (start, stop) of each slice of a pass whose last `num_wanted` tokens are the nodes of a tree.

        The first of these, the root, ends the text; what comes before the last slice is text alone.
        """
        num_text, start, bounds = num_tokens - num_wanted + 1, 0, []
        while start < num_text and (num_text - start > self.slice_tokens or num_tokens - start > self.widest_tokens):
            stop = min(start + self.slice_tokens, num_text)
            bounds.append((start, stop))
            start = stop
        return [*bounds, (start, num_tokens)] if start < num_tokens else bounds


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
        self._read: deque[float] = deque(maxlen=NUM_KEPT)
        """Seconds in which a draft read a token."""

    def observe(self, num_tokens: int, done: PassStatistics) -> None:
        """Learn from a pass of `num_tokens` tokens; short ones say more about weights than about tokens.

        Nor does one count that waited for layers that were still being loaded.
        """
        if num_tokens >= self.slice_tokens and not done.is_loading:
            stream_seconds = max(done.link_busy_seconds, done.disk_busy_seconds)
            self._seen.append((done.compute_seconds / num_tokens, stream_seconds))

    def observe_reading(self, num_tokens: int, seconds: float) -> None:
        """Learn how long the draft read a prompt along."""
        if num_tokens >= self.slice_tokens:
            self._read.append(seconds / num_tokens)

    def expected_seconds(self, num_left: int, costs: RoundCosts | None, *, draft_seconds: float = 0.0) -> float | None:
        """Return what the passes over `num_left` tokens will take, with a draft's reading and its first tree.

        None where nothing is known. `draft_seconds` are those of the tree.
        """
        passes = self.pass_seconds(num_left, costs)
        return None if passes is None else passes + draft_seconds + (self.reading_seconds(num_left) or 0.0)

    def reading_seconds(self, num_tokens: int) -> float | None:
        """Return what a draft takes to read so many tokens along; None where it has read none yet."""
        return num_tokens * statistics.median(self._read) if self._read else None

    def pass_seconds(self, num_left: int, costs: RoundCosts | None) -> float | None:
        """Return what the target's passes over `num_left` tokens will take; None where nothing is known."""
        known = self._known(costs)
        if known is None:
            return None
        token_seconds, stream_seconds = known
        total = 0.0
        while num_left:
            num_tokens = self.next_tokens(num_left, costs)
            total += max(stream_seconds, num_tokens * token_seconds)
            num_left -= num_tokens
        return total

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
        known = self._known(costs)
        if known is None:
            return self._first_tokens
        token_seconds, stream_seconds = known
        if token_seconds <= 0:
            return self.most_tokens
        wanted = COVER * stream_seconds / token_seconds
        num_slices = -int(-min(wanted, self.most_tokens) // self.slice_tokens)
        return min(max(1, num_slices) * self.slice_tokens, self.most_tokens)

    def _known(self, costs: RoundCosts | None) -> tuple[float, float] | None:
        """Return the seconds that a token computes and a stream takes: as measured, else by the costs of rounds."""
        if self._seen:
            return statistics.median(token for token, _ in self._seen), statistics.median(way for _, way in self._seen)
        if costs is None:
            return None
        return float(costs.pass_seconds(self.slice_tokens)) / self.slice_tokens, stream_seconds_of(costs)


def stream_seconds_of(costs: RoundCosts) -> float:
    """Return what a pass waits for if it computes nothing: the link or the disk, whichever is the slower one."""
    return max(sum(filter(None, costs.copy_seconds)), sum(filter(None, costs.read_seconds)))
