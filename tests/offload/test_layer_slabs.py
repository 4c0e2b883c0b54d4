from itertools import cycle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from offload.checkpoint.checkpoint import Checkpoint
from offload.checkpoint.layer_layout import LayerLayout, layout_layer
from offload.copying.host_engine import HostCopyEngine
from offload.layer_slabs import read_ahead, read_slab, slab_views
from offload.memory import allocate_slab

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def stored(tmp_path: Path) -> tuple[list[Tensors], list[LayerLayout]]:
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
    return layers, layouts


def assert_same(views: Tensors, layer: Tensors) -> None:
    assert views.keys() == layer.keys()
    for name, tensor in layer.items():
        assert views[name].dtype == tensor.dtype
        assert torch.equal(views[name], tensor)


def test_views_of_a_slab_are_the_files_tensors(stored: tuple[list[Tensors], list[LayerLayout]]) -> None:
    layers, layouts = stored
    with HostCopyEngine() as engine:
        slab = read_slab(layouts[1], engine)
    views = slab_views(layouts[1], slab)
    assert_same(views, layers[1])
    assert all(view.untyped_storage().data_ptr() == slab.untyped_storage().data_ptr() for view in views.values())


@pytest.mark.parametrize("indices", [[], [1], [2, 0], [0, 1, 2], [2, 1, 0, 1, 2]])
def test_layers_come_in_the_order_they_are_asked_for_through_two_slabs(
    stored: tuple[list[Tensors], list[LayerLayout]], indices: list[int]
) -> None:
    layers, layouts = stored
    slabs = [allocate_slab(max(layout.slab_bytes for layout in layouts)) for _ in range(2)]
    wanted = [layouts[index] for index in indices]
    with HostCopyEngine() as engine:
        visited = []
        reads = read_ahead(engine, zip(wanted, cycle(slabs), strict=False))
        for index, layout, slab in zip(indices, wanted, reads, strict=True):
            assert_same(slab_views(layout, slab), layers[index])
            visited.append(index)
        assert visited == indices
        assert engine.bytes_copied == sum(layout.payload_bytes for layout in wanted)
