"""Turns of this engine and of a peer with several settings, over the same prompts, and what they came to.

One engine lives at a time. The prompts are dealt into groups; each group is answered by every engine in turn, this one
first, which tells the tokens of each prompt. Files leave the page cache before every turn.
"""

import statistics
from collections.abc import Generator, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from runtime.bench.peers.own_engine import OwnEngine
from runtime.bench.peers.runner import Answer, Question, Runner, forget_files
from runtime.errors import PeerError
from runtime.prompts.prompt_file import PromptRequest


@dataclass(slots=True)
class _Column:
    """All that one engine with one setting did."""

    runner: Runner
    answers: dict[str, Answer] = field(default_factory=dict)
    """By the prompt's id."""
    failure: str | None = None
    """After it, there are no more turns."""

    @property
    def seconds_per_token(self) -> float | None:
        """Return the decoding time of all answers per token; None without any, or after a failure."""
        num_tokens = sum(answer.decode_tokens for answer in self.answers.values())
        if self.failure is not None or not num_tokens:
            return None
        return sum(answer.decode_seconds for answer in self.answers.values()) / num_tokens


def run_peers(
    own: OwnEngine,
    peers: Sequence[Runner],
    requests: Sequence[PromptRequest],
    *,
    prompts_per_turn: int,
    files: Sequence[Path],
) -> Generator[str, None, dict[str, Any]]:
    """Answer all requests with each engine; yield progress, return the figures.

    A peer that fails costs its own figures. `files`: the models', which leave the page cache before every turn. Raises
    PeerError if this engine fails.
    """
    ours, theirs = _Column(own), [_Column(peer) for peer in peers]
    for begin in range(0, len(requests), prompts_per_turn):
        questions = [Question(request) for request in requests[begin : begin + prompts_per_turn]]
        yield from _take_turn(ours, questions, files)
        if ours.failure is not None:
            raise PeerError(ours.failure)
        answered = [replace(each, token_ids=ours.answers[each.request.id].token_ids) for each in questions]
        for column in theirs:
            if column.failure is None:
                yield from _take_turn(column, answered, files)
    return {**_summary(ours, theirs), "disk_bytes_per_second": _median(own.disk_rates)}


def _take_turn(column: _Column, questions: Sequence[Question], files: Sequence[Path]) -> Generator[str, None, None]:
    runner = column.runner
    yield f"{runner.name}: loading"
    forget_files(files)
    try:
        runner.start(questions)
        try:
            for question in questions:
                answer = runner.answer(question)
                column.answers[question.request.id] = answer
                yield f"{runner.name}: prompt {question.request.id}: {_in_words(answer)}"
        finally:
            runner.close()
    except PeerError as error:
        column.failure = str(error)
        yield f"{runner.name} failed: {error}"


def _in_words(answer: Answer) -> str:
    rate = answer.seconds_per_token
    return f"{answer.num_tokens} tokens, {'-' if rate is None else f'{rate:.3f}'} s/token"


def _summary(ours: _Column, theirs: Sequence[_Column]) -> dict[str, Any]:
    """Return the figures of each setting and of each answer, and how this engine stands to the peer's best setting."""
    columns = [ours, *theirs]
    rates = {column.runner.name: rate for column in theirs if (rate := column.seconds_per_token) is not None}
    best, own_rate = min(rates, key=rates.__getitem__, default=None), ours.seconds_per_token
    return {
        "num_prompts": len(ours.answers),
        "seconds_per_token": own_rate,
        "best_peer": best,
        "best_peer_seconds_per_token": best and rates[best],
        "speedup": rates[best] / own_rate if best and own_rate else None,
        "num_failed": sum(column.failure is not None for column in theirs),
        "settings": [_setting(column, ours) for column in columns],
        "answers": [
            {"setting": column.runner.name, "prompt": name, **_costs(answer)}
            for column in columns
            for name, answer in column.answers.items()
        ],
    }


def _setting(column: _Column, ours: _Column) -> dict[str, Any]:
    answers = list(column.answers.values())
    rates = [rate for answer in answers if (rate := answer.seconds_per_token) is not None]
    num_tokens = sum(answer.num_tokens for answer in answers)
    num_passes = sum(answer.num_passes for answer in answers)
    counts = [answer.bytes_read for answer in answers if answer.bytes_read is not None]
    same = [ours.answers[name].text == answer.text for name, answer in column.answers.items()]
    return {
        "setting": column.runner.name,
        "seconds_per_token": column.seconds_per_token,  # without the first tokens of each answer
        "least": min(rates, default=None),  # of one prompt
        "most": max(rates, default=None),
        "first_token_seconds": _median(answer.first_seconds for answer in answers),
        "bytes_read_per_token": sum(counts) / num_tokens if counts and num_tokens else None,  # prompts included
        "tokens_per_pass": num_tokens / num_passes if num_passes else None,
        "num_tokens": num_tokens,
        "same_texts": sum(same),  # as this engine's; sums in another order may tip a text over
        "failure": column.failure,
    }


def _costs(answer: Answer) -> dict[str, Any]:
    """Return all figures of an answer, for the JSON line."""
    record = asdict(answer)
    num_prompt_tokens = len(record.pop("token_ids"))
    return {**record, "num_prompt_tokens": num_prompt_tokens, "seconds_per_token": answer.seconds_per_token}


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None
