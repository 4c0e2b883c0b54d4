"""Tiny models saved by transformers itself in bitsandbytes' formats, and their matrices dequantized by the book."""

import logging
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from tests.support.model_factory import save_tiny_model, save_tiny_tokenizer

FORMATS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4 nested": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}
"""Settings of BitsAndBytesConfig by name."""
_SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 8}


def save_quantized_folder(
    folder: Path, name: str, *, kind: str = "qwen2", seed: int = 0, sizes: dict[str, Any] | None = None, **settings: Any
) -> Path:
    """A tiny bf16 model loaded by transformers in format `name` and saved, with a tokenizer beside it.

    The inner size is no multiple of 64, so that blocks run on from one row to the next.
    """
    dense = save_tiny_model(kind, folder / "dense", seed=seed, dtype=torch.bfloat16, **(sizes or _SIZES))
    options = {"bnb_4bit_compute_dtype": torch.bfloat16, **FORMATS[name], **settings}
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model = AutoModelForCausalLM.from_pretrained(
        dense, quantization_config=BitsAndBytesConfig(**options), device_map="cpu", dtype=torch.bfloat16
    )
    model.save_pretrained(folder / "quantized")
    return save_tiny_tokenizer(folder / "quantized")


def dequantized_model(folder: Path) -> PreTrainedModel:
    """transformers' own float32 model of a quantized folder, every matrix dequantized to float32."""
    quantized = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.bfloat16)
    state = {}
    for name, module in quantized.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear):
            if getattr(weight, "quant_state", None) is not None:
                state[f"{name}.weight"] = dequantized_4bit(weight.data, weight.quant_state)
            elif weight.dtype == torch.int8:
                state[f"{name}.weight"] = bnb.int8_vectorwise_dequant(weight.data, weight.SCB)
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    dense = {name: tensor.float() for name, tensor in quantized.state_dict().items() if tensor.dtype == torch.bfloat16}
    model.load_state_dict({**dense, **state}, strict=not config.tie_word_embeddings)
    return model


def dequantized_4bit(codes: torch.Tensor, state: bnb.QuantState) -> torch.Tensor:
    """The float32 matrix, entry by entry; bitsandbytes' AVX512 kernel is wrong where blocks reach over a row's end."""
    packed = codes.view(torch.uint8).flatten().long()
    values = state.code[torch.stack([packed >> 4, packed & 15], dim=1).flatten()]
    absmax = state.absmax
    if state.nested:
        absmax = bnb.dequantize_blockwise(absmax, state.state2) + state.offset
    return (values * absmax.float().repeat_interleave(state.blocksize)[: values.numel()]).view(state.shape)
