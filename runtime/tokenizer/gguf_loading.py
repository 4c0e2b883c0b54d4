"""Makes transformers' tokenizer of a GGUF file's metadata, in the process that is made for it.

As `AutoTokenizer.from_pretrained(..., gguf_file=...)` does (integrations/gguf/gguf_tokenizer_mapping.py), with a reader
of the header that takes nothing on trust, and without torch.
"""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

from offload.checkpoint.gguf_config import SPECIAL_TOKENS, config_of_gguf
from offload.checkpoint.gguf_file import GgufArray, GgufHeader, read_gguf
from offload.errors import CheckpointError
from profiles.errors import quote


def load_gguf_tokenizer(file: Path) -> Any:
    """Return the tokenizer that the file describes. Raises CheckpointError, and what transformers raises."""
    header = read_gguf(file, keeps_lists=True)
    model_type = config_of_gguf(header)["model_type"]
    described, settings = (_group(header, name) for name in ("tokenizer", "tokenizer_config"))
    tokens = header.strings("tokenizer.ggml.tokens")
    kind = described.get("tokenizer_type")
    if kind == "llama":
        settings.setdefault("add_bos_token", True)  # as sentencepiece's own has it where the file does not say
    elif kind == "gemma4":
        settings["add_bos_token"] = False  # its chat template writes it
    for key, setting in SPECIAL_TOKENS.items():
        token_id = header.count(key)
        if token_id is not None and token_id >= len(tokens):
            raise CheckpointError(f"{file} has {key} = {token_id}, and {quote(len(tokens))} tokens; download it again")
        settings[setting.removesuffix("_id")] = None if token_id is None else tokens[token_id]
    backend, more = convert_gguf_tokenizer(header.architecture, described)
    tokenizer_class = (
        tokenizer_class_from_name(TOKENIZER_MAPPING_NAMES.get(model_type) or "") or PreTrainedTokenizerFast
    )
    return tokenizer_class(tokenizer_object=backend, **settings, **more)


def _group(header: GgufHeader, name: str) -> dict[str, Any]:
    """Return what the metadata says of one of transformers' groups of settings, by its names."""
    found: dict[str, Any] = {}
    for key, setting in GGUF_TOKENIZER_MAPPING[name].items():
        value = header.metadata.get(f"tokenizer.{key}")
        if isinstance(value, GgufArray):
            found[setting] = value.strings() if value.holds_strings else value.numbers()
        elif value is not None:
            found[setting] = value
    return found
