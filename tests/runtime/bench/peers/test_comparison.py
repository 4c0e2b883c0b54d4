"""Turns, alternation and figures, on engines whose answers are written down."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from profiles.steps import finish
from runtime.bench.peers import comparison
from runtime.bench.peers.comparison import run_peers
from runtime.bench.peers.runner import Answer, Question
from runtime.errors import PeerError
from runtime.prompts.prompt_file import PromptRequest

ANSWER = Answer(
    text="a b c",
    token_ids=(1, 2, 3),
    num_tokens=5,
    num_passes=5,
    first_seconds=2.0,
    decode_seconds=4.0,
    decode_tokens=4,
    told_seconds_per_token=1.0,
    bytes_read=1000,
)
REQUESTS = [PromptRequest(id=name, prompt=name) for name in ("x", "y", "z")]


@dataclass
class Written:
    """A `Runner` that costs what is written down, and keeps what it was asked in a diary that several share."""

    name: str
    diary: list[str]
    decode_seconds: Sequence[float] = (4.0, 4.0, 4.0)
    text: str = "a b c"
    fails: str | None = None
    """At this prompt."""
    disk_rates: list[float] = field(default_factory=lambda: [3e9, 1e9, 2e9])
    is_open: bool = False
    costs: Iterator[float] = field(init=False)

    def __post_init__(self) -> None:
        self.costs = iter(self.decode_seconds)

    def start(self, questions: Sequence[Question]) -> None:
        self.is_open = True
        self.diary.append(f"{self.name} starts with {''.join(each.request.id for each in questions)}")

    def answer(self, question: Question) -> Answer:
        assert self.is_open
        if question.request.id == self.fails:
            raise PeerError(f"{self.name} gave up at {self.fails}")
        self.diary.append(f"{self.name} {question.request.id} {len(question.token_ids)}")
        return replace(ANSWER, decode_seconds=next(self.costs), text=self.text)

    def close(self) -> None:
        self.is_open = False
        self.diary.append(f"{self.name} ends")


def compared(own: Written, *peers: Written, prompts_per_turn: int = 2) -> dict:
    return finish(run_peers(own, peers, REQUESTS, prompts_per_turn=prompts_per_turn, files=[]))


def test_engines_take_turns_over_groups_of_prompts_and_only_one_lives() -> None:
    diary: list[str] = []
    compared(Written("own", diary), Written("plain", diary), Written("drafting", diary))
    first = ["starts with xy", "x {}", "y {}", "ends"]
    second = ["starts with z", "z {}", "ends"]
    expected = [
        f"{name} {line.format(0 if name == 'own' else len(ANSWER.token_ids))}"
        for lines in (first, second)
        for name in ("own", "plain", "drafting")
        for line in lines
    ]
    assert diary == expected


def test_figures_are_those_of_all_answers_and_the_best_setting_counts() -> None:
    own = Written("own", [], decode_seconds=(1.0, 1.0, 2.0))
    slow = Written("plain", [], decode_seconds=(8.0, 8.0, 8.0))
    best = Written("drafting", [], decode_seconds=(2.0, 4.0, 6.0), text="a b d")
    record = compared(own, slow, best)
    assert (record["best_peer"], record["num_failed"], record["num_prompts"]) == ("drafting", 0, 3)
    assert record["best_peer_seconds_per_token"] == pytest.approx(12 / 12)
    assert record["seconds_per_token"] == pytest.approx(4 / 12)
    assert record["speedup"] == pytest.approx(3)
    assert record["disk_bytes_per_second"] == 2e9
    ours, _, theirs = record["settings"]
    assert (theirs["least"], theirs["most"]) == (0.5, 1.5)
    assert (ours["same_texts"], theirs["same_texts"]) == (3, 0)
    assert (theirs["bytes_read_per_token"], theirs["tokens_per_pass"], theirs["num_tokens"]) == (200, 1, 15)
    assert theirs["first_token_seconds"] == 2.0
    assert [row["prompt"] for row in record["answers"]] == ["x", "y", "z"] * 3
    assert record["answers"][0]["num_prompt_tokens"] == 3 and "token_ids" not in record["answers"][0]


def test_a_peer_that_fails_costs_its_own_figures_and_has_no_further_turn() -> None:
    diary: list[str] = []
    failing = Written("drafting", diary, fails="x", decode_seconds=(0.1,))
    record = compared(Written("own", diary), Written("plain", diary), failing, prompts_per_turn=1)
    assert (record["best_peer"], record["num_failed"]) == ("plain", 1)
    assert record["speedup"] == pytest.approx(1)
    assert record["settings"][2]["failure"] == "drafting gave up at x"
    assert record["settings"][2]["seconds_per_token"] is None
    assert [line for line in diary if line.startswith("drafting")] == ["drafting starts with x", "drafting ends"]


def test_a_peer_that_fails_late_is_not_the_best_by_what_it_did_before() -> None:
    failing = Written("drafting", [], fails="z", decode_seconds=(0.1, 0.1))
    record = compared(Written("own", []), Written("plain", []), failing)
    assert record["best_peer"] == "plain"
    assert record["settings"][2]["least"] == pytest.approx(0.025)


def test_without_a_peer_that_answers_there_is_no_speedup() -> None:
    record = compared(Written("own", []), Written("plain", [], fails="x"))
    assert (record["best_peer"], record["speedup"], record["num_failed"]) == (None, None, 1)
    assert record["seconds_per_token"] == 1.0


def test_a_failure_of_this_engine_ends_the_run() -> None:
    diary: list[str] = []
    with pytest.raises(PeerError, match="own gave up at z"):
        compared(Written("own", diary, fails="z"), Written("plain", diary))
    assert diary[-1] == "own ends"


def test_closing_early_ends_the_engine_that_lives() -> None:
    diary: list[str] = []
    own = Written("own", diary)
    with closing(run_peers(own, [], REQUESTS, prompts_per_turn=3, files=[])) as steps:
        next(steps)
        next(steps)
    assert not own.is_open and diary[-1] == "own ends"


def test_files_leave_the_page_cache_before_every_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    diary: list[str] = []
    monkeypatch.setattr(comparison, "forget_files", lambda files: diary.append(f"forget {len(files)}"))
    finish(
        run_peers(Written("own", diary), [Written("plain", diary)], REQUESTS[:1], prompts_per_turn=1, files=[Path("a")])
    )
    assert [line for line in diary if line.startswith(("forget", "own starts", "plain starts"))] == [
        "forget 1",
        "own starts with x",
        "forget 1",
        "plain starts with x",
    ]
