"""Whatever a layer holds, it comes back bit for bit; what does not pack stays as it is, and needs no reading."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from offload.checkpoint.checkpoint import Checkpoint
from offload.checkpoint.layer_layout import LayerLayout, layout_layer
from offload.copying.host_engine import HostCopyEngine
from offload.formats.packed import PackedFormat
from offload.formats.stored_sizes import ESCAPE_BYTES, MAX_ESCAPE_SHARE
from offload.layer_slabs import read_slab
from offload.memory import allocate_slab
from offload.packed_layers import PackedLayer, PackedLayout, plan_packing

CPU = torch.device("cpu")
Tensors = dict[str, torch.Tensor]


def trained(*shape: int) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 0.02).bfloat16()


def noise(*shape: int) -> torch.Tensor:
    bits = torch.randint(0, 1 << 16, shape, generator=torch.Generator().manual_seed(4))
    return bits.to(torch.uint16).view(torch.bfloat16)


def layout_of(folder: Path, layer: Tensors) -> LayerLayout:
    folder.mkdir()
    save_file(layer, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return layout_layer(Checkpoint.open(folder).tensors)


def planned(layout: LayerLayout) -> PackedLayout | None:
    plans = plan_packing((layout,), (frozenset(tensor.name for tensor in layout.tensors),))
    return None if plans is None else plans[0]


@pytest.fixture
def mixed() -> Tensors:
    """Of these only the first two can be packed with profit."""
    return {
        "wide": trained(96, 256),
        "one row": trained(1, 64),
        "noise": noise(200, 192),
        "odd": trained(64, 63),
        "float32": trained(64, 64).float(),
        "norm": trained(64),
    }


def comes_back(layout: LayerLayout, plan: PackedLayout, layer: Tensors) -> PackedLayer:
    packed = PackedLayer(plan)
    slab = allocate_slab(plan.layout.slab_bytes)
    with HostCopyEngine() as engine:
        packed.pack(layout, read_slab(layout, engine), slab, CPU)
    found = packed.tensors(slab)
    for name, tensor in layer.items():
        form = packed.formats.get(name)
        read = found[name] if form is None else form.bind({s: found[f"{name}{s}"] for s in form.part_suffixes}).unpack()
        assert torch.equal(read.view(torch.uint8), tensor.view(torch.uint8)), name
    return packed


def test_matrices_that_pack_take_three_quarters_and_all_else_stays(tmp_path: Path, mixed: Tensors) -> None:
    layout = layout_of(tmp_path / "mixed", mixed)
    plan = planned(layout)
    assert plan is not None and set(plan.matrices) == {"wide", "one row"}
    saved = sum(mixed[name].numel() // 2 for name in plan.matrices)
    assert plan.layout.payload_bytes == layout.payload_bytes - saved <= plan.layout.slab_bytes
    packed = comes_back(layout, plan, mixed)
    assert all(isinstance(found, PackedFormat) for found in packed.formats.values())


def test_nothing_is_planned_where_no_matrix_packs(tmp_path: Path, mixed: Tensors) -> None:
    """A layer of a model that was not trained in bfloat16, or of weights drawn from anything but one bell."""
    layer = {name: tensor for name, tensor in mixed.items() if name not in ("wide", "one row")}
    assert planned(layout_of(tmp_path / "without", layer)) is None


def test_a_layer_that_its_sample_misjudged_comes_back_all_the_same(tmp_path: Path) -> None:
    """Most of a matrix is noise, but not its middle: its escapes take what they take, and no slab has to hold them."""
    matrix = torch.cat((noise(400, 256), trained(400, 256), noise(400, 256)))
    layer = {"w": matrix}
    layout = layout_of(tmp_path / "misjudged", layer)
    plan = planned(layout)
    assert plan is not None and plan.escape_bytes < 0.01 * matrix.numel()
    packed = comes_back(layout, plan, layer)
    assert sum(part.nbytes for part in packed.escapes.values()) > 50 * plan.escape_bytes


def test_as_many_bytes_are_kept_for_escapes_as_samples_say_twice(tmp_path: Path) -> None:
    matrix = trained(512, 256)
    matrix.view(-1)[::200] = 1e30  # half of what a matrix may have
    plan = planned(layout_of(tmp_path / "some", {"w": matrix}))
    assert plan is not None and MAX_ESCAPE_SHARE == 0.01
    assert plan.escape_bytes == pytest.approx(2 * ESCAPE_BYTES * matrix.numel() / 200, rel=0.1)


def test_a_file_that_is_gone_is_left_to_the_load_to_report(tmp_path: Path) -> None:
    layout = layout_of(tmp_path / "gone", {"w": trained(64, 64)})
    (tmp_path / "gone" / "model.safetensors").unlink()
    assert planned(layout) is None
