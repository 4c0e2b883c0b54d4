"""What a round costs, as tables: copies by layer, computation by tree size, draft steps by width, head and walk.

The planner's input, whether it was measured just now, read from a profile or taken from a data sheet. `pipeline_model`
turns it into seconds, and `CostLearner` keeps it up to date while rounds run. Where a disk's reads and the computation
share cores, each slows the other: two numbers say by how much, so that a pass costs the longer of copies + b *
computation and computation + a * copies.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from offload.pipeline_model import round_periods
from profiles.pair_profile import PairProfile, PassCost
from runtime.config import PREFILL_CHUNK_TOKENS
from runtime.events import Round

KEPT_PER_SAMPLE = 0.97
"""Weight of a measurement beside the next one of the same part."""
NUM_KEPT = 128
PRIOR_SAMPLES = 4.0
"""Measurements that a profile's cost counts for."""


@dataclass(frozen=True, slots=True)
class CostTable:
    """Seconds by size: measured points, straight lines between them, the last line's slope beyond; never negative.

    Above `multiple`, sizes cost what the next whole multiple of it costs, as columns of a processor's products do.
    """

    sizes: tuple[float, ...]
    """Ascending, at least one."""
    seconds: tuple[float, ...]
    """Of each size."""
    multiple: float = 1

    def __call__(self, sizes: ArrayLike) -> NDArray[np.float64]:
        """Return each size's seconds, of the same shape; below the smallest point they are its own."""
        wanted = counted_sizes(sizes, self.multiple)
        known, seconds = np.asarray(self.sizes, dtype=np.float64), np.asarray(self.seconds, dtype=np.float64)
        inside: NDArray[np.float64] = np.interp(wanted, known, seconds)
        if len(known) == 1:
            return inside
        slope = max(0.0, (seconds[-1] - seconds[-2]) / (known[-1] - known[-2]))
        return np.asarray(inside + slope * np.maximum(wanted - known[-1], 0.0), dtype=np.float64)

    def shared_by(self, num_texts: int) -> "CostTable":
        """Return what so many together cost, by the size of each."""
        sizes = tuple(size / num_texts for size in self.sizes)
        return replace(self, sizes=sizes, multiple=self.multiple / num_texts if self.multiple > 1 else 1)

    def times(self, factor: float) -> "CostTable":
        """Return the same sizes at `factor` times the seconds."""
        return replace(self, seconds=tuple(seconds * factor for seconds in self.seconds))


def counted_sizes(sizes: ArrayLike, multiple: float) -> NDArray[np.float64]:
    """Return the sizes that these cost as: above `multiple` the next whole multiple of it; with 1 all as they are."""
    wanted = np.asarray(sizes, dtype=np.float64)
    if multiple == 1:  # means may be no whole numbers
        return wanted
    return np.asarray(np.where(wanted > multiple, np.ceil(wanted / multiple) * multiple, wanted), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class RoundCosts:
    """Every part of a round. L layers."""

    copy_seconds: tuple[float | None, ...]
    """(L,) of each layer over the link; None for a resident one."""
    pass_seconds: CostTable
    """Computation of all L layers together, by tokens in the pass (the tree's nodes)."""
    draft_step_seconds: CostTable | None
    """A draft forward by its width; None without a draft."""
    walk_seconds: CostTable
    """Head, walk and compaction, by nodes."""
    num_slots: int
    read_seconds: tuple[float | None, ...] = ()
    """(L,) of each layer from the disk behind the link; () without one."""
    num_stages: int = 0
    """Host stages that reads go through."""
    num_pieces: tuple[int, ...] = ()
    """(L,) pieces in which each layer goes through them; () for whole layers."""
    compute_slowdown: float = 0.0
    """Seconds of computation that each second of copying costs, where both share cores and memory; else 0."""
    copy_slowdown: float = 0.0
    """Seconds of copying that each second of computing costs; likewise."""

    def round_seconds(self, num_nodes: ArrayLike, draft_seconds: ArrayLike) -> NDArray[np.float64]:
        """Return seconds (..., C) of rounds with trees of `num_nodes` (C,) that take `draft_seconds` (..., C)."""
        compute_seconds, copy_seconds = self.layer_seconds(num_nodes)
        periods = round_periods(
            compute_seconds,
            copy_seconds,
            num_slots=self.num_slots,
            read_seconds=self.read_seconds,
            num_stages=self.num_stages,
            num_pieces=self.num_pieces,
        )
        return periods(np.asarray(draft_seconds, dtype=np.float64) + self.walk_seconds(num_nodes))

    def part_seconds(self, num_nodes: int, draft_seconds: float) -> dict[str, float]:
        """Return the seconds of a round's parts, each on its own: they overlap."""
        compute, copies = self.layer_seconds(num_nodes)
        return {
            "link": sum(float(seconds[0]) for seconds in copies if seconds is not None),
            "disk": sum(filter(None, self.read_seconds)),
            "compute": float(compute.sum()),
            "draft": draft_seconds,
            "head_and_walk": float(self.walk_seconds(num_nodes)),
        }

    def for_texts(self, num_texts: int) -> "RoundCosts":
        """Return what a round of so many texts costs, by the size of each one's tree; all trees are alike."""
        step = self.draft_step_seconds
        return replace(
            self,
            pass_seconds=self.pass_seconds.shared_by(num_texts),
            draft_step_seconds=None if step is None else step.shared_by(num_texts),
            walk_seconds=self.walk_seconds.times(num_texts),
        )

    def with_token_multiple(self, multiple: int) -> "RoundCosts":
        """Return the same with passes that cost by whole multiples of so many tokens."""
        return replace(self, pass_seconds=replace(self.pass_seconds, multiple=multiple))

    def layer_seconds(self, num_nodes: ArrayLike) -> tuple[NDArray[np.float64], list[NDArray[np.float64] | None]]:
        """Return computation (C, L) and each layer's copy (C,) or None, both with what the other slows them by."""
        nodes = np.atleast_1d(np.asarray(num_nodes, dtype=np.float64))
        per_layer = self.pass_seconds(nodes) / len(self.copy_seconds)  # (C,)
        slowed = [per_layer + self.compute_slowdown * (seconds or 0.0) for seconds in self.copy_seconds]
        copies = [
            None if seconds is None else seconds + self.copy_slowdown * per_layer for seconds in self.copy_seconds
        ]
        return np.stack(slowed, axis=1), copies


@dataclass(frozen=True, slots=True)
class StreamShape:
    """What crosses the link in every pass, and through what. L layers."""

    streamed_bytes: tuple[int | None, ...]
    """(L,) of each layer; None for a resident one."""
    num_slots: int
    read_bytes: tuple[int | None, ...] = ()
    """(L,) what a disk delivers to a stage on its way to the link; () where no disk is behind the link."""
    num_stages: int = 0
    """Stages that reads go through."""
    num_pieces: tuple[int, ...] = ()
    """(L,) pieces in which each layer goes through them; () for whole layers."""
    row_bytes: tuple[int, ...] = ()
    """(L,) what crosses with each layer for every token of the text: its keys and values, 0 where they stay; () for
    none."""
    token_multiple: int = 1
    """Passes over more tokens than that cost what the next multiple of it costs; see `CostTable`."""

    def shares(self, num_rows: int) -> tuple[float, ...]:
        """Return (L,) what crosses with each layer behind `num_rows` tokens of text, over what its weights are."""
        if not self.row_bytes:
            return (1.0,) * len(self.streamed_bytes)
        each = zip(self.streamed_bytes, self.row_bytes, strict=True)
        return tuple(1 + num_rows * rows / size if size else 1.0 for size, rows in each)


def costs_from_profiles(
    pair: PairProfile,
    *,
    copy_seconds: Sequence[float | None],
    num_slots: int,
    read_seconds: Sequence[float | None] = (),
    num_stages: int = 0,
    num_pieces: Sequence[int] = (),
    context_tokens: int,
) -> RoundCosts:
    """Return the costs of this pair's rounds at `context_tokens` tokens of text, with these copies and reads.

    Copies (L,) hold None for residents. A pass lies on the straight line between the two nearest contexts of the
    profile; shorter and longer ones than it holds take the nearest.
    """
    steps, walks = pair.draft_steps, pair.walk_costs
    return RoundCosts(
        copy_seconds=tuple(copy_seconds),
        pass_seconds=passes_of_profile(pair, context_tokens),
        draft_step_seconds=CostTable(tuple(step.width for step in steps), tuple(step.seconds for step in steps)),
        walk_seconds=CostTable(tuple(walk.num_nodes for walk in walks), tuple(walk.seconds for walk in walks)),
        num_slots=num_slots,
        read_seconds=tuple(read_seconds),
        num_stages=num_stages,
        num_pieces=tuple(num_pieces),
        compute_slowdown=pair.compute_slowdown,
        copy_slowdown=pair.copy_slowdown,
    )


def fit_cost(samples: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return (base, slope), neither negative, of the line through samples (size, seconds), of which old ones fade.

    By least squares without outliers; one size alone gives a base. A step that met a busy processor may take ten times
    its time: what lies three deviations off is left out.
    """
    sizes, seconds = np.array(samples, dtype=np.float64).T
    weights = _fading(len(sizes))
    base, slope = _fit_line(sizes, seconds, weights)
    for _ in range(3):
        errors = np.abs(seconds - base - slope * sizes)
        is_kept = errors <= 3 * 1.4826 * np.median(errors) + 1e-12
        base, slope = _fit_line(sizes[is_kept], seconds[is_kept], weights[is_kept])
    return base, slope


def cost_factor(ratios: Sequence[float]) -> float:
    """Return the median of what was measured over what was expected; old ratios fade, and 1 counts for a few."""
    return _weighted_median(np.append(ratios, 1.0), np.append(_fading(len(ratios)), PRIOR_SAMPLES))


class CostLearner:
    """Learns what rounds cost here: from measurements alone, or from a profile's costs that measurements scale.

    Each part of a round has its own estimate, and old measurements fade. Without a profile a part is a line through
    what was measured; with one it is the profile's table times a factor, so that sizes nobody has tried yet are known
    too.
    """

    def __init__(self, shape: StreamShape, initial: RoundCosts | None = None) -> None:
        """`initial`: a profile's costs of the same layers, which measurements then scale; without what travels."""
        self.num_rows = 0
        """Tokens of the text, whose keys and values the next pass finds; those of layers that they travel with cross
        the link."""
        self.covered_tokens: float | None = None
        """How many tokens are computed in the time that all copies and reads take, as the first pass says, which is too
        cold to teach anything else; None before it."""
        self._shape = shape
        self._initial = initial
        self._is_cold = True
        parts = ("pass", "plain", "step", "walk", "plain walk", "link", "disk")
        self._samples = {part: deque[tuple[float, float]](maxlen=NUM_KEPT) for part in parts}
        """(size, seconds) of each part; with a profile (seconds that it let expect, seconds)."""

    @property
    def is_known(self) -> bool:
        """Whether `costs` can be asked for: a profile said what they are, or a round with a draft was measured."""
        return self._initial is not None or bool(self._samples["pass"] and self._samples["step"])

    def observe(self, done: Round) -> None:
        """Learn a round; not the first one, whose forwards met cold memory and carry the whole prompt.

        Nor one that waited for layers that were still being loaded.
        """
        statistics = done.pass_statistics
        if self._is_cold or statistics.is_loading:
            if not statistics.is_loading and statistics.compute_seconds > 0:
                moving_seconds = max(statistics.link_busy_seconds, statistics.disk_busy_seconds)
                self.covered_tokens = done.num_pass_tokens * moving_seconds / statistics.compute_seconds
            self._is_cold = False
            return
        if all_row_bytes := sum(self._shape.row_bytes):
            self.num_rows = statistics.cache_bytes_sent // all_row_bytes
        initial = None if self._initial is None else self._with_rows(self._initial)
        for part, size, seconds in _measured_parts(done):
            expected = size if initial is None else _expected_seconds(initial, part, size, done)
            if expected > 0:
                self._samples[part].append((expected, seconds))

    def costs(self) -> RoundCosts:
        """Return what a round costs by all that is known; ask only once `is_known`."""
        initial, shape, samples = self._initial, self._shape, self._samples
        if initial is None:
            of_weights = RoundCosts(
                copy_seconds=_at_rate(shape.streamed_bytes, samples["link"]),
                pass_seconds=_pass_line(samples["pass"], samples["plain"], multiple=shape.token_multiple),
                draft_step_seconds=_line(samples["step"]),
                walk_seconds=_walks(samples["walk"], samples["plain walk"]),
                num_slots=shape.num_slots,
                read_seconds=_at_rate(shape.read_bytes, samples["disk"]),
                num_stages=shape.num_stages,
                num_pieces=shape.num_pieces,
            )
            return self._with_rows(of_weights)
        initial = self._with_rows(initial)
        ratios = {part: [seconds / expected for expected, seconds in samples[part]] for part in samples}
        factors = {part: cost_factor(ratios[part]) for part in ratios}
        if not samples["plain"]:
            factors["plain"] = factors["pass"]
        step = initial.draft_step_seconds
        return replace(
            initial,
            copy_seconds=_times(initial.copy_seconds, factors["link"]),
            pass_seconds=_scaled_passes(initial.pass_seconds, factors["pass"], plain=factors["plain"]),
            draft_step_seconds=None if step is None else step.times(factors["step"]),
            walk_seconds=initial.walk_seconds.times(factors["walk"]),
            read_seconds=_times(initial.read_seconds, factors["disk"]),
        )

    def _with_rows(self, costs: RoundCosts) -> RoundCosts:
        """Return the costs of weights alone with what travels beside them now, at the rate of the weights."""
        each = zip(costs.copy_seconds, self._shape.shares(self.num_rows), strict=True)
        return replace(
            costs, copy_seconds=tuple(None if seconds is None else seconds * share for seconds, share in each)
        )


def passes_of_profile(pair: PairProfile, context_tokens: int) -> CostTable:
    """Return what the layers compute by tokens, behind this context or the nearest ones of the profile."""
    return _pass_seconds(pair.pass_costs, context_tokens)


def _pass_seconds(costs: Sequence[PassCost], context_tokens: int) -> CostTable:
    by_context: dict[int, dict[float, float]] = {}
    for cost in costs:
        by_context.setdefault(cost.context_tokens, {})[cost.num_tokens] = cost.seconds
    contexts = sorted(by_context)
    tables = [CostTable(tuple(by_context[context]), tuple(by_context[context].values())) for context in contexts]
    place = float(np.interp(context_tokens, contexts, np.arange(len(contexts))))
    lower, upper = tables[int(place)], tables[min(int(place) + 1, len(tables) - 1)]
    share = place - int(place)
    sizes = np.union1d(lower.sizes, upper.sizes)
    seconds = (1 - share) * lower(sizes) + share * upper(sizes)
    return CostTable(tuple(sizes.tolist()), tuple(seconds.tolist()))


def _measured_parts(done: Round) -> Iterator[tuple[str, float, float]]:
    """(part, size, seconds): sizes are tokens, nodes and bytes; link and disk are left out where nothing was moved."""
    statistics = done.pass_statistics
    for width, seconds in done.draft_steps:
        yield "step", width, seconds
    # One token alone takes another way through the processor, and less time than wider passes let expect; one over a
    # prompt is so much wider than any tree's that it would hide what these cost.
    num_nodes = done.num_pass_nodes or done.num_nodes
    if done.num_pass_tokens <= num_nodes + PREFILL_CHUNK_TOKENS:
        yield "plain" if done.num_pass_tokens == 1 else "pass", done.num_pass_tokens, statistics.compute_seconds
    yield "walk" if done.num_nodes > 1 else "plain walk", done.num_nodes, done.overhead_seconds / done.num_texts
    if statistics.link_busy_seconds > 0:
        yield "link", statistics.bytes_streamed + statistics.cache_bytes_sent, statistics.link_busy_seconds
    if statistics.disk_busy_seconds > 0:
        yield "disk", statistics.bytes_read, statistics.disk_busy_seconds


def _expected_seconds(costs: RoundCosts, part: str, size: float, done: Round) -> float:
    """What slows a part down is expected at the length that was measured for what slows it down."""
    statistics = done.pass_statistics
    match part:
        case "step":
            return 0.0 if costs.draft_step_seconds is None else float(costs.draft_step_seconds(size))
        case "pass" | "plain":
            return float(costs.pass_seconds(size)) + costs.compute_slowdown * statistics.link_busy_seconds
        case "walk" | "plain walk":
            return float(costs.walk_seconds(size))
        case "link":
            return sum(filter(None, costs.copy_seconds)) + costs.copy_slowdown * statistics.compute_seconds
        case _:
            return sum(filter(None, costs.read_seconds))


def _line(samples: Sequence[tuple[float, float]]) -> CostTable:
    base, slope = fit_cost(samples)
    return CostTable((0.0, 1.0), (base, base + slope))


def _fading(num_samples: int) -> NDArray[np.float64]:
    return np.asarray(KEPT_PER_SAMPLE ** np.arange(num_samples - 1, -1, -1), dtype=np.float64)


def _pass_line(
    samples: Sequence[tuple[float, float]], plain_samples: Sequence[tuple[float, float]], *, multiple: int
) -> CostTable:
    """Passes by size: a line through those of several tokens, and what one token was measured to take alone."""
    line = _line([(float(counted_sizes(size, multiple)), seconds) for size, seconds in samples])
    if not plain_samples:
        return replace(line, multiple=multiple)
    plain = _recent_median([seconds for _, seconds in plain_samples])
    return CostTable((1.0, 2.0, 3.0), (plain, *line([2.0, 3.0]).tolist()), multiple)


def _walks(samples: Sequence[tuple[float, float]], plain_samples: Sequence[tuple[float, float]]) -> CostTable:
    """Head and walk of any tree, and of none, which visits the head once."""
    plain, tree = (_recent_median([seconds for _, seconds in each]) for each in (plain_samples or samples, samples))
    return CostTable((1, 2, 3), (plain, tree, tree)) if plain_samples else CostTable((1,), (tree,))


def _scaled_passes(passes: CostTable, factor: float, *, plain: float) -> CostTable:
    """A profile's passes at `factor` times their seconds, those of one token at `plain` times theirs."""
    scaled = passes.times(factor)
    if plain == factor or scaled.sizes[0] != 1 or len(scaled.sizes) == 1:
        return scaled
    sizes, seconds = list(scaled.sizes), [passes.seconds[0] * plain, *scaled.seconds[1:]]
    if sizes[1] > 2:
        sizes.insert(1, 2.0)
        seconds.insert(1, float(scaled(2.0)))
    return replace(scaled, sizes=tuple(sizes), seconds=tuple(seconds))


def _fit_line(
    sizes: NDArray[np.float64], seconds: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[float, float]:
    mean_size, mean_seconds = np.average(sizes, weights=weights), np.average(seconds, weights=weights)
    spread = sizes - mean_size
    variance = float((weights * spread**2).sum())
    if variance == 0:
        return _weighted_median(seconds, weights), 0.0
    slope = max(0.0, float((weights * spread * seconds).sum() / variance))
    base = float(mean_seconds - slope * mean_size)
    if base < 0:
        return 0.0, float((weights * sizes * seconds).sum() / (weights * sizes**2).sum())
    return base, slope


def _weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])


def _recent_median(values: Sequence[float]) -> float:
    return _weighted_median(np.asarray(values, dtype=np.float64), _fading(len(values)))


def _at_rate(sizes: Sequence[int | None], moved: Sequence[tuple[float, float]]) -> tuple[float | None, ...]:
    """Seconds of each size, by (bytes, seconds) that were moved; none where nothing was moved."""
    rate = _recent_median([num_bytes / seconds for num_bytes, seconds in moved]) if moved else np.inf
    return tuple(None if size is None else size / rate for size in sizes)


def _times(seconds: Sequence[float | None], factor: float) -> tuple[float | None, ...]:
    return tuple(None if value is None else value * factor for value in seconds)
