"""Loads tokenizers, and checks that two of them mean the same by the same ids.

A draft proposes token ids and the target judges them, so both must share one vocabulary. Vocabularies are compared,
not sizes: embeddings often have padding rows that no tokenizer can produce. Reading one takes a second or two, so what
equal files show already is not read twice.
"""

import filecmp
import json
import re
import warnings
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from offload.errors import CheckpointError
from profiles.errors import BadInputError, quote

_NOT_OF_TOKENIZERS = re.compile(
    r"(config|generation_config)\.json|.*\.(safetensors|bin|pt|pth|gguf|h5|onnx)(\.index\.json)?|.*\.(md|jinja)"
    r"|LICENSE.*|\..*"
)
"""Files of a model folder that say nothing about a vocabulary; any other may."""
_CHOOSING_KEYS = ("model_type", "tokenizer_class", "auto_map")
"""What transformers looks at in config.json before it chooses a tokenizer's class."""


def load_tokenizer(folder: Path) -> Any:
    """Return transformers' tokenizer of a local model folder; no code of the folder is run.

    Raises CheckpointError if the tokenizer files are missing or damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old spellings of settings, which transformers translates
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if len(tokenizer) == 0:
            raise ValueError("the vocabulary is empty")
    except Exception as error:  # damaged files make transformers and tokenizers raise nearly anything
        lines = str(error).splitlines() or [""]
        raise CheckpointError(
            f"the tokenizer in {folder} cannot be loaded ({type(error).__name__}: {quote(lines[0])}); "
            "expected tokenizer.json and tokenizer_config.json from the model's publisher"
        ) from error
    return tokenizer


def check_draft_tokenizer(target_tokenizer: Any, *, target: Path, draft: Path) -> None:
    """Check that the folder `draft` has the vocabulary of `target_tokenizer`, which the folder `target` holds.

    Raises:
        CheckpointError: the draft's tokenizer files are missing or damaged.
        BadInputError: names the first id that differs, and both strings.
    """
    if not have_equal_tokenizers(target, draft):
        check_tokenizers_match(target_tokenizer, load_tokenizer(draft))


def have_equal_tokenizers(folder: Path, other: Path) -> bool:
    """Return whether two folders hold the same tokenizer byte for byte; False if only a look inside could tell."""
    try:
        names = _tokenizer_files(folder)
        if "tokenizer.json" not in names or names != _tokenizer_files(other):
            return False
        _, differing, unreadable = filecmp.cmpfiles(folder, other, names, shallow=False)
        return not differing and not unreadable and _choosing_settings(folder) == _choosing_settings(other)
    except (OSError, ValueError):  # loading the files will say what is wrong with them
        return False


def check_tokenizers_match(target_tokenizer: Any, draft_tokenizer: Any) -> None:
    """Check that every id, those of added tokens included, stands for the same string in both vocabularies.

    Raises BadInputError, which names the first id that differs and both strings.
    """
    target_pairs = set(target_tokenizer.get_vocab().items())
    draft_pairs = set(draft_tokenizer.get_vocab().items())
    if target_pairs == draft_pairs:
        return
    token_id = min(token_id for _, token_id in target_pairs ^ draft_pairs)
    target_string, draft_string = (
        next((quote(string) for string, found_id in sorted(pairs) if found_id == token_id), "no token")
        for pairs in (target_pairs - draft_pairs, draft_pairs - target_pairs)
    )
    raise BadInputError(
        f"draft and target have different tokenizers: the id {token_id} is {target_string} for the target and "
        f"{draft_string} for the draft; choose a draft of the target's own family"
    )


def _tokenizer_files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file() and not _NOT_OF_TOKENIZERS.fullmatch(path.name)}


def _choosing_settings(folder: Path) -> list[Any]:
    settings = json.loads((folder / "config.json").read_bytes())
    return [settings.get(key) for key in _CHOOSING_KEYS] if isinstance(settings, dict) else [settings]
