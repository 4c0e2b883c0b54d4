"""What tokens add to a text joins to the text, also where characters have several tokens."""

from typing import Any

from hypothesis import given, strategies
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from runtime.tokenizer.token_contents import token_contents
from tests.support.model_factory import build_tokenizer
from tests.support.small_tokenizers import byte_level, sentencepiece

BYTES, PIECES = byte_level(), sentencepiece()


def joined(tokenizer: Any, token_ids: list[int]) -> bytes:
    contents = token_contents(tokenizer, token_ids[:1], is_first=True)
    contents += token_contents(tokenizer, token_ids[1:], is_first=False)
    return b"".join(content or b"" for _, content in contents)


def test_every_byte_of_a_byte_level_vocabulary_is_itself() -> None:
    """Every byte that text can have, by the library's own encoding."""
    text = "".join(map(chr, [*range(0x800), *range(0x800, 0xD800, 0x40), *range(0xE000, 0x110000, 0x1000)]))
    token_ids, content = BYTES(text, add_special_tokens=False).input_ids, text.encode()
    assert len(set(token_ids)) == len(set(content)) == 243
    assert joined(BYTES, token_ids) == content


@given(strategies.text())
def test_joined_they_are_the_text(text: str) -> None:
    token_ids = BYTES(text, add_special_tokens=False).input_ids
    assert joined(BYTES, token_ids).decode() == BYTES.decode(token_ids) == text


@given(strategies.lists(strategies.sampled_from(["▁the", "▁cat", "s", ".", "é", "<s>", "▁", "<0xF0>", "<0x41>"])))
def test_pieces_and_bytes_join_to_the_text_too(names: list[str]) -> None:
    token_ids = PIECES.convert_tokens_to_ids([*names, "<0xC3>", "<0xA9>"])
    shown = [name for name in [*names, "<0xC3>", "<0xA9>"] if name != "<s>"]
    expected = b"".join(
        bytes.fromhex(name[3:5]) if name.startswith("<0x") else name.replace("▁", " ").encode() for name in shown
    )
    if names and names[0].startswith("▁"):
        expected = expected[1:]
    assert joined(PIECES, token_ids) == expected


def test_a_part_of_a_character_stands_in_the_text_as_its_bytes() -> None:
    first, rest = PIECES.convert_tokens_to_ids(["<0xC3>", "<0xA9>"])
    assert token_contents(PIECES, [first, rest], is_first=False) == [("\\xc3", b"\xc3"), ("\\xa9", b"\xa9")]
    smile = BYTES("🙂", add_special_tokens=False).input_ids
    assert token_contents(BYTES, smile[:1], is_first=False) == [("\\xf0", b"\xf0")]


def test_the_space_before_a_word_is_missing_where_a_text_begins() -> None:
    (the,) = PIECES.convert_tokens_to_ids(["▁the"])
    assert token_contents(PIECES, [the], is_first=True) == [("the", b"the")]
    assert token_contents(PIECES, [the], is_first=False) == [(" the", b" the")]


def test_a_special_token_and_a_row_of_padding_add_nothing() -> None:
    for is_first in (True, False):
        assert token_contents(build_tokenizer(), [2, 96, 500], is_first=is_first) == [
            ("</s>", None),
            ("", None),
            ("", None),
        ]


def test_the_replacement_character_itself_is_a_character() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens(["\ufffd"])
    (token_id,) = tokenizer.convert_tokens_to_ids(["\ufffd"])
    assert token_contents(tokenizer, [token_id], is_first=False) == [("\ufffd", "\ufffd".encode())]


def test_words_of_a_word_piece_vocabulary_have_the_spaces_of_the_text() -> None:
    words = {word: index for index, word in enumerate(["[UNK]", "a", "cat", "##s"])}
    backend = Tokenizer(models.WordPiece(vocab=words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)
    assert joined(tokenizer, [2, 3, 1]) == b"cats a"
