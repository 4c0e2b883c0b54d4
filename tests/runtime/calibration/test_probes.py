"""A real session's probes: what each times, what it holds, and that the session is free afterwards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from offload.layer_streamer import LayerStreamer, ResidentLayer
from profiles.machine_profile import PinBudgetSource
from runtime.calibration import probes as probes_module
from runtime.calibration.probes import (
    SessionProbes,
    layers_at_hand,
    layers_of_zeros,
    median_seconds,
    wait_for_full_ring,
)
from runtime.engine.loading import OpenSession
from runtime.errors import OptionError
from runtime.model import streamed_model
from runtime.model.pass_graphs import Replay
from runtime.model.streamed_model import chain_input
from tests.support.session_factory import answer, open_tiny, request, save_tiny_folder

LAYER_SECONDS = 0.01
LINK = f"{40_000 / LAYER_SECONDS:.0f}B/s"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model") / "target", seed=2)


def probes_of(opened: OpenSession, tmp_path: Path) -> SessionProbes:
    return SessionProbes(opened, [request()], state_folder=tmp_path)


def repeated(work: Callable[[], torch.Tensor]) -> Replay:
    """Record as a graph does: its output lies where the first one did."""
    output = work()
    return lambda: output.copy_(work())


def test_facts_are_those_of_the_session(folder: Path, tmp_path: Path) -> None:
    with open_tiny(folder, draft=folder, num_residents=0) as opened:
        probes = probes_of(opened, tmp_path)
        pair, machine = probes.pair(), probes.machine()
        assert (pair.cache_tokens, pair.context_tokens) == (opened.plan.need.capacity_tokens, 128)
        assert pair.max_pass_tokens == 256
        assert (pair.compute_dtype, pair.is_streamed, len(pair.prompt_tokens)) == ("float32", True, 1)
        assert machine.device.device_type == "cpu"
        assert machine.pin_budget_source is PinBudgetSource.NOT_LIMITED
        assert machine.device_memory_bytes == machine.host_memory_bytes > 0


def test_a_session_for_which_no_draft_was_found_is_refused(folder: Path, tmp_path: Path) -> None:
    """As with `--draft auto` where everything stays in memory."""
    with (
        open_tiny(folder, draft="auto") as opened,
        pytest.raises(OptionError, match="no draft was loaded, and without one there is nothing to calibrate"),
    ):
        SessionProbes(opened, [request()], state_folder=tmp_path)


def test_a_small_tree_and_context_limit_the_largest_pass(folder: Path, tmp_path: Path) -> None:
    with open_tiny(folder, draft=folder, tree="6x3", context_tokens=40) as opened:
        pair = probes_of(opened, tmp_path).pair()
        assert pair.max_pass_tokens == pair.cache_tokens == 46


@pytest.mark.parametrize(("kv_cache", "kv_format"), [("device", "exact"), ("host", "exact"), ("host", "int8")])
def test_every_part_takes_time_and_leaves_the_session_as_good_as_new(
    kv_cache: str, kv_format: str, folder: Path, tmp_path: Path
) -> None:
    settings = {"link": LINK, "context_tokens": 200, "kv_cache": kv_cache, "kv_format": kv_format}
    with open_tiny(folder, draft=folder, **settings) as opened:
        assert bool(opened.plan.residency.travelling) == (kv_cache == "host")
        expected = answer(opened, request())[1]
        probes = probes_of(opened, tmp_path)
        taken = [
            probes.time_pass(3, 128),
            probes.time_draft_step(3, 128),
            probes.time_walk(1),
            probes.time_walk(24),
            *probes.time_streamed_pass(3, 128),
            probes.time_copies(),
        ]
        assert min(taken) > 0
        probes.begin_texts({0.0: 2, 1.0: 2})
        assert len(probes.grow_texts()) == 3
        assert answer(opened, request())[1] == expected


def test_a_context_beyond_what_was_ever_seen_is_made_of_numbers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots that nothing was written to hold whatever the memory held: NaN would make every kernel slow."""
    with open_tiny(folder, draft=folder) as opened:
        answer(opened, request())
        target = opened.session.engine.target
        for layer in target.cache.layers:
            with torch.inference_mode():
                layer.keys.fill_(torch.nan)
                layer.values.fill_(torch.nan)
        probes = probes_of(opened, tmp_path)
        seen: list[bool] = []
        run_pass = target.run_pass

        def look(inputs):  # type: ignore[no-untyped-def]
            hidden = run_pass(inputs)
            seen.append(bool(torch.isfinite(hidden).all()))
            return hidden

        monkeypatch.setattr(target, "run_pass", look)
        probes.time_pass(4, 100)
        assert seen == [True]


def test_copies_alone_are_timed_from_a_full_ring_to_a_full_ring(folder: Path, tmp_path: Path) -> None:
    """Four layers cross a link that needs 10 ms for each, whether the ring was full, empty or in between before."""
    with open_tiny(folder, draft=folder, num_residents=0, link=LINK) as opened:
        probes = probes_of(opened, tmp_path)
        probes.time_copies()
        copied = opened.link.bytes_copied
        assert probes.time_copies() > 3 * LAYER_SECONDS
        pass_bytes = opened.link.bytes_copied - copied
        assert pass_bytes == sum(layer.payload_bytes for layer in opened.streamer.layers)  # type: ignore[union-attr]
        computed, full_again = probes.time_streamed_pass(1, 16)
        assert opened.link.bytes_copied == copied + 2 * pass_bytes
        assert computed < full_again and full_again > 3 * LAYER_SECONDS


def test_passes_over_zeros_leave_the_link_alone(folder: Path, tmp_path: Path) -> None:
    with open_tiny(folder, draft=folder, num_residents=0, link=LINK) as opened:
        probes = probes_of(opened, tmp_path)
        probes.time_copies()
        copied = opened.link.bytes_copied
        probes.time_pass(1, 16)
        assert opened.link.bytes_copied == copied


def test_reads_go_through_the_files_and_links_end_where_memory_would(folder: Path, tmp_path: Path) -> None:
    with open_tiny(folder, draft=folder) as opened:
        probes = probes_of(opened, tmp_path)
        read = probes.time_disk(1 << 16)
        assert read is None or read > 0  # a file system without O_DIRECT has no figure
        assert probes.time_disk(1 << 40) is None
        copied = probes.time_link(1 << 16)
        assert copied is not None and copied > 0
        assert probes.time_link(2 * probes_module.COPY_BYTES) is None


def test_a_buffered_session_has_no_disk_figure(folder: Path, tmp_path: Path) -> None:
    """The page cache would answer."""
    with open_tiny(folder, draft=folder, io="buffered") as opened:
        assert probes_of(opened, tmp_path).time_disk(1 << 16) is None


def test_memory_that_cannot_be_pinned_leaves_the_link_open(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> float:
        raise RuntimeError("the driver refuses")

    monkeypatch.setattr(probes_module, "measure_copy_rate", refuse)
    with open_tiny(folder, draft=folder) as opened:
        assert probes_of(opened, tmp_path).time_link(1 << 16) is None


def test_the_first_of_several_runs_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 9.0, 10.0, 11.0, 20.0, 23.0, 30.0, 32.0])
    monkeypatch.setattr(probes_module.time, "perf_counter", lambda: next(ticks))
    calls: list[str] = []
    seconds = median_seconds(
        lambda: calls.append("run"), 4, before=lambda: calls.append("before"), after=lambda: calls.append("after")
    )
    assert seconds == 2.0  # of 9, 1, 3 and 2
    assert calls == ["before", "run", "after"] * 4


def test_one_run_is_its_own_median(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 9.0])
    monkeypatch.setattr(probes_module.time, "perf_counter", lambda: next(ticks))
    assert median_seconds(lambda: None, 1) == 9.0


def test_passes_over_zeros_stream_nothing_and_change_nothing(folder: Path) -> None:
    with open_tiny(folder, num_residents=0) as opened:
        expected = answer(opened, request())[1]
        target, before = opened.session.engine.target, opened.link.bytes_copied
        opened.session.engine.truncate(0)
        wait_for_full_ring(opened)
        before = opened.link.bytes_copied
        with layers_of_zeros(opened):
            target.run_pass(chain_input([1, 2, 3], num_cached=0))
        assert opened.link.bytes_copied == before
        assert target.last_pass.bytes_streamed == 0
        target.cache.truncate(0)
        assert answer(opened, request())[1] == expected


@pytest.mark.parametrize("num_residents", [0, 2, None])
def test_passes_over_layers_at_hand_allocate_no_layer_and_change_nothing(
    folder: Path, num_residents: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that a session has filled has no room for one layer more."""
    with open_tiny(folder, num_residents=num_residents) as opened:
        expected = answer(opened, request())[1]
        engine, streamer = opened.session.engine, opened.streamer
        engine.truncate(0)
        if streamer.slots:
            wait_for_full_ring(opened)
        before, slabs = opened.link.bytes_copied, []
        acquire = LayerStreamer.acquire
        monkeypatch.setattr(LayerStreamer, "acquire", lambda ring, i: slabs.append(acquire(ring, i)) or slabs[-1])
        for _ in range(2):
            with layers_at_hand(opened):
                engine.target.run_pass(chain_input([1, 2, 3], num_cached=0))
            engine.target.cache.truncate(0)
        assert opened.link.bytes_copied == before
        own = {layer.slab.data_ptr() for layer in streamer.layers if isinstance(layer, ResidentLayer)}
        lent = {slab.data_ptr() for slab in slabs} - own
        assert len(slabs) == 2 * streamer.num_layers and len(lent) == min(1, streamer.num_streamed_layers)
        assert lent <= {slot.data_ptr() for slot in streamer.slots}
        monkeypatch.undo()
        assert answer(opened, request())[1] == expected


def test_a_timed_draft_step_is_a_replay_where_steps_are_recorded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of a shape come as they are and the third is recorded: their median would be no step of any round."""
    monkeypatch.setattr(streamed_model, "recorder_for", lambda device: repeated)
    with open_tiny(folder, draft=folder, num_residents=0) as opened:
        probes, draft = probes_of(opened, tmp_path), opened.session.engine.drafter.model
        assert (draft.num_unsteady_passes, opened.session.engine.target.num_unsteady_passes) == (3, 0)
        graphs, ways = draft._graphs, []
        run = graphs.run

        def logged(*args: Any, **kwargs: Any) -> torch.Tensor | None:
            num_recorded = len(graphs._passes)
            found = run(*args, **kwargs)
            is_recorded_now = len(graphs._passes) > num_recorded
            ways.append("eager" if found is None else "recorded" if is_recorded_now else "replayed")
            return found

        monkeypatch.setattr(graphs, "run", logged)
        for _ in range(3):
            assert probes.time_draft_step(3, 20) > 0
        assert ways == ["eager", "eager", "recorded", "replayed", "replayed", "replayed"]


def test_a_full_ring_is_waited_for(folder: Path) -> None:
    with open_tiny(folder, num_residents=0, link="4MB/s") as opened:
        opened.streamer.prefetch()
        wait_for_full_ring(opened)
        assert opened.streamer.is_full
