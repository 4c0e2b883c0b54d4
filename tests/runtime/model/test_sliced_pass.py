"""Passes that every layer computes slice by slice, against passes of their own for each slice."""

from pathlib import Path

import numpy as np
import pytest
import torch

from offload.errors import PassCancelledError
from runtime.engine.engine import verify_input
from runtime.engine.loading import OpenSession
from runtime.model.streamed_model import PassInput, chain_input
from runtime.planner.prefill import PassWidths
from runtime.speculation.token_tree import TokenTree
from tests.support.model_factory import MAIN_KINDS
from tests.support.reference_models import own_logits
from tests.support.session_factory import open_tiny, save_tiny_folder
from tests.support.trees import tree_of_counts

WIDTHS = PassWidths(slice_tokens=4, widest_tokens=12)
TEXT = [int(token) for token in np.random.default_rng(2).integers(3, 90, 43)]


def tree_on(text: list[int]) -> TokenTree:
    topology = tree_of_counts([3, 2, 1, 0, 1, 0, 0, 0])
    tree = TokenTree(topology, np.random.default_rng(1).integers(3, 90, topology.num_nodes))
    tree.token_ids[0] = text[-1]
    return tree


def with_widths(opened: OpenSession, widths: PassWidths | None = WIDTHS) -> OpenSession:
    opened.session.engine.target._widths = widths
    return opened


def test_slices_follow_one_another_and_each_has_room() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        num_text, num_nodes = int(rng.integers(1, 60)), int(rng.integers(1, 12))
        slice_tokens = int(rng.integers(1, 9))
        widths = PassWidths(slice_tokens, widest_tokens=slice_tokens + num_nodes - 1)
        num_tokens = num_text + num_nodes - 1
        bounds = widths.bounds(num_tokens, num_wanted=num_nodes)
        assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])]
        assert bounds[-1][1] == num_tokens
        assert all(0 < stop - start <= slice_tokens and stop <= num_text for start, stop in bounds[:-1])
        assert bounds[-1][1] - bounds[-1][0] <= widths.widest_tokens


def test_a_wide_tree_is_a_slice_of_its_own_where_it_leaves_no_room_for_text() -> None:
    assert PassWidths(8, 8).bounds(13, num_wanted=7) == [(0, 7), (7, 13)]
    assert PassWidths(8, 8).bounds(8, num_wanted=7) == [(0, 8)]


def test_a_pass_in_slices_has_the_bits_of_passes_of_their_own(tmp_path: Path) -> None:
    """As prompts were computed before, 4 tokens a pass; the ring is read once instead of ten times."""
    folder = save_tiny_folder(tmp_path / "model")
    tree = tree_on(TEXT)
    with open_tiny(folder, num_residents=1) as opened:
        target = with_widths(opened, None).session.engine.target
        for start in range(0, 40, 4):
            target.run_pass(chain_input(TEXT[start : start + 4], num_cached=start))
        expected = target.run_pass(verify_input(TEXT, tree, num_cached=40))[-tree.topology.num_nodes :]
        held = [(layer.keys.clone(), layer.values.clone()) for layer in target.cache.layers]
        target.cache.truncate(0)
        with_widths(opened)
        found = target.run_pass(verify_input(TEXT, tree, num_cached=0), num_wanted=tree.topology.num_nodes)
        assert torch.equal(found, expected)
        num_tokens = len(TEXT) + tree.topology.num_nodes - 1
        assert target.cache.num_cached == num_tokens
        for layer, (keys, values) in zip(target.cache.layers, held, strict=True):
            assert torch.equal(layer.keys[:, :, :num_tokens], keys[:, :, :num_tokens])
            assert torch.equal(layer.values[:, :, :num_tokens], values[:, :, :num_tokens])
        streamed = sum(source.payload_bytes for _, source in opened.streamer._sources)
        assert target.last_pass.bytes_streamed == streamed


KINDS = [*MAIN_KINDS, "gemma2", "olmo2", "granite", "starcoder2", "cohere2", "phi3", "smollm3"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_in_slices_has_the_logits_of_transformers(kind: str, tmp_path: Path) -> None:
    """A text longer than the sliding windows, behind a context, with a tree at its end."""
    folder = save_tiny_folder(tmp_path / kind, kind)
    tree = tree_on(TEXT)
    with open_tiny(folder, num_residents=0) as opened:
        target = with_widths(opened).session.engine.target
        target.run_pass(chain_input(TEXT[:21], num_cached=0), num_wanted=1)
        hidden = target.run_pass(verify_input(TEXT, tree, num_cached=21), num_wanted=tree.topology.num_nodes)
        logits = target.logits(hidden)
    for node in range(tree.topology.num_nodes):
        path = [*TEXT[:-1], *tree.path_token_ids(node).tolist()]
        torch.testing.assert_close(logits[node], own_logits(folder, path)[-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "phi"])
def test_an_architecture_that_shapes_its_result_like_the_ids_is_computed_at_once(kind: str, tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / kind, kind)
    with open_tiny(folder, num_residents=0) as opened:
        target = opened.session.engine.target
        assert not target.can_slice and opened.session.engine.prefill.most_tokens == 256
        last = target.logits(target.run_pass(chain_input(TEXT, num_cached=0), num_wanted=1))
    torch.testing.assert_close(last[0], own_logits(folder, TEXT)[-1], rtol=1e-5, atol=1e-5)


def test_only_wanted_rows_reach_the_norm(tmp_path: Path) -> None:
    with open_tiny(save_tiny_folder(tmp_path / "model"), num_residents=0) as opened:
        target = with_widths(opened).session.engine.target
        shapes = []
        norm = target.parts.model.get_submodule("model.norm")
        norm.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
        widest = []
        target.parts.layers[0].get_submodule("mlp").register_forward_pre_hook(
            lambda module, args: widest.append(args[0].shape[1])
        )
        target.run_pass(chain_input(TEXT, num_cached=0), num_wanted=1)
    assert shapes == [(1, 1, 32)]
    assert widest == [4] * 10 + [3]


def test_a_pass_is_cancelled_between_two_slices_of_a_layer(tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "model")
    with open_tiny(folder, num_residents=0) as opened:
        target = with_widths(opened).session.engine.target
        num_slices = []

        def count(*_: object) -> None:
            num_slices.append(1)
            if len(num_slices) == 3:
                target.cancel()

        hook = target.parts.layers[1].get_submodule("mlp").register_forward_hook(count)
        with pytest.raises(PassCancelledError, match="within a layer"):
            target.run_pass(chain_input(TEXT, num_cached=0), num_wanted=1)
        hook.remove()
        assert (len(num_slices), target.cache.num_cached) == (3, 0)
        target.allow()
        logits = target.logits(target.run_pass(chain_input(TEXT, num_cached=0), num_wanted=1))
    torch.testing.assert_close(logits[0], own_logits(folder, TEXT)[-1], rtol=1e-5, atol=1e-5)


def test_the_pass_after_one_that_failed_to_begin_is_as_wide_as_it_is(tmp_path: Path) -> None:
    with open_tiny(save_tiny_folder(tmp_path / "model"), num_residents=0) as opened:
        target = with_widths(opened).session.engine.target
        whole = chain_input(TEXT, num_cached=0)
        broken = PassInput(whole.token_ids - 1000, whole.positions, whole.key_positions, whole.sight)
        with pytest.raises(IndexError):
            target.run_pass(broken, num_wanted=1)
        hidden = target.run_pass(chain_input(TEXT[:3], num_cached=0))
    assert hidden.shape == (3, 32)
