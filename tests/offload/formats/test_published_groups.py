import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from offload.checkpoint.checkpoint import Checkpoint
from offload.errors import CheckpointError
from offload.formats.group_parts import read_part
from offload.formats.published_groups import find_published
from offload.formats.quantized_group import QuantizedGroup, find_group
from tests.support.published_weights import PUBLISHED, published_matrix

SHAPE = (40, 96)
NAME = "x.weight"
Changes = Mapping[str, torch.Tensor | None]


def save_matrix(folder: Path, kind: str, changes: Changes | None = None, **settings: Any) -> torch.Tensor:
    """Save a matrix of a kind as module x; return what it means."""
    tensors, matrix = published_matrix(kind, SHAPE, torch.Generator().manual_seed(0))
    stored = {f"x.{name}": tensor for name, tensor in tensors.items()} | dict(changes or {})
    kept = {name: tensor.contiguous() for name, tensor in stored.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors")
    config = {"quantization_config": PUBLISHED[kind][0] | settings}
    (folder / "config.json").write_text(json.dumps(config))
    return matrix


def found(folder: Path, shape: tuple[int, int] = SHAPE) -> QuantizedGroup | None:
    return find_group(Checkpoint.open(folder), NAME, shape)


@pytest.mark.parametrize("kind", list(PUBLISHED))
def test_a_matrix_is_found_as_its_tensors_say_and_means_what_was_saved(kind: str, tmp_path: Path) -> None:
    matrix = save_matrix(tmp_path, kind)
    group = found(tmp_path)
    assert group is not None and group.format.shape == SHAPE and not group.format.is_exact
    assert group.entries.keys() == set(group.format.part_suffixes)
    stored = load_file(tmp_path / "model.safetensors")
    is_bytes = {suffix: entry.dtype == "U8" for suffix, entry in group.entries.items()}
    parts = {
        suffix: stored[entry.name].view(torch.uint8) if is_bytes[suffix] else stored[entry.name]
        for suffix, entry in group.entries.items()
    }
    weight: Any = group.format.bind(parts)
    out = torch.empty(SHAPE)
    weight.format.widen(weight.parts, 0, SHAPE[0], out)
    assert torch.equal(out, matrix)
    assert all(len(read_part(entry)) == entry.num_bytes for entry in group.entries.values())


def test_act_order_that_orders_nothing_is_left_out(tmp_path: Path) -> None:
    save_matrix(tmp_path, "gptq")
    group = found(tmp_path)
    assert group is not None and ".g_idx" not in group.entries
    save_matrix(tmp_path, "gptq order")
    group = found(tmp_path)
    assert group is not None and ".g_idx" in group.entries


def test_an_ordinary_matrix_among_quantized_ones_is_none(tmp_path: Path) -> None:
    save_matrix(tmp_path, "fp8 blocks", {NAME: torch.zeros(SHAPE), "x.weight_scale_inv": None})
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.published is not None
    assert find_published(checkpoint, checkpoint.published, NAME, SHAPE) is None


def with_g_idx(value: int) -> torch.Tensor:
    index = torch.arange(96, dtype=torch.int32) // 32
    index[7] = value
    return index


@pytest.mark.parametrize(
    ("kind", "changes", "settings", "expected"),
    [
        ("fp8 blocks", {"x.weight_scale_inv": None}, {}, "lacks the tensor 'x.weight_scale_inv'"),
        ("fbgemm_fp8", {"x.weight_scale": None}, {}, "lacks the tensor 'x.weight_scale'"),
        ("fp8 blocks", {"x.weight_scale_inv": torch.zeros(2, 2)}, {}, "a scale for all, for each row, or blocks of"),
        ("fp8 blocks", {"x.weight_scale_inv": torch.zeros(1, 1, dtype=torch.int32)}, {}, "has type I32; expected"),
        ("fp8 blocks", {NAME: torch.zeros(SHAPE).to(torch.float8_e5m2)}, {}, "expected F8_E4M3 of [O, I]"),
        ("fp8 blocks", {NAME: torch.zeros(40, 95).to(torch.float8_e4m3fn)}, {}, "shape [40, 95]; expected"),
        ("int8", {"x.weight_zero_point": torch.zeros(40, 1)}, {}, "gives int8 rows zero points"),
        ("int8", {}, {"config_groups": {"g": {"weights": {"num_bits": 4}}}}, "holds int numbers of 8 bits; expected"),
        ("w4a16", {"x.weight_packed": torch.zeros(40, 9, dtype=torch.int32)}, {}, "4 or 8 bits, in whole words"),
        ("w4a16", {"x.weight_packed": torch.zeros(40, 24, dtype=torch.int32)}, {}, "holds int numbers of 8 bits"),
        ("w4a16", {"x.weight_scale": torch.zeros(40, 5)}, {}, "expected scales of equal groups"),
        ("w4a16", {"x.weight_scale": torch.zeros(40, 6)}, {}, "holds int numbers of 4 bits in groups of 16"),
        ("w4a16", {"x.weight_scale": torch.zeros(40, 3, dtype=torch.int32)}, {}, "expected F32 or BF16 or F16"),
        ("w4a16 zeros", {"x.weight_zero_point": torch.zeros(40, 3, dtype=torch.int8)}, {}, "expected I32 of [5, 3]"),
        ("w4a16 order", {"x.weight_g_idx": with_g_idx(3)}, {}, "names groups from 0 to 3; expected groups from 0 to 2"),
        ("gptq", {"x.g_idx": with_g_idx(-1)}, {}, "names groups from -1 to 2"),
        ("gptq", {"x.g_idx": torch.zeros(95, dtype=torch.int32)}, {}, "expected I32 of [96]"),
        ("gptq", {"x.qzeros": None}, {}, "lacks the tensor 'x.qzeros'"),
        ("gptq", {"x.qweight": torch.zeros(12, 40)}, {}, "expected I32 of [I * bits / 32, O]"),
        ("gptq", {"x.qzeros": torch.zeros(3, 4, dtype=torch.int32)}, {}, "expected I32 of [3, 5]"),
        ("gptq", {}, {"group_size": 64}, "in groups of 32; expected what quantization_config"),
        ("gptq", {}, {"bits": 8}, "holds int numbers of 4 bits"),
        ("awq", {"x.scales": torch.zeros(())}, {}, "expected scales of equal groups"),
        ("awq", {"x.scales": torch.zeros(3, 39)}, {}, "expected F32 or BF16 or F16 of [3, 40]"),
        ("awq", {"x.qweight": torch.zeros(96, 4, dtype=torch.int32)}, {}, "expected I32 of [I, O / 8]"),
        ("awq", {"x.weight": torch.zeros(SHAPE)}, {}, "holds 'x.qweight' beside 'x.weight'"),
        ("awq", {}, {"modules_to_not_convert": ["x"]}, "stored as awq; expected an ordinary matrix"),
        ("awq", {}, {"quant_method": "fp8"}, "is stored as awq; expected fp8, as quant_method 'fp8'"),
        ("mxfp4", {"x.weight_scale": torch.zeros(40, 2, dtype=torch.uint8)}, {}, "expected U8 or F8_E8M0 of [40, 3]"),
        ("mxfp4", {"x.weight_packed": torch.zeros(40, 47, dtype=torch.uint8)}, {}, "I a multiple of 32"),
        ("mxfp4 blocks", {"x.weight_scales": None}, {}, "lacks the tensor 'x.weight_scales'"),
        ("nvfp4", {"x.weight_scale": torch.zeros(40, 6)}, {}, "expected F8_E4M3 of [40, 6]"),
        ("nvfp4", {"x.weight_global_scale": torch.zeros(2)}, {}, "expected F32 of [1]"),
        ("modelopt nvfp4", {"x.weight_scale_2": None}, {}, "lacks the tensor 'x.weight_scale_2'"),
    ],
)
def test_every_fault_is_one_sentence(
    kind: str, changes: Changes, settings: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    save_matrix(tmp_path, kind, changes, **settings)
    with pytest.raises(CheckpointError) as caught:
        found(tmp_path)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_columns_that_are_no_whole_words_or_groups_are_refused(tmp_path: Path) -> None:
    save_matrix(tmp_path, "w4a16")
    with pytest.raises(CheckpointError, match="in whole words for a matrix of"):
        found(tmp_path, (40, 97))
    save_matrix(tmp_path, "nvfp4")
    with pytest.raises(CheckpointError, match="I a multiple of 16"):
        found(tmp_path, (40, 97))


def test_scales_that_a_file_calls_exponents_are_read_as_bytes(tmp_path: Path) -> None:
    tensors, _ = published_matrix("mxfp4", SHAPE, torch.Generator().manual_seed(0))
    save_matrix(tmp_path, "mxfp4", {"x.weight_scale": tensors["weight_scale"].view(torch.float8_e8m0fnu)})
    group = found(tmp_path)
    assert group is not None and group.entries[".scales"].dtype == "U8"
