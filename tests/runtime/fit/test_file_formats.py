import json
from dataclasses import replace
from pathlib import Path

import pytest

from offload.checkpoint.tensor_entry import TensorEntry
from offload.units import round_up_to_page
from runtime.fit.file_formats import (
    FILE_FORMATS,
    GGUF_MIXES,
    PERPLEXITY_MORE,
    FormatQuestion,
    block_bytes,
    canonical_format,
    format_of_settings,
    has_more_bits,
    header_sizes,
    split_format,
)
from runtime.fit.models import find_shape
from tests.runtime.fit.test_shapes import TINY

GIB, GB = 1 << 30, 10**9


def total_bytes(name, mix):
    shape = find_shape(name).stored_as(mix)
    return shape.formats[0].total_bytes + shape.others_bytes


@pytest.mark.parametrize(
    ("mix", "gib"),
    [
        ("Q8_0", 7.96),
        ("Q6_K", 6.14),
        ("Q5_K_M", 5.33),
        ("Q5_K_S", 5.21),
        ("Q4_K_M", 4.58),
        ("Q4_K_S", 4.37),
        ("Q4_0", 4.34),
        ("Q3_K_L", 4.03),
        ("Q3_K_M", 3.74),
        ("Q3_K_S", 3.41),
        ("Q2_K", 2.96),
    ],
)
def test_a_mix_takes_what_llama_quantize_says_of_it(mix, gib):
    """`llama-quantize --help` names the size of Llama-3-8B in each, with its 8 MB of vocabulary."""
    assert total_bytes("llama-3-8b", mix) / GIB == pytest.approx(gib, abs=0.015)


@pytest.mark.parametrize(
    ("mix", "gigabytes"),
    [("Q8_0", 74.98), ("Q6_K", 57.89), ("Q5_K_M", 49.95), ("Q4_K_M", 42.52), ("Q3_K_M", 34.27), ("Q2_K", 26.38)],
)
def test_the_large_model_takes_what_its_files_are_published_with(mix, gigabytes):
    """As the hub lists them; values that eight heads share get a bit more in 80 layers."""
    assert total_bytes("llama-3.3-70b", mix) / GB == pytest.approx(gigabytes, abs=0.015)


def test_every_format_is_smaller_than_the_original_and_has_a_place():
    for name in ("qwen3-32b", "gemma-4-31b", "qwen2.5-0.5b", "mistral-small-3.2-24b"):
        dense = find_shape(name)
        for file_format in FILE_FORMATS:
            narrow = dense.stored_as(file_format)
            assert [one.name for one in narrow.formats] == [file_format]
            assert narrow.formats[0].total_bytes < 0.6 * dense.formats[0].total_bytes
            assert len(narrow.formats[0].layer_bytes) == dense.num_layers


def test_what_a_recurrence_projects_together_has_a_bit_more():
    """By llama-quant.cpp, which says so of every fused projection of queries, keys and values."""
    bits = {"Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K", "Q3_K_M": "Q4_K", "Q6_K": "Q6_K", "Q4_K_S": "Q4_K"}
    for mix, block in bits.items():
        question = FormatQuestion([{"qkv": (8, 256)}], [0], 1, (8, 256), True, 2)
        assert question.sizes_in(mix).layer_bytes == (round_up_to_page(block_bytes(block, (8, 256))),)


def test_half_of_the_layers_have_more_bits():
    assert [index for index in range(16) if has_more_bits(index, 16)] == [0, 1, 4, 7, 10, 13, 14, 15]


def test_rows_that_are_no_multiple_of_a_block_get_another_one():
    """As of Qwen2.5-0.5B, whose hidden states are 896 wide."""
    assert block_bytes("Q4_K", (10, 512)) == 10 * 2 * 144
    assert block_bytes("Q4_K", (10, 896)) == 10 * 28 * 22
    assert block_bytes("Q6_K", (10, 896)) == 10 * 28 * 34


def test_four_bits_with_their_scales():
    """Two weights a byte; a half-precision scale for 128 inputs, for 16 a byte, and zero points where there are."""
    wide = replace(TINY, hidden_size=1024, inner_size=2048, num_heads=8, head_dim=128, item_bytes=2)
    weights = wide.num_decoder_parameters
    by_name = {"w4a16": 0.515625, "awq": 0.51953, "gptq": 0.5221, "nvfp4": 0.5625, "fp8": 1}
    for name, bytes_per_weight in by_name.items():
        found = wide.stored_as(name).formats[0].total_bytes / weights
        assert found == pytest.approx(bytes_per_weight, rel=0.01)


def test_the_head_of_a_gguf_file_is_narrow_and_that_of_safetensors_is_not():
    dense = find_shape("llama-3.3-70b")
    assert dense.stored_as("Q4_K_M").is_head_narrow and not dense.stored_as("awq").is_head_narrow
    assert dense.stored_as("awq").others_bytes == dense.others_bytes
    tied = find_shape("gemma-3-27b").stored_as("Q4_K_M")
    assert tied.table_bytes == 0 and tied.is_head_narrow


def test_only_published_figures_of_quality_stand_there():
    assert set(PERPLEXITY_MORE) < set(GGUF_MIXES)
    assert list(PERPLEXITY_MORE.values()) == sorted(PERPLEXITY_MORE.values())


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("llama-3.3-70b:q4_k_m", ("llama-3.3-70b", "Q4_K_M")),
        ("owner/name-GGUF:UD-Q4_K_M", ("owner/name-GGUF", "Q4_K_M")),
        ("qwen2.5:0.5b", ("qwen2.5:0.5b", None)),
        (":Q4_K_M", (":Q4_K_M", None)),
        ("plain", ("plain", None)),
    ],
)
def test_a_format_may_stand_behind_a_name(typed, found):
    assert split_format(typed) == found


def test_a_format_is_found_in_any_case():
    assert canonical_format("q4_k_m") == "Q4_K_M" and canonical_format("FP8") == "fp8"
    assert canonical_format("bfloat16") == "bfloat16"


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "fbgemm_fp8"}, "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "gptq", "bits": 3}, None),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "fp8"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "nvfp4"),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 4}}},
            },
            "w4a16",
        ),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": [3]}, None),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": [4]}}}}, None),
        ({"quant_method": ["awq"]}, None),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "modelopt", "quant_algo": {}}, None),
    ],
)
def test_what_a_config_says_of_its_quantization(settings, name):
    assert format_of_settings(json.loads(json.dumps(settings))) == name


def entry(name, num_bytes):
    return TensorEntry(name, "BF16", (num_bytes // 2,), Path("a"), 0, num_bytes)


def test_headers_are_added_up_by_layer_without_what_sees():
    tensors = [
        entry("model.language_model.layers.0.mlp.weight", 4096),
        entry("model.language_model.layers.1.mlp.weight", 5000),
        entry("model.language_model.layers.1.mlp.weight_scale", 6),
        entry("model.language_model.embed_tokens.weight", 100),
        entry("model.vision_tower.layers.2.mlp.weight", 10**6),
        entry("lm_head.weight", 50),
    ]
    found = header_sizes(tensors, 2)
    assert found is not None
    assert (found.layer_bytes, found.table_bytes, found.head_bytes) == ((4096, 8192), 100, 50)
    assert header_sizes(tensors, 3) is None
