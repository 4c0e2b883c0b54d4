"""What a tool said as a text: whole where it is short, with what is no text named, and never without an end."""

from hypothesis import given
from hypothesis import strategies as st

from tui.chat.tools.results import MAX_RESULT_CHARACTERS, result_text, shortened


def test_texts_stand_in_lines_and_what_is_no_text_is_named():
    content = [
        {"type": "text", "text": "one"},
        {"type": "image", "mimeType": "image/png", "data": "QUJD"},
        {"type": "audio", "mimeType": "audio/wav", "data": "QUI="},
        {"type": "resource", "resource": {"uri": "file:///a", "text": "two"}},
        {"type": "resource", "resource": {"uri": "file:///b", "mimeType": "x/y", "blob": "QUJD"}},
        {"type": "resource_link", "name": "c", "uri": "file:///c"},
        {"type": "hologram"},
    ]
    assert result_text(content).split("\n") == [
        "one",
        "[image left out: image/png, 3 bytes]",
        "[audio left out: audio/wav, 2 bytes]",
        "[file:///a]",
        "two",
        "[left out: file:///b, x/y, 3 bytes]",
        "[a link to c: file:///c]",
        "[hologram left out]",
    ]


def test_json_counts_only_where_no_text_says_the_same():
    assert result_text([{"type": "text", "text": "3"}], {"result": 3}) == "3"
    assert result_text([], {"result": "ü"}) == '{"result": "ü"}'
    assert result_text([]) == "(the tool said nothing)" == result_text([{"type": "text", "text": ""}])


def test_a_long_result_is_cut_with_a_sentence():
    text = shortened("x" * 123_456)
    assert text.startswith("x" * MAX_RESULT_CHARACTERS + "\n[cut here: these are the first 20,000 of 123,456")


@given(st.text(st.characters(), max_size=50))
def test_whatever_it_says_can_be_stored(text):
    assert result_text([{"type": "text", "text": text}]).encode()
