"""Random models that think: their marks are tokens of their own, or spelled in several, and templates may begin it."""

from pathlib import Path

from tests.support.json_models import VOCAB_SIZE as NUM_BYTE_TOKENS
from tests.support.json_models import json_tokenizer
from tests.support.model_factory import TINY_VOCAB_SIZE, build_tokenizer, save_tiny_model

BEGIN, END = TINY_VOCAB_SIZE, TINY_VOCAB_SIZE + 1
"""Tokens of the marks of `save_thinking_folder`."""
_TURNS = "{% for message in messages %}{{ message['role'][0] }}:{{ message['content'] }}\n{% endfor %}"
_OPEN = (
    "{% if add_generation_prompt %}a:"
    "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}{% endif %}"
)


def save_thinking_folder(folder: Path, kind: str = "llama", *, seed: int = 0) -> Path:
    """A model whose tokenizer has `<think>` and `</think>`, and whose template begins the answer within thinking."""
    return let_think(save_tiny_model(kind, folder, seed=seed, vocab_size=TINY_VOCAB_SIZE + 2))


def let_think(folder: Path) -> Path:
    """Give a model of `TINY_VOCAB_SIZE` + 2 tokens such a tokenizer and template."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = _TURNS + _OPEN
    tokenizer.save_pretrained(folder)
    return folder


def save_spelling_folder(folder: Path, *, seed: int = 0) -> Path:
    """A model of bytes, which spells the marks; its template begins the answer within thinking."""
    tokenizer = json_tokenizer()
    tokenizer.chat_template = _TURNS + _OPEN
    save_tiny_model("llama", folder, seed=seed, vocab_size=NUM_BYTE_TOKENS, eos_token_id=tokenizer.eos_token_id)
    tokenizer.save_pretrained(folder)
    return folder
