"""NF4 layers of a draft are quantized once, kept by content, checked, and made again where they are damaged."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from offload.copying.host_engine import HostCopyEngine
from profiles.steps import finish
from runtime.model import draft_cache, model_loader
from runtime.model.draft_cache import DraftCache
from runtime.model.layer_binding import ComputePlan
from runtime.model.model_loader import ModelFiles, load_draft, read_others
from runtime.model.streamed_model import chain_input
from tests.support.packed_factory import save_packed_folder
from tests.support.session_factory import save_tiny_folder

DIGEST = "0" * 64


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    return ModelFiles.open(save_tiny_folder(tmp_path / "model", "qwen2", dtype=torch.bfloat16))  # with biases


@pytest.fixture
def quantized(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the matrices that were quantized."""
    shapes: list[tuple[int, ...]] = []
    convert_of = model_loader.draft_converter

    def converter(*wanted):  # type: ignore[no-untyped-def]
        convert = convert_of(*wanted)
        return lambda stored: shapes.append(tuple(stored.matrix.shape)) or convert(stored)

    monkeypatch.setattr(model_loader, "draft_converter", converter)
    return shapes


def logits_of(files: ModelFiles, cache: DraftCache | None) -> torch.Tensor:
    with HostCopyEngine() as engine:
        others, compute = read_others(files, engine), ComputePlan(torch.float32, is_fast=True)
        loading = load_draft(files, compute, "nf4", engine, others=others, capacity=16, cache=cache)
        model = finish(loading)
    return model.logits(model.run_pass(chain_input([5, 17, 40, 8], num_cached=0)))


def test_a_second_start_quantizes_nothing_and_drafts_the_same(
    files: ModelFiles, tmp_path: Path, quantized: Sequence[object]
) -> None:
    expected = logits_of(files, None)
    num_matrices = len(quantized)
    assert num_matrices == sum(map(len, files.linears)) > 0
    assert torch.equal(logits_of(files, DraftCache(tmp_path / "drafts", DIGEST)), expected)
    assert len(quantized) == 2 * num_matrices
    again = DraftCache(tmp_path / "drafts", DIGEST)
    assert torch.equal(logits_of(files, again), expected)
    assert len(quantized) == 2 * num_matrices and again.damaged == []
    assert sorted(path.name for path in again.model_folder.iterdir()) == [
        f"layer-{index:03}.safetensors" for index in range(len(files.layouts))
    ]


def test_a_damaged_file_is_made_again(files: ModelFiles, tmp_path: Path) -> None:
    """Whatever happened to it: a flipped bit of the weights, of the header, an end that is missing, another layer."""
    expected = logits_of(files, DraftCache(tmp_path / "drafts", DIGEST))
    file = tmp_path / "drafts" / f"{DIGEST}-nf4" / "layer-001.safetensors"
    whole = file.read_bytes()
    another = (file.parent / "layer-000.safetensors").read_bytes()
    offsets = bytearray(whole).replace(b'\\"offsets\\": {', b'\\"offsets\\":  ', 1)
    for content in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:100], b"", b"\xff" * 64, another, bytes(offsets)):
        file.write_bytes(content)
        cache = DraftCache(tmp_path / "drafts", DIGEST)
        assert torch.equal(logits_of(files, cache), expected)
        assert cache.damaged == [1]
        assert file.read_bytes() == whole


def test_another_model_s_layers_are_not_taken(files: ModelFiles, tmp_path: Path) -> None:
    logits_of(files, DraftCache(tmp_path / "drafts", DIGEST))
    (tmp_path / "drafts" / f"{DIGEST}-nf4").rename(tmp_path / "drafts" / f"{'1' * 64}-nf4")
    cache = DraftCache(tmp_path / "drafts", "1" * 64)
    logits_of(files, cache)
    assert sorted(cache.damaged) == list(range(len(files.layouts)))


def test_the_models_that_were_not_used_for_longest_make_room(
    files: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "drafts"
    for age, name in enumerate(("newest", "older", "oldest")):
        (folder / f"{name}-nf4").mkdir(parents=True)
        (folder / f"{name}-nf4" / "layer-000.safetensors").write_bytes(b"x" * 1000)
        os.utime(folder / f"{name}-nf4", (10**9 - age, 10**9 - age))
    (folder / "not ours").mkdir()
    own = sum(draft_cache.nf4_bytes(shape) for layer in files.linears for shape in layer.values())
    monkeypatch.setattr(draft_cache, "MAX_CACHE_BYTES", own + 2000)
    cache = DraftCache(folder, DIGEST)
    assert cache.has_room(files.linears)
    assert {path.name for path in folder.iterdir()} == {"newest-nf4", "older-nf4", "not ours"}
    monkeypatch.setattr(draft_cache, "MAX_CACHE_BYTES", own - 1)
    assert not cache.has_room(files.linears)


@pytest.mark.parametrize("is_full", [True, False])
def test_where_nothing_can_be_kept_the_draft_loads_all_the_same(
    files: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_full: bool
) -> None:
    if is_full:
        monkeypatch.setattr(draft_cache, "free_disk_bytes", lambda folder: 0)
    else:
        (tmp_path / "drafts").touch()  # no folder can be made there
    cache = DraftCache(tmp_path / "drafts", DIGEST)
    assert torch.equal(logits_of(files, cache), logits_of(files, None))
    assert not (tmp_path / "drafts").is_dir()


def test_layers_of_a_packed_draft_are_kept_too(tmp_path: Path) -> None:
    """Without the parts that its matrices are made of."""
    original, packed = map(ModelFiles.open, save_packed_folder(tmp_path / "model", "qwen2"))
    expected = logits_of(original, None)
    for _ in range(2):
        cache = DraftCache(tmp_path / "drafts", DIGEST)
        assert torch.equal(logits_of(packed, cache), expected)
        assert cache.damaged == [] and len(list(cache.model_folder.iterdir())) == len(packed.layouts)
    assert all(layer is not None for layer in cache.load(packed.layouts, packed.linears))
