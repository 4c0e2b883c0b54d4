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
        assert group is not None and group.format == Int8RowsFormat()
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
