"""Matrices quantized as they are published, and unpacked again by loops of whole numbers: nothing of the product's."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

Tensors = dict[str, torch.Tensor]
Packed = tuple[Tensors, torch.Tensor]
"""The tensors of a matrix by what stands behind its module's name, and the matrix (O, I) they mean, float32."""
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight outputs each nibble of a word holds, lowest first."""
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
SCALE = 0.01
"""About the size of the scales, so that a model of such matrices stays sane."""


def float8_value(code: int) -> float:
    """The number of an e4m3 code: sign, four bits of exponent, three of mantissa."""
    sign, exponent, mantissa = -1.0 if code & 0x80 else 1.0, code >> 3 & 15, code & 7
    if code & 0x7F == 0x7F:
        return math.nan
    return sign * (mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10))


FLOAT8 = np.array([float8_value(code) for code in range(256)], dtype=np.float32)


def _codes(generator: torch.Generator, levels: int, *sizes: int) -> Any:
    return torch.randint(0, levels, sizes, generator=generator).numpy()


def _scales(generator: torch.Generator, dtype: torch.dtype, *sizes: int) -> torch.Tensor:
    return (SCALE * (0.5 + torch.rand(sizes, generator=generator))).to(dtype)


def _words(codes: Any, bits: int) -> torch.Tensor:
    """Pack (A, B) codes along B into int32, lowest bits first; what is missing to a whole word is 0."""
    per_word = 32 // bits
    num_rows, num_codes = codes.shape
    words = np.zeros((num_rows, -(-num_codes // per_word)), dtype=np.uint32)
    for index in range(num_codes):
        words[:, index // per_word] |= codes[:, index].astype(np.uint32) << np.uint32(bits * (index % per_word))
    return torch.from_numpy(words.view(np.int32).copy())


def _awq_words(codes: Any) -> torch.Tensor:
    """Pack (A, B) codes along B into int32, in AWQ's order."""
    words = np.zeros((len(codes), codes.shape[1] // 8), dtype=np.uint32)
    for word in range(words.shape[1]):
        for nibble, output in enumerate(AWQ_ORDER):
            words[:, word] |= codes[:, 8 * word + output].astype(np.uint32) << np.uint32(4 * nibble)
    return torch.from_numpy(words.view(np.int32).copy())


def _unpacked(codes: Any, zeros: Any, scales: torch.Tensor, groups: Any) -> torch.Tensor:
    """(codes - zeros) * scales, number by number; codes (O, I), zeros and scales (O, G), the group of each column."""
    wide, matrix = scales.to(torch.float32).numpy(), np.empty(codes.shape, dtype=np.float32)
    for column in range(codes.shape[1]):
        group = groups[column]
        differences = (codes[:, column].astype(np.int64) - zeros[:, group].astype(np.int64)).astype(np.float32)
        matrix[:, column] = differences * wide[:, group]
    return torch.from_numpy(matrix)


def float8(
    shape: tuple[int, int],
    generator: torch.Generator,
    *,
    block: tuple[int, int] = (128, 128),
    scale_name: str = "weight_scale_inv",
    scale_shape: tuple[int, ...] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Packed:
    """FP8; uint8 scales are e8m0, which share the middle of their range with those of floats."""
    codes = _codes(generator, 256, *shape).astype(np.uint8)
    codes[codes & 0x7F == 0x7F] = 0
    grid = (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
    if dtype == torch.uint8:
        scales = torch.from_numpy((117 + _codes(generator, 3, *grid)).astype(np.uint8))
        values = 2.0 ** (scales.numpy().astype(np.float32) - 127)
    else:
        scales = (SCALE / 30 * (0.5 + torch.rand(grid, generator=generator))).to(dtype)
        values = scales.to(torch.float32).numpy()
    matrix = np.empty(shape, dtype=np.float32)
    for row in range(shape[0]):
        for column in range(shape[1]):
            matrix[row, column] = FLOAT8[codes[row, column]] * values[row // block[0], column // block[1]]
    stored = scales if scale_shape is None else scales.reshape(scale_shape)
    return {"weight": torch.from_numpy(codes).view(torch.float8_e4m3fn), scale_name: stored}, torch.from_numpy(matrix)


def int8(shape: tuple[int, int], generator: torch.Generator) -> Packed:
    codes = _codes(generator, 256, *shape).astype(np.uint8).view(np.int8)
    scales = _scales(generator, torch.bfloat16, shape[0], 1)
    matrix = torch.from_numpy(codes.astype(np.float32) * (scales.to(torch.float32) / 16).numpy())
    return {"weight": torch.from_numpy(codes), "weight_scale": scales / 16}, matrix


def packed_integers(
    shape: tuple[int, int],
    generator: torch.Generator,
    *,
    bits: int = 4,
    group_size: int = 32,
    has_zeros: bool = False,
    has_order: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> Packed:
    """compressed-tensors' pack-quantized."""
    num_groups = shape[1] // group_size
    codes, scales = _codes(generator, 1 << bits, *shape), _scales(generator, dtype, shape[0], num_groups)
    scales = scales / (1 << bits - 4)
    zeros = np.full((shape[0], num_groups), 1 << bits - 1)
    groups = np.arange(shape[1]) // group_size
    tensors = {
        "weight_packed": _words(codes, bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor(shape, dtype=torch.int64),
    }
    if has_zeros:
        zeros = _codes(generator, 1 << bits, shape[0], num_groups)
        tensors["weight_zero_point"] = _words(zeros.T, bits).t().contiguous()
    if has_order:
        groups = groups[torch.randperm(shape[1], generator=generator).numpy()]
        tensors["weight_g_idx"] = torch.from_numpy(groups.astype(np.int32))
    return tensors, _unpacked(codes, zeros, scales, groups)


def gptq(
    shape: tuple[int, int],
    generator: torch.Generator,
    *,
    bits: int = 4,
    group_size: int = 32,
    has_order: bool = False,
    is_second: bool = False,
    dtype: torch.dtype = torch.float16,
) -> Packed:
    """GPTQ's first version, which stores zero points less one, or its second."""
    num_groups, levels = shape[1] // group_size, 1 << bits
    codes, scales = _codes(generator, levels, *shape), _scales(generator, dtype, shape[0], num_groups)
    scales = scales / (1 << bits - 4)
    zeros = _codes(generator, levels, shape[0], num_groups)
    groups = np.arange(shape[1]) // group_size
    if has_order:
        groups = groups[torch.randperm(shape[1], generator=generator).numpy()]
    stored_zeros = zeros if is_second else (zeros - 1) % levels
    tensors = {
        "qweight": _words(codes, bits).t().contiguous(),
        "qzeros": _words(stored_zeros.T, bits),
        "scales": scales.t().contiguous(),
        "g_idx": torch.from_numpy(groups.astype(np.int32)),
    }
    return tensors, _unpacked(codes, zeros, scales, groups)


def awq(
    shape: tuple[int, int], generator: torch.Generator, *, group_size: int = 32, dtype: torch.dtype = torch.float16
) -> Packed:
    num_groups = shape[1] // group_size
    codes, scales = _codes(generator, 16, *shape), _scales(generator, dtype, shape[0], num_groups)
    zeros = _codes(generator, 16, shape[0], num_groups)
    tensors = {"qweight": _awq_words(codes.T), "qzeros": _awq_words(zeros.T), "scales": scales.t().contiguous()}
    return tensors, _unpacked(codes, zeros, scales, np.arange(shape[1]) // group_size)


def _e2m1(shape: tuple[int, int], generator: torch.Generator) -> tuple[torch.Tensor, Any]:
    codes = _codes(generator, 16, *shape).astype(np.uint8)
    return torch.from_numpy(codes[:, 0::2] | codes[:, 1::2] << 4), np.array(E2M1, dtype=np.float32)[codes]


def mxfp4(shape: tuple[int, int], generator: torch.Generator, *, is_blocks: bool = False) -> Packed:
    """MXFP4 of compressed-tensors, or in the blocks of gpt-oss."""
    packed, values = _e2m1(shape, generator)
    scales = (119 + _codes(generator, 3, shape[0], shape[1] // 32)).astype(np.uint8)
    matrix = torch.from_numpy(values * (2.0 ** (scales.astype(np.float32) - 127)).repeat(32, axis=1))
    names = ("weight_blocks", "weight_scales") if is_blocks else ("weight_packed", "weight_scale")
    codes = packed.view(shape[0], -1, 16) if is_blocks else packed
    return {names[0]: codes, names[1]: torch.from_numpy(scales)}, matrix


def nvfp4(shape: tuple[int, int], generator: torch.Generator, *, is_modelopt: bool = False) -> Packed:
    """NVFP4 of compressed-tensors, whose global scale divides, or of ModelOpt, whose multiplies."""
    packed, values = _e2m1(shape, generator)
    codes = _codes(generator, 0x7F, shape[0], shape[1] // 16).astype(np.uint8)
    global_scale = np.float32(9000.0)
    scales = FLOAT8[codes] / global_scale
    if is_modelopt:
        global_scale = np.float32(1 / 9000)
        scales = FLOAT8[codes] * global_scale
    tensors = {
        "weight" if is_modelopt else "weight_packed": packed,
        "weight_scale": torch.from_numpy(codes).view(torch.float8_e4m3fn),
        "weight_scale_2" if is_modelopt else "weight_global_scale": torch.tensor(
            global_scale if is_modelopt else [global_scale]
        ),
    }
    return tensors, torch.from_numpy(values * scales.astype(np.float32).repeat(16, axis=1))


def _compressed(format_name: str, **weights: object) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"symmetric": True, **weights}, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": format_name,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "config_groups": {"group_0": group},
    }


_CHANNEL = {"block": (1, 1 << 20), "scale_name": "weight_scale"}
_TENSOR = {"block": (1 << 20, 1 << 20)}
_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
Maker = Callable[..., Packed]
PUBLISHED: Mapping[str, tuple[dict[str, Any], Maker, dict[str, Any]]] = {
    "fp8 blocks": (_FP8, float8, {}),
    "fp8 tensor": (
        _FP8 | {"weight_block_size": None, "activation_scheme": "static"},
        float8,
        _TENSOR | {"scale_shape": (), "dtype": torch.bfloat16},
    ),
    "fbgemm_fp8": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, float8, _CHANNEL),
    "compressed fp8": (
        _compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
        float8,
        _CHANNEL | {"dtype": torch.bfloat16},
    ),
    "compressed fp8 blocks": (
        _compressed("float-quantized", num_bits=8, type="float", strategy="block", block_structure=[16, 32]),
        float8,
        {"block": (16, 32), "scale_name": "weight_scale", "dtype": torch.bfloat16},
    ),
    "mxfp8": (
        _compressed("mxfp8-quantized", num_bits=8, type="float", strategy="group", group_size=32),
        float8,
        {"block": (1, 32), "scale_name": "weight_scale", "dtype": torch.uint8},
    ),
    "int8": (_compressed("int-quantized", num_bits=8, type="int", strategy="channel"), int8, {}),
    "w4a16": (
        _compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32),
        packed_integers,
        {},
    ),
    "w4a16 zeros": (
        _compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32, symmetric=False),
        packed_integers,
        {"has_zeros": True},
    ),
    "w4a16 order": (
        _compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32, actorder="group"),
        packed_integers,
        {"has_order": True},
    ),
    "w8a16": (
        _compressed("pack-quantized", num_bits=8, type="int", strategy="group", group_size=32),
        packed_integers,
        {"bits": 8, "has_zeros": True},
    ),
    "nvfp4": (
        _compressed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16),
        nvfp4,
        {},
    ),
    "mxfp4": (
        _compressed("mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32),
        mxfp4,
        {},
    ),
    "mxfp4 blocks": ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, mxfp4, {"is_blocks": True}),
    "modelopt nvfp4": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]},
        nvfp4,
        {"is_modelopt": True},
    ),
    "awq": (_AWQ, awq, {}),
    "gptq": (_GPTQ, gptq, {}),
    "gptq order": (_GPTQ | {"desc_act": True}, gptq, {"has_order": True}),
    "gptq v2": (_GPTQ | {"checkpoint_format": "gptq_v2"}, gptq, {"is_second": True}),
    "gptq 8 bits": (_GPTQ | {"bits": 8}, gptq, {"bits": 8}),
}
"""By kind: quantization_config as it is published, and what makes such a matrix."""


def published_matrix(kind: str, shape: tuple[int, int], generator: torch.Generator) -> Packed:
    """A random matrix (O, I) of a kind in PUBLISHED; I a multiple of 32, O of 8."""
    _, make, options = PUBLISHED[kind]
    block = options.get("block")
    if block is not None:
        options = options | {"block": (min(block[0], shape[0]), min(block[1], shape[1]))}
    return make(shape, generator, **options)
