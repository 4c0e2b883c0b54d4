from runtime.engine.detokenizer import DecoderBehind, IncrementalDetokenizer


class ByteDecoder:
    """A token is a byte; incomplete characters decode as the replacement character, as byte-level tokenizers do."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return bytes(token_ids).decode("utf-8", errors="replace")


def pieces(text: str, *, stop: tuple[str, ...] = (), size: int = 1) -> tuple[list[str], IncrementalDetokenizer]:
    """The texts released when the bytes of `text` arrive `size` at a time."""
    tokens = list(text.encode())
    detokenizer = IncrementalDetokenizer(ByteDecoder(), stop)
    released = [detokenizer.add(tokens[i : i + size]) for i in range(0, len(tokens), size)]
    return [*released, detokenizer.finish()], detokenizer


def test_text_is_released_as_it_comes() -> None:
    assert pieces("abc")[0] == ["a", "b", "c", ""]


def test_a_character_is_never_split() -> None:
    released, _ = pieces("aé€z")
    assert released == ["a", "", "é", "", "", "€", "z", ""]


def test_released_pieces_join_to_the_text_whatever_the_burst() -> None:
    text = "naïve — 文字 🙂 end"
    for size in range(1, 9):
        released, detokenizer = pieces(text, size=size)
        assert "".join(released) == text == detokenizer.text


def test_a_stop_string_ends_the_answer_and_is_not_shown() -> None:
    released, detokenizer = pieces("hello END more", stop=("END",))
    assert "".join(released) == "hello " == detokenizer.text
    assert detokenizer.is_stopped


def test_tokens_behind_the_stop_are_dropped_inside_a_burst() -> None:
    """An accepted path may go on behind the stop; plain decoding would not have."""
    _, detokenizer = pieces("hello END more", stop=("END",), size=14)
    assert bytes(detokenizer.token_ids).decode() == "hello END"


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_decided() -> None:
    released, _ = pieces("aENb", stop=("END",))
    assert released == ["a", "", "", "ENb", ""]


def test_what_was_held_back_comes_at_the_end() -> None:
    released, _ = pieces("aEN", stop=("END",))
    assert released == ["a", "", "", "EN"]


def test_the_earliest_of_several_stop_strings_counts() -> None:
    _, detokenizer = pieces("one two three", stop=("three", "two"), size=13)
    assert detokenizer.text == "one "


def test_an_unfinished_character_at_the_end_is_shown_as_such() -> None:
    detokenizer = IncrementalDetokenizer(ByteDecoder())
    assert detokenizer.add("é".encode()[:1]) == ""
    assert detokenizer.finish() == "\ufffd"


class WordDecoder:
    """A token is a word with a space before it; like many tokenizers it drops a text's first space."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(f" word{token_id}" for token_id in token_ids).removeprefix(" ")


def test_the_space_between_a_text_and_its_continuation_is_kept() -> None:
    assert IncrementalDetokenizer(WordDecoder()).add([3, 4]) == "word3 word4"
    detokenizer = IncrementalDetokenizer(DecoderBehind(WordDecoder(), [1, 2]))
    assert [detokenizer.add([3]), detokenizer.add([4])] == [" word3", " word4"]
    assert detokenizer.text == " word3 word4"
