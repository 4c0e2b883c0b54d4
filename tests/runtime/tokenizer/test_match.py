"""Two vocabularies match if every id means the same string; sizes of embeddings do not matter."""

import json

import pytest

from offload.errors import CheckpointError
from profiles.errors import BadInputError
from runtime.tokenizer.box import Tokenizer
from runtime.tokenizer.match import (
    check_draft_tokenizer,
    check_tokenizers_match,
    first_difference,
    have_equal_tokenizers,
)
from tests.support.model_factory import build_tokenizer, save_tiny_model, save_tiny_tokenizer


class Vocabulary:
    """As much of a tokenizer as is compared."""

    def __init__(self, **ids: int) -> None:
        self.ids = ids

    def get_vocab(self) -> dict[str, int]:
        return self.ids


def mismatch(target, draft) -> tuple[int, str, str]:
    found = first_difference(target, draft)
    return found.token_id, found.string, found.other_string


def test_equal_vocabularies_match_whatever_the_order():
    assert mismatch(Vocabulary(a=0, b=1), Vocabulary(b=1, a=0))[0] == -1
    assert mismatch(build_tokenizer(), build_tokenizer())[0] == -1


def test_padding_rows_of_the_embeddings_do_not_matter(tmp_path):
    target = save_tiny_tokenizer(save_tiny_model("llama", tmp_path / "target", vocab_size=128))
    draft = save_tiny_tokenizer(save_tiny_model("llama", tmp_path / "draft", vocab_size=96))
    check_tokenizers_match(Tokenizer(target), Tokenizer(draft))


def test_the_first_differing_id_and_both_strings_are_named():
    assert mismatch(Vocabulary(a=0, b=1, c=2), Vocabulary(a=0, c=1, b=2)) == (1, "'b'", "'c'")


def test_same_strings_under_other_ids_do_not_match():
    """Equal sizes and equal strings: only the pairs tell."""
    assert mismatch(build_tokenizer(), build_tokenizer(order_seed=3))[:2] == (7, "' '")


def test_an_id_that_only_one_side_knows_is_a_difference():
    assert mismatch(Vocabulary(a=0, b=1), Vocabulary(a=0)) == (1, "'b'", "no token")
    assert mismatch(Vocabulary(a=0), Vocabulary(a=0, b=1)) == (1, "no token", "'b'")


def test_added_tokens_are_compared():
    target = build_tokenizer()
    target.add_tokens(["<|tool|>"])
    assert mismatch(target, build_tokenizer()) == (96, "'<|tool|>'", "no token")


def test_a_string_that_would_break_a_terminal_is_quoted():
    assert mismatch(Vocabulary(**{"\x1b[2J\n": 0}), Vocabulary(a=0))[1] == r"'\x1b[2J\n'"


@pytest.fixture
def pair(tmp_path):
    """Two folders of equal tokenizers and different models."""
    target = save_tiny_tokenizer(save_tiny_model("llama", tmp_path / "target"))
    return target, save_tiny_tokenizer(save_tiny_model("llama", tmp_path / "draft", num_hidden_layers=2))


def test_equal_files_are_not_read_a_second_time(pair, monkeypatch):
    target, draft = pair
    tokenizer = Tokenizer(target)
    (draft / "chat_template.jinja").write_text("another template")
    (draft / "README.md").write_text("about the draft")
    monkeypatch.setattr(tokenizer, "beside", lambda folder: pytest.fail("read again"))
    check_draft_tokenizer(tokenizer, target=target, draft=draft)


def test_other_files_are_read_and_compared(tmp_path, pair):
    target, _ = pair
    other = save_tiny_model("llama", tmp_path / "other")
    build_tokenizer(order_seed=3).save_pretrained(other)
    with pytest.raises(BadInputError, match="the id 7 is"):
        check_draft_tokenizer(Tokenizer(target), target=target, draft=other)


def test_a_damaged_tokenizer_of_a_draft_is_one_sentence(pair):
    target, draft = pair
    (draft / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"the tokenizer in .*draft cannot be loaded"):
        check_draft_tokenizer(Tokenizer(target), target=target, draft=draft)


def _one_byte_more(folder):
    file = folder / "tokenizer.json"
    file.write_bytes(file.read_bytes() + b"\n")


def _one_byte_changed(folder):
    file = folder / "tokenizer.json"
    file.write_bytes(file.read_bytes().replace(b"</s>", b"</t>", 1))


def _another_model_type(folder):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": "qwen2"}))


@pytest.mark.parametrize(
    "change",
    [
        _one_byte_more,
        _one_byte_changed,
        _another_model_type,
        lambda folder: (folder / "added_tokens.json").write_text("{}"),
        lambda folder: (folder / "tokenizer_config.json").unlink(),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_bytes(b"\xff"),
    ],
)
def test_any_difference_that_could_matter_needs_a_look_inside(pair, change):
    assert have_equal_tokenizers(*pair)
    change(pair[1])
    assert not have_equal_tokenizers(*pair)


def test_folders_without_tokenizers_are_not_equal(pair, tmp_path):
    for folder in pair:
        (folder / "tokenizer.json").unlink()
    assert not have_equal_tokenizers(*pair)
    assert not have_equal_tokenizers(pair[0], tmp_path / "missing")


def test_padding_rows_that_a_converter_named_make_no_difference():
    """A GGUF file has a token for every row of the embeddings; safetensors' tokenizers end before the padding."""
    plain = Vocabulary(a=0, b=1)
    padded = Vocabulary(**{"a": 0, "b": 1, "[PAD2]": 2, "[PAD3]": 3})
    assert mismatch(plain, padded)[0] == mismatch(padded, plain)[0] == -1
    assert mismatch(plain, Vocabulary(**{"a": 0, "b": 1, "[PAD9]": 2})) == (2, "no token", "'[PAD9]'")
