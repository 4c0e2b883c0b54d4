"""Is what `run` chooses by itself ever the wrong choice? Its seconds per token beside those of fixed choices.

The same prompts are answered by default, without a draft, along a chain, and with trees of five sizes, each in a
session of its own, as `run` would, so that the rounds in which a planner has seen nothing yet count. The choices take
turns, so that a slow minute falls on all alike.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from runtime.config import EngineConfig
from runtime.engine.loading import open_session
from runtime.errors import OptionError
from runtime.events import Finished, GenerationStatistics
from runtime.prompts.prompt_file import PromptRequest

CHAIN = "5x5"
"""A chain of four drafted tokens, which most runtimes draft."""
TREES = ("8x4", "16x6", "32x8", "64x12", "128x16")
"""The trees that are tried: for a pass that costs about what 2 to 200 draft steps do."""
TOLERANCE = 0.03
"""By how much the default may take longer than the best of the others."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to answer."""

    name: str
    config: EngineConfig


def run_choice(
    config: EngineConfig, requests: Sequence[PromptRequest], *, draft: str, num_turns: int = 2
) -> Generator[str, None, dict[str, Any]]:
    """Answer all requests with every choice in each turn; return seconds per token of each, and the default's excess.

    `config` is the default that is judged; `draft` is what the fixed trees draft with where it names none. Raises
    OptionError if every answer ends within its first round.
    """
    fixed = replace(config, draft=draft)
    choices = [
        Choice("default", config),
        Choice("no draft", replace(config, draft="none")),
        Choice("chain", replace(fixed, tree=CHAIN)),
        *(Choice(tree, replace(fixed, tree=tree)) for tree in TREES),
    ]
    answers: dict[str, list[GenerationStatistics]] = {choice.name: [] for choice in choices}
    trees: dict[str, str] = {}
    for turn in range(num_turns):
        for choice in choices[turn:] + choices[:turn]:
            with open_session(choice.config, requests=requests) as opened:
                answered = [_answer(opened.session.generate(request)) for request in requests]
                trees[choice.name] = opened.session.engine.planner.tree_name
                target = opened.plan.target_name
            answers[choice.name] += answered
            yield f"turn {turn + 1}, {choice.name}: {_seconds_per_token(answered):.4f} s/token"
    seconds = {name: _seconds_per_token(answered) for name, answered in answers.items()}
    best = min((name for name in seconds if name != "default"), key=seconds.__getitem__)
    excess = seconds["default"] / seconds[best] - 1
    yield f"the default takes {100 * excess:+.1f} % beside the best of the others, {best}"
    return {
        "default_over_best": 1 + excess,
        "is_within_tolerance": excess <= TOLERANCE,
        "best": best,
        "default_tree": trees["default"],  # of its last rounds; 1x1 without a draft
        "target": target,
        "draft": draft,
        "num_tokens": sum(answer.new_tokens for answer in answers["default"]) // num_turns,
        "choices": [
            {
                "choice": name,
                "seconds_per_token": seconds[name],  # of all turns, without the first round of each answer
                "by_turn": [
                    _seconds_per_token(answered[turn * len(requests) : (turn + 1) * len(requests)])
                    for turn in range(num_turns)
                ],
                "tokens_per_round": GenerationStatistics.total(answered).tokens_per_round,
            }
            for name, answered in answers.items()
        ],
    }


def _answer(events: Generator[Any, None, None]) -> GenerationStatistics:
    with closing(events):
        *_, finished = events
    assert isinstance(finished, Finished), "the engine's last event is Finished"
    return finished.statistics


def _seconds_per_token(answers: Sequence[GenerationStatistics]) -> float:
    seconds = GenerationStatistics.total(answers).seconds_per_token
    if seconds is None:
        raise OptionError("every answer ended within its first round; give longer ones with --max-new-tokens")
    return seconds
