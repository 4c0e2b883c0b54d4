"""What config.json says of the quantization that a model was published with: FP8, AWQ, GPTQ, compressed-tensors, MXFP4.

The tensors decide what a matrix is stored as; the settings must not contradict them, and steer what no tensor shows.
Patterns of module names are not followed: an expression that a file brings along may take for ever to match.
Everything here counts as hostile. Imports neither torch nor transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from offload.errors import CheckpointError
from profiles.errors import quote

NumberKind = Literal["int", "float"]
PUBLISHED_METHODS: Mapping[str, tuple[str, ...]] = {
    "awq": ("awq",),
    "compressed-tensors": ("w4a16", "w8a16", "int8", "fp8", "nvfp4", "mxfp4"),
    "fbgemm_fp8": ("fp8",),
    "fp8": ("fp8",),
    "gptq": ("gptq",),
    "modelopt": ("fp8", "nvfp4"),
    "mxfp4": ("mxfp4",),
}
"""The formats that a matrix may be stored in, by quant_method."""
NEXT_STEP = "use the bf16, fp16 or fp32 original, or a folder in FP8, AWQ, GPTQ, compressed-tensors or bitsandbytes"
_COMPRESSED_FORMATS = (
    "dense",
    "float-quantized",
    "int-quantized",
    "mixed-precision",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "pack-quantized",
)
_MODELOPT_ALGORITHMS = ("FP8", "NVFP4")
_GPTQ_FORMATS = {"gptq": 1, "gptq_v2": 0}
"""What is added to a stored zero point."""
_IGNORE_KEYS = ("modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules")
_MAX_GROUP_SIZE = 1 << 20


@dataclass(frozen=True, slots=True)
class Scheme:
    """How some of the matrices are quantized."""

    kind: NumberKind
    bits: int
    group_size: int | None = None
    """Columns that share a scale; None where the settings leave it open."""
    block: tuple[int, int] | None = None
    """Rows and columns that share a scale, where both are more than one."""


@dataclass(frozen=True, slots=True)
class PublishedSettings:
    """The quantization of a published model, as its config.json has it."""

    method: str
    """One of PUBLISHED_METHODS."""
    schemes: tuple[Scheme, ...] = ()
    """Those that a matrix may have; none: the settings leave it open."""
    zero_offset: int = 0
    """Of GPTQ: what is added to its stored zero points."""
    ignored: frozenset[str] = frozenset()
    """Full names of modules that are not quantized."""

    @classmethod
    def parse(cls, settings: Mapping[str, Any], *, where: str) -> "PublishedSettings":
        """Return the settings of a method among PUBLISHED_METHODS; `where` names what holds them.

        Raises CheckpointError if they ask for what is not supported, or make no sense.
        """
        method = settings["quant_method"]
        ignored = _ignored(settings, where)
        if method == "compressed-tensors":
            return cls(method, _compressed_schemes(settings, where), ignored=ignored)
        if method == "modelopt":
            _expect(settings, "quant_algo", _MODELOPT_ALGORITHMS, where)
            return cls(method, ignored=ignored)
        if method == "fp8":
            return cls(method, _float8_schemes(settings, where), ignored=ignored)
        if method == "awq":
            _expect(settings, "version" if "version" in settings else "format", ("gemm", "GEMM", None), where)
            if settings.get("backend") == "llm-awq":
                raise _wrong(where, "backend", "llm-awq", "a folder in AWQ's gemm order")
            return cls(method, (_integer_scheme(settings, (4,), where),), ignored=ignored)
        if method == "gptq":
            key = "checkpoint_format" if settings.get("checkpoint_format") is not None else "format"
            _expect(settings, key, (*_GPTQ_FORMATS, None, ""), where)
            offset = _GPTQ_FORMATS[settings.get(key) or "gptq"]
            scheme = _integer_scheme(settings, (4, 8), where)
            schemes = () if settings.get("dynamic") else (scheme,)  # these give single modules other ones
            return cls(method, schemes, zero_offset=offset, ignored=ignored)
        return cls(method, ignored=ignored)

    def describes(self, kind: NumberKind, bits: int, group_size: int | None = None) -> bool:
        """Return whether a matrix of such numbers, in groups of so many columns, is what the settings tell of."""
        return not self.schemes or any(
            (scheme.kind, scheme.bits) == (kind, bits)
            and (group_size is None or scheme.group_size in (None, group_size))
            for scheme in self.schemes
        )

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns that may share a scale of FP8."""
        found = [scheme.block for scheme in self.schemes if scheme.block is not None]
        rows = [(1, scheme.group_size) for scheme in self.schemes if scheme.group_size is not None]
        return (*found, *rows)


def _integer_scheme(settings: Mapping[str, Any], allowed: tuple[int, ...], where: str) -> Scheme:
    """Return the scheme of AWQ's and GPTQ's settings, which spell it alike; older ones in AWQ's own keys."""
    bits = settings.get("bits", settings.get("w_bit", 4))
    group_size = settings.get("group_size", settings.get("q_group_size", 128))
    if type(bits) is not int or bits not in allowed:
        raise _wrong(where, "bits", bits, " or ".join(map(str, allowed)))
    if group_size == -1 and type(group_size) is int:
        return Scheme("int", bits)
    if not _is_size(group_size):
        raise _wrong(where, "group_size", group_size, "a number of columns, or -1")
    return Scheme("int", bits, group_size)


def _float8_schemes(settings: Mapping[str, Any], where: str) -> tuple[Scheme, ...]:
    block = settings.get("weight_block_size")
    if block is None:
        return (Scheme("float", 8),)
    if not _is_block(block):
        raise _wrong(where, "weight_block_size", block, "two sizes, or null for one scale a matrix")
    return (Scheme("float", 8, block=(block[0], block[1])),)


def _compressed_schemes(settings: Mapping[str, Any], where: str) -> tuple[Scheme, ...]:
    _expect(settings, "format", _COMPRESSED_FORMATS, where)
    for key, reason in (("sparsity_config", "sparse"), ("transform_config", "turned before they are multiplied")):
        found = settings.get(key)
        if found and not (isinstance(found, dict) and found.get("format") == "dense"):
            raise CheckpointError(
                f"{where} says with {key} that matrices are {reason}, which cannot be streamed; {NEXT_STEP}"
            )
    groups = settings.get("config_groups")
    if groups is None and settings["format"] == "dense":
        return ()
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise _wrong(where, "config_groups", groups, "an object of groups")
    schemes = []
    for group in groups.values():
        weights = group.get("weights")
        _expect(group, "format", (*_COMPRESSED_FORMATS, None), where)
        if weights is None:
            continue
        if not isinstance(weights, dict):
            raise _wrong(where, "weights", weights, "an object")
        schemes.append(_compressed_scheme(weights, where))
    return tuple(schemes)


def _compressed_scheme(weights: Mapping[str, Any], where: str) -> Scheme:
    kind, bits = weights.get("type", "int"), weights.get("num_bits", 8)
    _expect(weights, "type", ("int", "float", None), where)
    if type(bits) is not int or bits not in (4, 8):
        raise _wrong(where, "num_bits", bits, "4 or 8")
    group_size, block = weights.get("group_size"), weights.get("block_structure")
    if group_size == -1:
        group_size = None
    if group_size is not None and not _is_size(group_size):
        raise _wrong(where, "group_size", group_size, "a number of columns")
    if isinstance(block, str) and len(block) < 20:  # older folders: "128x128"
        block = [int(side) if side.isdecimal() and side.isascii() else 0 for side in block.split("x")]
    if block is not None and not _is_block(block):
        raise _wrong(where, "block_structure", block, "two sizes")
    return Scheme(kind or "int", bits, group_size, None if block is None else (block[0], block[1]))


def _ignored(settings: Mapping[str, Any], where: str) -> frozenset[str]:
    names: set[str] = set()
    for key in _IGNORE_KEYS:
        found = settings.get(key)
        if found is None:
            continue
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise _wrong(where, key, found, "a list of module names")
        names.update(found)
    return frozenset(names)


def _expect(settings: Mapping[str, Any], key: str, allowed: tuple[str | None, ...], where: str) -> None:
    found = settings.get(key)
    if not (found is None or isinstance(found, str)) or found not in allowed:
        names = (name for name in allowed if name)
        raise CheckpointError(f"{where} has {key} = {quote(found)}; expected {', '.join(names)}; {NEXT_STEP}")


def _wrong(where: str, key: str, found: object, expected: str) -> CheckpointError:
    return CheckpointError(f"{where} has {key} = {quote(found)}; expected {expected}")


def _is_size(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 < value <= _MAX_GROUP_SIZE


def _is_block(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_size, value))
