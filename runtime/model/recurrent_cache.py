"""What a recurrent layer (Gated DeltaNet) keeps of texts: a state each, and the tokens that may still be taken back.

A state holds the tokens before its `base`, and no token can be taken out of it. Those behind the base lie in a stash of
rows, which all that a state takes of a token follows from: accepted ones are kept, others dropped, and the next pass
folds what has become certain text into the state. Further back only copies of earlier states lead, the marks, in host
memory. What a lane holds is a value that nothing changes: a pass makes another one, which counts once it has succeeded.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from runtime.model.gated_delta import Paths
from runtime.model.pass_shapes import MARK_TOKENS, MARKS_OF_PASS, MOST_MARKS
from runtime.model.upload import upload

BORDER_TOKENS = 16
"""Of a prompt that is read, behind which a mark is worth its copy: what follows may be asked for anew."""
_KEPT_BORDERS = 2
"""The last so many marks at ends of prompts stay, whatever lies around them: most of what is asked again is there."""


@dataclass(frozen=True, slots=True)
class RecurrentShape:
    """What one recurrent layer keeps of a text, and of each token in the stash."""

    state: tuple[int, int, int]
    """(Hv, Dk, Dv): heads, and the widths of keys and values."""
    num_channels: int
    """C: of the convolution, queries, keys and values of all heads together."""
    window: int
    """Tokens that the convolution sees, the token itself included."""

    @property
    def num_key_heads(self) -> int:
        """Hk: heads of queries and keys."""
        num_heads, key_width, value_width = self.state
        return (self.num_channels - num_heads * value_width) // (2 * key_width)

    def state_bytes(self, item_bytes: int) -> int:
        """Return the bytes of a text's state and of the tail beside it, whose numbers have so many each."""
        return 4 * math.prod(self.state) + (self.window - 1) * self.num_channels * item_bytes


@dataclass(frozen=True, slots=True, eq=False)
class PiecePaths:
    """How recurrent layers compute a piece of one text, all of them alike."""

    lane: int
    tokens: slice
    """Of the slice of the pass that is computed."""
    num_folded: int
    """Of the tokens behind the base, in the stash or new, how many become part of the state: the first ones."""
    paths: Paths
    """Of the tokens behind these, in the stash or new."""
    source: tuple[int, int] | None = None
    """(lane, tokens): whose beginning this lane begins with in this piece, if it is not its own."""
    is_marked: bool = False
    """Whether the state behind it is kept as a mark."""
    is_border: bool = False
    """Whether a prompt ends with it."""
    _windows: dict[int, torch.Tensor] = field(default_factory=dict, init=False)

    def windows(self, width: int) -> torch.Tensor:
        """Return `Paths.windows` of its paths, which are the same in all layers."""
        if width not in self._windows:
            self._windows[width] = self.paths.windows(width)
        return self._windows[width]


@dataclass(frozen=True, slots=True, eq=False)
class RecurrentTensors:
    """The numbers of a text in one layer."""

    state: torch.Tensor
    """(Hv, Dk, Dv) float32."""
    tail: torch.Tensor
    """(window - 1, C): what the tokens before the base gave the convolution."""
    rows: torch.Tensor
    """(R, C): the same of the tokens behind it."""
    log_decay: torch.Tensor
    """(R, Hv) float32."""
    beta: torch.Tensor
    """(R, Hv) float32."""

    def pick(self, index: torch.Tensor | slice) -> "RecurrentTensors":
        """Return the same with only these rows, which lie in memory of their own."""
        picked = (part[index].clone() for part in (self.rows, self.log_decay, self.beta))
        return RecurrentTensors(self.state, self.tail, *picked)

    def to(self, device: torch.device) -> "RecurrentTensors":
        """Return the same on a device."""
        parts = (self.state, self.tail, self.rows, self.log_decay, self.beta)
        return RecurrentTensors(*(part.to(device) for part in parts))


@dataclass(frozen=True, slots=True, eq=False)
class LaneState:
    """What a layer holds of a text."""

    base: int = 0
    """Tokens that the state holds."""
    tensors: RecurrentTensors | None = None
    """None: an empty state, with nothing behind it."""

    @property
    def count(self) -> int:
        return self.base + (0 if self.tensors is None else len(self.tensors.rows))

    def keep(self, slots: Sequence[int]) -> "LaneState":
        """Return the same with only the tokens at these slots behind the base."""
        if self.tensors is None:
            return self
        places = np.array(slots, dtype=np.int64) - self.base
        if len(places) == len(self.tensors.rows):
            return self
        (index,) = upload((places,), self.tensors.rows.device)
        return LaneState(self.base, self.tensors.pick(index))


@dataclass(frozen=True, slots=True, eq=False)
class _Mark:
    """An earlier state of a text, in host memory, with nothing behind it."""

    held: LaneState
    is_border: bool
    """Whether a prompt ended there."""


class RecurrentLayer:
    """The texts of one recurrent layer; transformers' cache has it among its layers."""

    is_sliding = False

    def __init__(self, num_lanes: int) -> None:
        self.lanes = [LaneState()] * num_lanes
        self.pieces: tuple[PiecePaths, ...] = ()
        """What the next computation is of."""
        self.most_marks = MOST_MARKS // num_lanes
        self._marks: list[dict[int, _Mark]] = [{} for _ in self.lanes]
        self._pending: dict[int, LaneState] = {}
        self._pending_marks: list[tuple[int, _Mark]] = []
        self._taken: dict[int, tuple[int, int]] = {}

    def get_seq_length(self) -> int:
        return self.lanes[0].count

    def before(self, piece: PiecePaths) -> LaneState:
        """Return what the piece stands on: what the pass has made of the lane so far, or what the lane holds."""
        if piece.source is not None:
            source, num_tokens = piece.source
            self._taken[piece.lane] = piece.source
            return self.held_at(source, num_tokens)
        return self._pending.get(piece.lane, self.lanes[piece.lane])

    def after(self, piece: PiecePaths, made: LaneState) -> None:
        """Keep what a piece has made of its lane until the pass ends."""
        self._pending[piece.lane] = made
        if piece.is_marked and self.most_marks:
            assert made.tensors is not None
            mark = made.tensors.pick(slice(0, 0)).to(torch.device("cpu"))
            self._pending_marks.append((piece.lane, _Mark(LaneState(made.base, mark), piece.is_border)))

    def settle(self) -> None:
        """Let what the pass has made be what the lanes hold."""
        for lane, (source, num_tokens) in self._taken.items():
            self._marks[lane] = self._marks_until(num_tokens, source)
        for lane, made in self._pending.items():
            self.lanes[lane] = made
        for lane, mark in self._pending_marks:
            self._marks[lane][mark.held.base] = mark
            self._thin_out(lane)
        self.drop()

    def drop(self) -> None:
        """Forget what a pass has made that has not succeeded."""
        self._pending.clear()
        self._pending_marks.clear()
        self._taken.clear()

    def repeat(self, other: "RecurrentLayer") -> None:
        """Let the pass make of the lanes what it made of another layer's, which is like this one."""
        self._pending = dict(other._pending)

    def reachable(self, num_tokens: int, lane: int) -> int:
        """Return how many tokens a lane can be cut to, at most `num_tokens`."""
        held = self.lanes[lane]
        if num_tokens >= held.base:
            return min(num_tokens, held.count)
        return self.last_mark(lane, num_tokens)

    def last_mark(self, lane: int, most: int | None = None) -> int:
        """Return how many tokens the last mark of a lane holds, of those that hold at most so many."""
        return max((base for base in self._marks[lane] if most is None or base <= most), default=0)

    def keeps_more_than_borders(self, lane: int, most: int | None = None) -> bool:
        """Return whether a mark elsewhere than at a prompt's end would stay, behind the lane's first `most` tokens."""
        return self.most_marks > 1 or not any(
            mark.is_border for base, mark in self._marks[lane].items() if most is None or base <= most
        )

    def mark(self, lane: int, num_tokens: int) -> RecurrentTensors:
        """Return what a mark of a lane holds, in host memory."""
        tensors = self._marks[lane][num_tokens].held.tensors
        assert tensors is not None, "a mark has been computed"
        return tensors

    def put(self, num_tokens: int, lane: int, mark: RecurrentTensors, device: torch.device) -> None:
        """Let a lane hold so many tokens in a state from host memory, which is also a mark, and none behind it."""
        self.lanes[lane] = LaneState(num_tokens, mark.to(device))
        self._marks[lane] = self._marks_until(num_tokens, lane)
        if self.most_marks:
            self._marks[lane][num_tokens] = _Mark(LaneState(num_tokens, mark), is_border=True)
            self._thin_out(lane)

    def truncate(self, num_tokens: int, lane: int) -> None:
        """Cut a lane to so many tokens, which are `reachable`."""
        self.lanes[lane] = self.held_at(lane, num_tokens)
        self._marks[lane] = self._marks_until(num_tokens, lane)

    def occupy(self, num_tokens: int, lane: int) -> None:
        """Let a lane hold so many tokens, whatever they are; for measurements."""
        self.lanes[lane] = LaneState(num_tokens)

    def compact(self, start: int, slots: Sequence[int], lane: int) -> None:
        """Keep a lane's first `start` tokens and then those at the given slots."""
        held = self.lanes[lane]
        if held.tensors is None:  # of a measurement
            self.occupy(start + len(slots), lane)
            return
        assert start >= held.base, f"a state of {held.base} tokens cannot be cut to {start}"
        self.lanes[lane] = held.keep([*range(held.base, start), *slots])

    def copy(self, num_tokens: int, *, source: int, lane: int) -> None:
        """Let a lane hold what another one holds of its first tokens, which it can be cut to."""
        self.lanes[lane] = self.held_at(source, num_tokens)
        self._marks[lane] = self._marks_until(num_tokens, source)

    def held_at(self, lane: int, num_tokens: int) -> LaneState:
        """Return what a lane holds of its first tokens, so many as it can be cut to, or all."""
        held = self.lanes[lane]
        if num_tokens >= held.count:
            return held
        if num_tokens >= held.base:
            return held.keep(range(held.base, num_tokens))
        if num_tokens == 0:
            return LaneState()
        mark = self._marks[lane][num_tokens].held
        if held.tensors is None or mark.tensors is None:
            return mark
        return replace(mark, tensors=mark.tensors.to(held.tensors.rows.device))

    def _marks_until(self, num_tokens: int, lane: int) -> dict[int, _Mark]:
        """Return the marks of a lane that hold no more tokens than so many."""
        return {base: mark for base, mark in self._marks[lane].items() if base <= num_tokens}

    def _thin_out(self, lane: int) -> None:
        """Drop the mark whose neighbours are closest together, as long as there are too many.

        The last one stays, and the last ends of prompts; where only one can, the end of a prompt.
        """
        marks = self._marks[lane]
        while len(marks) > self.most_marks:
            bases = sorted(marks)
            borders = [base for base in bases if marks[base].is_border]
            kept = borders[-max(1, min(_KEPT_BORDERS, self.most_marks - 1)) :]
            if len(kept) < self.most_marks:
                kept.append(bases[-1])
            around = zip([0, *bases[:-1]], bases, [*bases[1:], bases[-1]], strict=True)
            gaps = {base: after - before for before, base, after in around if base not in kept}
            del marks[min(gaps, key=gaps.__getitem__)]


@dataclass(slots=True)
class LanePlanner:
    """Plans the pieces of one text in a pass, one behind the other."""

    lane: int
    base: int
    """Tokens that the states hold before the next piece."""
    last_mark: int
    num_text: int
    """Of all keys, the first ones, which are text."""
    num_new: int = 0
    """Tokens of the text in the whole pass."""
    marks_between: bool = True
    """Whether states are marked elsewhere than at a prompt's end."""
    source: tuple[int, int] | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def border(self, num_cached: int, wanted: int | None) -> int:
        """Return behind how many tokens a state is worth its copy, of a text that goes on from the cached ones.

        0 where it is nowhere. `wanted`: see `PassInput.border`.
        """
        if wanted is None:
            return self.num_text if self.num_text - num_cached >= BORDER_TOKENS else 0
        return wanted if wanted > num_cached and wanted - 1 - self.last_mark >= BORDER_TOKENS else 0

    def plan(
        self, tokens: slice, *, num_keys: int, seen: npt.NDArray[np.bool_] | None = None, is_border: bool = False
    ) -> PiecePaths:
        """Return the plan of a piece's `tokens`, the last of `num_keys`, and go on to the next piece.

        `seen` (T, D): which of the last D keys each token sees, those behind `num_text`; None: the piece is text.
        `is_border`: whether it ends a prompt. The last token of the text stays in the stash, so that a cut by one token
        is free.
        """
        folded_to = max(self.base, min(self.num_text, num_keys) - 1)
        ancestors = self._ancestors(folded_to, num_keys, tokens.stop - tokens.start, seen)
        (on_device,) = upload((ancestors,), self.device)
        num_unmarked = folded_to - self.last_mark
        between = max(MARK_TOKENS, -(-self.num_new // MARKS_OF_PASS))
        is_marked = num_unmarked >= (1 if is_border else between) and (is_border or self.marks_between)
        made = PiecePaths(self.lane, tokens, folded_to - self.base, Paths(on_device), self.source, is_marked, is_border)
        self.base, self.source = folded_to, None
        if is_marked:
            self.last_mark = folded_to
        return made

    def _ancestors(
        self, start: int, num_keys: int, num_tokens: int, seen: npt.NDArray[np.bool_] | None
    ) -> npt.NDArray[np.bool_]:
        """Return which of the keys from `start` on are on the path to each of them, as far as a new token sees it.

        Two keys that one token sees are on one path, so that the earlier one is an ancestor of the later one.
        """
        num_rows = num_keys - start
        if seen is None:
            return np.tri(num_rows, dtype=np.bool_)
        num_text = max(0, min(self.num_text, num_keys) - start)
        visible = np.zeros((num_tokens, num_rows), dtype=np.float32)
        slots = np.arange(num_keys - num_tokens, num_keys)
        visible[:, :num_text] = start + np.arange(num_text) <= slots[:, None]
        drafted = num_rows - num_text
        if drafted:
            visible[:, num_text:] = seen[:, seen.shape[1] - drafted :]
        together = np.tril(visible.T @ visible) > 0
        np.fill_diagonal(together, True)
        return together
