"""Tokenizers of GGUF files beside those that transformers makes of the same file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from offload.errors import CheckpointError
from runtime.prompts.prompt_file import Message, PromptRequest
from runtime.tokenizer.box import Tokenizer
from runtime.tokenizer.loading import load_tokenizer
from runtime.tokenizer.match import have_equal_tokenizers
from tests.support.gguf_factory import CHAT_TEMPLATE, gguf_model, write_gguf

TEXTS = (
    "",
    "ab",
    "the cat",
    "  two  spaces ",
    "Ünïcode 🎉 日本",
    "a\nb\t\r\n",
    "x" * 300,
    "</s> and <s>",
    "1234567 3.14",
)
BYTES = [f"<0x{number:02X}>" for number in range(256)]
LETTERS = ["▁", *"abcdefghijklmnopqrstuvwxyz", "th", "the", "▁t", "▁the", "ca", "cat", "▁a", "▁  "]
SENTENCEPIECE = ["<unk>", "<s>", "</s>", *BYTES, *LETTERS]
SENTENCEPIECE_OWN: Mapping[str, Any] = {
    "model": "llama",
    "tokens": SENTENCEPIECE,
    "types": [2, 3, 3, *[6] * 256, *[1] * len(LETTERS)],
    "scores": [0.0] * 259 + [-float(number) for number in range(len(LETTERS))],
    "merges": None,
    "unk": 0,
}


def byte_level() -> Mapping[str, Any]:
    """Every byte, some merges, and tokens of control and of the model's author."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    merges = ["t h", "h e", "th e", "Ġ t", "Ġt he", "c a", "ca t", "1 2", "a b"]
    words = [*bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in merges), "<think>", "<|end|>"]
    return {"tokens": words, "types": [1] * (len(words) - 2) + [4, 3], "merges": merges, "eos": len(words) - 1}


KINDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "gpt2": ("llama", byte_level()),
    "llama3": ("llama", {**byte_level(), "pre": "llama-bpe"}),
    "qwen2": ("qwen2", {**byte_level(), "pre": "qwen2"}),
    "qwen3": ("qwen3", {**byte_level(), "pre": "qwen2", "add_bos_token": False}),
    "qwen35": ("qwen35", {**byte_level(), "pre": "qwen35"}),
    "with bos": ("qwen2", {**byte_level(), "add_bos_token": True}),
    "sentencepiece": ("llama", SENTENCEPIECE_OWN),
    "without bos": ("llama", {**SENTENCEPIECE_OWN, "add_bos_token": False}),
    "gemma": ("gemma3", SENTENCEPIECE_OWN),
    "phi3": ("phi3", SENTENCEPIECE_OWN),
}


def save(file: Path, kind: str) -> Path:
    model_kind, described = KINDS[kind]
    model = gguf_model(model_kind, vocab_size=len(described["tokens"]), num_hidden_layers=1)
    return write_gguf(file, model, kind=model_kind, tokenizer=described)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_become_the_tokens_of_transformers_own(kind: str, tmp_path: Path) -> None:
    file = save(tmp_path / "m.gguf", kind)
    expected = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    found = load_tokenizer(file)
    assert found.get_vocab() == expected.get_vocab()
    assert found.all_special_tokens == expected.all_special_tokens and found.eos_token_id == expected.eos_token_id
    assert found.chat_template == expected.chat_template == CHAT_TEMPLATE
    for text in TEXTS:
        ids = expected(text)["input_ids"]
        assert found(text)["input_ids"] == ids, text
        assert found.decode(ids) == expected.decode(ids) and found(text, add_special_tokens=False) == expected(
            text, add_special_tokens=False
        )
    turns = [{"role": "user", "content": "the cat"}]
    assert found.apply_chat_template(turns, add_generation_prompt=True, tokenize=False) == (
        expected.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    )


def test_the_box_loads_a_file_larger_than_any_tokenizer(tmp_path: Path) -> None:
    """Its process may read no file of more than a vocabulary's size, but for a GGUF file's header."""
    file = save(tmp_path / "m.gguf", "llama3")
    with file.open("r+b") as opened:
        opened.truncate(2**30)  # of nothing, which takes no room
    tokenizer = Tokenizer(file)
    expected = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    assert tokenizer.has_chat_template and len(tokenizer) == len(expected)
    assert tokenizer.encode("the cat") == expected("the cat")["input_ids"]
    asked = PromptRequest(id="1", messages=(Message("user", "ab"),))
    assert tokenizer.encode_conversation(asked) == expected.encode(
        "[user]ab<|end|>[assistant]", add_special_tokens=False
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"bos": 10**6}, "has tokenizer.ggml.bos_token_id = 1000000"),
        ({"merges": ["no"]}, "cannot be loaded"),
        ({"model": "rwkv"}, "cannot be loaded"),
        ({"tokens": [], "types": [], "merges": [], "bos": 0, "eos": 0, "pad": 0}, "expected|tokens"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_one_sentence(changes: Mapping[str, Any], expected: str, tmp_path: Path) -> None:
    model = gguf_model("llama", num_hidden_layers=1)
    file = write_gguf(tmp_path / "m.gguf", model, kind="llama", tokenizer={**byte_level(), **changes})
    with pytest.raises(CheckpointError, match=expected) as caught:
        load_tokenizer(file)
    assert str(caught.value).isprintable()


def test_equal_vocabularies_are_seen_without_loading_them(tmp_path: Path) -> None:
    first, second = save(tmp_path / "a.gguf", "llama3"), save(tmp_path / "b.gguf", "llama3")
    other = save(tmp_path / "c.gguf", "gpt2")
    assert have_equal_tokenizers(first, second)
    assert not have_equal_tokenizers(first, other)
    assert not have_equal_tokenizers(first, tmp_path) and not have_equal_tokenizers(tmp_path, first)
