from pathlib import Path

import pytest
from model_factory import save_tiny_model, save_tiny_tokenizer
from session_factory import answer, open_tiny, request, save_tiny_folder

from offload.copy_engine import DiskSource, HostSource
from offload.emulated_link import EmulatedLink
from offload.errors import BudgetError, LinkError
from offload.layer_streamer import ResidentLayer
from runtime.assembly import open_session
from runtime.engine_config import EngineConfig
from runtime.errors import TokenizerMismatchError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_folder(tmp_path / "target", seed=37)


def test_the_budget_is_never_exceeded_and_one_more_layer_would_not_fit(folder: Path) -> None:
    with open_tiny(folder, draft="substitute", tree="8x4", num_residents=1) as opened:
        accounting = opened.accounting
        assert accounting.device_bytes <= accounting.budget_bytes
        assert accounting.num_resident_layers == 1
        assert accounting.num_disk_layers == 3
        layer_bytes = accounting.resident_bytes
        assert accounting.device_bytes + layer_bytes > accounting.budget_bytes


def test_free_memory_is_filled_with_residents(folder: Path) -> None:
    with open_tiny(folder) as opened:
        assert all(isinstance(layer, ResidentLayer) for layer in opened.streamer.layers)
        assert opened.accounting.streamed_bytes_per_pass == 0


def test_an_int8_draft_takes_less_memory_and_changes_no_text(folder: Path, tmp_path: Path) -> None:
    draft = save_tiny_folder(tmp_path / "draft", "qwen2", seed=4)
    texts, fixed_bytes = [], []
    for draft_format in ("stored", "int8"):
        with open_tiny(folder, draft=draft, tree="12x5", draft_format=draft_format) as opened:
            texts.append(answer(opened, request())[1])
            fixed_bytes.append(opened.accounting.fixed_bytes)
    assert texts[0] == texts[1]
    assert fixed_bytes[1] < fixed_bytes[0]


def test_an_emulated_link_keeps_only_the_ring_on_the_device_and_layers_in_host_memory(folder: Path) -> None:
    with open_tiny(folder, link="1GB/s") as opened:
        assert isinstance(opened.link, EmulatedLink)
        assert all(isinstance(layer, HostSource) for layer in opened.streamer.layers)
        assert opened.accounting.num_host_layers == 4
        finished, _ = answer(opened, request())
    assert finished.statistics.bytes_streamed > 0


def test_a_host_budget_splits_the_streamed_layers_between_memory_and_disk(folder: Path) -> None:
    with open_tiny(folder, link="1GB/s", host_memory_bytes=90_000) as opened:
        kinds = [type(layer) for layer in opened.streamer.layers]
        assert kinds.count(HostSource) == 2
        assert kinds.count(DiskSource) == 2
        text = answer(opened, request())[1]
    with open_tiny(folder) as resident:
        assert answer(resident, request())[1] == text


def test_a_budget_below_the_fixed_memory_is_refused_with_what_needs_it(folder: Path) -> None:
    config = EngineConfig(target=str(folder), device_memory_bytes=1000, draft="none")
    with (
        pytest.raises(BudgetError, match="embeddings, norm and head") as caught,
        open_session(config, target=folder),
    ):
        pass
    assert "--device-memory" in str(caught.value)


def test_a_draft_with_another_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    draft = save_tiny_tokenizer(save_tiny_model("llama", tmp_path / "draft"), order_seed=3)
    with pytest.raises(TokenizerMismatchError), open_tiny(folder, draft=draft):
        pass


def test_the_context_is_what_the_longest_request_needs(folder: Path) -> None:
    requests = [request("the cat", max_new_tokens=5), request("the cat and the dog", max_new_tokens=40)]
    config = EngineConfig(target=str(folder), draft="none")
    with open_session(config, target=folder, requests=requests) as opened:
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
