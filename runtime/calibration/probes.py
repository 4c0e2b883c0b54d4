"""Measures an open session for the calibrator: one thing once, now.

See `profiles.calibration_probes` for what is asked. Times computation over layers that are there already, and
behind a context of zeros: what products cost does not depend on what they multiply. The benchmarks time the parts of a
round with the same functions, so that they mean the same.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import numpy as np
import psutil
import torch

from offload.checkpoint.layer_layout import SlabRange
from offload.copying.rates import COPY_BYTES, measure_copy_rate, measure_raw_link
from offload.device import device_memory, identify_device
from offload.layer_streamer import LayerStreamer, ResidentLayer
from offload.pass_statistics import PassStatistics
from offload.pinning.pin_budget import find_pin_budget
from offload.pinning.pin_probe import PinBudget
from offload.units import PAGE_BYTES
from profiles.acceptance import ForcedPosition
from profiles.calibration_probes import PairFacts
from profiles.machine_profile import MachineProfile, PinBudgetSource
from runtime.calibration.texts import TextWriter
from runtime.config import PREFILL_CHUNK_TOKENS, SamplingParams
from runtime.engine.loading import OpenSession
from runtime.errors import OptionError
from runtime.model.streamed_model import LazyLogits, PassInput, StreamedModel
from runtime.planner.initial_plan import pair_identity
from runtime.prompts.prompt_file import PromptRequest
from runtime.speculation.acceptance import builtin_acceptance
from runtime.speculation.token_tree import TokenTree
from runtime.speculation.tree_search import best_first
from runtime.speculation.verifier import verify

NUM_CHILDREN = 4
"""Children of each node in a timed draft step."""
_MAX_LEVELS = 32


class SessionProbes:
    """The CalibrationProbes of an open session with a draft; between two probes the session is free."""

    def __init__(self, opened: OpenSession, requests: Sequence[PromptRequest], *, state_folder: Path | None) -> None:
        """Take the session; a driver's answer about pinning is remembered in `state_folder`."""
        engine = opened.session.engine
        if engine.drafter is None:
            raise OptionError(
                "no draft was loaded, and without one there is nothing to calibrate; name one with --draft"
            )
        self._opened = opened
        self._state_folder = state_folder
        self._target, self._draft = engine.target, engine.drafter.model
        self._writer = TextWriter(opened, requests)
        self._read_offset = 0
        self._steady_steps = set[tuple[int, int]]()
        engine.truncate(0)
        with torch.inference_mode(), layers_at_hand(opened):
            self._draft.run_pass(self._chain(self._draft, 1, 0))
            self._hidden = self._target.run_pass(self._chain(self._target, 1, 0))
            for cache in (self._draft.cache, self._target.cache):
                for layer in cache.layers:  # fresh memory may hold what is no number
                    layer.keys.zero_()
                    layer.values.zero_()
                cache.truncate(0)

    def machine(self) -> MachineProfile:
        device, host_bytes = self._opened.plan.device, int(psutil.virtual_memory().total)
        device_bytes, budget = host_bytes, PinBudget(None, PinBudgetSource.NOT_LIMITED)
        if device.type != "cpu":
            memory = device_memory(device)
            device_bytes = 0 if memory is None else memory.total_bytes
            budget = find_pin_budget(device, self._state_folder)
        return MachineProfile(
            identify_device(device), device_bytes, host_bytes, budget.num_bytes, budget.source, date.today()
        )

    def pair(self) -> PairFacts:
        plan = self._opened.plan
        target, draft = pair_identity(plan)
        return PairFacts(
            target=target,
            draft=draft,
            compute_dtype=str(plan.dtype).removeprefix("torch."),
            max_pass_tokens=min(max(plan.need.max_nodes, PREFILL_CHUNK_TOKENS), plan.need.capacity_tokens),
            cache_tokens=plan.need.capacity_tokens,
            context_tokens=plan.need.context_tokens,
            prompt_tokens=self._writer.prompt_tokens,
            is_streamed=self._opened.streamer.num_streamed_layers > 0,
        )

    def time_link(self, num_bytes: int) -> float | None:
        """Time a copy to the device; on a processor one from memory to memory."""
        device = self._opened.plan.device
        if num_bytes > COPY_BYTES:  # memory that a session under a cap may not have
            return None
        try:
            return num_bytes / measure_copy_rate(device, is_pinned=device.type != "cpu", num_bytes=num_bytes)
        except RuntimeError:  # the driver refuses to pin so much
            return None

    def time_disk(self, num_bytes: int) -> float | None:
        """Go on in the largest file where the read before ended, in blocks and threads as the session's reader."""
        files = {piece.file for layout in self._opened.plan.target.layouts for piece in layout.ranges}
        largest = max(files, key=lambda file: file.stat().st_size)
        size = largest.stat().st_size // PAGE_BYTES * PAGE_BYTES
        if num_bytes > size:
            return None
        if self._read_offset + num_bytes > size:
            self._read_offset = 0
        reader, piece = self._opened.reader, SlabRange(largest, self._read_offset, num_bytes, 0)
        self._read_offset += num_bytes
        read = measure_raw_link([piece], block_bytes=reader.block_bytes, num_threads=reader.num_threads)
        return read.seconds if read.is_direct and reader.is_direct else None

    def time_draft_step(self, width: int, context_tokens: int) -> float:
        """Time a step as most are: shapes are recorded after a few passes, and the recording itself takes longest."""
        if (width, context_tokens) not in self._steady_steps:
            for _ in range(self._draft.num_unsteady_passes):
                self._time_draft_step(width, context_tokens)
            self._steady_steps.add((width, context_tokens))
        return self._time_draft_step(width, context_tokens)

    def _time_draft_step(self, width: int, context_tokens: int) -> float:
        self._draft.cache.occupy(context_tokens)
        inputs = self._chain(self._draft, width, context_tokens)
        begun = time.perf_counter()
        logits = self._draft.logits(self._draft.run_pass(inputs))
        logits.topk(NUM_CHILDREN, dim=-1).indices.tolist()  # as the drafter chooses them at temperature 0
        seconds = time.perf_counter() - begun
        self._draft.cache.truncate(0)
        return seconds

    def time_pass(self, num_tokens: int, context_tokens: int) -> float:
        self._target.cache.occupy(context_tokens)
        inputs = self._chain(self._target, num_tokens, context_tokens)
        with layers_at_hand(self._opened):
            begun = time.perf_counter()
            self._target.run_pass(inputs)
            seconds = time.perf_counter() - begun
        self._target.cache.truncate(0)
        return seconds

    def time_walk(self, num_nodes: int) -> float:
        """Time the longest walk there can be: all of the first descent is accepted."""
        target, likely = self._target, best_first(builtin_acceptance(substitute_held=None), num_nodes, _MAX_LEVELS)
        topology = likely.topology(num_nodes)
        hidden = self._hidden.expand(num_nodes, -1)
        # All nodes have one hidden state, so one token is the target's choice at each of them, and every child has it.
        token_id = int(target.logits(hidden[:1]).argmax())
        tree = TokenTree(topology, np.full(num_nodes, token_id, dtype=np.int64))
        target.cache.occupy(num_nodes)
        params = SamplingParams()
        begun = time.perf_counter()
        verdict = verify(tree, LazyLogits(target, hidden, topology).row, params, np.random.default_rng(0))
        target.cache.compact(0, verdict.path)
        seconds = time.perf_counter() - begun
        target.cache.truncate(0)
        return seconds

    def time_copies(self) -> float:
        """Time the copies of a pass from a full ring to a full ring."""
        self._fill_ring()
        begun = time.perf_counter()
        run_copies(self._opened)
        wait_for_full_ring(self._opened)
        return time.perf_counter() - begun

    def time_streamed_pass(self, num_tokens: int, context_tokens: int) -> tuple[float, float]:
        self._target.cache.occupy(context_tokens)
        inputs = self._chain(self._target, num_tokens, context_tokens)
        self._fill_ring()
        begun = time.perf_counter()
        self._target.run_pass(inputs)
        computed = time.perf_counter() - begun
        wait_for_full_ring(self._opened)
        full_again = time.perf_counter() - begun
        self._target.cache.truncate(0)
        return computed, full_again

    def begin_texts(self, num_texts: Mapping[float, int]) -> None:
        self._writer.begin({SamplingParams(temperature=value): count for value, count in num_texts.items()})

    def grow_texts(self) -> Sequence[ForcedPosition]:
        return self._writer.step()

    def _fill_ring(self) -> None:
        self._opened.streamer.prefetch()
        wait_for_full_ring(self._opened)

    def _chain(self, model: StreamedModel, num_tokens: int, context_tokens: int) -> PassInput:
        """Return a level's worth of tokens, each seeing the context and those before it; depths as in a tree."""
        last_position = self._opened.plan.need.context_tokens - 1
        depths = np.minimum(np.arange(num_tokens), _MAX_LEVELS)
        key_positions = np.minimum(np.concatenate([np.arange(context_tokens), context_tokens + depths]), last_position)
        token_ids = 1 + np.arange(num_tokens) % min(7, model.vocab_size - 1)
        visible = np.tri(num_tokens, context_tokens + num_tokens, k=context_tokens, dtype=np.bool_)
        return PassInput(token_ids, key_positions[context_tokens:], key_positions, visible)


def median_seconds(
    action: Callable[[], object],
    num_repeats: int,
    *,
    before: Callable[[], object] | None = None,
    after: Callable[[], object] | None = None,
) -> float:
    """Return the median over the repeats, the first one left out where there are several."""
    seconds = []
    for _ in range(num_repeats):
        if before is not None:
            before()
        begun = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - begun)
        if after is not None:
            after()
    return statistics.median(seconds[1:] or seconds)


@contextmanager
def layers_of_zeros(opened: OpenSession) -> Iterator[None]:
    """Let the target find its layers there already, all in one slab of zeros, as long as the context lasts."""
    plan = opened.plan
    # Written, or every page would be the same page of zeros, which no processor ever reads from memory.
    zeros = torch.empty(max(plan.residency.layer_bytes), dtype=torch.uint8, device=plan.device).fill_(0)
    with _passes_over(opened, [ResidentLayer(zeros)] * opened.streamer.num_layers):
        yield


@contextmanager
def layers_at_hand(opened: OpenSession) -> Iterator[None]:
    """Do the same without memory for it, which a full device does not have: only the ring has one slot less meanwhile.

    Residents are where they are, and all other layers are in that slot, of zeros; what it held is copied again.
    """
    with opened.streamer.lent_slot() as slot:
        zeros = None if slot is None else ResidentLayer(slot.fill_(0))
        layers = [layer if isinstance(layer, ResidentLayer) else zeros for layer in opened.streamer.layers]
        with _passes_over(opened, [layer for layer in layers if layer is not None]):
            yield


@contextmanager
def _passes_over(opened: OpenSession, layers: Sequence[ResidentLayer]) -> Iterator[None]:
    with (
        LayerStreamer(layers, opened.reader, num_slots=2) as ring,
        opened.session.engine.target.streaming_from(ring),
    ):
        yield


def run_copies(opened: OpenSession) -> PassStatistics:
    """Run a pass's copies through the session's own ring, with nothing computing."""
    streamer = opened.streamer
    streamer.begin_pass()
    for index in range(streamer.num_layers):
        streamer.acquire(index)
        streamer.release(index)
    return streamer.end_pass()


def wait_for_full_ring(opened: OpenSession) -> None:
    """Wait until every slot holds a layer, so that nothing crosses the link any more."""
    while not opened.streamer.is_full:
        time.sleep(0.0005)
