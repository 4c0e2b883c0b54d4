"""The regime that the method is made for: a pass over the target that costs as much as hundreds of draft steps.

Streaming a 70B model in 16 bits over PCIe 4, one pass takes 220 steps of its 8B draft. The same prompts are answered by
plain streaming and with trees over an emulated link on which a pass of the models at hand takes as many steps of
theirs. Computation is not emulated: a processor verifies a tree far more slowly than such a link delivers a layer.
"""

import statistics
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from runtime.bench.rounds import check_streaming
from runtime.calibration.probes import SessionProbes
from runtime.config import EngineConfig
from runtime.engine.loading import OpenSession, open_session
from runtime.errors import OptionError
from runtime.events import Finished, GenerationStatistics, Round
from runtime.prompts.prompt_file import PromptRequest

STEPS_PER_PASS = 220
"""Llama-3-70B in bf16 over 24.9 GB/s takes 5.5 s a pass, a step of its 8B draft 0.025 s (Sequoia, L40)."""
PUBLISHED_SPEEDUPS = {0.0: 9.5, 0.6: 9.3}
"""By temperature: Llama-3-70B/8B on an L40 against DeepSpeed-ZeRO-Inference (Sequoia, table 3)."""
NUM_STEPS, STEP_CONTEXT = 30, 32
"""Draft steps that are timed, and the tokens that each attends to."""
PLAIN_TOKENS = 4
_MEASURING_LINK = "1000GB/s"


def run_ratio(
    config: EngineConfig,
    requests: Sequence[PromptRequest],
    *,
    temperatures: Sequence[float],
    steps_per_pass: float = STEPS_PER_PASS,
) -> Generator[str, None, dict[str, Any]]:
    """Answer the requests at each temperature over a link on which a pass takes `steps_per_pass` draft steps.

    `config` names folders and a draft; layers are packed only where it says so, since the link is made for the bytes of
    a pass anyway. The first prompt is answered once without being counted, so that the planner has seen this machine.
    Raises OptionError if no layer streams.
    """
    config = replace(config, pack="on" if config.pack == "on" else "off")
    link, step_seconds, bytes_per_pass = yield from link_of_steps(config, requests, steps_per_pass)
    config = replace(config, link=link)
    yield f"plain streaming at {link}: a pass should take {steps_per_pass * step_seconds:.2f} s"
    plain_config = replace(config, draft="none", tree="auto", draft_format="auto", share_layers=False)
    plain_seconds = _plain_seconds(plain_config, requests[0])
    yield f"plain streaming takes {plain_seconds:.2f} s/token"
    runs = []
    with open_session(config, requests=requests) as opened:
        yield "answering the first prompt once, uncounted"
        _answer(opened, requests[0], temperature=temperatures[0])
        for temperature in temperatures:
            runs.append((yield from _run(opened, requests, temperature, plain_seconds)))
            yield f"temperature {temperature:g}: {runs[-1]['speedup']:.2f}x as fast as plain streaming"
    return {
        "steps_per_pass": plain_seconds / step_seconds,  # that a pass of plain streaming really takes
        "target": opened.plan.target_name,
        "draft": opened.plan.draft_name,
        "draft_step_seconds": step_seconds,  # median forward of the draft over one token, head included
        "bytes_per_pass": bytes_per_pass,
        "link": link,
        "plain_seconds_per_token": plain_seconds,  # over `link`, without a draft
        "runs": runs,
    }


def link_of_steps(
    config: EngineConfig, requests: Sequence[PromptRequest], steps_per_pass: float
) -> Generator[str, None, tuple[str, float, int]]:
    """Return a link on which a pass takes so many draft steps, the seconds of a step, and the bytes of a pass."""
    yield "measuring a draft step"
    with open_session(replace(config, link=_MEASURING_LINK), requests=requests[:1]) as opened:
        check_streaming(opened)
        probes, bytes_per_pass = SessionProbes(opened, requests, state_folder=None), opened.placement.streamed_bytes
        step_seconds = statistics.median(probes.time_draft_step(1, STEP_CONTEXT) for _ in range(NUM_STEPS))
    return f"{bytes_per_pass / (steps_per_pass * step_seconds):.0f}B/s", step_seconds, bytes_per_pass


def _plain_seconds(config: EngineConfig, request: PromptRequest) -> float:
    short = replace(request, params=replace(request.params, max_new_tokens=PLAIN_TOKENS + 1))
    with open_session(config, requests=[request]) as opened:
        statistics, _ = _answer(opened, short, temperature=0.0)
    if statistics.seconds_per_token is None:
        raise OptionError(f"prompt {request.id} is answered with one token; put another one first")
    return statistics.seconds_per_token


def _run(
    opened: OpenSession, requests: Sequence[PromptRequest], temperature: float, plain_seconds: float
) -> Generator[str, None, dict[str, Any]]:
    answers, compute_seconds = [], 0.0
    for number, request in enumerate(requests, start=1):
        yield f"temperature {temperature:g}: prompt {number} of {len(requests)}"
        answer, computed = _answer(opened, request, temperature=temperature)
        answers.append(answer)
        compute_seconds += computed
    total = GenerationStatistics.total(answers)
    seconds = total.seconds_per_token
    if seconds is None:
        raise OptionError("every answer ended within its first round; give longer ones with --max-new-tokens")
    return {
        "published_speedup": PUBLISHED_SPEEDUPS.get(temperature),
        "temperature": temperature,
        "seconds_per_token": seconds,  # without the first round of each answer
        "speedup": plain_seconds / seconds,
        "tokens_per_round": total.tokens_per_round,
        "num_tokens": total.new_tokens,
        "num_rounds": total.rounds,
        **shares_of(
            total.decode_seconds,
            link=(total.link_utilization or 0.0) * total.decode_seconds,
            compute=compute_seconds,
            draft=total.draft_seconds,
        ),
        "tree": opened.session.engine.planner.tree_name,  # of the last rounds
    }


def shares_of(seconds: float, **parts: float) -> dict[str, Any]:
    """Return the shares of the time in which the link carried bytes, layers computed and trees grew, and the largest.

    `parts` are their seconds, by name; they overlap.
    """
    shares = {name: part / seconds for name, part in parts.items()}
    return {"shares": shares, "bound": max(shares, key=shares.__getitem__)}


def _answer(opened: OpenSession, request: PromptRequest, *, temperature: float) -> tuple[GenerationStatistics, float]:
    """Return the answer's costs, and the seconds that the layers computed behind its first round."""
    sampled = replace(request, params=replace(request.params, temperature=temperature))
    with closing(opened.session.generate(sampled)) as events:
        *others, finished = events
    assert isinstance(finished, Finished), "the engine's last event is Finished"
    rounds = [event for event in others if isinstance(event, Round)]
    return finished.statistics, sum(done.pass_statistics.compute_seconds for done in rounds[1:])
