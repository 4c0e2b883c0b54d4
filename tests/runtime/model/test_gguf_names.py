"""Streamed GGUF files against transformers' own loading of the same file, on every architecture that is read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from offload.checkpoint.checkpoint import Checkpoint
from offload.errors import CheckpointError
from runtime.engine.engine import verify_input
from runtime.model.architecture import open_decoder
from runtime.model.model_loader import ModelFiles
from runtime.model.streamed_model import chain_input
from runtime.speculation.token_tree import TokenTree
from tests.support.gguf_factory import KINDS, gguf_model, write_gguf
from tests.support.session_factory import answer, open_tiny, request
from tests.support.trees import tree_of_counts

TOKENS = [5, 17, 40, 8, 33, 62, 9, 71, 20, 14, 55, 31, 90, 12, 7, 66, 28, 43]
TYPES = ("Q8_0", "Q4_0", "F16", "BF16", "Q4_1", "F32")
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def reference(file: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


@torch.inference_mode()
def logits_of(model: Any, token_ids: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([token_ids])).logits[0]
    return logits


def streamed_logits(file: Path, **settings: Any) -> torch.Tensor:
    with open_tiny(file, **{"num_residents": 0, **settings}) as opened:
        target = opened.session.engine.target
        spans = ((0, 11), (11, 12), (12, 18))
        hidden = [target.run_pass(chain_input(TOKENS[start:stop], num_cached=start)) for start, stop in spans]
        return target.logits(torch.cat(hidden))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("types", [("F32",), TYPES])
def test_streamed_logits_equal_transformers_own_of_the_same_file(
    kind: str, types: tuple[str, ...], tmp_path: Path
) -> None:
    """Pairs of rotated rows, raised norms, tied heads, fused matrices and mixed types within a layer included."""
    model = gguf_model(kind)
    file = write_gguf(tmp_path / "m.gguf", model, kind=kind, types=types)
    expected = logits_of(reference(file), TOKENS)
    torch.testing.assert_close(streamed_logits(file), expected, **TOLERANCE)
    if types == ("F32",):  # so that the file is what a converter would have written
        torch.testing.assert_close(expected, logits_of(model, TOKENS), **TOLERANCE)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3", "qwen35"])
def test_every_node_of_a_tree_has_the_logits_of_its_own_path(kind: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", gguf_model(kind), kind=kind, types=TYPES)
    topology = tree_of_counts([3, 2, 1, 0, 1, 0, 0, 0])
    tree = TokenTree(topology, np.random.default_rng(1).integers(3, 90, topology.num_nodes))
    tree.token_ids[0] = TOKENS[-1]
    with open_tiny(file, num_residents=1) as opened:
        target = opened.session.engine.target
        target.run_pass(chain_input(TOKENS[:13], num_cached=0))
        hidden = target.run_pass(verify_input(TOKENS, tree, num_cached=13))
        logits = target.logits(hidden[len(TOKENS) - 13 - 1 :])
    model = reference(file)
    for node in range(topology.num_nodes):
        path = [*TOKENS[:-1], *tree.path_token_ids(node).tolist()]
        torch.testing.assert_close(logits[node], logits_of(model, path)[-1], **TOLERANCE)


@pytest.mark.parametrize(("kind", "types"), [("llama", TYPES), ("llama", ("F16",)), ("qwen35", TYPES)])
def test_a_tree_of_drafts_writes_the_text_of_plain_decoding(kind: str, types: tuple[str, ...], tmp_path: Path) -> None:
    """A substitute shares the file's order of rows, held as int8 as well as shared with the target."""
    file = write_gguf(tmp_path / "m.gguf", gguf_model(kind), kind=kind, types=types)
    asked = request("abba", max_new_tokens=12)
    with open_tiny(file, num_residents=0) as opened:
        _, plain = answer(opened, asked)
    for settings in ({"draft": "substitute", "draft_format": "auto"}, {"draft": file}):
        with open_tiny(file, tree="8x4", num_residents=1, **settings) as opened:
            _, drafted = answer(opened, asked)
        assert drafted == plain


@pytest.mark.parametrize("num_value_heads", [2, 4])
def test_a_hybrid_has_its_heads_wherever_the_file_puts_them(num_value_heads: int, tmp_path: Path) -> None:
    """As many heads of values as of keys have one order only; and heads that guess further tokens are left out."""
    model = gguf_model("qwen35", linear_num_value_heads=num_value_heads)
    extra = {"blk.3.nextn.enorm.weight": np.ones(256, np.float32)}
    metadata = {"qwen35.nextn_predict_layers": 1}
    file = write_gguf(tmp_path / "m.gguf", model, kind="qwen35", extra=extra, metadata=metadata, num_blocks=4)
    torch.testing.assert_close(streamed_logits(file), logits_of(model, TOKENS), **TOLERANCE)


def test_parts_stream_as_one_file_does(tmp_path: Path) -> None:
    model = gguf_model("llama")
    whole = write_gguf(tmp_path / "m.gguf", model, kind="llama", types=TYPES)
    first = write_gguf(tmp_path / "p" / "m.gguf", model, kind="llama", types=TYPES, num_parts=3)
    assert first.name == "m-00001-of-00003.gguf"
    assert torch.equal(streamed_logits(first), streamed_logits(whole))


def test_the_factors_of_frequencies_are_divided_by(tmp_path: Path) -> None:
    """Llama 3.1 and later have them as a tensor, and transformers' own loading drops it."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = {**scaling, "original_max_position_embeddings": 16, "rope_theta": 10_000.0}
    model = gguf_model("llama", rope_parameters=rope)
    plain = gguf_model("llama")
    factors = plain.model.rotary_emb.inv_freq / model.model.rotary_emb.inv_freq
    extra = {"rope_freqs.weight": factors.numpy()}
    file = write_gguf(tmp_path / "m.gguf", model, kind="llama", extra=extra)
    torch.testing.assert_close(streamed_logits(file), logits_of(model, TOKENS), **TOLERANCE)


def test_the_factors_of_longrope_are_taken(tmp_path: Path) -> None:
    short, long = [1.0 + number / 7 for number in range(4)], [2.0 + number for number in range(4)]
    rope = {"rope_type": "longrope", "short_factor": short, "long_factor": long, "rope_theta": 10_000.0}
    settings = {"original_max_position_embeddings": 64, "hidden_size": 32, "intermediate_size": 64}
    rope["original_max_position_embeddings"] = 64
    model = gguf_model("phi3", rope_parameters=rope, **settings)
    extra = {
        f"rope_factors_{name}.weight": np.array(values, np.float32)
        for name, values in (("short", short), ("long", long))
    }
    metadata = {"phi3.rope.scaling.original_context_length": 64}
    file = write_gguf(tmp_path / "m.gguf", model, kind="phi3", extra=extra, metadata=metadata)
    expected = logits_of(model, TOKENS)
    torch.testing.assert_close(streamed_logits(file, context_tokens=64), expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("factors", "expected"),
    [(np.ones(3, np.float32), "has 3 factors"), (np.zeros(4, np.float32), "no positive number")],
)
def test_wrong_factors_are_refused(factors: np.ndarray, expected: str, tmp_path: Path) -> None:
    extra = {"rope_freqs.weight": factors}
    file = write_gguf(tmp_path / "m.gguf", gguf_model("llama"), kind="llama", extra=extra)
    with pytest.raises(CheckpointError, match=expected):
        open_decoder(Checkpoint.open(file), dtype=torch.float32)


def test_a_file_that_lacks_a_tensor_names_it(tmp_path: Path) -> None:
    model = gguf_model("llama")
    file = write_gguf(tmp_path / "m.gguf", model, kind="llama", without="blk.1.attn_k.weight")
    with pytest.raises(CheckpointError, match=r"lacks the tensor 'model\.layers\.1\.self_attn\.k_proj\.weight'"):
        ModelFiles.open(file)
