from typing import Any

import pytest

from offload.checkpoint.published_settings import PUBLISHED_METHODS, PublishedSettings, Scheme
from offload.errors import CheckpointError


def parsed(**settings: Any) -> PublishedSettings:
    return PublishedSettings.parse(settings, where="config.json")


def compressed(weights: Any, **settings: Any) -> PublishedSettings:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    options = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups, **settings}
    return parsed(**options)


INT4 = {"type": "int", "num_bits": 4, "group_size": 128, "strategy": "group"}


def test_settings_as_published_models_have_them() -> None:
    fp8 = parsed(quant_method="fp8", weight_block_size=[128, 128], modules_to_not_convert=["lm_head"])
    assert fp8.blocks == ((128, 128),) and fp8.ignored == {"lm_head"}
    assert parsed(quant_method="fp8", weight_block_size=None, activation_scheme="static").blocks == ()
    assert parsed(quant_method="awq", bits=4, group_size=128, version="gemm").schemes == (Scheme("int", 4, 128),)
    assert parsed(quant_method="awq", w_bit=4, q_group_size=64, version="GEMM").schemes == (Scheme("int", 4, 64),)
    assert parsed(quant_method="gptq", bits=8, group_size=-1).schemes == (Scheme("int", 8),)
    assert compressed(INT4).describes("int", 4, 128)
    blocks = {"type": "float", "num_bits": 8, "block_structure": "128x128"}
    assert compressed(blocks, format="float-quantized").blocks == ((128, 128),)
    rows = {"type": "float", "num_bits": 8, "group_size": 32}
    assert compressed(rows, format="mxfp8-quantized").blocks == ((1, 32),)
    assert not parsed(quant_method="compressed-tensors", format="dense").schemes
    assert parsed(quant_method="modelopt", quant_algo="NVFP4").describes("float", 4)


def test_the_first_gptq_adds_one_to_its_zero_points() -> None:
    assert parsed(quant_method="gptq", bits=4).zero_offset == 1
    assert parsed(quant_method="gptq", bits=4, checkpoint_format="gptq").zero_offset == 1
    assert parsed(quant_method="gptq", bits=4, checkpoint_format="gptq_v2").zero_offset == 0
    assert parsed(quant_method="gptq", bits=4, format="gptq_v2").zero_offset == 0


def test_a_matrix_is_described_by_any_of_the_schemes() -> None:
    found = compressed(INT4)
    assert not found.describes("int", 8) and not found.describes("float", 4) and not found.describes("int", 4, 64)
    assert compressed({**INT4, "group_size": None}).describes("int", 4, 64)
    assert parsed(quant_method="gptq", bits=4, dynamic={"+:.*": {"bits": 8}}).describes("int", 8, 32)
    assert parsed(quant_method="fbgemm_fp8").describes("float", 8)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"quant_method": "awq", "version": "gemv"}, "version = 'gemv'; expected gemm"),
        ({"quant_method": "awq", "backend": "llm-awq"}, "backend = 'llm-awq'"),
        ({"quant_method": "awq", "bits": 3}, "bits = 3; expected 4"),
        ({"quant_method": "awq", "bits": True}, "bits = True; expected 4"),
        ({"quant_method": "awq", "bits": 4, "group_size": 0}, "group_size = 0"),
        ({"quant_method": "gptq", "bits": 2}, "bits = 2; expected 4 or 8"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format = 'marlin'"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": ["gptq"]}, "checkpoint_format = ['gptq']"),
        ({"quant_method": "gptq", "bits": 4, "group_size": "x"}, "group_size = 'x'"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size = [128]"),
        ({"quant_method": "fp8", "weight_block_size": [128, 0]}, "weight_block_size = [128, 0]"),
        ({"quant_method": "fp8", "modules_to_not_convert": "lm_head"}, "modules_to_not_convert = 'lm_head'"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo = 'W4A8_AWQ'; expected FP8, NVFP4"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "format = 'marlin-24'"),
        ({"quant_method": "compressed-tensors", "format": None}, "format = None; expected dense"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "config_groups = None"),
    ],
)
def test_what_is_not_supported_is_named(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        parsed(**settings)
    assert expected in str(caught.value) and str(caught.value).startswith("config.json has ")


@pytest.mark.parametrize(
    ("weights", "settings", "expected"),
    [
        (INT4, {"sparsity_config": {"format": "sparse-24-bitmask"}}, "matrices are sparse, which cannot be streamed"),
        (INT4, {"transform_config": {"config_groups": {"u": {}}}}, "turned before they are multiplied"),
        ({**INT4, "num_bits": 3}, {}, "num_bits = 3; expected 4 or 8"),
        ({**INT4, "type": "fancy"}, {}, "type = 'fancy'"),
        ({**INT4, "group_size": 1.5}, {}, "group_size = 1.5"),
        ({**INT4, "block_structure": "128"}, {}, "block_structure = "),
        ({**INT4, "block_structure": [1, 2, 3]}, {}, "block_structure = [1, 2, 3]"),
        ([1], {}, "weights = [1]"),
        (INT4, {"config_groups": {"group_0": 3}}, "expected an object of groups"),
        (INT4, {"ignore": [3]}, "ignore = [3]"),
    ],
)
def test_what_compressed_tensors_may_say_besides(weights: Any, settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        compressed(weights, **settings)
    assert expected in str(caught.value)


def test_harmless_settings_pass() -> None:
    compressed(INT4, sparsity_config={}, transform_config={}, kv_cache_scheme={"num_bits": 8}, ignore=["re:.*(a+)+$"])
    compressed(INT4, sparsity_config={"format": "dense"}, format="mixed-precision")
    assert not compressed(None).schemes
    assert set(PUBLISHED_METHODS) == {
        *("awq", "compressed-tensors", "fbgemm_fp8", "fp8", "gptq", "modelopt", "mxfp4"),
    }
