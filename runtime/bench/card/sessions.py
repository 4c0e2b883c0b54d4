"""Probes of whole sessions: a few layers of a 70B's shape, loaded and asked as `run` and `chat` do."""

import random
import statistics
import string
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from offload.units import format_bytes
from runtime.bench.card.random_model import write_random_llama
from runtime.bench.card.setting import Findings, Setting
from runtime.config import EngineConfig, SamplingParams
from runtime.engine.loading import OpenSession, open_session
from runtime.events import PrefillProgress, Round
from runtime.prompts.prompt_file import PromptRequest

CARD_BYTES = 24_500_000_000
"""What a card of 24 GB leaves to programs: larger ones are held to it, so that reports compare."""


def time_prefill(setting: Setting) -> Findings:
    """Ask a long prompt of a session whose layers all stream; return its passes, and the memory that it took."""
    with _opened(setting, draft="none") as opened:
        first, second = (_asked(opened, setting, number, SamplingParams(max_new_tokens=2)) for number in range(2))
        memory = _memory(opened, setting)
        passes = second["num_prefill_passes"]
    tokens = setting.sizes.prompt_tokens
    says = (
        f"{tokens} tokens: {passes} passes, {second['first_token_seconds']:.2f} s to the first token "
        f"({first['first_token_seconds']:.2f} s the first time)",
        _memory_words(memory),
    )
    return Findings(says, {"prompt_tokens": tokens, "first": first, "second": second, "memory": memory})


def time_chat(setting: Setting) -> Findings:
    """Answer greedily and with the chat's sampling; return what a round takes apart from its pass."""
    answers = {}
    with _opened(setting, draft="substitute") as opened:
        kinds = {"greedy": SamplingParams(), "chat": SamplingParams(temperature=0.7, top_p=0.95)}
        for number, (name, params) in enumerate(kinds.items()):
            params = replace(params, max_new_tokens=setting.sizes.answer_tokens, seed=setting.seed)
            _asked(opened, setting, number, params)
            answers[name] = _asked(opened, setting, number, params)
        memory = _memory(opened, setting)
    says = (
        ", ".join(
            f"{name}: {found['draft_seconds'] * 1e3:.1f} ms to draft {found['num_nodes']} nodes, of which "
            f"{found['placing_seconds'] * 1e3:.1f} ms choosing children, {found['pass_seconds'] * 1e3:.1f} ms a pass"
            for name, found in answers.items()
        ),
        _memory_words(memory),
    )
    return Findings(says, {**answers, "memory": memory})


@contextmanager
def _opened(setting: Setting, *, draft: str) -> Iterator[OpenSession]:
    """Write the model and open a session on it, all of whose layers stream."""
    sizes = setting.sizes
    folder = write_random_llama(
        setting.folder / "model",
        sizes.target,
        num_layers=sizes.session_layers,
        vocab_size=sizes.vocab_size,
        max_positions=sizes.max_position_embeddings,
        seed=setting.seed,
    )
    _limit_card(setting.device)
    config = EngineConfig(
        target=str(folder),
        draft=draft,
        device=str(setting.device),
        device_memory_bytes=0,
        context_tokens=sizes.prompt_tokens + 2 * sizes.answer_tokens,
    )
    torch.accelerator.reset_peak_memory_stats(setting.device)
    with open_session(config) as opened:
        yield opened


def _limit_card(device: torch.device) -> None:
    """Let this process have no more of a large card than a small one has, where its allocator can be told."""
    module = torch.get_device_module(device.type)
    if hasattr(module, "set_per_process_memory_fraction"):
        _, total = torch.accelerator.get_memory_info(device)
        module.set_per_process_memory_fraction(min(1.0, CARD_BYTES / total), device)


def _asked(opened: OpenSession, setting: Setting, number: int, params: SamplingParams) -> dict[str, Any]:
    """Ask a prompt of random letters and return what its answer cost; the first round apart, which ends the prefill."""
    letters = random.Random(setting.seed + number).choices(string.ascii_letters, k=setting.sizes.prompt_tokens)
    began, first_token_seconds, num_prefills = time.perf_counter(), 0.0, 0
    rounds: list[Round] = []
    for event in opened.session.generate(PromptRequest(id=str(number), prompt="".join(letters), params=params)):
        num_prefills += isinstance(event, PrefillProgress)
        if isinstance(event, Round):
            first_token_seconds = first_token_seconds or time.perf_counter() - began
            rounds.append(event)
    later = rounds[1:] or rounds
    median = statistics.median
    return {
        "first_token_seconds": first_token_seconds,
        "num_prefill_passes": num_prefills + 1,
        "num_rounds": len(rounds),
        "num_nodes": median(done.num_nodes for done in later),
        "round_seconds": median(done.seconds for done in later),
        "draft_seconds": median(done.draft_seconds for done in later),
        "placing_seconds": median(done.placing_seconds for done in later),
        "pass_seconds": median(done.pass_statistics.seconds for done in later),
        "walk_seconds": median(done.walk_seconds for done in later),
        "link_busy_seconds": median(done.pass_statistics.link_busy_seconds for done in later),
        "bytes_streamed": rounds[-1].pass_statistics.bytes_streamed,
    }


def _memory(opened: OpenSession, setting: Setting) -> dict[str, int]:
    """Return the bytes that were accounted for, and those that were allocated and reserved at the peak."""
    return {
        "accounted_bytes": opened.placement.device_bytes,
        "allocated_bytes": int(torch.accelerator.max_memory_allocated(setting.device)),
        "reserved_bytes": int(torch.accelerator.max_memory_reserved(setting.device)),
    }


def _memory_words(memory: dict[str, int]) -> str:
    accounted, allocated, reserved = (format_bytes(size) for size in memory.values())
    return f"{accounted} of the device were accounted for; at the peak {allocated} were allocated, {reserved} reserved"
