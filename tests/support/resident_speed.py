"""How fast a model decodes that stays in memory whole, beside transformers' own decoding: alternating runs, medians.

    python -m tests.support.resident_speed MODEL [--draft MODEL] [--busy 2] [--turns 7] [--tokens 48]

Each contender is a process of its own, as a person would start it, and loads its model once. Then they take turns:
transformers' greedy generate() in float32 and in bfloat16, ours without a draft, and ours as it starts by default.
`--draft` adds a turn with that draft, `--busy` processes compute beside them all. Seconds per token do not count the
first tokens and the prompt. The last line is one JSON document.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

PROMPT = "Write a short story about a river and a bridge."
RIVAL = "transformers-float32"


def rival(model: str, dtype: str, num_tokens: int) -> Callable[[], float]:
    """Load `model` with transformers; return what generates and returns seconds per token."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    messages = [{"role": "user", "content": PROMPT}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")

    def seconds_of(count: int) -> float:
        begun = time.perf_counter()
        loaded.generate(**inputs, do_sample=False, min_new_tokens=count, max_new_tokens=count)
        return time.perf_counter() - begun

    return lambda: (seconds_of(num_tokens) - seconds_of(1)) / (num_tokens - 1)


def ours(model: str, draft: str, num_tokens: int, stack: ExitStack) -> Callable[[], float]:
    """Load `model` as `run` does; return what answers and returns seconds per token."""
    from tui.environment import prepare_libraries

    prepare_libraries()
    from runtime.config import EngineConfig, SamplingParams
    from runtime.engine.loading import open_session
    from runtime.events import Finished
    from runtime.prompts.prompt_file import Message, PromptRequest

    config = EngineConfig(target=model, draft=draft, lookup="on", context_tokens=1024)
    session = stack.enter_context(open_session(config)).session
    asked = PromptRequest(id="1", messages=(Message("user", PROMPT),), params=SamplingParams(max_new_tokens=num_tokens))

    def seconds_per_token() -> float:
        *_, finished = session.generate(asked)
        assert isinstance(finished, Finished)
        return finished.statistics.seconds_per_token

    return seconds_per_token


def contend(name: str, model: str, num_tokens: int) -> None:
    """Answer each line of stdin with the seconds per token of one turn."""
    with ExitStack() as stack:
        kind, _, choice = name.partition("-")
        turn = rival(model, choice, num_tokens) if kind == "transformers" else ours(model, choice, num_tokens, stack)
        turn()
        print("ready", flush=True)
        for _ in sys.stdin:
            print(turn(), flush=True)


def measure(
    model: str, *, draft: str | None = None, num_busy: int = 0, num_turns: int = 7, num_tokens: int = 48
) -> dict[str, Any]:
    """Return medians by contender, and of the ratios within each turn."""
    names = [RIVAL, "transformers-bfloat16", "draft-none", "draft-auto", *([f"draft-{draft}"] if draft else [])]
    with ExitStack() as stack:
        contenders = {name: stack.enter_context(_started(name, model, num_tokens)) for name in names}
        for process in contenders.values():
            _answer(process)
        for _ in range(num_busy):
            loop = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(loop.kill)
        turns = [{name: _turn(process) for name, process in contenders.items()} for _ in range(num_turns)]
        for process in contenders.values():
            assert process.stdin is not None
            process.stdin.close()
        load = os.getloadavg()[0]

    def ratio(over: str, under: str) -> float:
        return statistics.median(turn[over] / turn[under] for turn in turns)

    return {
        "model": Path(model).name,
        "num_busy": num_busy,
        "num_turns": num_turns,
        "load": load,
        "seconds_per_token": {name: statistics.median(turn[name] for turn in turns) for name in names},
        "plain_over_float32": ratio("draft-none", RIVAL),
        "plain_over_bfloat16": ratio("draft-none", "transformers-bfloat16"),
        "default_over_plain": ratio("draft-auto", "draft-none"),
        "draft_over_plain": ratio(f"draft-{draft}", "draft-none") if draft else None,
    }


def _started(name: str, model: str, num_tokens: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.support.resident_speed", model, "--as", name, "--tokens", str(num_tokens)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def _answer(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"{process.args} ended"
    return line


def _turn(process: "subprocess.Popen[str]") -> float:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(_answer(process))


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--draft")
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--as", dest="contender", help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    if asked.contender:
        contend(asked.contender, asked.model, asked.tokens)
        return
    record = measure(
        asked.model, draft=asked.draft, num_busy=asked.busy, num_turns=asked.turns, num_tokens=asked.tokens
    )
    print(json.dumps(record))


if __name__ == "__main__":
    main(sys.argv[1:])
