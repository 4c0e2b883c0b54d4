"""Perplexity of a fixed text: through this project's streamed passes, and through transformers alone.

Both sides see the same token ids in passes of the same size; sums are in double precision and a few rows at a time.
Perplexity = exp(-1/(T-1) * sum of log p(t_i | t_1 .. t_{i-1}) for i = 2..T). Whatever storage format opens is measured.
"""

import inspect
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, DynamicCache

from offload.checkpoint.gguf_file import part_files
from profiles.errors import quote
from runtime.config import PREFILL_CHUNK_TOKENS, EngineConfig, SamplingParams
from runtime.engine.loading import OpenSession, open_session
from runtime.errors import OptionError
from runtime.model.streamed_model import chain_input
from runtime.model.text_tower import is_composite
from runtime.prompts.prompt_file import PromptRequest

_HEAD_ROWS = 16  # 20 MB of double-precision logits for a vocabulary of 150,000

LogitsOfPass = Callable[[int, int], Iterator[torch.Tensor]]
"""Runs the pass over tokens start..stop behind all earlier ones; yields their logits (M, V), a few rows at a time."""


def run_perplexity(
    config: EngineConfig, text: str, *, source: str, is_compared: bool
) -> Generator[str, None, dict[str, Any]]:
    """Measure one side after the other, so that both models are never in memory at the same time.

    `config` names folders; the text is that of the file `source`. Returns the streamed figures, and beside them those
    of transformers where they are asked for. Raises OptionError if the text has fewer than two tokens, or more than the
    context holds, or if transformers is asked for and does not read the target.
    """
    num_parts = len(part_files(Path(config.target or "")))
    if is_compared and num_parts > 1:  # it would read the first, and fill up the rest with random numbers
        raise OptionError(
            f"transformers does not read GGUF files in parts, and {config.target} is one of {num_parts}; leave out "
            "--beside-transformers, or join them with llama-gguf-split --merge"
        )
    with open_session(config, requests=[text_request(text)]) as opened:
        token_ids = tokenize_text(opened, text)
        streamed = yield from streamed_perplexity(opened, token_ids)
    folder = opened.plan.target.checkpoint.folder
    record = streamed | {"target": str(folder), "text": source}
    if is_compared:
        whole = yield from transformers_perplexity(folder, token_ids)
        record["transformers_perplexity"] = whole["perplexity"]
        record["transformers_seconds"] = whole["seconds"]
        record["relative_difference"] = streamed["perplexity"] / whole["perplexity"] - 1
    return record


def text_request(text: str) -> PromptRequest:
    """Return the text as a session is opened for it: the context must hold all of it."""
    return PromptRequest(id="perplexity", prompt=text, params=SamplingParams(max_new_tokens=1))


def tokenize_text(opened: OpenSession, text: str) -> list[int]:
    """Return the text's token ids by the target's tokenizer. Raises OptionError if fewer than two or too many."""
    token_ids = opened.session.format_prompt(text_request(text))
    limit = opened.session.engine.context_tokens
    if not 2 <= len(token_ids) <= limit:
        raise OptionError(
            f"the text has {len(token_ids)} tokens; expected 2 to {limit}, which is what the context holds: "
            "give another --text, or a larger --context if the model allows it"
        )
    return token_ids


def streamed_perplexity(opened: OpenSession, token_ids: Sequence[int]) -> Generator[str, None, dict[str, Any]]:
    """Measure through the session's target; its cache is empty before and after. Raises what a failed copy raises."""
    engine = opened.session.engine
    target = engine.target

    def logits(start: int, stop: int) -> Iterator[torch.Tensor]:
        hidden = target.run_pass(chain_input(token_ids[start:stop], num_cached=start))  # (T, E)
        yield from map(target.logits, torch.split(hidden, _HEAD_ROWS))

    engine.truncate(0)
    try:
        return (yield from _measure("streamed", logits, token_ids))
    finally:
        target.cache.truncate(0)


def transformers_perplexity(folder: Path, token_ids: Sequence[int]) -> Generator[str, None, dict[str, Any]]:
    """Measure the folder as transformers loads it: whole in memory, in float32, or as a quantized folder says.

    Raises OptionError where transformers needs a package for its format that is not here.
    """
    options: Any = {"local_files_only": True, "trust_remote_code": False}
    place = folder
    if folder.is_file():
        place, options = folder.parent, {**options, "gguf_file": folder.name}
    config = AutoConfig.from_pretrained(place, **options)
    whole = AutoModelForImageTextToText if is_composite(config) else AutoModelForCausalLM
    try:
        model: Any = whole.from_pretrained(place, **options)
    except ImportError as error:
        raise OptionError(
            f"transformers cannot load {folder} here: {quote(str(error))}; leave out --beside-transformers"
        ) from error
    if getattr(model.config, "quantization_config", None) is None:
        model = model.to(torch.float32)  # the type that this project multiplies in
    model.eval()
    # transformers renamed `past_key_values` to `cache` in 5.24.
    cache_name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    cache = {cache_name: DynamicCache(config=model.config)}

    def logits(start: int, stop: int) -> Iterator[torch.Tensor]:
        ids = torch.tensor([token_ids[start:stop]], device=model.device)
        yield from torch.split(model(input_ids=ids, use_cache=True, **cache).logits[0], _HEAD_ROWS)

    return (yield from _measure("transformers", logits, token_ids))


def _measure(side: str, logits_of_pass: LogitsOfPass, token_ids: Sequence[int]) -> Generator[str, None, dict[str, Any]]:
    num_tokens = len(token_ids)
    following = torch.tensor(token_ids[1:], dtype=torch.int64)
    total = 0.0
    begun = time.perf_counter()
    for start in range(0, num_tokens, PREFILL_CHUNK_TOKENS):
        stop = min(start + PREFILL_CHUNK_TOKENS, num_tokens)
        row = start
        with torch.inference_mode():
            for logits in logits_of_pass(start, stop):
                total += _negative_log_likelihood(logits, following[row : row + logits.shape[0]])
                row += logits.shape[0]
        yield f"{side}: {stop} of {num_tokens} tokens"
    return {
        "perplexity": math.exp(total / (num_tokens - 1)),
        "num_tokens": num_tokens - 1,  # that were predicted: all but the first
        "seconds": time.perf_counter() - begun,  # all passes, the head included; not loading
    }


def _negative_log_likelihood(logits: torch.Tensor, following: torch.Tensor) -> float:
    """Return the sum over the rows (M, V) that something follows; the text's last row has nothing to predict."""
    rows = logits[: following.numel()].to(device="cpu", dtype=torch.float64)
    chosen = rows.gather(1, following[:, None])[:, 0]
    return float((rows.logsumexp(dim=1) - chosen).sum())
