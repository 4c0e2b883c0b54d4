import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from offload import layer_filling
from offload.checkpoint.layer_layout import LayerLayout
from offload.copying.copy_engine import HostSource
from offload.copying.emulated_link import EmulatedLink
from offload.errors import BudgetError, LinkError
from offload.layer_streamer import ResidentLayer
from profiles.errors import BadInputError
from runtime.config import EngineConfig
from runtime.engine.load_plan import LoadPlan
from runtime.engine.loading import OpenSession, load_session, open_session
from runtime.events import Round
from runtime.planner.initial_plan import NO_DRAFT
from tests.support.generator_ends import drained
from tests.support.model_factory import save_tiny_model, save_tiny_tokenizer
from tests.support.session_factory import answer, open_tiny, request, save_tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model") / "target", seed=37)


def test_the_budget_is_never_exceeded_and_one_more_layer_would_not_fit(folder: Path) -> None:
    with open_tiny(folder, draft="substitute", tree="8x4", num_residents=1) as opened:
        placement = opened.placement
        assert placement.device_bytes <= placement.device_budget_bytes
        assert placement.num_resident_layers == 1
        assert placement.num_disk_layers == 3
        layer_bytes = placement.resident_bytes
        assert placement.device_bytes + layer_bytes > placement.device_budget_bytes


def test_free_memory_is_filled_with_residents(folder: Path) -> None:
    with open_tiny(folder) as opened:
        assert all(isinstance(layer, ResidentLayer) for layer in opened.streamer.layers)
        assert opened.placement.streamed_bytes == 0


def test_where_nothing_streams_an_open_draft_is_none_and_one_sentence_says_so(folder: Path) -> None:
    """It would take memory, time to load and to read prompts with, and make little or nothing faster."""
    with open_tiny(folder, draft="auto") as opened:
        assert opened.session.engine.drafter is None
        assert not any("draft" in label for label in opened.placement.fixed)
        assert opened.notes == (NO_DRAFT,)
        assert opened.plan.draft_name == "none"


@pytest.mark.parametrize("settings", [{"link": "1GB/s"}, {"device_memory_bytes": 0}, {"tree": "4x3"}])
def test_where_layers_stream_or_a_tree_is_asked_for_an_open_draft_is_a_substitute(
    folder: Path, settings: dict[str, Any]
) -> None:
    with open_session(EngineConfig(target=str(folder), draft="auto", context_tokens=128, **settings)) as opened:
        assert opened.session.engine.drafter is not None
        assert opened.plan.draft_name == "substitute"
        assert NO_DRAFT not in opened.notes


def test_a_substitute_that_was_asked_for_is_loaded_wherever_the_layers_are(folder: Path) -> None:
    with open_tiny(folder, draft="substitute") as opened:
        assert opened.placement.streamed_bytes == 0
        assert opened.session.engine.drafter is not None


def test_an_int8_draft_takes_less_memory_and_changes_no_text(folder: Path, tmp_path: Path) -> None:
    draft = save_tiny_folder(tmp_path / "draft", "qwen2", seed=4)
    texts, draft_bytes = [], []
    for draft_format in ("stored", "int8"):
        with open_tiny(folder, draft=draft, tree="12x5", draft_format=draft_format) as opened:
            texts.append(answer(opened, request())[1])
            draft_bytes.append(opened.placement.fixed[f"draft model ({draft_format})"])
    assert texts[0] == texts[1]
    assert draft_bytes[1] < draft_bytes[0]


def test_an_emulated_link_keeps_only_the_ring_on_the_device_and_layers_in_host_memory(folder: Path) -> None:
    with open_tiny(folder, link="1GB/s") as opened:
        assert isinstance(opened.link, EmulatedLink)
        assert all(isinstance(layer, HostSource) for layer in opened.streamer.layers)
        assert opened.placement.num_host_layers == 4
        finished, _ = answer(opened, request())
    assert finished.statistics.bytes_streamed > 0


def test_a_host_budget_splits_the_streamed_layers_between_memory_and_disk(folder: Path) -> None:
    with open_tiny(folder, link="1GB/s", host_memory_bytes=90_000) as opened:
        kinds = [type(layer) for layer in opened.streamer.layers]
        assert kinds.count(HostSource) == 2
        assert kinds.count(LayerLayout) == 2
        text = answer(opened, request())[1]
    with open_tiny(folder) as resident:
        assert answer(resident, request())[1] == text


def test_a_budget_below_the_fixed_memory_is_refused_with_what_needs_it(folder: Path) -> None:
    config = EngineConfig(target=str(folder), device_memory_bytes=1000, draft="none")
    with (
        pytest.raises(BudgetError, match="embeddings, norm and head") as caught,
        open_session(config),
    ):
        pass
    assert "--device-memory" in str(caught.value)


def test_a_draft_with_another_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    draft = save_tiny_tokenizer(save_tiny_model("llama", tmp_path / "draft"), order_seed=3)
    with pytest.raises(BadInputError, match="different tokenizers"), open_tiny(folder, draft=draft):
        pass


def test_the_context_is_what_the_longest_request_needs(folder: Path) -> None:
    requests = [request("the cat", max_new_tokens=5), request("the cat and the dog", max_new_tokens=40)]
    config = EngineConfig(target=str(folder), draft="none")
    with open_session(config, requests=requests) as opened:
        num_prompt = len(opened.session.format_prompt(requests[1]))
        assert opened.session.engine.context_tokens == num_prompt + 41
        assert answer(opened, requests[1])[0].finish_reason == "length"


def test_the_context_never_exceeds_the_models_positions(folder: Path) -> None:
    with open_tiny(folder, context_tokens=100_000) as opened:
        assert opened.session.engine.context_tokens == 512


@pytest.mark.parametrize("io", ["direct", "buffered", "auto"])
def test_every_way_of_reading_gives_the_same_text(io: str, folder: Path) -> None:
    with open_tiny(folder) as resident:
        expected = answer(resident, request())[1]
    try:
        with open_tiny(folder, num_residents=0, io=io) as opened:
            assert answer(opened, request())[1] == expected
    except LinkError as error:  # a temporary folder in memory has no O_DIRECT; anything else is a failure
        assert io == "direct"
        assert "O_DIRECT" in str(error)


@pytest.mark.parametrize("draft_format", ["int8", "nf4"])
def test_a_substitute_may_share_the_layers_that_are_resident_anyway(folder: Path, draft_format: str) -> None:
    """Two shared layers cost the draft nothing, and the text stays the target's own."""
    with open_tiny(folder, num_residents=2) as plain:
        expected = answer(plain, request())[1]
    fixed = {}
    for share_layers in (False, True):
        settings: dict[str, Any] = {"draft_format": draft_format, "share_layers": share_layers}
        with open_tiny(folder, draft="substitute", tree="12x5", **settings) as opened:
            assert opened.placement.num_resident_layers == 4
            fixed[share_layers] = opened.placement.fixed_bytes
        with open_tiny(folder, draft="substitute", tree="12x5", link="1GB/s", **settings) as opened:
            assert answer(opened, request())[1] == expected
    of_draft = opened.plan.placement.fixed[f"substitute draft ({draft_format})"]
    assert fixed[False] - fixed[True] == of_draft


def test_what_is_shared_makes_room_for_more_residents(folder: Path) -> None:
    """The budget that holds one layer beside an int8 copy of all holds more when residents need no copy."""
    config = EngineConfig(target=str(folder), draft_format="int8", context_tokens=128, tree="8x4")
    whole = LoadPlan.build(config).placement
    budget = whole.fixed_bytes + int(3.9 * whole.resident_bytes / 4)
    counts = []
    for share_layers in (False, True):
        limited = replace(config, share_layers=share_layers, device_memory_bytes=budget)
        with open_session(limited) as opened:
            counts.append(opened.placement.num_resident_layers)
            assert opened.placement.device_bytes <= budget
            text = answer(opened, request())[1]
    with open_tiny(folder) as plain:
        assert answer(plain, request())[1] == text
    assert counts[0] < counts[1]


def test_a_load_says_how_far_it_is_and_ends_at_its_total(folder: Path) -> None:
    config = EngineConfig(target=str(folder), context_tokens=64, draft_format="int8")
    with ExitStack() as stack:
        steps = list(load_session(config, stack))
    done = [step.num_done_bytes for step in steps]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == steps[-1].num_bytes
    assert {step.what for step in steps} == {"embeddings, norm and head", "layers", "draft"}


@pytest.mark.parametrize("num_steps", [0, 1, 3, 6])
def test_a_load_can_be_given_up_at_any_step(folder: Path, num_steps: int) -> None:
    threads = threading.active_count()
    with ExitStack() as stack:
        loading = load_session(EngineConfig(target=str(folder), context_tokens=64), stack)
        for _ in range(num_steps):
            next(loading)
        loading.close()
    assert threading.active_count() == threads


def test_every_temperature_a_session_is_asked_at_is_planned_for(folder: Path) -> None:
    with open_tiny(folder, draft="substitute", num_residents=0) as opened:
        for temperature in (0.0, 1.0, 0.0):
            answer(opened, request(temperature=temperature, max_new_tokens=6))
        planner = opened.session.engine.planner
        assert planner.costs is not None
        assert planner.acceptance.shape[0] > 1
        cold = planner.acceptance
        planner.use_temperature(1.0)
        assert (planner.acceptance != cold).any()


def test_an_open_session_knows_which_layers_stay(folder: Path) -> None:
    with open_tiny(folder, num_residents=2) as opened:
        layers = opened.streamer.layers
        assert all(isinstance(layers[index], ResidentLayer) for index in opened.placement.residency.resident_layers)
        assert len(opened.placement.residency.resident_layers) == opened.placement.num_resident_layers > 0


@pytest.mark.parametrize("settings", [{}, {"link": "1GB/s"}, {"link": "1GB/s", "host_memory_bytes": 90_000}])
def test_a_session_may_be_asked_while_its_layers_are_still_being_read(folder: Path, settings: dict[str, Any]) -> None:
    """Nothing is read twice, the text is the same, and no round that waited for the disk teaches what rounds cost."""
    with open_tiny(folder, draft="substitute", tree="8x4", **settings) as opened:
        expected = answer(opened, request())[1]
        opened_late = opened.notes
    options: dict[str, Any] = {"draft": "substitute", "draft_format": "stored", "tree": "8x4", **settings}
    config = EngineConfig(target=str(folder), context_tokens=128, **options)
    reads = HeldReads()
    with ExitStack() as stack:
        stack.enter_context(reads)
        *_, session = drained(load_session(config, stack, is_early=True))
        stack.callback(reads.let)
        assert session.load_progress is not None
        assert session.load_progress.num_done_bytes < session.load_progress.num_bytes
        threading.Thread(target=let_when_a_pass_waits, args=(session, reads)).start()
        events = list(session.session.generate(request()))
        rounds = [event for event in events if isinstance(event, Round)]
        assert [each.pass_statistics.is_loading for each in rounds] == [True] + [False] * (len(rounds) - 1)
        assert session.session.engine.text[-len(expected) :] == expected
        assert session.load_progress is None
        assert session.notes == opened_late


def let_when_a_pass_waits(opened: OpenSession, reads: "HeldReads") -> None:
    while opened.streamer.num_done_layers is None:
        time.sleep(0.005)
    reads.let()


class HeldReads:
    """Lets no layer that is to stay be read before it is told to."""

    def __init__(self) -> None:
        self._may_read = threading.Event()
        self.let = self._may_read.set
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        read_ahead = layer_filling.read_ahead

        def held(*arguments: Any) -> Any:
            self._may_read.wait(60)
            yield from read_ahead(*arguments)

        self._patch.setattr(layer_filling, "read_ahead", held)

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


def test_a_session_that_was_opened_early_may_be_closed_while_its_layers_are_being_read(folder: Path) -> None:
    threads = threading.active_count()
    with ExitStack() as stack:
        config = EngineConfig(target=str(folder), context_tokens=64, draft="none", link="1GB/s")
        drained(load_session(config, stack, is_early=True))
    assert threading.active_count() == threads
