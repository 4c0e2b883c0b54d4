"""Two vocabularies match if every id means the same string; sizes of embeddings do not matter."""

import json

import pytest

from offload.errors import CheckpointError
from profiles.errors import BadInputError
from runtime.model import tokenizer_match
from runtime.model.tokenizer_match import (
    check_draft_tokenizer,
    check_tokenizers_match,
    have_equal_tokenizers,
    load_tokenizer,
)
from tests.support.model_factory import build_tokenizer, save_tiny_model, save_tiny_tokenizer


class Vocabulary:
    """As much of a tokenizer as is compared."""

    def __init__(self, **ids: int) -> None:
        self.ids = ids

    def get_vocab(self) -> dict[str, int]:
        return self.ids


def mismatch(target, draft) -> str:
    with pytest.raises(BadInputError) as caught:
        check_tokenizers_match(target, draft)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_equal_vocabularies_match_whatever_the_order():
    check_tokenizers_match(Vocabulary(a=0, b=1), Vocabulary(b=1, a=0))
    check_tokenizers_match(build_tokenizer(), build_tokenizer())


def test_padding_rows_of_the_embeddings_do_not_matter(tmp_path):
    target = save_tiny_tokenizer(save_tiny_model("llama", tmp_path / "target", vocab_size=128))
    draft = save_tiny_tokenizer(save_tiny_model("llama", tmp_path / "draft", vocab_size=96))
    check_tokenizers_match(load_tokenizer(target), load_tokenizer(draft))


def test_the_first_differing_id_and_both_strings_are_named():
    message = mismatch(Vocabulary(a=0, b=1, c=2), Vocabulary(a=0, c=1, b=2))
    assert "the id 1 is 'b' for the target and 'c' for the draft" in message


def test_same_strings_under_other_ids_do_not_match():
    """Equal sizes and equal strings: only the pairs tell."""
    assert "the id 7 is ' ' for the target" in mismatch(build_tokenizer(), build_tokenizer(order_seed=3))


def test_an_id_that_only_one_side_knows_is_a_difference():
    assert "the id 1 is 'b' for the target and no token" in mismatch(Vocabulary(a=0, b=1), Vocabulary(a=0))
    assert "the id 1 is no token for the target and 'b'" in mismatch(Vocabulary(a=0), Vocabulary(a=0, b=1))


def test_added_tokens_are_compared():
    target = build_tokenizer()
    target.add_tokens(["<|tool|>"])
    assert "the id 96 is '<|tool|>' for the target and no token" in mismatch(target, build_tokenizer())


def test_a_string_that_would_break_a_terminal_is_quoted():
    assert r"'\x1b[2J\n'" in mismatch(Vocabulary(**{"\x1b[2J\n": 0}), Vocabulary(a=0))


def test_a_saved_tokenizer_is_loaded_with_its_template_and_end_token(tmp_path):
    tokenizer = load_tokenizer(save_tiny_tokenizer(tmp_path))
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|user|>hi</s><|assistant|>"
    assert tokenizer.decode(tokenizer("the cat.")["input_ids"]) == "the cat."
    assert tokenizer.eos_token_id == 2


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[1]", b'{"model": {"type": "BPE"}}', None])
def test_a_damaged_or_missing_tokenizer_is_one_sentence(tmp_path, content):
    save_tiny_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"the tokenizer in .* cannot be loaded") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_code_of_the_checkpoint_is_never_run(tmp_path):
    save_tiny_tokenizer(tmp_path)
    (tmp_path / "mine.py").write_text("raise SystemExit('code of the checkpoint was run')")
    file = tmp_path / "tokenizer_config.json"
    config = {
        **json.loads(file.read_text()),
        "auto_map": {"AutoTokenizer": [None, "mine.Mine"]},
        "tokenizer_class": "Mine",
    }
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        load_tokenizer(tmp_path)


@pytest.fixture
def pair(tmp_path):
    """Two folders of equal tokenizers and different models."""
    target = save_tiny_tokenizer(save_tiny_model("llama", tmp_path / "target"))
    return target, save_tiny_tokenizer(save_tiny_model("llama", tmp_path / "draft", num_hidden_layers=2))


def test_equal_files_are_not_read_a_second_time(pair, monkeypatch):
    target, draft = pair
    tokenizer = load_tokenizer(target)
    (draft / "chat_template.jinja").write_text("another template")
    (draft / "README.md").write_text("about the draft")
    monkeypatch.setattr(tokenizer_match, "load_tokenizer", lambda folder: pytest.fail("read again"))
    check_draft_tokenizer(tokenizer, target=target, draft=draft)


def test_other_files_are_read_and_compared(tmp_path, pair):
    target, _ = pair
    other = save_tiny_model("llama", tmp_path / "other")
    build_tokenizer(order_seed=3).save_pretrained(other)
    with pytest.raises(BadInputError, match="the id 7 is"):
        check_draft_tokenizer(load_tokenizer(target), target=target, draft=other)


def test_a_damaged_tokenizer_of_a_draft_is_one_sentence(pair):
    target, draft = pair
    (draft / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"the tokenizer in .*draft cannot be loaded"):
        check_draft_tokenizer(load_tokenizer(target), target=target, draft=draft)


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
