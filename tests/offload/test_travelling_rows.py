"""Rows that travel, against a model of the text in plain bytes: on a host, and on a device in the worst order."""

import random
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest
import torch

from offload.copying.accelerator_engine import AcceleratorCopyEngine
from offload.copying.copy_engine import CopyEngine, HostSource
from offload.copying.emulated_link import EmulatedLink
from offload.copying.host_engine import HostCopyEngine
from offload.errors import LinkError
from offload.layer_streamer import LayerStreamer, ResidentLayer, StreamedLayer
from offload.travelling_rows import TravellingRows
from offload.units import LinkSpeed
from tests.support.fake_accelerator import FakeAccelerator
from tests.support.numbered_layers import numbered_slab

CAPACITY = 24
Kernel = Callable[[], None]


def row_bytes(layer: int) -> int:
    """Layers differ."""
    return 8 + 4 * layer


def row_of(layer: int, token: int) -> torch.Tensor:
    """What a layer keeps of a token."""
    return torch.full((row_bytes(layer),), (token * 7 + layer) % 251, dtype=torch.uint8)


class Text:
    """A text that grows, is cut and compacted, its rows in a ring, and what every layer then sees of it."""

    def __init__(self, streamer: LayerStreamer, launch: Callable[[Kernel], None]) -> None:
        self.streamer = streamer
        self.launch = launch
        self.tokens: list[int] = []
        self.wrong: list[tuple[int, int]] = []
        """(layer, place) of each row that was not what it should be."""
        self.num_seen = 0

    def run_pass(self, tokens: list[int], *, fails_at: int | None = None) -> None:
        """Append tokens; the kernels see what is before them, and may run much later."""
        before = tuple(self.tokens)
        self.streamer.begin_pass(num_rows=len(before), num_new_rows=len(tokens))
        for layer in range(self.streamer.num_layers):
            if layer == fails_at:
                self.streamer.abort_pass()
                return
            self.streamer.acquire(layer)
            rows = self.streamer.rows_of(layer)
            if rows is not None:
                self.launch(lambda layer=layer, rows=rows: self._compute(layer, rows, before, tokens))
            self.streamer.release(layer)
        self.streamer.end_pass()
        self.tokens += tokens

    def _compute(self, layer: int, rows: torch.Tensor, before: tuple[int, ...], tokens: list[int]) -> None:
        for place, token in enumerate(before):
            self.num_seen += 1
            if not torch.equal(rows[place], row_of(layer, token)):
                self.wrong.append((layer, place))
        for place, token in enumerate(tokens, start=len(before)):
            rows[place] = row_of(layer, token)

    def compact(self, start: int, places: list[int]) -> None:
        assert self.streamer.rows is not None
        self.streamer.rows.keep(start, places)
        self.tokens = self.tokens[:start] + [self.tokens[place] for place in places]

    def restore(self, tokens: list[int], *, is_told: bool = True) -> None:
        """Let other tokens stand behind the text, whose rows come from elsewhere."""
        rows, start = self.streamer.rows, len(self.tokens)
        assert rows is not None
        if is_told:
            self.streamer.forget_rows(start)
        for layer in rows.layers:
            in_host = rows.of_layer(layer)
            assert in_host is not None
            for place, token in enumerate(tokens, start=start):
                in_host[place] = row_of(layer, token)
        self.tokens += tokens

    def live(self, rng: random.Random, num_passes: int) -> None:
        """Passes of some tokens, after which a part of them is kept, or much is forgotten, or that fail somewhere."""
        for _ in range(num_passes):
            if rng.random() < 0.2 or len(self.tokens) > CAPACITY - 8:
                del self.tokens[rng.randint(0, len(self.tokens)) :]
            if rng.random() < 0.2 and len(self.tokens) < CAPACITY - 16:
                self.restore([rng.randrange(1000) for _ in range(rng.randint(1, 8))])
            start = len(self.tokens)
            tokens = [rng.randrange(1000) for _ in range(rng.randint(1, 6))]
            fails_at = rng.randrange(self.streamer.num_layers) if rng.random() < 0.15 else None
            self.run_pass(tokens, fails_at=fails_at)
            if fails_at is None:
                self.compact(start, sorted(rng.sample(range(start, len(self.tokens)), rng.randint(0, len(tokens)))))


def layers_of(is_resident: list[bool], pin: Callable[[torch.Tensor], torch.Tensor]) -> list[StreamedLayer]:
    slabs = [pin(numbered_slab(index)) for index in range(len(is_resident))]
    return [
        ResidentLayer(slab) if resident else HostSource(slab, 10)
        for slab, resident in zip(slabs, is_resident, strict=True)
    ]


@contextmanager
def text_on_device(
    accelerator: FakeAccelerator, is_resident: list[bool], *, num_slots: int = 2, still: tuple[int, ...] = ()
) -> Iterator[Text]:
    """`still`: streamed layers whose rows do not travel."""
    sizes = {
        index: row_bytes(index) for index, resident in enumerate(is_resident) if not resident and index not in still
    }
    rows = TravellingRows(
        sizes,
        capacity=CAPACITY,
        allocate=lambda num_bytes: accelerator.pin(torch.zeros(num_bytes, dtype=torch.uint8)),
    )
    with (
        AcceleratorCopyEngine(accelerator, chunk_bytes=50, pause=lambda: None) as engine,
        LayerStreamer(
            layers_of(is_resident, accelerator.pin),
            engine,
            num_slots=num_slots,
            rows=rows,
            allocate_slot=lambda num_bytes: accelerator.pin(accelerator.slot(num_bytes)),
        ) as streamer,
    ):
        yield Text(streamer, lambda kernel: accelerator.compute_stream.launch(kernel, seconds=1e-5))
        accelerator.finish()


SHAPES: dict[str, tuple[list[bool], int, tuple[int, ...]]] = {
    "all streamed": ([False] * 5, 2, ()),
    "residents between": ([False, True, False, False, True], 2, ()),
    "some stay": ([False] * 5, 3, (1, 4)),
    "one layer in two slots": ([True, False, True], 2, ()),
    "two layers in five slots": ([False, True, False], 5, ()),
}


@pytest.mark.parametrize("temper", ["copies_first", "kernels_first", "random"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_kernel_sees_the_rows_of_the_text(temper: str, shape: str) -> None:
    is_resident, num_slots, still = SHAPES[shape]
    for seed in range(3):
        accelerator = FakeAccelerator(temper, seed=seed)
        with text_on_device(accelerator, is_resident, num_slots=num_slots, still=still) as text:
            text.live(random.Random(seed), 40)
            accelerator.finish()
            assert text.num_seen > 100 and text.wrong == []


@pytest.mark.parametrize("lost", ["copy", "compute"])
def test_an_engine_without_one_of_the_waits_is_caught(lost: str) -> None:
    """The oracle is worth something."""
    num_wrong = 0
    for seed in range(4):
        accelerator = FakeAccelerator("random", seed=seed)
        accelerator.ignores_waits_of = lost
        with text_on_device(accelerator, [False] * 5) as text:
            text.live(random.Random(seed), 20)
            accelerator.finish()
            num_wrong += len(text.wrong)
    assert num_wrong


def test_rows_of_the_first_pass_wait_for_those_that_were_in_the_slot() -> None:
    """Nothing is copied to the rows of a slot then, whose order could hold the next layer's kernel back."""
    accelerator = FakeAccelerator("kernels_first")
    with text_on_device(accelerator, [False] * 6) as text:
        text.run_pass([5, 6, 7])
        text.run_pass([8])
        accelerator.finish()
        assert text.wrong == []


@pytest.mark.parametrize("is_emulated", [False, True])
def test_rows_on_a_host_are_those_of_the_text(is_emulated: bool) -> None:
    engine: CopyEngine = HostCopyEngine(num_threads=2)
    if is_emulated:
        engine = EmulatedLink(engine, LinkSpeed(1e9))
    rows = TravellingRows({0: row_bytes(0), 2: row_bytes(2), 3: row_bytes(3)}, capacity=CAPACITY)
    with (
        closing(engine),
        LayerStreamer(
            layers_of([False, True, False, False], lambda slab: slab), engine, num_slots=2, rows=rows
        ) as ring,
    ):
        text = Text(ring, lambda kernel: kernel())
        text.live(random.Random(3), 60)
        assert text.num_seen > 100 and text.wrong == []


@pytest.mark.parametrize("is_told", [True, False])
def test_a_ring_that_is_not_told_of_other_rows_shows_those_before(is_told: bool) -> None:
    """It has fetched them ahead."""
    rows = TravellingRows({0: row_bytes(0), 1: row_bytes(1)}, capacity=CAPACITY)
    with (
        closing(HostCopyEngine(num_threads=1)) as engine,
        LayerStreamer(layers_of([False, False], lambda slab: slab), engine, num_slots=2, rows=rows) as ring,
    ):
        text = Text(ring, lambda kernel: kernel())
        text.run_pass([1, 2, 3, 4])
        text.run_pass([5])
        del text.tokens[1:]
        text.restore([7, 8, 9, 10], is_told=is_told)
        text.run_pass([6])
        assert bool(text.wrong) != is_told


def test_rows_that_do_not_come_back_fail_the_pass() -> None:
    accelerator = FakeAccelerator()
    with text_on_device(accelerator, [False] * 3) as text:
        text.run_pass([1, 2])
        copy = accelerator.copy

        def refuse(destination: torch.Tensor, source: torch.Tensor, stream: object) -> None:
            if stream is accelerator.copy_streams[1]:
                raise RuntimeError("the device refuses the copy")
            copy(destination, source, stream)  # type: ignore[arg-type]

        accelerator.copy = refuse  # type: ignore[method-assign]
        with pytest.raises(LinkError, match="from the device failed"):
            text.run_pass([3])
        text.streamer.abort_pass()
        accelerator.copy = copy  # type: ignore[method-assign]
        text.run_pass([4])
        text.run_pass([5])
        accelerator.finish()
        assert text.wrong == [] and text.tokens == [1, 2, 4, 5]


def test_streams_and_events_are_created_once() -> None:
    accelerator = FakeAccelerator()
    with text_on_device(accelerator, [False] * 5) as text:
        text.live(random.Random(1), 10)
        num_events = accelerator.num_events
        text.live(random.Random(2), 60)
        assert len(accelerator.copy_streams) == 2
        assert accelerator.num_events <= num_events + 4
        assert accelerator.num_synchronous_copies == 0
