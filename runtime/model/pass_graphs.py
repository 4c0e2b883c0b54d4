"""Records a resident model's forward once per shape and replays it: a draft step without its launches from Python.

These are a thousand for a billion parameters, and take several times as long as the kernels. A recorded pass has fixed
shapes: T tokens are padded to the next power of two, the keys to the next bucket of the cache, and the tokens' slots
are an input, so that one recording serves any place in the text. Padding tokens write to a slot of their own and nobody
sees them. All shapes read their inputs from the same memory, and compute in the same pool, which the largest shape,
recorded first, has made as large as it gets. A device that cannot record runs every pass as it comes.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from runtime.model.attention import attention_masks
from runtime.model.layer_binding import HostEmbedding
from runtime.model.pass_shapes import RECORDED_WIDTH, bucket_of, key_bucket, mask_row_elements
from runtime.model.tree_cache import TreeCache
from runtime.model.upload import upload

logger = logging.getLogger(__name__)

USES_BEFORE_RECORDING = 2
"""Recording takes as long as a few passes: a shape that comes once is not worth it."""
PASSES_BEFORE_RETRY = 256
"""Passes that run as they come after memory was short, until another recording is tried."""

Replay = Callable[[], torch.Tensor]
Recorder = Callable[[Callable[[], torch.Tensor]], Replay]
"""Runs some work, whose tensors stay where they are, and returns what repeats it on their new contents.

Raises RuntimeError where the device or one of the kernels cannot be recorded, and torch.OutOfMemoryError.
"""
Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Token ids (1, W), positions (1, W) and an additive mask (1, 1, W, K) to last hidden states (1, W, E)."""


def recorder_for(device: torch.device) -> Recorder | None:
    """Return what records passes on `device`; None where every pass runs as it comes."""
    return CudaRecorder(device) if device.type == "cuda" else None


class CudaRecorder:
    """Records work as CUDA graphs (ROCm's have the same names) on one stream, whose blocks the next one uses again.

    The caching allocator keeps blocks by stream inside of a pool too: graphs that were recorded on streams of their own
    would share nothing (torch/cuda/graphs.py says so of its `stream` argument).
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], torch.Tensor]) -> Replay:
        """Record `work`; other threads may go on copying meanwhile."""
        stream, usual = self._stream, torch.cuda.current_stream(self._device)
        stream.wait_stream(usual)
        try:
            with torch.cuda.stream(stream):
                work()  # kernels choose their workspaces outside of the recording
                # While something is captured the allocator gives nothing back that it caches: it would run out.
                torch.cuda.empty_cache()
                graph = torch.cuda.CUDAGraph()
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    output = work()
                except BaseException:
                    with suppress(RuntimeError):  # says only that the recording is void
                        graph.capture_end()
                    raise
                graph.capture_end()
        finally:
            usual.wait_stream(stream)

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay


@dataclass(frozen=True, slots=True, eq=False)
class _FixedInputs:
    """Where all recordings read: each as much as its shape has, from the beginning."""

    numbers: torch.Tensor
    """(3, RECORDED_WIDTH) int64, flat: for W tokens W ids, W positions and W slots."""
    mask: torch.Tensor
    """(RECORDED_WIDTH * row,) additive: W rows, as long as the bucket's keys with what aligns them."""
    rows: torch.Tensor | None
    """(RECORDED_WIDTH, E) the tokens' embeddings, where they come from host memory."""

    def of(self, width: int, keys: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return token ids (1, W), positions (1, W), slots (W,) and mask (1, 1, W, K) of a shape."""
        token_ids, positions, slots = self.numbers[: 3 * width].view(3, width)
        row = mask_row_elements(keys)
        return token_ids[None], positions[None], slots, self.mask[: width * row].view(width, row)[None, None, :, :keys]


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
        self._inputs: _FixedInputs | None = None
        self._uses: dict[tuple[int, int], int] = {}
        self._passes: dict[tuple[int, int], Replay] = {}
        self._can_record = True
        self._num_to_wait = 0
        self.notice: str | None = None
        """Why passes are not recorded, a sentence; None if they are."""
        cache.allow_fixed_passes()

    def run(
        self,
        token_ids: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        drafted_positions: npt.NDArray[np.int64],
        sight: npt.NDArray[np.bool_],
        *,
        device: torch.device,
    ) -> torch.Tensor | None:
        """Return the last hidden states (T, E) of a pass, appended to the cache; None if it has no recording.

        Its T tokens see the text and, as `sight` (T, D) says, the last D keys, at `drafted_positions` (D,).
        """
        num_tokens, num_keys = len(token_ids), self._cache.num_cached + len(token_ids)
        shape = (bucket_of(num_tokens, 1), key_bucket(num_keys, self._cache.capacity))
        if num_tokens > RECORDED_WIDTH or num_keys > self._cache.capacity or not self._has_recording(shape, device):
            return None
        assert self._inputs is not None, "a recording has inputs"
        width, keys = shape
        numbers = np.zeros((3, width), dtype=np.int64)
        numbers[0, :num_tokens], numbers[1, :num_tokens] = token_ids, positions
        numbers[2] = self._cache.capacity  # padding goes to the spare slot
        numbers[2, :num_tokens] = np.arange(num_keys - num_tokens, num_keys)
        uploaded, drafted, seen = upload((numbers, drafted_positions, sight), device)
        self._inputs.numbers[: 3 * width].copy_(uploaded.flatten())
        *_, mask = self._inputs.of(width, keys)
        mask.fill_(torch.finfo(self._dtype).min)
        num_text = num_keys - sight.shape[1]
        masks = attention_masks(
            uploaded[1, :num_tokens],
            key_positions=torch.cat((torch.arange(num_text, device=device), drafted)),
            sight=seen,
            windows=[None],
            dtype=self._dtype,
        )
        mask[:, :, :num_tokens, :num_keys] = masks[None]
        if self._embedding is not None and self._inputs.rows is not None:
            self._inputs.rows[:num_tokens].copy_(self._embedding.gather(token_ids), non_blocking=True)
        hidden = self._passes[shape]()[0, :num_tokens].clone()  # the next replay overwrites its output
        self._cache.append(num_tokens)
        return hidden

    def _has_recording(self, shape: tuple[int, int], device: torch.device) -> bool:
        """Return whether a shape is recorded, which it is now if it comes often enough."""
        if shape in self._passes:
            return True
        if not self._can_record or not self._cache.is_allocated:
            return False
        if self._num_to_wait:
            self._num_to_wait -= 1
            return False
        self._uses[shape] = self._uses.get(shape, 0) + 1
        if self._uses[shape] <= USES_BEFORE_RECORDING:
            return False
        try:
            if self._inputs is None:
                self._inputs = self._allocate_inputs(device)
                # Every later recording finds its memory in the pool.
                largest = (RECORDED_WIDTH, key_bucket(self._cache.capacity, self._cache.capacity))
                self._passes[largest] = self._record(largest, self._inputs)
            if shape not in self._passes:
                self._passes[shape] = self._record(shape, self._inputs)
        except RuntimeError as error:
            self._give_up(error)
            return False
        self.notice = None
        return True

    def _give_up(self, error: RuntimeError) -> None:
        """Record nothing for a while if memory was short, and never again if this work cannot be recorded."""
        if isinstance(error, torch.OutOfMemoryError):
            self._num_to_wait = PASSES_BEFORE_RETRY
        else:
            self._can_record = False
        if not self._passes:
            self._inputs = None
        reason = " ".join(str(error).split())[:200]
        self.notice = f"draft passes are not recorded, which makes them slower: {reason}"
        logger.warning("%s", self.notice)

    def _allocate_inputs(self, device: torch.device) -> _FixedInputs:
        rows = RECORDED_WIDTH * mask_row_elements(self._cache.capacity)
        return _FixedInputs(
            torch.zeros(3 * RECORDED_WIDTH, dtype=torch.int64, device=device),
            torch.zeros(rows, dtype=self._dtype, device=device),
            None if self._embedding is None else self._embedding.device_rows(RECORDED_WIDTH),
        )

    def _record(self, shape: tuple[int, int], inputs: _FixedInputs) -> Replay:
        width, keys = shape
        token_ids, positions, slots, mask = inputs.of(width, keys)
        slots.fill_(self._cache.capacity)

        def work() -> torch.Tensor:
            if self._embedding is not None and inputs.rows is not None:
                self._embedding.show(inputs.rows[:width])
            with self._cache.fixed_pass(slots, num_keys=keys):
                return self._forward(token_ids, positions, mask)

        return self._record_work(work)
