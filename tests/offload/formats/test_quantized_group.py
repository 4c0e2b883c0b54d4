import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from offload.checkpoint.checkpoint import Checkpoint
from offload.errors import CheckpointError
from offload.formats.four_bit import FourBitFormat, FourBitWeight
from offload.formats.int8 import Int8RowsFormat, Int8RowsWeight
from offload.formats.packed import PackedFormat
from offload.formats.packed_tensors import STATE_SUFFIX, pack_to_tensors, sha256_of, unpack_tensors
from offload.formats.quantized_group import MAX_STATE_BYTES, QuantizedGroup, find_group
from tests.support.four_bit_weights import four_bit_weight

SHAPE = (20, 96)
NAME = "x.weight"
STATE = f"{NAME}.quant_state.bitsandbytes__nf4"
Tensors = dict[str, torch.Tensor]


def as_tensor(state: Any) -> torch.Tensor:
    raw = state if isinstance(state, bytes) else json.dumps(state).encode()
    return torch.tensor(list(raw), dtype=torch.uint8)


def nested_state(**changes: Any) -> dict[str, Any]:
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(SHAPE)}
    return {**state, "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.25, **changes}


def four_bit_tensors() -> Tensors:
    """A doubly quantized group as bitsandbytes names it."""
    weight = FourBitWeight.quantize(torch.randn(SHAPE))
    tensors = {f"{NAME}{suffix}": part for suffix, part in weight.parts.items()}
    tensors[NAME] = tensors[NAME].clone().view(-1, 1)
    return {**tensors, f"{NAME}.quant_map": torch.zeros(16), STATE: as_tensor(nested_state())}


def int8_tensors() -> Tensors:
    weight = Int8RowsWeight.quantize(torch.randn(SHAPE))
    layout = torch.tensor(0, dtype=torch.uint8)
    return {NAME: weight.rows.clone(), "x.SCB": weight.absmax, "x.weight_format": layout}


def found(folder: Path, tensors: Tensors, shape: tuple[int, int] = SHAPE) -> QuantizedGroup | None:
    save_file(tensors, folder / "model.safetensors")
    config = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (folder / "config.json").write_text(json.dumps(config))
    return find_group(Checkpoint.open(folder), NAME, shape)


def test_a_doubly_quantized_group_is_found_with_what_steers_it(tmp_path: Path) -> None:
    group = found(tmp_path, four_bit_tensors())
    assert group is not None
    assert group.format == FourBitFormat(SHAPE, "nf4", 64, 0.25)
    assert group.entries.keys() == set(group.format.part_suffixes)
    assert group.entries[""].shape == (960,) and group.entries[""].dtype == "U8"
    assert group.entries[".absmax"].name == f"{NAME}.absmax"


def test_a_group_without_double_quantization_has_float_absmaxes(tmp_path: Path) -> None:
    weight = four_bit_weight(torch.randn(SHAPE), quant_type="fp4", is_nested=False)
    state = {"quant_type": "fp4", "blocksize": 64, "dtype": "float16", "shape": list(SHAPE)}
    tensors = {
        NAME: weight.parts[""].clone().view(-1, 1),
        f"{NAME}.absmax": weight.parts[".absmax"],
        f"{NAME}.quant_state.bitsandbytes__fp4": as_tensor(state),
    }
    group = found(tmp_path, tensors)
    assert group is not None and group.format == FourBitFormat(SHAPE, "fp4")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8])
def test_codes_may_be_stored_as_any_type(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = four_bit_tensors()
    tensors[NAME] = tensors[NAME].view(-1).view(dtype).view(-1, 1)
    group = found(tmp_path, tensors)
    assert group is not None and group.entries[""].shape == (960,) and group.entries[""].dtype == "U8"


def test_int8_rows_are_found_with_or_without_their_layout(tmp_path: Path) -> None:
    tensors = int8_tensors()
    for name in ("x.weight_format", None):
        group = found(tmp_path, tensors)
        assert group is not None and group.format == Int8RowsFormat(SHAPE)
        assert group.entries[".SCB"].name == "x.SCB"
        tensors.pop(name or NAME)


def test_an_ordinary_matrix_beside_quantized_ones_is_none(tmp_path: Path) -> None:
    assert found(tmp_path, {NAME: torch.randn(SHAPE)}) is None


def with_state(**changes: Any) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({STATE: as_tensor(nested_state(**changes))})


def with_raw_state(raw: bytes) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({STATE: as_tensor(raw)})


def with_tensor(suffix: str, tensor: torch.Tensor) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({f"{NAME}{suffix}": tensor})


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (with_state(quant_type="fp4"), "quant_type = 'fp4'"),
        (with_state(blocksize=63), "blocksize = 63"),
        (with_state(blocksize=64.0), "blocksize = 64.0"),
        (with_state(blocksize=10**30), "blocksize = "),
        (with_state(blocksize=True), "blocksize = True"),
        (with_state(dtype="int8"), "dtype = 'int8'"),
        (with_state(dtype=["float16"]), "dtype = "),
        (with_state(shape=[20, 97]), "shape = [20, 97]"),
        (with_state(shape=None), "shape = None"),
        (with_state(shape=[[[]]]), "shape = "),
        (with_state(nested_blocksize=64), "nested_blocksize = 64"),
        (with_state(nested_dtype="float64"), "nested_dtype"),
        (with_state(nested_offset="0.1"), "nested_offset = '0.1'"),
        (with_state(nested_offset=True), "nested_offset = True"),
        (with_state(nested_offset=10**400), "nested_offset"),
        (with_state(nested_offset=None), "nested_offset"),
        (with_state(more=1), "has the keys"),
        (with_raw_state(b"\xff\xfe"), "not valid JSON"),
        (with_raw_state(b"[1]"), "expected a JSON object"),
        (with_raw_state(b"{}"), "has the keys []"),
        (with_raw_state(b'{"nested_offset": 1, "nested_offset": 2}'), "stands twice"),
        (with_raw_state(b'{"nested_offset": NaN}'), "NaN"),
        (with_raw_state(b"[" * 4000), "not valid JSON"),
        (with_raw_state(b" " * (MAX_STATE_BYTES + 1)), "expected up to 4096 bytes"),
        (with_tensor(".quant_state.bitsandbytes__nf4", torch.zeros(9)), "expected up to 4096 bytes of U8"),
        (with_tensor(".quant_state.bitsandbytes__fp4", torch.zeros(9)), "more than one quantization"),
        (lambda tensors: tensors.update({"x.SCB": torch.zeros(20)}), "more than one quantization"),
        (lambda tensors: tensors.pop(f"{NAME}.absmax"), "lacks the tensor 'x.weight.absmax'"),
        (lambda tensors: tensors.pop(f"{NAME}.nested_quant_map"), "lacks the tensor 'x.weight.nested_quant_map'"),
        (with_tensor("", torch.zeros(959, 1, dtype=torch.uint8)), "has 959 bytes"),
        (with_tensor("", torch.zeros(120, dtype=torch.int64)), "has 960 bytes of I64"),
        (with_tensor(".absmax", torch.zeros(29, dtype=torch.uint8)), "shape [29]; expected U8 of [30]"),
        (with_tensor(".absmax", torch.zeros(30)), "has type F32"),
        (with_tensor(".nested_absmax", torch.zeros(2)), "shape [2]; expected F32 of [1]"),
        (with_tensor(".nested_quant_map", torch.zeros(16)), "expected F32 of [256]"),
    ],
)
def test_a_damaged_4_bit_group_is_refused_in_a_sentence(
    tmp_path: Path, damage: Callable[[Tensors], Any], expected: str
) -> None:
    tensors = four_bit_tensors()
    damage(tensors)
    assert_refused(tmp_path, tensors, expected)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda tensors: tensors.pop("x.SCB"), "lacks the tensor 'x.SCB'"),
        (lambda tensors: tensors.update({"x.SCB": torch.zeros(19)}), "expected F32 of [20]"),
        (lambda tensors: tensors.update({"x.SCB": torch.zeros(20).half()}), "has type F16"),
        (with_tensor("", torch.zeros(20, 95, dtype=torch.int8)), "expected I8 of [20, 96]"),
        (with_tensor("", torch.zeros(20, 96)), "has type F32"),
        (with_tensor("_format", torch.tensor(2, dtype=torch.uint8)), "is 2; expected 0 (row-major)"),
        (with_tensor("_format", torch.zeros(3)), "expected one U8"),
    ],
)
def test_a_damaged_int8_group_is_refused_in_a_sentence(
    tmp_path: Path, damage: Callable[[Tensors], Any], expected: str
) -> None:
    tensors = int8_tensors()
    damage(tensors)
    assert_refused(tmp_path, tensors, expected)


def assert_refused(folder: Path, tensors: Tensors, expected: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        found(folder, tensors)
    message = str(caught.value)
    assert expected in message
    assert message.isprintable() and len(message) < 600


def test_a_file_that_lost_its_end_since_it_was_opened_is_refused(tmp_path: Path) -> None:
    found(tmp_path, int8_tensors())
    checkpoint = Checkpoint.open(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="ends after 0 bytes"):
        find_group(checkpoint, NAME, SHAPE)


PACKED_SHAPE = (70, 64)


def packed_matrix() -> torch.Tensor:
    matrix = torch.randn(PACKED_SHAPE, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    matrix[3, 5], matrix[69, 63] = 1e30, 1e-30
    return matrix


def packed_tensors() -> Tensors:
    return {f"{NAME}{suffix}": part for suffix, part in pack_to_tensors(packed_matrix()).items()}


def packed_state(**changes: Any) -> torch.Tensor:
    state = json.loads(bytes(packed_tensors()[f"{NAME}{STATE_SUFFIX}"].tolist()))
    return as_tensor({key: value for key, value in {**state, **changes}.items() if value is not ...})


def test_a_packed_group_is_found_with_what_steers_it(tmp_path: Path) -> None:
    tensors = packed_tensors()
    group = found(tmp_path, tensors, PACKED_SHAPE)
    assert group is not None and isinstance(group.format, PackedFormat)
    assert group.entries.keys() == set(group.format.part_suffixes)
    assert group.sha256 == sha256_of(packed_matrix())
    parts = {suffix: tensors[entry.name] for suffix, entry in group.entries.items()}
    matrix = unpack_tensors(group.format, parts, sha256=group.sha256)
    assert torch.equal(matrix.view(torch.int16), packed_matrix().view(torch.int16))


def test_one_whose_state_is_gone_is_no_packed_group(tmp_path: Path) -> None:
    """The tensor is then refused for its type, as any other of integers."""
    tensors = packed_tensors()
    del tensors[f"{NAME}{STATE_SUFFIX}"]
    assert found(tmp_path, tensors, PACKED_SHAPE) is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"format": "bfloat16 in 11 bits"}, "format = 'bfloat16 in 11 bits'"),
        ({"shape": [70, 128]}, "shape = [70, 128]"),
        ({"base": 128}, "base = 128"),
        ({"base": -1}, "base = -1"),
        ({"base": True}, "base = True"),
        ({"base": 1.0}, "base = 1.0"),
        ({"escape_counts": None}, "escape_counts = None"),
        ({"escape_counts": [1, 0]}, "expected 3 numbers up to 2048"),
        ({"escape_counts": [1, -1, 2]}, "escape_counts = [1, -1, 2]"),
        ({"escape_counts": [1, 2049, 0]}, "escape_counts = [1, 2049, 0]"),
        ({"escape_counts": [1, 0, 9]}, "type I32 and shape [8]; expected I32 of [16]"),
        ({"sha256": "0"}, "sha256 = '0'"),
        ({"sha256": 3}, "64 hexadecimal digits"),
        ({"sha256": ...}, "has the keys"),
        ({"more": 1}, "has the keys"),
        ({"more": "x" * 2000}, "expected up to 1060 bytes of U8"),
    ],
)
def test_a_damaged_state_of_a_packed_matrix_is_one_sentence(tmp_path: Path, changes: Any, expected: str) -> None:
    tensors = {**packed_tensors(), f"{NAME}{STATE_SUFFIX}": packed_state(**changes)}
    with pytest.raises(CheckpointError) as caught:
        found(tmp_path, tensors, PACKED_SHAPE)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "shape", "expected"),
    [
        ({}, (70, 96), "has 96 columns; expected a multiple of 64"),
        ({}, (71, 64), "expected I16 of [71, 48]"),
        ({".escapes": torch.zeros(8, dtype=torch.int64)}, PACKED_SHAPE, "expected I32 of [8]"),
        ({".escape_values": torch.zeros(8)}, PACKED_SHAPE, "expected BF16 of [8]"),
        ({".escapes": None}, PACKED_SHAPE, "lacks the tensor 'x.weight.escapes'"),
        ({STATE_SUFFIX: torch.zeros(8)}, PACKED_SHAPE, "bytes of U8"),
        ({".quant_state.bitsandbytes__nf4": torch.zeros(8)}, PACKED_SHAPE, "as quantized and as packed"),
    ],
)
def test_tensors_that_are_not_those_of_a_packed_matrix_are_one_sentence(
    tmp_path: Path, tensors: dict[str, torch.Tensor | None], shape: tuple[int, int], expected: str
) -> None:
    changed = {**packed_tensors(), **{f"{NAME}{suffix}": part for suffix, part in tensors.items()}}
    with pytest.raises(CheckpointError) as caught:
        found(tmp_path, {name: part for name, part in changed.items() if part is not None}, shape)
    assert expected in str(caught.value)
