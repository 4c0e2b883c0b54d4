"""Opens real sessions on tiny random models, for the tests of everything that runs whole rounds."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from runtime.config import EngineConfig, SamplingParams
from runtime.engine.load_plan import LoadPlan
from runtime.engine.loading import OpenSession, open_session
from runtime.events import Finished
from runtime.model.model_loader import ModelFiles
from runtime.prompts.prompt_file import PromptRequest
from tests.support.model_factory import build_tokenizer, save_tiny_model, save_tiny_tokenizer

CONTEXT_TOKENS = 128


def save_tiny_folder(folder: Path, kind: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """A tiny model with a tokenizer of the same vocabulary."""
    save_tiny_model(kind, folder, seed=seed, dtype=dtype)
    return save_tiny_tokenizer(folder)


def save_with_tokens_beyond(folder: Path, kind: str = "llama", **changes: object) -> Path:
    """A model whose tokenizer knows three tokens that its embedding has no row for."""
    save_tiny_model(kind, folder, **changes)
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<image>", "<audio>"], special_tokens=True)
    tokenizer.add_tokens(["catdog"])
    tokenizer.save_pretrained(folder)
    return folder


def save_target_and_drafts(root: Path) -> dict[str, Path]:
    """A target, the same target again as a perfect draft, and an unrelated draft."""
    return {
        "target": save_tiny_folder(root / "target"),
        "perfect": save_tiny_folder(root / "perfect"),
        "unrelated": save_tiny_folder(root / "unrelated", "qwen2", seed=9),
    }


@contextmanager
def open_tiny(
    target: Path,
    *,
    draft: Path | str = "none",
    tree: str = "auto",
    num_residents: int | None = None,
    state_folder: Path | None = None,
    **settings: object,
) -> Generator[OpenSession, None, None]:
    """A session on `target`; `num_residents` sets the budget so that exactly so many layers stay resident."""
    options: dict[str, Any] = {
        "context_tokens": CONTEXT_TOKENS,
        "draft": str(draft),
        "tree": tree,
        "draft_format": "stored",
    }
    options |= settings
    budget = None
    if num_residents is not None:
        # Where every layer stays, no prompt is computed in long passes: what streaming takes beside them is counted.
        least = None if options.get("share_layers") else 0
        fixed = LoadPlan.build(EngineConfig(target=str(target), device_memory_bytes=least, **options)).placement
        fixed_bytes = fixed.fixed_bytes
        slab_bytes = max(layout.slab_bytes for layout in ModelFiles.open(target).layouts)
        budget = fixed_bytes + (int(options.get("ring_slots", 2)) + num_residents) * slab_bytes
    config = EngineConfig(target=str(target), device_memory_bytes=budget, **options)
    with open_session(config, state_folder=state_folder) as opened:
        yield opened


def request(text: str = "the cat and the dog", **params: object) -> PromptRequest:
    """A raw prompt."""
    return PromptRequest(id="1", prompt=text, params=SamplingParams(**{"max_new_tokens": 24, **params}))


def answer(opened: OpenSession, asked: PromptRequest) -> tuple[Finished, list[int]]:
    """The final event, and the answer's token ids as the engine's text has them."""
    *_, finished = opened.session.generate(asked)
    assert isinstance(finished, Finished)
    num_prompt = finished.statistics.prompt_tokens
    return finished, opened.session.engine.text[num_prompt:]
