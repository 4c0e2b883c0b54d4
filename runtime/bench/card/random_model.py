"""Writes random models of any size, for sessions whose cost is real and whose text means nothing.

One block of random numbers is repeated through every matrix, so that writing takes as long as the disk does. The file's
weights begin 8 bytes behind a multiple of 16, as those of every second published file do.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from runtime.bench.card.setting import LayerSizes

_BLOCK_ELEMENTS = 1 << 23
_DTYPE, _ITEM_BYTES = torch.bfloat16, 2
_ALIGNMENT, _PHASE = 16, 8


def write_random_llama(
    folder: Path, layer: LayerSizes, *, num_layers: int, vocab_size: int, max_positions: int, seed: int
) -> Path:
    """Write config, weights in bfloat16 and a tokenizer of single bytes into `folder`, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": layer.hidden,
        "intermediate_size": layer.inner,
        "num_hidden_layers": num_layers,
        "num_attention_heads": layer.num_heads,
        "num_key_value_heads": layer.num_kv_heads,
        "head_dim": layer.head_dim,
        "vocab_size": vocab_size,
        "max_position_embeddings": max_positions,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return write_random_model(folder, config, dict(_shapes(layer, num_layers, vocab_size)), seed=seed)


def write_random_model(
    folder: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], *, seed: int
) -> Path:
    """Write `config`, weights of these shapes by name in bfloat16 and a tokenizer into `folder`, and return it.

    Vectors are ones.
    """
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    _write_tokenizer(folder, config["vocab_size"])
    _write_weights(folder / "model.safetensors", shapes, seed)
    return folder


def _shapes(layer: LayerSizes, num_layers: int, vocab_size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    names = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    yield "model.embed_tokens.weight", (vocab_size, layer.hidden)
    for index in range(num_layers):
        for name, shape in zip(names, layer.matrices, strict=True):
            yield f"model.layers.{index}.{name}.weight", shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{index}.{name}.weight", (layer.hidden,)
    yield "model.norm.weight", (layer.hidden,)
    yield "lm_head.weight", (vocab_size, layer.hidden)


def _write_weights(file: Path, shapes: Mapping[str, tuple[int, ...]], seed: int) -> None:
    header, offset = {}, 0
    for name, shape in shapes.items():
        num_bytes = _ITEM_BYTES * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + num_bytes]}
        offset += num_bytes
    text = json.dumps(header).encode()
    text += b" " * ((_PHASE - 8 - len(text)) % _ALIGNMENT)
    block = torch.randn(_BLOCK_ELEMENTS, generator=torch.Generator().manual_seed(seed)).mul_(0.02).to(_DTYPE)
    ones = torch.ones(max(shape[0] for shape in shapes.values() if len(shape) == 1), dtype=_DTYPE)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            source = (ones if len(shape) == 1 else block).view(torch.uint8).numpy()
            left = _ITEM_BYTES * torch.Size(shape).numel()
            while left:
                left -= out.write(source[:left].data)


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write a tokenizer of bytes, whose other ids have names that nobody types."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, *(f"<|{index}|>" for index in range(len(alphabet), vocab_size))]
    tokenizer = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
