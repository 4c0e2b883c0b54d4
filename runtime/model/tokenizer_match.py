"""Loads tokenizers, and checks that two of them mean the same by the same ids.

A draft proposes token ids and the target judges them, so both must share one vocabulary. Vocabularies are compared,
not sizes: embeddings often have padding rows that no tokenizer can produce.
"""

import warnings
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from offload.errors import CheckpointError
from offload.strict_json import quote
from runtime.errors import TokenizerMismatchError


def load_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer of a local model folder; no code of the folder is run.

    Raises:
        CheckpointError: the tokenizer files are missing or damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old spellings of settings, which transformers translates
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if not tokenizer.get_vocab():
            raise ValueError("the vocabulary is empty")
    except Exception as error:  # damaged files make transformers and tokenizers raise nearly anything
        lines = str(error).splitlines() or [""]
        raise CheckpointError(
            f"the tokenizer in {folder} cannot be loaded ({type(error).__name__}: {quote(lines[0])}); "
            "expected tokenizer.json and tokenizer_config.json from the model's publisher"
        ) from error
    return tokenizer


def check_tokenizers_match(target_tokenizer: Any, draft_tokenizer: Any) -> None:
    """Check that every id, those of added tokens included, stands for the same string in both vocabularies.

    Raises:
        TokenizerMismatchError: names the first id that differs, and both strings.
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
    raise TokenizerMismatchError(
        f"draft and target have different tokenizers: the id {token_id} is {target_string} for the target and "
        f"{draft_string} for the draft; choose a draft of the target's own family"
    )
