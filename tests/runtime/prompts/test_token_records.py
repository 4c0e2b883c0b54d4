"""The two shapes of log-probabilities, also where a token is a part of a character or cannot come."""

import json
import math

from runtime.events import TokenLogprob, TokenLogprobs
from runtime.prompts.token_records import completion_logprobs, content_logprobs


def token(content: bytes, logprob: float = -0.5) -> TokenLogprob:
    return TokenLogprob(7, logprob, content.decode(errors="backslashreplace"), content)


END = TokenLogprob(2, -3.0, "</s>", None)
SMILE = "🙂".encode()
ANSWER = (
    TokenLogprobs(token(b"so"), (token(b"so"), token(b" so", -1.0))),
    TokenLogprobs(token(b" " + SMILE[:2]), (END, token(b" " + SMILE[:2]))),
    TokenLogprobs(token(SMILE[2:])),
    TokenLogprobs(token("é".encode(), -math.inf), (token(b"s", -0.25), token(b"s", -0.75))),
)


def test_a_chats_tokens_have_text_and_bytes_that_join_to_the_answers() -> None:
    records = content_logprobs(ANSWER)
    assert b"".join(bytes(record["bytes"]) for record in records).decode() == "so 🙂é"
    assert records[0] == {
        "token": "so",
        "logprob": -0.5,
        "bytes": [115, 111],
        "top_logprobs": [
            {"token": "so", "logprob": -0.5, "bytes": [115, 111]},
            {"token": " so", "logprob": -1.0, "bytes": [32, 115, 111]},
        ],
    }
    assert records[1]["token"] == " \\xf0\\x9f"
    assert records[1]["top_logprobs"][0] == {"token": "</s>", "logprob": -3.0, "bytes": None}
    assert records[2]["top_logprobs"] == []


def test_a_completions_lists_have_the_chosen_token_too_and_count_from_the_prompt() -> None:
    lists = completion_logprobs(ANSWER, num_before=10)
    assert lists == {
        "tokens": ["so", "bytes: \\xf0\\x9f", "bytes:\\x99\\x82", "é"],
        "token_logprobs": [-0.5, -0.5, -0.5, -9999.0],
        "top_logprobs": [
            {"so": -0.5, " so": -1.0},
            {"</s>": -3.0, "bytes: \\xf0\\x9f": -0.5},
            {"bytes:\\x99\\x82": -0.5},
            {"s": -0.25, "é": -9999.0},
        ],
        "text_offset": [10, 12, 13, 14],
    }


def test_no_number_is_infinite_in_json() -> None:
    for shape in (content_logprobs(ANSWER), completion_logprobs(ANSWER, num_before=0)):
        json.dumps(shape, allow_nan=False)
    assert set(map(len, completion_logprobs((), num_before=3).values())) == {0}
