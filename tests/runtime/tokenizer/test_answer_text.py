"""The text of an answer comes as it is made, and joins to the text of all its tokens."""

from typing import Any

from hypothesis import given, strategies
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from runtime.tokenizer.answer_text import AnswerText
from tests.support.calling_models import calling_tokenizer
from tests.support.model_factory import build_tokenizer
from tests.support.small_tokenizers import byte_level, sentencepiece


class ByteDecoder:
    """A token is a byte; incomplete characters decode as the replacement character, as byte-level tokenizers do."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return bytes(token_ids).decode("utf-8", errors="replace")


def pieces(text: str, *, stop: tuple[str, ...] = (), size: int = 1) -> tuple[list[str], AnswerText]:
    """The texts released when the bytes of `text` arrive `size` at a time."""
    tokens = list(text.encode())
    answer_text = AnswerText(ByteDecoder(), stop)
    released = [answer_text.add(tokens[i : i + size]) for i in range(0, len(tokens), size)]
    return [*released, answer_text.finish()], answer_text


def test_text_is_released_as_it_comes() -> None:
    assert pieces("abc")[0] == ["a", "b", "c", ""]


def test_a_character_is_never_split() -> None:
    released, _ = pieces("aé€z")
    assert released == ["a", "", "é", "", "", "€", "z", ""]


def test_released_pieces_join_to_the_text_whatever_the_burst() -> None:
    text = "naïve — 文字 🙂 end"
    for size in range(1, 9):
        released, answer_text = pieces(text, size=size)
        assert "".join(released) == text == answer_text.text


def test_a_stop_string_ends_the_answer_and_is_not_shown() -> None:
    released, answer_text = pieces("hello END more", stop=("END",))
    assert "".join(released) == "hello " == answer_text.text
    assert answer_text.is_stopped


def test_tokens_behind_the_stop_are_dropped_inside_a_burst() -> None:
    """An accepted path may go on behind the stop; plain decoding would not have."""
    _, answer_text = pieces("hello END more", stop=("END",), size=14)
    assert bytes(answer_text.token_ids).decode() == "hello END"


def test_tokens_of_a_stop_string_are_none_of_the_texts_own() -> None:
    assert pieces("hello END more", stop=("END",))[1].num_tokens == len("hello ")
    assert pieces("END", stop=("END",))[1].num_tokens == 0
    assert pieces("aé€z", stop=("€z",))[1].num_tokens == len("aé".encode())
    assert pieces("aEN", stop=("END",))[1].num_tokens == 3


def test_a_token_that_a_stop_string_begins_in_is_the_texts_last_one() -> None:
    answer_text = AnswerText(WordDecoder(), ["rd4"])
    answer_text.add([3, 4, 5])
    assert (answer_text.text, answer_text.num_tokens, answer_text.token_ids) == ("word3 wo", 2, [3, 4])


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_decided() -> None:
    released, _ = pieces("aENb", stop=("END",))
    assert released == ["a", "", "", "ENb", ""]


def test_what_was_held_back_comes_at_the_end() -> None:
    released, _ = pieces("aEN", stop=("END",))
    assert released == ["a", "", "", "EN"]


def test_the_earliest_of_several_stop_strings_counts() -> None:
    _, answer_text = pieces("one two three", stop=("three", "two"), size=13)
    assert answer_text.text == "one "


def test_an_unfinished_character_at_the_end_is_shown_as_such() -> None:
    answer_text = AnswerText(ByteDecoder())
    assert answer_text.add("é".encode()[:1]) == ""
    assert answer_text.finish() == "\ufffd"


class WordDecoder:
    """A token is a word with a space before it; like many tokenizers it drops a text's first space."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(f" word{token_id}" for token_id in token_ids).removeprefix(" ")


def test_the_space_between_a_text_and_its_continuation_is_kept() -> None:
    assert AnswerText(WordDecoder()).add([3, 4]) == "word3 word4"
    answer_text = AnswerText(WordDecoder(), behind=[1, 2])
    assert [answer_text.add([3]), answer_text.add([4])] == [" word3", " word4"]
    assert answer_text.text == " word3 word4"


def as_it_comes(tokenizer: Any, token_ids: list[int], *, num_behind: int = 0, burst: int = 1) -> AnswerText:
    """An answer whose released pieces were joined and compared with its text."""
    answer_text = AnswerText(tokenizer, behind=token_ids[:num_behind])
    rest = token_ids[num_behind:]
    released = [answer_text.add(rest[i : i + burst]) for i in range(0, len(rest), burst)]
    assert "".join(released) + answer_text.finish() == answer_text.text
    assert answer_text.token_ids == rest
    return answer_text


BYTES, PIECES = byte_level(), sentencepiece()


@given(strategies.lists(strategies.text(max_size=6) | strategies.integers(0, 256)), strategies.integers(1, 5))
def test_what_comes_is_the_text_of_all_bytes_half_characters_included(parts: list[str | int], burst: int) -> None:
    token_ids = [
        token_id
        for part in parts
        for token_id in ([part] if isinstance(part, int) else BYTES(part, add_special_tokens=False).input_ids)
    ]
    for num_behind in (0, 3):
        answer_text = as_it_comes(BYTES, token_ids, num_behind=num_behind, burst=burst)
        whole = BYTES.decode(token_ids, skip_special_tokens=True)
        assert answer_text.text == whole[len(BYTES.decode(token_ids[:num_behind], skip_special_tokens=True)) :]


@given(strategies.text(strategies.sampled_from("é日🙂 a"), max_size=8), strategies.integers(0, 4))
def test_what_comes_is_the_text_of_all_pieces_and_bytes(text: str, num_behind: int) -> None:
    the, cat = PIECES.convert_tokens_to_ids(["▁the", "▁cat"])
    token_ids = [the, 1, *(3 + byte for byte in text.encode()), cat, 2, *(3 + byte for byte in text.encode()), the]
    answer_text = as_it_comes(PIECES, token_ids, num_behind=num_behind if num_behind < 3 else 0)
    assert answer_text.text.endswith(f"cat{text} the")
    assert answer_text._stream is not None


def test_bytes_that_are_no_text_do_not_end_an_answer() -> None:
    """The library's stream gives up there: what was shown already would be decoded otherwise."""
    the, cat = PIECES.convert_tokens_to_ids(["▁the", "▁cat"])
    answer_text = AnswerText(PIECES)
    for token_id in (the, 3 + ord("a"), 3 + 0xFF, cat):
        answer_text.add([token_id])
    assert answer_text._stream is None
    assert answer_text.text == "the\ufffd\ufffd cat"


def test_only_what_is_new_is_decoded_unless_spaces_are_cleaned_up_afterwards() -> None:
    assert AnswerText(build_tokenizer())._stream is not None
    words = {word: index for index, word in enumerate(["[UNK]", "is", "it", "?", "no", ",", "'", "s", "."])}
    backend = Tokenizer(models.WordPiece(vocab=words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    cleaning = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=True)
    answer_text = AnswerText(cleaning)
    assert answer_text._stream is None
    assert answer_text.add(cleaning("no, it is.").input_ids) == "no, it is."


def test_marks_that_are_kept_stay_although_they_are_special() -> None:
    """The parts of an answer stand between them; every other special token leaves no text, as always."""
    tokenizer = calling_tokenizer()
    text = "<think>é</think></s>a <tool_call>{}</tool_call>"
    token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for burst in (1, 3):
        answer_text = AnswerText(tokenizer, kept=("<think>", "</think>"))
        released = [answer_text.add(token_ids[i : i + burst]) for i in range(0, len(token_ids), burst)]
        assert "".join(released) + answer_text.finish() == answer_text.text == "<think>é</think>a {}"
    assert AnswerText(tokenizer, ["k>a"], kept=("</think>",)).add(token_ids) == "é</thin"
    assert AnswerText(tokenizer).add(token_ids) == "éa {}"


@given(
    strategies.text(strategies.sampled_from("aé€🙂 "), max_size=12), strategies.integers(1, 5), strategies.booleans()
)
def test_a_token_ends_where_its_last_whole_character_does(text: str, burst: int, is_streamed: bool) -> None:
    token_ids = BYTES(text, add_special_tokens=False).input_ids if is_streamed else list(text.encode())
    answer_text = AnswerText(BYTES if is_streamed else ByteDecoder(), has_ends=True)
    for start in range(0, len(token_ids), burst):
        answer_text.add(token_ids[start : start + burst])
    raw = text.encode()
    assert answer_text.ends == [len(raw[:num].decode(errors="ignore")) for num in range(1, len(raw) + 1)]


def test_ends_are_those_of_tokens_that_belong_to_the_answer() -> None:
    """A stop string takes characters away, which nobody asks about then."""
    answer_text = AnswerText(ByteDecoder(), ("END",), has_ends=True)
    assert answer_text.add(list(b"ab END more")) == "ab "
    assert answer_text.ends == [1, 2, 3, 4, 5, 6] and len(answer_text.token_ids) == 6
    assert AnswerText(PIECES).ends == []


def test_ends_never_go_back_where_bytes_are_no_text() -> None:
    the, cat = PIECES.convert_tokens_to_ids(["▁the", "▁cat"])
    answer_text = AnswerText(PIECES, has_ends=True)
    for token_id in (the, 3 + ord("a"), 3 + 0xFF, cat):
        answer_text.add([token_id])
    assert answer_text.ends == sorted(answer_text.ends) and answer_text.ends[-1] == len(answer_text.text)
