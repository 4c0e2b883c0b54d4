from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from offload.checkpoint.checkpoint import Checkpoint
from offload.checkpoint.layer_layout import layout_layer
from offload.copying.host_engine import HostCopyEngine
from offload.layer_slabs import LayerSlabs, read_slab, slab_views

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def stored(tmp_path: Path) -> tuple[list[Tensors], LayerSlabs]:
    """Three layers of three dtypes in one file, and where they are."""
    torch.manual_seed(0)
    layers = [
        {"w": torch.randn(50, 30).bfloat16(), "b": torch.randn(7), "s": torch.randn(3, 5).half()} for _ in range(3)
    ]
    flat = {f"layers.{i}.{name}": tensor for i, layer in enumerate(layers) for name, tensor in layer.items()}
    save_file(flat, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    tensors = Checkpoint.open(tmp_path).tensors
    layouts = [layout_layer({name: tensors[f"layers.{i}.{name}"] for name in layers[0]}) for i in range(3)]
    return layers, LayerSlabs(layouts)


def assert_same(views: Tensors, layer: Tensors) -> None:
    assert views.keys() == layer.keys()
    for name, tensor in layer.items():
        assert views[name].dtype == tensor.dtype
        assert torch.equal(views[name], tensor)


def test_views_of_a_slab_are_the_files_tensors(stored: tuple[list[Tensors], LayerSlabs]) -> None:
    layers, slabs = stored
    with HostCopyEngine() as engine:
        slab = read_slab(slabs.layouts[1], engine)
    views = slab_views(slabs.layouts[1], slab)
    assert_same(views, layers[1])
    assert all(view.untyped_storage().data_ptr() == slab.untyped_storage().data_ptr() for view in views.values())


def test_one_read_of_the_file_visits_every_layer_in_order(stored: tuple[list[Tensors], LayerSlabs]) -> None:
    layers, slabs = stored
    with HostCopyEngine() as engine:
        for (index, views), expected in zip(slabs.stream_from_disk(engine), range(3), strict=True):
            assert index == expected
            assert_same(views, layers[index])
        assert engine.bytes_copied == sum(slabs.payload_bytes)


@pytest.mark.parametrize("indices", [[], [1], [2, 0], [0, 1, 2]])
def test_only_the_layers_asked_for_are_read(stored: tuple[list[Tensors], LayerSlabs], indices: list[int]) -> None:
    layers, slabs = stored
    with HostCopyEngine() as engine:
        visited = []
        for index, views in slabs.stream_from_disk(engine, indices=indices):
            assert_same(views, layers[index])
            visited.append(index)
        assert visited == indices
        assert engine.bytes_copied == sum(slabs.payload_bytes[index] for index in indices)
