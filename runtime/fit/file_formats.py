"""How many bytes a model takes in the formats that people download: GGUF's mixes, FP8 and 4-bit safetensors.

Arithmetic on shapes: blocks of ggml (ggml-common.h), the mixes that llama-quantize makes of them without being told
otherwise (llama-quant.cpp), and the layouts of the packages that write safetensors. Files on this machine are not
computed but read: see `header_sizes`. Imports no torch.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from offload.checkpoint.tensor_entry import TensorEntry
from offload.formats.stored_sizes import GGML_BLOCKS
from offload.units import round_up_to_page

Matrices = Mapping[str, tuple[int, int]]
"""A layer's linear weights (O, I) by their role: q, k, v, o, gate, up, down, attention_gate; of a recurrence instead of
the first three qkv, output_gate, beta and decay."""

GGUF_MIXES: Mapping[str, str] = {
    "Q8_0": "Q8_0",
    "Q6_K": "Q6_K",
    "Q5_K_M": "Q5_K",
    "Q5_K_S": "Q5_K",
    "Q4_K_M": "Q4_K",
    "Q4_K_S": "Q4_K",
    "Q4_0": "Q4_0",
    "IQ4_XS": "IQ4_XS",
    "Q3_K_L": "Q3_K",
    "Q3_K_M": "Q3_K",
    "Q3_K_S": "Q3_K",
    "Q2_K": "Q2_K",
}
"""What most of a file's matrices are, the larger files first."""
SAFETENSORS_FORMATS = ("fp8", "w8a16", "w4a16", "awq", "gptq", "nvfp4", "mxfp4")
"""FP8 with a scale a row, 8 and 4 bits with one for GROUP_SIZE inputs, 4-bit floats with one for 16 or 32."""
FILE_FORMATS = (*GGUF_MIXES, *SAFETENSORS_FORMATS)
GROUP_SIZE = 128
PERPLEXITY_MORE: Mapping[str, float] = {
    "Q8_0": 0.0026,
    "Q6_K": 0.0217,
    "Q5_K_M": 0.0569,
    "Q5_K_S": 0.1049,
    "Q4_K_M": 0.1754,
    "Q4_K_S": 0.2689,
    "Q4_0": 0.4685,
    "Q3_K_L": 0.5562,
    "Q3_K_M": 0.6569,
    "Q3_K_S": 1.6321,
    "Q2_K": 3.5199,
}
"""By how much a mix raises the perplexity of Llama-3-8B, by the list that `llama-quantize --help` prints."""
_WIDER: Mapping[str, str] = {
    "Q2_K": "IQ4_NL",
    "Q3_K": "IQ4_NL",
    "IQ4_XS": "IQ4_NL",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
"""What stands in for a block of 256 in rows that are no multiple of it."""
_LAYERS_OF_70B = 80
_VECTOR_ITEM_BYTES = 4  # norms and biases of a GGUF file are float32
_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|block|h|blk)\.(\d+)\.")
_OTHER_PART = re.compile(r"vision|visual|image|audio|speech|multi_modal|projector|mm_|mtp")
_TABLE = re.compile(r"(?:^|\.)(?:embed_tokens|wte|embed_in|word_embeddings|token_embd|tok_embeddings)\.")


@dataclass(frozen=True, slots=True)
class StoredSizes:
    """Bytes of a model in the files that hold it."""

    layer_bytes: tuple[int, ...]
    """Of each decoder layer, in whole pages."""
    table_bytes: int
    """Of the input embeddings, which may be the head too."""
    head_bytes: int
    """Of final norm and head, and of what else the text model has outside its layers."""

    @property
    def total_bytes(self) -> int:
        return sum(self.layer_bytes) + self.table_bytes + self.head_bytes


@dataclass(frozen=True, slots=True)
class FormatQuestion:
    """A model of dense layers, as far as its bytes depend on it."""

    layers: Sequence[Matrices]
    num_vector_elements: Sequence[int]
    """Of each layer."""
    group_size: int
    """Query heads for each key head."""
    table_shape: tuple[int, int]
    is_tied: bool
    item_bytes: int
    """Bytes of a number that is not quantized, in safetensors."""

    def sizes_in(self, name: str) -> StoredSizes:
        """Return what files of one of FILE_FORMATS hold of it."""
        is_gguf = name in GGUF_MIXES
        item_bytes = _VECTOR_ITEM_BYTES if is_gguf else self.item_bytes
        layers = []
        for index, (matrices, num_vectors) in enumerate(zip(self.layers, self.num_vector_elements, strict=True)):
            if is_gguf:
                sizes = [block_bytes(self._mixed(name, role, index), shape) for role, shape in matrices.items()]
            else:
                sizes = [_safetensors_bytes(name, shape) for shape in matrices.values()]
            layers.append(round_up_to_page(sum(sizes) + num_vectors * item_bytes))
        norm_elements = self.table_shape[1]
        if not is_gguf:
            table_bytes = math.prod(self.table_shape) * self.item_bytes
            head_bytes = (0 if self.is_tied else table_bytes) + norm_elements * self.item_bytes
            return StoredSizes(tuple(layers), table_bytes, head_bytes)
        of_head = block_bytes("Q8_0" if name == "Q8_0" else "Q6_K", self.table_shape)
        norm_bytes = norm_elements * _VECTOR_ITEM_BYTES
        if self.is_tied:
            return StoredSizes(tuple(layers), of_head, norm_bytes)
        return StoredSizes(tuple(layers), block_bytes(GGUF_MIXES[name], self.table_shape), of_head + norm_bytes)

    def _mixed(self, mix: str, role: str, index: int) -> str:
        """Return the block type that a mix has for a matrix of the layer `index`."""
        num_layers, usual = len(self.layers), GGUF_MIXES[mix]
        more = has_more_bits(index, num_layers)
        if role == "v":
            found = self._mixed_values(mix, index, more=more)
            is_shared_by_many = num_layers == _LAYERS_OF_70B and self.group_size > 1
            return "Q5_K" if is_shared_by_many and found in ("Q3_K", "Q4_K") else found
        if role == "qkv":
            return {"Q5_K_M": "Q6_K", "Q4_K_M": "Q5_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q4_K"}.get(mix, usual)
        is_early = index < num_layers // 8
        by_role: dict[tuple[str, str], str] = {
            ("down", "Q5_K_M"): "Q6_K" if more else usual,
            ("down", "Q4_K_M"): "Q6_K" if more else usual,
            ("down", "Q4_K_S"): "Q5_K" if is_early else usual,
            ("down", "Q3_K_L"): "Q5_K",
            ("down", "Q3_K_M"): "Q5_K" if index < num_layers // 16 else "Q4_K",
            ("down", "Q2_K"): "Q3_K",
            ("o", "Q3_K_L"): "Q5_K",
            ("o", "Q3_K_M"): "Q4_K",
            ("o", "Q2_K"): "Q3_K",
        }
        return by_role.get((role, mix), usual)

    def _mixed_values(self, mix: str, index: int, *, more: bool) -> str:
        usual, is_grouped = GGUF_MIXES[mix], self.group_size >= 4
        if mix in ("Q5_K_M", "Q4_K_M"):
            return "Q6_K" if more else usual
        by_mix = {
            "Q4_K_S": "Q5_K" if index < 4 else usual,
            "IQ4_XS": "Q5_K" if is_grouped else usual,
            "Q3_K_L": "Q5_K",
            "Q3_K_M": "Q5_K" if index < 2 else "Q4_K",
            "Q2_K": "Q4_K" if is_grouped else "Q3_K",
        }
        return by_mix.get(mix, usual)


def has_more_bits(index: int, num_layers: int) -> bool:
    """Return whether a `_M` mix gives this layer's values and down projection six bits.

    The first and the last eighth have them, and every third layer between.
    """
    eighth = num_layers // 8
    return index < eighth or index >= 7 * num_layers // 8 or (index - eighth) % 3 == 2


def block_bytes(block: str, shape: Sequence[int]) -> int:
    """Return the bytes of a matrix (O, I) in blocks of that type, or of the one that stands in for it."""
    num_weights, num_bytes = GGML_BLOCKS[block]
    if shape[-1] % num_weights and block in _WIDER:
        return block_bytes(_WIDER[block], shape)
    return math.prod(shape[:-1]) * -(-shape[-1] // num_weights) * num_bytes


def _safetensors_bytes(name: str, shape: tuple[int, int]) -> int:
    """Return the bytes of a matrix (O, I) with its scales; zero points and orders of inputs where a format has them."""
    outputs, inputs = shape
    codes = outputs * inputs // 2
    group_scales = 2 * outputs * -(-inputs // GROUP_SIZE)
    return {
        "fp8": outputs * inputs + 4 * outputs,
        "w8a16": outputs * inputs + group_scales,
        "w4a16": codes + group_scales,
        "awq": codes + group_scales + group_scales // 4,
        "gptq": codes + group_scales + group_scales // 4 + 4 * inputs,
        "nvfp4": codes + outputs * inputs // 16 + 8,
        "mxfp4": codes + outputs * inputs // 32,
    }[name]


def canonical_format(text: str) -> str:
    """Return the name in FILE_FORMATS that `text` spells in any case, or the text itself."""
    by_key = {name.lower(): name for name in FILE_FORMATS}
    return by_key.get(text.lower(), text)


def split_format(name: str) -> tuple[str, str | None]:
    """Return ("llama-3.3-70b", "Q4_K_M") for "llama-3.3-70b:Q4_K_M", and no format where the name ends in none."""
    model, separator, ending = name.rpartition(":")
    found = canonical_format(ending.removeprefix("UD-"))
    return (model, found) if separator and model and found in FILE_FORMATS else (name, None)


def format_of_settings(settings: Mapping[str, object]) -> str | None:
    """Return the name in FILE_FORMATS of a config.json's `quantization_config`; None for one that is not known."""
    method = str(settings.get("quant_method", ""))
    if method in ("fp8", "fbgemm_fp8", "mxfp4"):
        return method.removeprefix("fbgemm_")
    if method in ("awq", "gptq"):
        return method if settings.get("bits", 4) == 4 else None
    if method == "modelopt":
        return {"FP8": "fp8", "NVFP4": "nvfp4"}.get(str(settings.get("quant_algo")))
    if method != "compressed-tensors":
        return None
    words = str(settings.get("format", ""))
    groups = settings.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights = first.get("weights") if isinstance(first, dict) else None
    num_bits = weights.get("num_bits") if isinstance(weights, dict) else None
    by_words = {"nvfp4-pack-quantized": "nvfp4", "mxfp4-pack-quantized": "mxfp4", "float-quantized": "fp8"}
    if words == "pack-quantized":
        return {4: "w4a16", 8: "w8a16"}.get(num_bits) if isinstance(num_bits, int) else None
    return by_words.get(words)


def header_sizes(tensors: Iterable[TensorEntry], num_layers: int) -> StoredSizes | None:
    """Return what a folder's headers say of its text model; None where they name other layers than `num_layers`.

    Tensors of other parts, which see or hear, do not count.
    """
    layers: dict[int, int] = {}
    table_bytes = head_bytes = 0
    for entry in tensors:
        if _OTHER_PART.search(entry.name):
            continue
        if found := _LAYER.search(entry.name):
            index = int(found[1])
            layers[index] = layers.get(index, 0) + entry.num_bytes
        elif _TABLE.search(entry.name):
            table_bytes += entry.num_bytes
        else:
            head_bytes += entry.num_bytes
    if set(layers) != set(range(num_layers)):
        return None
    return StoredSizes(tuple(round_up_to_page(layers[index]) for index in range(num_layers)), table_bytes, head_bytes)
