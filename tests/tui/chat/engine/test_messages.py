"""What one side writes the other reads, value by value."""

import json
import math
from dataclasses import replace
from typing import get_args

import pytest

from profiles.errors import BadInputError
from runtime.config import EngineConfig, SamplingParams
from runtime.events import (
    AnswerParts,
    LevelDrafted,
    LoadProgress,
    PrefillProgress,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    TokenLogprobs,
    ToolCallDelta,
)
from runtime.prompts.prompt_file import Message, PromptRequest, ToolCall
from tests.support.chat_fakes import FIGURES, FINISHED, LOADED, ROUND
from tui.chat.engine.messages import (
    Answer,
    AnswerEvent,
    ContextFull,
    CountTokens,
    Failed,
    Loading,
    LoadModel,
    LoadRefused,
    OfAnswer,
    PassRunning,
    Quit,
    Report,
    Request,
    SessionNote,
    StillLoading,
    StopAnswer,
    StopLoad,
    TokensCounted,
    from_line,
    to_line,
)

PARAMS = SamplingParams(temperature=0.5, top_p=1, stop=("a", "b"), banned_tokens=(3,))
TURNS = (Message("user", "zeile\nzwei \x1b[0m ü"), Message("assistant", "so"))
TOKEN = TokenLogprob(3, -0.5, "\\xf0", b"\xf0")
EVENTS = [
    PrefillProgress(256, 700),
    LevelDrafted(3, 12),
    ROUND,
    TextDelta("\u2028 one line all the same\n"),
    TextDelta("a guess", ((0, 1), (3, 7))),
    ReasoningDelta("They greet.\n"),
    ToolCallDelta(0, ToolCall("call_1", "look", '{"at": "it"}')),
    FINISHED,
    replace(FINISHED, parts=AnswerParts("Hi", "They greet.", (ToolCall("call_1", "look", "{}"),))),
    replace(FINISHED, generation="auto", own_settings={"temperature": 0.6, "top_k": 20}),
    replace(FINISHED, logprobs=(TokenLogprobs(TOKEN, (TOKEN, TokenLogprob(4, -math.inf))),)),
    PassRunning(3, 28, (4, 5)),
    FIGURES,
    Failed("the prompt is too long", "context"),
    ContextFull(9000, 4096, 8192, 16384, 4, True),
]
MESSAGES = [
    LoadModel(EngineConfig(target="a b\ud800", ring_slots=3, device_memory_bytes=0)),
    Answer(7, PromptRequest(id="7", messages=TURNS, params=PARAMS, is_continued=True)),
    Answer(8, PromptRequest(id="8", messages=TURNS, unchosen=frozenset({"top_k", "stop"}))),
    StopAnswer(7),
    Quit(),
    Loading(LoadProgress("reading layers", 5, 10), 2.5),
    LOADED,
    StillLoading(LoadProgress("layers", 5, 10)),
    SessionNote(("draft passes are not recorded",)),
    StillLoading(None, ("all is pinned",)),
    replace(LOADED, own_settings={"temperature": 0.6}, larger_contexts=((8192, 5), (9000, 6))),
    StopLoad(),
    CountTokens(3, ("a", "ü"), PromptRequest(id="", messages=TURNS)),
    TokensCounted(3, (1, 2), 5),
    LoadRefused("no such folder", "input", LOADED),
    Failed("no such folder: half\udce4", "input"),
    *(OfAnswer(7, event) for event in EVENTS),
]


def test_every_kind_of_message_is_tried():
    assert {type(event) for event in EVENTS} == set(get_args(AnswerEvent))
    assert {type(message) for message in MESSAGES} == set(get_args(Request | Report))


def test_a_message_comes_back_from_its_line():
    for message in MESSAGES:
        line = to_line(message)
        assert line.endswith(b"\n") and line.count(b"\n") == 1
        assert from_line(line) == message


@pytest.mark.parametrize(
    "record",
    [
        [],
        "x",
        {},
        ["Quit", None],
        ["Nothing", None, {}],
        ["StopAnswer", None, {}],
        ["StopAnswer", None, {"answer_id": "seven"}],
        ["TextDelta", "seven", {"text": "x"}],
        ["Round", 7, {"parents": [-1, 0.5]}],
    ],
    ids=str,
)
def test_anything_else_is_refused_in_a_sentence(record):
    with pytest.raises(BadInputError, match=r"is no message .*; both must be of one version"):
        from_line(json.dumps(record).encode())


def test_what_is_no_json_is_refused():
    for line in (b"", b"{", b"\xff", b'["Quit", null, {}'):
        with pytest.raises(BadInputError, match="is no message"):
            from_line(line)
