"""Which tensor of a GGUF file is which parameter of a transformers model, and what the file's writer changed in them.

Names go by gguf-py's map of the architecture, as in transformers' own loading (modeling_gguf_pytorch_utils.py). What
its tensor processors change in memory is not changed here but described, and undone where it costs no bytes: rows of
queries and keys that the file has in pairs are put in halves once they are multiplied, vectors that are stored in other
words, as norms with 1 added, are put right when they are bound, and heads of values in another order stay in it.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from offload.checkpoint.checkpoint import Checkpoint
from offload.checkpoint.gguf_file import GgufHeader
from offload.checkpoint.tensor_entry import TensorEntry
from offload.errors import CheckpointError
from profiles.errors import quote

_PAIRED = {"llama": {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}}
"""By architecture: whose rows the file has in pairs, for rotations of neighbours, and what counts its heads."""
_RAISED_NORMS = ("gemma2", "gemma3", "qwen35")
"""Whose norms are stored with 1 added."""
_PLAIN_NORM, _DECAY = "ssm_norm.weight", "ssm_a"
"""What of a recurrent layer is a norm as it is, and what holds -exp(A_log)."""
_TILED = ("qwen35",)
"""Whose heads of values take turns between the heads of keys, which they follow one after the other elsewhere."""
_ROPE_FACTORS, _LONG_FACTORS = "rope_freqs.weight", ("rope_factors_short.weight", "rope_factors_long.weight")
_MAX_FACTORS = 4096
_BLOCK = re.compile(r"blk\.\d{1,6}\.(?P<part>\w+)\.(weight|bias)", re.ASCII)


def stored_names_of(parameters: Iterable[str], header: GgufHeader, *, num_layers: int) -> dict[str, str]:
    """Return the name in the file of every parameter that is there. Raises CheckpointError."""
    from gguf.constants import MODEL_ARCH_NAMES
    from gguf.tensor_mapping import get_tensor_name_map

    architecture = next((key for key, name in MODEL_ARCH_NAMES.items() if name == header.architecture), None)
    if architecture is None:
        raise CheckpointError(
            f"{header.file} holds the architecture {quote(header.architecture)}, whose names the installed package "
            "gguf does not know; update it"
        )
    names = get_tensor_name_map(architecture, num_layers)
    found = {}
    for parameter in parameters:
        whole = names.get_name(parameter)
        base, _, suffix = re.sub(r"\.dt_bias$", ".dt_proj.bias", parameter).rpartition(".")
        stored = names.get_name(base)
        if whole is not None and whole in header.tensors:
            found[parameter] = whole
        elif stored is not None and f"{stored}.{suffix}" in header.tensors:
            found[parameter] = f"{stored}.{suffix}"
    return found


def paired_heads(stored_names: Mapping[str, str], header: GgufHeader, config: Any) -> dict[str, int]:
    """Return the number of heads of each linear layer whose outputs the file has in pairs, by the layer's name."""
    counted = _PAIRED.get(header.architecture, {})
    found = {}
    for parameter, stored in stored_names.items():
        named = _BLOCK.fullmatch(stored)
        if named is not None and named["part"] in counted:
            found[parameter.rpartition(".")[0]] = getattr(config, counted[named["part"]])
    return found


Restore = Callable[[torch.Tensor], torch.Tensor]
"""Makes the vector that a class knows of the one that is stored, both float32."""


def restored_vectors(stored_names: Mapping[str, str], header: GgufHeader) -> dict[str, Restore]:
    """Return what makes the class's own of the vectors that the file has in other words, by the parameter's name."""
    if header.architecture not in _RAISED_NORMS:
        return {}
    found: dict[str, Restore] = {}
    for parameter, stored in stored_names.items():
        if stored.endswith("norm.weight") and not stored.endswith(_PLAIN_NORM):
            found[parameter] = _lowered
        elif stored.endswith(f".{_DECAY}"):
            found[parameter] = _log_of_negative
    return found


def _lowered(stored: torch.Tensor) -> torch.Tensor:
    return stored - 1


def _log_of_negative(stored: torch.Tensor) -> torch.Tensor:
    return stored.neg().log()


def has_tiled_heads(header: GgufHeader) -> bool:
    """Return whether head h of the values of a recurrent layer goes with head h mod Hk of its keys.

    All that has to do with these heads is stored in their order, so that nothing of it needs to move.
    """
    return header.architecture in _TILED


def rope_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the settings of frequencies that the file has as tensors (longrope); transformers' own loading drops them.

    Raises CheckpointError.
    """
    header = checkpoint.gguf
    if header is None or any(name not in checkpoint.tensors for name in _LONG_FACTORS):
        return {}
    short, long = (_factors(checkpoint.tensors[name]).tolist() for name in _LONG_FACTORS)
    original = header.count(f"{header.architecture}.rope.scaling.original_context_length")
    if original is None:
        raise CheckpointError(f"{header.file} has factors of longrope, but lacks the original context length")
    scaling = {"rope_type": "longrope", "type": "longrope", "short_factor": short, "long_factor": long}
    return {"rope_scaling": scaling, "original_max_position_embeddings": original}


def divide_frequencies(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Divide rotary frequencies by the factors in the file, which Llama 3.1 and later have. Raises CheckpointError."""
    entry = checkpoint.tensors.get(_ROPE_FACTORS)
    if checkpoint.gguf is None or entry is None:
        return
    factors = _factors(entry)
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq"):
            if buffer.shape != factors.shape:
                raise _wrong(entry, f"has {len(factors)} factors", f"{buffer.numel()}, one for each frequency")
            buffer.div_(factors)


def _factors(entry: TensorEntry) -> torch.Tensor:
    if entry.dtype != "F32" or len(entry.shape) != 1 or entry.shape[0] > _MAX_FACTORS:
        raise _wrong(entry, f"is {entry.dtype} of {quote(list(entry.shape))}", f"up to {_MAX_FACTORS} factors in F32")
    try:
        with entry.file.open("rb") as file:
            file.seek(entry.offset_bytes)
            raw = bytearray(file.read(entry.num_bytes))
        factors = torch.frombuffer(raw, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{entry.file} cannot be read: {quote(str(error))}") from error
    if len(factors) != entry.shape[0] or not bool((factors.isfinite() & (factors > 0)).all()):
        raise _wrong(entry, "holds a factor that is no positive number", "factors of frequencies")
    return factors


def _wrong(entry: TensorEntry, found: str, expected: str) -> CheckpointError:
    return CheckpointError(f"the tensor {quote(entry.name)} in {entry.file} {found}; expected {expected}")
