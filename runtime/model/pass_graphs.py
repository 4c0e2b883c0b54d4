"""Records a resident model's forward once per shape and replays it: a draft step without its launches from Python.

These are a thousand for a billion parameters, and take several times as long as the kernels. A recorded pass has fixed
shapes: T tokens are padded to the next power of two, the keys to the next bucket of the cache, and the tokens' slots
are an input, so that one recording serves any place in the text. Padding tokens write to a slot of their own and nobody
sees them. A device that cannot record runs every pass as it comes.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from runtime.model.attention import additive_mask
from runtime.model.layer_binding import HostEmbedding
from runtime.model.tree_cache import TreeCache

logger = logging.getLogger(__name__)

MAX_WIDTH = 256
"""Tokens beyond which a pass computes longer than its launches take."""
LEAST_KEYS = 256
"""Smallest bucket of keys."""
USES_BEFORE_RECORDING = 2
"""Recording takes as long as a few passes: a shape that comes once is not worth it."""

Replay = Callable[[], torch.Tensor]
Recorder = Callable[[Callable[[], torch.Tensor]], Replay]
"""Runs some work, whose tensors stay where they are, and returns what repeats it on their new contents.

Raises RuntimeError where the device or one of the kernels cannot be recorded.
"""
Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Token ids (1, W), positions (1, W) and an additive mask (1, 1, W, K) to last hidden states (1, W, E)."""


def recorder_for(device: torch.device) -> Recorder | None:
    """Return what records passes on `device`: CUDA graphs (ROCm's have the same names), which share a pool of memory.

    None where every pass runs as it comes.
    """
    if device.type != "cuda":
        return None
    pool = torch.cuda.graph_pool_handle()

    def record(work: Callable[[], torch.Tensor]) -> Replay:
        """Record `work` as a graph; other threads may go on copying meanwhile."""
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            work()  # kernels choose their workspaces outside of the recording
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                output = work()
            finally:
                graph.capture_end()
        torch.cuda.current_stream(device).wait_stream(stream)

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay

    return record


@dataclass(frozen=True, slots=True, eq=False)
class _FixedPass:
    """The inputs of one shape, where a recording reads them, and its replay."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    visible: torch.Tensor
    rows: torch.Tensor | None
    """The tokens' embeddings (W, E), where they come from host memory."""
    replay: Replay


class PassGraphs:
    """The recorded passes of one model."""

    def __init__(
        self,
        record: Recorder,
        forward: Forward,
        cache: TreeCache,
        *,
        dtype: torch.dtype,
        embedding: HostEmbedding | None = None,
    ) -> None:
        """`forward` runs the decoder on `cache`, whose slots must not have been allocated yet; `dtype` of its masks.

        It finds the tokens' rows in `embedding` if that is given: they are gathered outside of what is recorded.
        """
        self._record_work = record
        self._forward = forward
        self._cache = cache
        self._dtype = dtype
        self._embedding = embedding
        self._uses: dict[tuple[int, int], int] = {}
        self._passes: dict[tuple[int, int], _FixedPass] = {}
        self._can_record = True
        cache.allow_fixed_passes()

    def run(
        self,
        token_ids: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        visible: npt.NDArray[np.bool_],
        *,
        device: torch.device,
    ) -> torch.Tensor | None:
        """Return the last hidden states (T, E) of a pass, appended to the cache; None if it has no recording."""
        num_tokens, num_keys = visible.shape
        width, keys = bucket_of(num_tokens, 1), min(bucket_of(num_keys, LEAST_KEYS), self._cache.capacity)
        if not self._can_record or width > MAX_WIDTH or num_keys > keys or not self._cache.is_allocated:
            return None
        shape = (width, keys)
        if shape not in self._passes:
            self._uses[shape] = self._uses.get(shape, 0) + 1
            if self._uses[shape] <= USES_BEFORE_RECORDING or not self._record(shape, device):
                return None
        fixed = self._passes[shape]
        first = num_keys - num_tokens
        slots = np.full(width, self._cache.capacity, dtype=np.int64)  # padding goes to the spare slot
        slots[:num_tokens] = np.arange(first, num_keys)
        seen = np.zeros(shape, dtype=np.bool_)
        seen[:num_tokens, :num_keys] = visible
        for fixed_input, values in (
            (fixed.token_ids, _padded(token_ids, width)[None]),
            (fixed.positions, _padded(positions, width)[None]),
            (fixed.slots, slots),
            (fixed.visible, seen),
        ):
            fixed_input.copy_(torch.from_numpy(values), non_blocking=True)
        if self._embedding is not None and fixed.rows is not None:
            fixed.rows[:num_tokens].copy_(self._embedding.gather(token_ids), non_blocking=True)
        hidden = fixed.replay()[0, :num_tokens].clone()  # the next replay overwrites its output
        self._cache.append(num_tokens)
        return hidden

    def _record(self, shape: tuple[int, int], device: torch.device) -> bool:
        """Record a shape; once that has failed, nothing is recorded any more."""
        width, keys = shape
        token_ids, positions = (torch.zeros(1, width, dtype=torch.int64, device=device) for _ in range(2))
        slots = torch.full((width,), self._cache.capacity, dtype=torch.int64, device=device)
        visible = torch.zeros(width, keys, dtype=torch.bool, device=device)
        rows = None if self._embedding is None else self._embedding.device_rows(width)

        def work() -> torch.Tensor:
            if self._embedding is not None and rows is not None:
                self._embedding.show(rows)
            with self._cache.fixed_pass(slots, num_keys=keys):
                return self._forward(token_ids, positions, additive_mask(visible, self._dtype))

        try:
            replay = self._record_work(work)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            logger.warning("draft passes are not recorded, which makes them slower: %s", reason)
            self._can_record = False
            return False
        self._passes[shape] = _FixedPass(token_ids, positions, slots, visible, rows, replay)
        return True


def bucket_of(count: int, least: int) -> int:
    """Return the smallest power of two that is at least `count` and `least`; both 1 or more."""
    return 1 << (max(count, least) - 1).bit_length()


def _padded(values: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int64]:
    return np.pad(values, (0, width - len(values)))
