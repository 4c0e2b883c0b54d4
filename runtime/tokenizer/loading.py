"""Loads transformers' tokenizer of a model folder or GGUF file, in the process that is made for it."""

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from offload.checkpoint.border import (
    MAX_SETTINGS_BYTES,
    MAX_VOCABULARY_BYTES,
    check_border,
    check_small_file,
    is_inner_name,
)
from offload.errors import CheckpointError
from profiles.errors import quote
from profiles.files import read_regular_file

_FILE_KEY = re.compile(r"(.*_)?(files?|paths?|dirs?|folder|vocab|merges|inputs)")
_IDLE_KEYS = frozenset(("name_or_path", "_name_or_path", "special_tokens_map_file", "tokenizer_file"))
"""Where the tokenizer once lay on its author's disk: many models have these, and nobody reads what they name."""
_MAX_REASON_CHARACTERS = 200


def load_tokenizer(folder: Path) -> Any:
    """Return transformers' tokenizer of a local model folder or GGUF file; no code that lies there is run.

    Raises CheckpointError if the tokenizer files are missing or damaged, or lead out of the folder.
    """
    expected = "tokenizer.json and tokenizer_config.json from the model's publisher"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old spellings of settings, which transformers translates
            if folder.is_file():
                expected = "a vocabulary in its metadata that transformers reads; choose another release of the model"
                # Here, since it takes half a second that folders need not wait.
                from runtime.tokenizer.gguf_loading import load_gguf_tokenizer

                tokenizer = load_gguf_tokenizer(folder)
            else:
                check_border(folder)
                _check_names(folder)
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if len(tokenizer) == 0:
            raise ValueError("the vocabulary is empty")
    except (KeyboardInterrupt, SystemExit, MemoryError, CheckpointError):
        raise
    except BaseException as error:  # damaged files raise nearly anything; a panic of Rust is no Exception
        raise CheckpointError(
            f"the tokenizer in {folder} cannot be loaded ({reason(error)}); expected {expected}"
        ) from error
    return tokenizer


def reason(error: BaseException) -> str:
    """Return a library's error as a short single line that is safe to print."""
    line = next(iter(str(error).splitlines()), "")
    if not line:
        return type(error).__name__
    shown = line if line.isprintable() and len(line) <= _MAX_REASON_CHARACTERS else quote(line)
    return f"{type(error).__name__}: {shown}"


def _check_names(folder: Path) -> None:
    """Check that the files which settings of the tokenizer name lie in the folder. Raises CheckpointError."""
    for file in (folder / "tokenizer_config.json", folder / "special_tokens_map.json"):
        if not file.exists():
            continue
        settings = json.loads(read_regular_file(file, max_bytes=MAX_SETTINGS_BYTES))
        for key, name in _named_files(settings):
            is_idle = key in _IDLE_KEYS and ".." not in re.split(r"[/\\]", name)
            if not is_inner_name(name) and not is_idle:
                raise CheckpointError(f"{file} has {key} = {quote(name)}; expected the name of a file in its folder")
            if key == "fast_tokenizer_files":  # the library below transformers opens it unseen
                check_small_file(folder / name, max_bytes=MAX_VOCABULARY_BYTES)


def _named_files(settings: Any) -> Iterator[tuple[str, str]]:
    """Yield every text that stands under a key that is one of files."""
    for key, value in settings.items() if isinstance(settings, dict) else ():
        if _FILE_KEY.fullmatch(key):
            names = value if isinstance(value, list) and key.endswith(("files", "inputs")) else [value]
            yield from ((key, name) for name in names if isinstance(name, str))
