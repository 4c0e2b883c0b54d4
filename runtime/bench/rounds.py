"""Plain passes beside the raw link, and whole rounds beside what the pipeline recurrence gives for their parts.

All that is compared is measured in one run and in turn, since a disk is never twice the same. The parts of a round: a
copy of every layer with nothing computing, a pass of the same tree over layers of zeros that are already there, the
drafting of the tree alone, and head, walk and compaction alone. Before and after every few real rounds the copies are
timed again, and each round is held against the prediction from those.
"""

import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, astuple, dataclass, replace
from itertools import cycle
from typing import Any

import numpy as np
import torch

from offload.checkpoint.layer_layout import LayerLayout
from offload.copying.copy_engine import HostSource
from offload.copying.emulated_link import EmulatedLink
from offload.copying.rates import measure_raw_link
from offload.copying.staged_engine import StagedCopyEngine
from offload.free_memory import peak_memory_bytes
from offload.layer_streamer import ResidentLayer
from offload.pipeline_model import round_periods
from offload.stage_ring import StageRing
from profiles.steps import finish
from runtime.calibration.probes import layers_of_zeros, median_seconds, run_copies, wait_for_full_ring
from runtime.config import SamplingParams
from runtime.engine.engine import Engine, verify_input
from runtime.engine.growing_tree import WantedTree
from runtime.engine.loading import OpenSession
from runtime.errors import OptionError
from runtime.events import Round
from runtime.model.streamed_model import LazyLogits, chain_input
from runtime.speculation.schemes import scheme_for
from runtime.speculation.token_tree import TokenTree, TreeTopology
from runtime.speculation.verifier import verify

PROMPT_TOKENS = tuple(range(1, 33))
"""Any tokens do: what they cost does not depend on what they mean."""
NUM_REPEATS = 5
ROUNDS_PER_LOOK = 2
"""Measured rounds between two looks at the copies alone."""
GREEDY = SamplingParams()


@dataclass(frozen=True, slots=True)
class RoundParts:
    """What a round is made of, each part measured with the rest at rest; seconds."""

    link_seconds: float
    """All copies of a pass over the link, one after the other."""
    disk_seconds: float
    """All reads of a pass from a disk behind the link; 0 without one."""
    compute_seconds: float
    """All layers of a pass over the tree."""
    head_seconds: float
    """Head, walk and compaction."""
    free_overlap_seconds: float
    """Copies and layers of a pass at once, neither waiting for the other: no pass that shares cores can be shorter."""
    draft_seconds: float
    """Growing the tree."""


@dataclass(frozen=True, slots=True)
class TimedRound:
    """A real round beside the copies that were timed before and after it."""

    done: Round
    link_seconds: float
    """All copies of a pass with nothing computing, mean of the looks before and after."""
    disk_seconds: float = 0.0
    """The same for reads from a disk behind the link; 0 without one."""

    @property
    def copy_seconds(self) -> float:
        return self.link_seconds + self.disk_seconds

    @property
    def link_utilization(self) -> float:
        return self.done.pass_statistics.link_busy_seconds / self.done.seconds


def run_rounds(
    opened: OpenSession, *, num_rounds: int = 12, num_repeats: int = NUM_REPEATS, params: SamplingParams = GREEDY
) -> Generator[str, None, dict[str, Any]]:
    """Measure the parts, real rounds with the session's own tree, and the parts again; return all figures.

    Raises OptionError if nothing streams, or if the context has no room for two such trees.
    """
    check_streaming(opened)
    planner = opened.session.engine.planner
    planner.use_temperature(params.temperature)
    tree = planner.topology(max_levels=1 << 20)
    yield f"measuring the parts of a round with {tree.num_nodes} nodes and {tree.num_levels} levels"
    before = measure_parts(opened, tree, num_repeats, params=params)
    rounds = []
    turns = [[tree] * min(ROUNDS_PER_LOOK, num_rounds - done) for done in range(0, num_rounds, ROUNDS_PER_LOOK)]
    for timed in time_rounds(opened, [PROMPT_TOKENS], turns, params=params):
        rounds.append(timed)
        yield f"round {len(rounds)} of {num_rounds}: {timed.done.seconds:.3f} s for {timed.done.num_emitted} tokens"
    yield "measuring the parts again"
    after = measure_parts(opened, tree, num_repeats, params=params)
    parts = RoundParts(*map(statistics.mean, zip(astuple(before), astuple(after), strict=True)))
    predictions = [
        predict_round(opened, replace(parts, link_seconds=timed.link_seconds, disk_seconds=timed.disk_seconds))
        for timed in rounds
    ]
    return {
        **summarize_rounds(parts, rounds, predictions),
        "num_nodes": tree.num_nodes,
        "num_levels": tree.num_levels,
        "bytes_per_pass": opened.placement.streamed_bytes,
    }


def summarize_rounds(parts: RoundParts, rounds: Sequence[TimedRound], predictions: Sequence[float]) -> dict[str, Any]:
    """Return medians over the rounds, and all figures; `predictions` are the seconds of each round."""
    median, done = statistics.median, [timed.done for timed in rounds]
    return {
        "ratio": median(each.seconds / predicted for each, predicted in zip(done, predictions, strict=True)),
        "round_seconds": median(each.seconds for each in done),
        "predicted_seconds": median(predictions),
        # Children are chosen and judged: neither a forward nor a copy.
        "verification_share": median((each.placing_seconds + each.walk_seconds) / each.seconds for each in done),
        "pass_over_free_overlap": median(each.pass_statistics.seconds for each in done) / parts.free_overlap_seconds,
        "link_utilization": median(timed.link_utilization for timed in rounds),
        "tokens_per_round": statistics.mean(each.num_emitted for each in done),
        "parts": asdict(parts),
        "rounds": list(map(_figures, rounds)),
        "predictions": list(predictions),
    }


def _figures(timed: TimedRound) -> dict[str, Any]:
    derived = ("num_nodes", "num_emitted", "seconds", "overhead_seconds")
    done = asdict(timed.done) | {name: getattr(timed.done, name) for name in derived}
    copies = {"copy_seconds": timed.copy_seconds, "link_utilization": timed.link_utilization}
    return asdict(timed) | {"done": done, "seconds": timed.done.seconds} | copies


def time_rounds(
    opened: OpenSession,
    prompts: Sequence[Sequence[int]],
    turns: Sequence[Sequence[TreeTopology]],
    *,
    params: SamplingParams = GREEDY,
) -> Iterator[TimedRound]:
    """Yield a real round with each tree of each turn, on texts behind the prompts, which are taken again and again.

    The copies alone are timed between turns. Raises OptionError if no prompt leaves room for two of the deepest trees.
    """
    engine = opened.session.engine
    num_levels = max(tree.num_levels for trees in turns for tree in trees)
    usable = [prompt for prompt in prompts if len(prompt) + 2 * (num_levels + 1) < engine.context_tokens]
    if not usable:
        raise OptionError(f"no prompt leaves room for two trees of {num_levels} levels; give a larger --context")
    try:
        rounds = _endless_rounds(engine, usable, params, room=num_levels + 1)
        copies_after = time_copies(opened)
        for trees in turns:
            copies_before, done = copies_after, list[Round]()
            engine.planner.held_tree = trees[0]
            next(rounds)  # starts from a ring that the look has filled, and leaves one as a round finds it
            for tree in trees:
                engine.planner.held_tree = tree
                done.append(next(rounds))
            copies_after = time_copies(opened)
            link_seconds, disk_seconds = map(statistics.mean, zip(copies_before, copies_after, strict=True))
            yield from (TimedRound(each, link_seconds, disk_seconds) for each in done)
        rounds.close()
    finally:
        engine.planner.held_tree = None


def _endless_rounds(
    engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams, *, room: int
) -> Generator[Round, None, None]:
    """Yield every round but a prompt's first, without end; go to the next prompt with less than `room` tokens left."""
    for prompt in cycle(prompts):
        with closing(engine.generate(prompt, params, np.random.default_rng(params.seed))) as events:
            rounds = (event for event in events if isinstance(event, Round))
            next(rounds)
            while len(engine.text) + room < engine.context_tokens:
                yield next(rounds)


def time_copies(opened: OpenSession) -> tuple[float, float]:
    """Return the seconds of a pass's copies, and of the reads from a disk behind the link, with nothing computing."""
    timed = [run_copies(opened) for _ in range(3)][1:]  # the first began with slots that had been filled earlier
    if isinstance(opened.link, StagedCopyEngine):
        link_seconds = statistics.mean(item.link_busy_seconds for item in timed)
        return link_seconds, statistics.mean(item.disk_busy_seconds for item in timed)
    return statistics.mean(item.seconds for item in timed), 0.0


def measure_parts(
    opened: OpenSession, topology: TreeTopology, num_repeats: int, *, params: SamplingParams = GREEDY
) -> RoundParts:
    """Measure every part of a round with this tree, on the text that the session holds, its tokens by `params`."""
    engine = opened.session.engine
    target = engine.target
    if not engine.text:
        engine.set_text(PROMPT_TOKENS)
    tree, draft_seconds = _time_draft(engine, topology, num_repeats, params)
    link_seconds, disk_seconds = time_copies(opened)
    num_committed = target.cache.num_cached
    inputs = verify_input(engine.text[: num_committed + 1], tree, num_cached=num_committed)
    hidden = torch.empty(0)

    def run_pass() -> None:
        nonlocal hidden
        target.cache.truncate(num_committed)
        hidden = target.run_pass(inputs)

    def walk() -> None:
        logits = LazyLogits(target, hidden[-topology.num_nodes :], topology)
        verdict = verify(tree, logits.row, params, np.random.default_rng(0))
        target.cache.compact(num_committed, [num_committed + node for node in verdict.path])

    with layers_of_zeros(opened):
        compute_seconds = median_seconds(run_pass, num_repeats + 1)
        head_seconds = median_seconds(walk, num_repeats, before=run_pass)
        overlap_seconds = statistics.median(free_overlap_seconds(opened, run_pass) for _ in range(num_repeats))
    target.cache.truncate(num_committed)
    if opened.link is not opened.reader:  # nothing is shared
        overlap_seconds = max(link_seconds, disk_seconds, compute_seconds)
    return RoundParts(link_seconds, disk_seconds, compute_seconds, head_seconds, overlap_seconds, draft_seconds)


def predict_round(opened: OpenSession, parts: RoundParts) -> float:
    """Return the seconds of a round by the recurrence, from these parts.

    Copies and computation slow each other as much as they did in the free overlap: the longer of the two takes as long.
    """
    streamer = opened.streamer
    link_seconds, compute_seconds = parts.link_seconds, parts.compute_seconds
    if compute_seconds >= link_seconds:
        compute_seconds = max(compute_seconds, parts.free_overlap_seconds)
    else:
        link_seconds = max(link_seconds, parts.free_overlap_seconds)
    copy_seconds = link_seconds / streamer.num_streamed_layers
    ring = opened.link.ring if isinstance(opened.link, StagedCopyEngine) else StageRing()
    is_read = [isinstance(layer, LayerLayout) and ring.num_stages > 0 for layer in streamer.layers]
    read_seconds = parts.disk_seconds / max(sum(is_read), 1)
    periods = round_periods(
        [[compute_seconds / streamer.num_layers] * streamer.num_layers],
        [None if isinstance(layer, ResidentLayer) else copy_seconds for layer in streamer.layers],
        num_slots=len(streamer.slots),
        read_seconds=[read_seconds if is_staged else None for is_staged in is_read],
        num_stages=ring.num_stages,
        num_pieces=[ring.num_pieces(layout.slab_bytes) for layout in opened.plan.target.layouts],
    )
    return float(periods([parts.draft_seconds + parts.head_seconds])[0])


def _time_draft(
    engine: Engine, topology: TreeTopology, num_repeats: int, params: SamplingParams
) -> tuple[TokenTree, float]:
    """Return a tree on the present text, and the median seconds of growing it with the link at rest."""
    if engine.drafter is None:
        return TokenTree.rooted(topology, root_token_id=engine.text[-1]), 0.0
    drafter, rng, scheme = engine.drafter, np.random.default_rng(0), scheme_for(params)
    trees: list[TokenTree] = []

    def grow() -> None:
        wanted = WantedTree(text=engine.text, shape=topology, params=params, rng=rng, scheme=scheme)
        trees.extend(finish(drafter.grow([wanted])))

    seconds = median_seconds(grow, num_repeats + 1, after=lambda: drafter.roll_back(len(engine.text) - 1))
    return trees[-1], seconds


def run_stream(
    opened: OpenSession, *, num_turns: int = 6, passes_per_turn: int = 2
) -> Generator[str, None, dict[str, Any]]:
    """Measure turns of plain passes between looks at two yardsticks; return medians over the turns, and all figures.

    The yardsticks do without the ring: the raw link (sequential O_DIRECT reads with the same blocks and threads, bare
    copies to an accelerator, an emulated link's own rate), and the same beside a pass over layers that are there
    already, neither waiting for the other, which nothing that shares cores and memory with its disk can beat. Raises
    OptionError if nothing streams.
    """
    check_streaming(opened)
    if isinstance(opened.link, StagedCopyEngine):
        raise OptionError("layers stream over two links here; give --host-memory 0 or enough of it, or use bench round")
    turns = []
    placement = opened.placement
    _time_passes(opened, passes_per_turn)
    peak_bytes = peak_memory_bytes() - opened.plan.baseline_bytes  # before the yardsticks take memory too
    after = _yardsticks(opened)
    for _ in range(num_turns):
        before, passes = after, _time_passes(opened, passes_per_turn)
        after = _yardsticks(opened)
        raw_rate, overlap_seconds = map(statistics.mean, zip(before, after, strict=True))
        turn = {
            "ratio": passes["bytes_per_second"] / raw_rate,
            "seconds_over_free_overlap": passes["seconds_per_pass"] / overlap_seconds,  # 1 is perfect
            "raw_bytes_per_second": raw_rate,
            "free_overlap_seconds": overlap_seconds,
            **passes,
        }
        turns.append(turn)
        share, over_overlap = 100 * turn["ratio"], turn["seconds_over_free_overlap"]
        yield f"turn: {share:.1f} % of the raw link, {over_overlap:.3f} of a free overlap's time"
    names = ("ratio", "bytes_per_second", "raw_bytes_per_second", "seconds_per_pass", "seconds_over_free_overlap")
    planned_bytes = placement.device_bytes + placement.host_bytes
    return {
        **{name: statistics.median(turn[name] for turn in turns) for name in names},
        "peak_over_planned": peak_bytes / planned_bytes,
        "turns": turns,
        "bytes_per_pass": placement.streamed_bytes,
        "num_streamed_layers": placement.num_disk_layers + placement.num_host_layers,
        "num_resident_layers": placement.num_resident_layers,
        "passes_per_turn": passes_per_turn,
        "peak_bytes": peak_bytes,  # the process's largest resident size, less what it held before loading
        "planned_bytes": planned_bytes,
    }


def _time_passes(opened: OpenSession, num_passes: int) -> dict[str, float]:
    engine = opened.session.engine
    engine.truncate(0)
    with closing(engine.generate(PROMPT_TOKENS[:4], SamplingParams(), np.random.default_rng(0))) as events:
        rounds = (event for event in events if isinstance(event, Round))
        next(rounds)  # the prompt's own pass comes before
        wait_for_full_ring(opened)
        begun, bytes_before = time.perf_counter(), opened.link.bytes_copied
        waits = [next(rounds).pass_statistics.wait_seconds for _ in range(num_passes)]
        wait_for_full_ring(opened)
        seconds = time.perf_counter() - begun
    return {
        "bytes_per_second": (opened.link.bytes_copied - bytes_before) / seconds,
        "seconds_per_pass": seconds / num_passes,
        # Waiting for bytes; where it is near zero the processor is the bound, not the link.
        "wait_seconds_per_pass": statistics.mean(waits),
    }


def _yardsticks(opened: OpenSession) -> tuple[float, float]:
    """Return the raw link's bytes per second, latency included, and the seconds of the free overlap."""
    raw_rate = opened.placement.streamed_bytes / raw_link_seconds(opened)
    target = opened.session.engine.target

    def run_pass() -> None:
        target.cache.truncate(0)
        target.run_pass(chain_input(PROMPT_TOKENS[:1], num_cached=0))

    opened.session.engine.truncate(0)
    with layers_of_zeros(opened):
        run_pass()
        overlap_seconds = free_overlap_seconds(opened, run_pass)
    target.cache.truncate(0)
    return raw_rate, overlap_seconds


def check_streaming(opened: OpenSession) -> None:
    """Raise OptionError if every layer stays on the device, so that there is nothing to measure."""
    if opened.streamer.num_streamed_layers == 0:
        raise OptionError("no layer streams here; give a smaller --device-memory, or a larger --target")


def raw_link_seconds(opened: OpenSession) -> float:
    """Return the seconds that the link alone needs for the streamed layers: an emulated one's by its figures.

    A bare loop copies layers that wait in host memory to an accelerator, and reads the others from their files.
    """
    pairs = zip(opened.plan.target.layouts, opened.streamer.layers, strict=True)
    layouts = [layout for layout, layer in pairs if not isinstance(layer, ResidentLayer)]
    if isinstance(opened.link, EmulatedLink):
        sources = [layer for layer in opened.streamer.layers if not isinstance(layer, ResidentLayer)]
        return sum(opened.link.link.copy_seconds(source.payload_bytes) for source in sources)
    slabs = [layer.slab for layer in opened.streamer.layers if isinstance(layer, HostSource)]
    if len(slabs) == len(layouts) and opened.plan.device.type != "cpu":
        return _copy_seconds(slabs, opened.plan.device)
    ranges = [piece for layout in layouts for piece in layout.ranges]
    reader = opened.reader
    return measure_raw_link(ranges, block_bytes=reader.block_bytes, num_threads=reader.num_threads).seconds


def _copy_seconds(slabs: Sequence[torch.Tensor], device: torch.device) -> float:
    """Return the seconds of copying them one after another to one place on the device, beside what else it does."""
    place = torch.empty(max(map(torch.Tensor.numel, slabs)), dtype=torch.uint8, device=device)
    stream = torch.Stream(device)
    begun = time.perf_counter()
    with stream:
        for slab in slabs:
            place[: slab.numel()].copy_(slab, non_blocking=True)
    stream.synchronize()
    return time.perf_counter() - begun


def free_overlap_seconds(opened: OpenSession, run_pass: Callable[[], object]) -> float:
    """Return the seconds until every streamed layer is read and `run_pass`, which waits for no layer, has computed.

    Where a disk and the computation share cores and memory, no streaming can be faster. An emulated link takes no part
    of either: there it is the longer of the two.
    """
    with ThreadPoolExecutor(1) as beside:
        begun = time.perf_counter()
        reading = beside.submit(raw_link_seconds, opened)
        run_pass()
        link_seconds = reading.result()
        return max(link_seconds, time.perf_counter() - begun)
