"""Checks that two tokenizers mean the same by the same ids.

A draft proposes token ids and the target judges them, so both must share one vocabulary. Vocabularies are compared,
not sizes: embeddings often have padding rows that no tokenizer can produce. Reading one takes a second or two, so what
equal files show already is not read twice.
"""

import filecmp
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offload.checkpoint.border import MAX_SETTINGS_BYTES, MAX_VOCABULARY_BYTES, check_border
from offload.checkpoint.gguf_file import GgufArray, MetadataValue, read_gguf
from offload.checkpoint.strict_json import read_json
from offload.errors import CheckpointError
from profiles.errors import BadInputError, quote
from runtime.tokenizer.box import Tokenizer
from runtime.tokenizer.messages import Difference

_NOT_OF_TOKENIZERS = re.compile(
    r"(config|generation_config)\.json|.*\.(safetensors|bin|pt|pth|gguf|h5|onnx)(\.index\.json)?|.*\.(md|jinja)"
    r"|LICENSE.*|\..*"
)
"""Files of a model folder that say nothing about a vocabulary; any other may."""
_CHOOSING_KEYS = ("model_type", "tokenizer_class", "auto_map")
"""What transformers looks at in config.json before it chooses a tokenizer's class."""


def check_draft_tokenizer(target_tokenizer: Tokenizer, *, target: Path, draft: Path) -> None:
    """Check that the folder `draft` has the vocabulary of `target_tokenizer`, which the folder `target` holds.

    Raises:
        CheckpointError: the draft's tokenizer files are missing or damaged.
        BadInputError: names the first id that differs, and both strings.
    """
    if not have_equal_tokenizers(target, draft):
        check_tokenizers_match(target_tokenizer, target_tokenizer.beside(draft))


def have_equal_tokenizers(folder: Path, other: Path) -> bool:
    """Return whether two models hold the same tokenizer byte for byte; False if only a look inside could tell."""
    try:
        if folder.is_file() or other.is_file():
            return _gguf_vocabulary(folder) == _gguf_vocabulary(other) is not None
        check_border(other)
        names = _tokenizer_files(folder)
        if "tokenizer.json" not in names or names != _tokenizer_files(other):
            return False
        if any((folder / name).stat().st_size > MAX_VOCABULARY_BYTES for name in names):
            return False
        _, differing, unreadable = filecmp.cmpfiles(folder, other, names, shallow=False)
        return not differing and not unreadable and _choosing_settings(folder) == _choosing_settings(other)
    except (OSError, CheckpointError):  # loading the files will say what is wrong with them
        return False


def check_tokenizers_match(target_tokenizer: Tokenizer, draft_tokenizer: Tokenizer) -> None:
    """Check that every id, those of added tokens included, stands for the same string in both vocabularies.

    Raises BadInputError, which names the first id that differs and both strings.
    """
    difference = target_tokenizer.first_difference(draft_tokenizer)
    if difference is None:
        return
    raise BadInputError(
        f"draft and target have different tokenizers: the id {difference.token_id} is {difference.string} for the "
        f"target and {difference.other_string} for the draft; choose a draft of the target's own family"
    )


def first_difference(tokenizer: Any, other: Any) -> Difference:
    """Return the first id that stands for another string, with both strings; for transformers' own tokenizers."""
    pairs, other_pairs = _meaningful(tokenizer), _meaningful(other)
    if pairs == other_pairs:
        return Difference(-1, "", "")
    token_id = min(token_id for _, token_id in pairs ^ other_pairs)
    string, other_string = (
        next((quote(string) for string, found_id in sorted(found) if found_id == token_id), "no token")
        for found in (pairs - other_pairs, other_pairs - pairs)
    )
    return Difference(token_id, string, other_string)


def _meaningful(tokenizer: Any) -> set[tuple[str, int]]:
    """Return the strings with their ids, but for those that llama.cpp's converter gives to padding rows."""
    return {(string, token_id) for string, token_id in tokenizer.get_vocab().items() if string != f"[PAD{token_id}]"}


def _gguf_vocabulary(place: Path) -> Mapping[str, object] | None:
    """Return what a GGUF file says of its tokenizer, lists by their digests; None of a folder."""
    if not place.is_file():
        return None
    header = read_gguf(place)
    ours = {key: value for key, value in header.metadata.items() if key.startswith("tokenizer.ggml.")}
    return {"": header.architecture, **{key: _shown(value) for key, value in ours.items()}}


def _shown(value: MetadataValue) -> object:
    return value.sha256 if isinstance(value, GgufArray) else value


def _tokenizer_files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file() and not _NOT_OF_TOKENIZERS.fullmatch(path.name)}


def _choosing_settings(folder: Path) -> list[Any]:
    settings = read_json(folder / "config.json", max_bytes=MAX_SETTINGS_BYTES)
    return [settings.get(key) for key in _CHOOSING_KEYS]
