from contextlib import nullcontext

import pytest
import torch

from offload.checkpoint.checkpoint import ITEM_BYTES
from offload.errors import BudgetError
from offload.formats.stored_sizes import int8_rows_bytes, nf4_bytes
from runtime.config import EngineConfig
from runtime.engine.load_plan import LoadPlan
from runtime.engine.need_of_files import layer_formats, need_of_files
from runtime.errors import OptionError
from runtime.fit.machine import Machine
from runtime.fit.models import shape_of_folder
from runtime.fit.place import place
from runtime.model.model_loader import ModelFiles
from tests.runtime.fit.test_shapes import TINY
from tests.support.fit_needs import layers_of
from tests.support.gguf_factory import gguf_model, write_gguf
from tests.support.hybrids import KINDS, save_hybrid
from tests.support.model_factory import MAIN_KINDS, save_tiny_model, save_tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_tokenizer(save_tiny_model("llama", tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return save_tiny_tokenizer(save_tiny_model("qwen2", tmp_path_factory.mktemp("qwen2"), dtype=torch.bfloat16))


def need_of(config, target, draft=None):
    draft_files = None if draft is None else ModelFiles.open(draft)
    return need_of_files(config, ModelFiles.open(target), draft_files, usual_context_tokens=64)


@pytest.mark.parametrize("draft", ["none", "substitute", "int8", "stored"])
def test_the_fixed_memory_is_what_a_session_plans(folder, qwen, draft):
    """The check must not refuse what a session accepts, or the other way round."""
    is_separate = draft in ("int8", "stored")
    config = EngineConfig(
        target=str(folder),
        draft=str(qwen) if is_separate else draft,
        draft_format=draft if is_separate else "int8",
        context_tokens=64,
    )
    planned = LoadPlan.build(config).placement
    need = need_of(config, folder, qwen if is_separate else None)
    assert need.fixed_entries() == planned.fixed
    assert need.fixed_bytes == planned.fixed_bytes


def test_only_matrices_are_quantized(qwen):
    """qwen2 has biases beside its norms; both stay as they are stored."""
    layouts = ModelFiles.open(qwen).layouts
    stored, int8, nf4 = layer_formats(layouts)
    assert (stored.name, int8.name, nf4.name) == ("bfloat16", "int8", "nf4")
    assert stored.layer_bytes == tuple(layout.slab_bytes for layout in layouts)
    for layout, as_int8, as_nf4 in zip(layouts, int8.layer_bytes, nf4.layer_bytes, strict=True):
        vectors = sum(t.shape[0] * ITEM_BYTES[t.dtype] for t in layout.tensors if len(t.shape) == 1)
        assert vectors == 2 * (32 + 32 + 32 + 16 + 16)
        matrices = [t.shape for t in layout.tensors if len(t.shape) == 2]
        assert len(matrices) == 7
        exact_int8 = sum(map(int8_rows_bytes, matrices)) + vectors
        exact_nf4 = sum(map(nf4_bytes, matrices)) + vectors
        assert as_int8 - 4096 < exact_int8 <= as_int8
        assert as_nf4 - 4096 < exact_nf4 <= as_nf4


def test_a_format_that_is_not_smaller_is_no_choice(folder, tmp_path):
    """The tables of tiny NF4 matrices outweigh what their bits save; nothing is proposed that would not help."""
    small = save_tiny_model("llama", tmp_path, dtype=torch.bfloat16, hidden_size=8, intermediate_size=8, head_dim=2)
    names = [layers.name for layers in layer_formats(ModelFiles.open(small).layouts)]
    assert names[0] == "bfloat16" and "nf4" not in names
    assert next(layers.name for layers in layer_formats(ModelFiles.open(folder).layouts)) == "float32"


def test_a_shape_needs_what_the_folder_of_that_shape_needs(folder):
    """The made-up shape is the tiny llama's, so both ways to a need must agree, up to page rounding."""
    of_files = need_of(EngineConfig(draft="none"), folder)
    of_shape = TINY.need(None, context_tokens=64, max_nodes=256, compute_item_bytes=4)
    assert ModelFiles.open(folder).other_layout.payload_bytes == of_shape.others_bytes
    assert of_files.cache_bytes_per_token == of_shape.cache_bytes_per_token
    assert list(of_files.fixed_entries().items())[1:] == list(of_shape.fixed_entries().items())[1:]
    for one, other in zip(of_files.formats, of_shape.formats, strict=True):
        assert one.name == other.name
        assert abs(one.total_bytes - other.total_bytes) <= 4 * 2 * 4096


def assert_a_shape_needs_what_its_folder_does(folder, device):
    """Entry by entry, a session's need and that of `plan`, which reads config.json alone; pages are rounded up."""
    is_cpu, files, shape = device.type == "cpu", ModelFiles.open(folder), shape_of_folder(folder)
    item_bytes = 4 if is_cpu else files.stored_dtype.itemsize
    of_files = need_of_files(EngineConfig(draft="none", context_tokens=500), files, None, device=device)
    of_shape = shape.need(None, context_tokens=500, max_nodes=1, compute_item_bytes=item_bytes, is_cpu=is_cpu)
    found, expected = of_shape.fixed_entries(), of_files.fixed_entries()
    # What lies in small gaps of the files between embeddings, norm and head is read and held along with them.
    assert of_shape.others_bytes + of_shape.table_bytes == files.other_layout.payload_bytes
    assert list(found.items())[1:] == list(expected.items())[1:]
    assert of_shape.host_table_bytes == pytest.approx(of_files.host_table_bytes, abs=4096)


@pytest.mark.parametrize("device", ["cpu", "xpu"])
@pytest.mark.parametrize("kind", MAIN_KINDS)
def test_plan_and_session_need_the_same(tmp_path, kind, device):
    folder = save_tiny_tokenizer(save_tiny_model(kind, tmp_path, hidden_size=64))
    assert_a_shape_needs_what_its_folder_does(folder, torch.device(device))


@pytest.mark.parametrize("device", ["cpu", "xpu"])
@pytest.mark.parametrize("kind", KINDS)
def test_plan_and_session_need_the_same_of_a_hybrid(tmp_path, kind, device):
    folder = save_hybrid(tmp_path, kind, linear_num_value_heads=6)
    assert_a_shape_needs_what_its_folder_does(folder, torch.device(device))
    shape = shape_of_folder(folder)
    payloads = ModelFiles.open(folder).payload_bytes
    for planned, found in zip(shape.formats[0].layer_bytes, payloads, strict=True):
        assert found <= planned < found + 2 * 4096


def test_keys_and_values_of_a_hybrid_stay_on_the_device(tmp_path):
    files = ModelFiles.open(save_hybrid(tmp_path))
    device = torch.device("xpu")
    assert need_of_files(EngineConfig(draft="none"), files, None, device=device).kv_cache == "device"
    with pytest.raises(OptionError, match="--kv-cache host does not go with a model of which most layers keep states"):
        need_of_files(EngineConfig(draft="none", kv_cache="host"), files, None, device=device)


@pytest.mark.real
def test_plan_and_session_need_the_same_of_a_real_model(demo_folder):
    assert_a_shape_needs_what_its_folder_does(demo_folder, torch.device("cpu"))


@pytest.mark.parametrize("spare_slabs", [0, 1, 2, 3, 9])
def test_layers_lie_where_a_session_puts_them(folder, spare_slabs):
    need = need_of(EngineConfig(draft="none"), folder)
    budget = need.fixed_bytes + need.ring_bytes + spare_slabs * max(need.layers.layer_bytes)
    config = EngineConfig(target=str(folder), draft="none", context_tokens=64, device_memory_bytes=budget)
    planned = LoadPlan.build(config).placement
    machine = Machine(host_total_bytes=1 << 40, host_free_bytes=1 << 39, device_budget_bytes=budget)
    placement = place(need, machine)
    counts = (planned.num_resident_layers, planned.num_host_layers, planned.num_disk_layers)
    assert layers_of(placement) == counts
    assert (placement.ring_bytes, placement.resident_bytes) == (planned.ring_bytes, planned.resident_bytes)


def test_a_session_is_refused_where_the_check_says_so_and_not_before(folder):
    need = need_of(EngineConfig(draft="none"), folder)
    least = need.fixed_bytes + need.ring_bytes
    for budget, can_run in ((least, True), (least - 1, False)):
        config = EngineConfig(target=str(folder), draft="none", context_tokens=64, device_memory_bytes=budget)
        machine = Machine(host_total_bytes=1 << 40, host_free_bytes=1 << 39, device_budget_bytes=budget)
        assert place(need, machine).can_run is can_run
        with nullcontext() if can_run else pytest.raises(BudgetError):
            LoadPlan.build(config)


def test_layers_in_blocks_are_named_by_their_file_and_have_no_other_format(tmp_path):
    """Found: the bytes of blocks were taken for NF4's."""
    file = write_gguf(tmp_path / "m.gguf", gguf_model("llama"), kind="llama", types=("Q8_0", *["Q4_0"] * 7))
    files = ModelFiles.open(file)
    need = need_of_files(EngineConfig(target=str(file), draft="none"), files, None, device=torch.device("cpu"))
    assert [layers.name for layers in need.formats] == ["Q4_0"] == [files.stored_name]
    assert not files.keeps_format
