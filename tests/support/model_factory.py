"""Small random models and tokenizers, saved as ordinary Hugging Face folders, for the tests.

They have the structure that matters (grouped-query heads, sliding windows, tied heads, several shards) and none of
the size: a few hundred kilobytes each, built in milliseconds. Nothing here is downloaded.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

TINY_VOCAB_SIZE = 96
MAIN_KINDS = ("llama", "qwen2", "qwen3", "mistral", "gemma3")

_COMMON: dict[str, Any] = {
    "vocab_size": TINY_VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_OVERRIDES: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 8, "head_dim": 8},
    "gemma3": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 6,
        "head_dim": 8,
        "sliding_window": 8,
        "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 8,
        "tie_word_embeddings": True,
    },
    "gemma2": {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8, "tie_word_embeddings": True},
    "gpt2": {"tie_word_embeddings": True},
    "starcoder2": {"sliding_window": 8},
    "falcon": {"num_ln_in_parallel_attn": None, "num_kv_heads": 2, "new_decoder_architecture": True},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
}
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>")


def tiny_config(kind: str, **overrides: object) -> PreTrainedConfig:
    """The configuration of a tiny model; `kind` is a model type of transformers, or one of MAIN_KINDS."""
    settings = _COMMON | _OVERRIDES.get(kind, {}) | overrides
    model_type = settings.pop("model_type", kind)
    return AutoConfig.for_model(model_type, **settings)


def auto_class(config: PreTrainedConfig) -> Any:
    """transformers' class for models that write text, images given or not."""
    sees = hasattr(config, "vision_config") and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def random_model(config: PreTrainedConfig, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A model in eval mode with weights wide enough for its logits to differ from token to token."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = auto_class(config).from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                is_norm_weight = parameter.dim() == 1 and name.endswith("weight")
                parameter.add_(torch.randn(parameter.shape) * (0.05 if is_norm_weight else 0.2))
    return model.to(dtype).eval()


def save_tiny_model(
    kind: str,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    max_shard_size: int | str | None = None,
    **overrides: object,
) -> Path:
    """Save a random model of `tiny_config(kind, **overrides)` under `folder` and return the folder."""
    model = random_model(tiny_config(kind, **overrides), dtype=dtype, seed=seed)
    options: Mapping[str, Any] = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    model.save_pretrained(folder, **options)
    return folder


def build_tokenizer(vocab_size: int = TINY_VOCAB_SIZE, *, order_seed: int = 0) -> PreTrainedTokenizerFast:
    """A fast tokenizer of exactly `vocab_size` ids: special tokens, printable characters, then a few merges.

    With fewer than 91 ids some characters have no token of their own and become <unk>. `order_seed` rotates the
    character ids, which gives a second vocabulary with the same strings under other ids.
    """
    characters = list(" abcdefghijklmnopqrstuvwxyz.,!?'-0123456789\n:;()ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    turn = order_seed % len(characters)
    characters = characters[turn:] + characters[:turn]
    strings = [*_SPECIAL_TOKENS, *characters]
    merges: list[tuple[str, str]] = []
    for left, right in (
        ("t", "h"),
        ("h", "e"),
        ("th", "e"),
        ("i", "n"),
        ("e", "r"),
        ("a", "n"),
        ("an", "d"),
        ("o", "n"),
    ):
        merges.append((left, right))
        strings.append(left + right)
    num_fillers = max(0, vocab_size - len(strings))
    strings.extend(f"<|filler_{index}|>" for index in range(num_fillers))
    strings = strings[:vocab_size]
    vocabulary = {string: index for index, string in enumerate(strings)}
    kept_merges = [pair for pair in merges if {*pair, "".join(pair)} <= vocabulary.keys()]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=kept_merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=list(_SPECIAL_TOKENS[4:]),
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def edit_config(folder: Path, **changes: object) -> None:
    """Change settings in the config.json of a saved model."""
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps(config))


def save_tiny_tokenizer(folder: Path, vocab_size: int = TINY_VOCAB_SIZE, *, order_seed: int = 0) -> Path:
    """Save `build_tokenizer(...)` into `folder` (beside a model, if there is one) and return the folder."""
    build_tokenizer(vocab_size, order_seed=order_seed).save_pretrained(folder)
    return folder


def write_safetensors(file: Path, header: Mapping[str, Any] | bytes, data: bytes = b"") -> Path:
    """Write a safetensors file from a header (raw bytes are taken as they are) and the data that follows it."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return file


def shift_weights(folder: Path, phase: int) -> Path:
    """Lengthen every header of a saved model by blanks, so that its weights begin at `phase` modulo 16; return it."""
    for file in folder.glob("*.safetensors"):
        raw = file.read_bytes()
        end = 8 + int.from_bytes(raw[:8], "little")
        write_safetensors(file, raw[8:end] + b" " * ((phase - end) % 16), raw[end:])
    return folder
