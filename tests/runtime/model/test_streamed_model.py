"""Streamed passes against transformers' own forward, on every architecture the issue names."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from offload.errors import PassCancelledError
from runtime.engine.engine import verify_input
from runtime.model.pass_shapes import WALK_ROWS
from runtime.model.streamed_model import LazyLogits, chain_input
from runtime.speculation.token_tree import TokenTree
from tests.support.model_factory import MAIN_KINDS
from tests.support.reference_models import assert_tree_is_its_paths, own_logits
from tests.support.session_factory import open_tiny, save_tiny_folder
from tests.support.trees import tree_of_counts

TOKENS = [5, 17, 40, 8, 33, 62, 9, 71, 20, 14, 55, 31, 90, 12, 7, 66, 28, 43]


@pytest.mark.parametrize("kind", [*MAIN_KINDS, "gemma2", "gpt2", "olmo2", "granite", "starcoder2", "phi", "cohere"])
@pytest.mark.parametrize("num_residents", [0, 1])
def test_streamed_logits_equal_transformers_own(kind: str, num_residents: int, tmp_path: Path) -> None:
    """A sequence longer than the sliding windows, in three passes of different width."""
    folder = save_tiny_folder(tmp_path / kind, kind)
    with open_tiny(folder, num_residents=num_residents) as opened:
        target = opened.session.engine.target
        assert opened.streamer.num_streamed_layers == len(target.cache.layers) - num_residents
        hidden = [
            target.run_pass(chain_input(TOKENS[start:stop], num_cached=start))
            for start, stop in ((0, 11), (11, 12), (12, 18))
        ]
        logits = target.logits(torch.cat(hidden))
    torch.testing.assert_close(logits, own_logits(folder, TOKENS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", MAIN_KINDS)
def test_every_node_of_a_tree_has_the_logits_of_its_own_path(kind: str, tmp_path: Path) -> None:
    """One pass over a tree equals one sequential pass per path, positions and windows included."""
    folder = save_tiny_folder(tmp_path / kind, kind)
    with open_tiny(folder, num_residents=1) as opened:
        assert_tree_is_its_paths(opened.session.engine.target, folder, TOKENS, num_first=13)


def test_bfloat16_storage_gives_the_logits_of_the_widened_model(tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "model", dtype=torch.bfloat16)
    with open_tiny(folder, num_residents=0) as opened:
        target = opened.session.engine.target
        logits = target.logits(target.run_pass(chain_input(TOKENS, num_cached=0)))
    torch.testing.assert_close(logits, own_logits(folder, TOKENS), rtol=1e-5, atol=1e-5)


def test_a_cancelled_pass_leaves_cache_and_ring_as_they_were(tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "model")
    with open_tiny(folder, num_residents=0) as opened:
        target = opened.session.engine.target
        target.run_pass(chain_input(TOKENS[:4], num_cached=0))

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        hook = target.parts.layers[2].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            target.run_pass(chain_input(TOKENS[4:], num_cached=4))
        hook.remove()
        assert target.cache.num_cached == 4
        logits = target.logits(target.run_pass(chain_input(TOKENS[4:], num_cached=4)))
    torch.testing.assert_close(logits, own_logits(folder, TOKENS)[4:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_residents", [0, 2])
def test_a_cancelled_model_ends_its_pass_and_begins_none_until_it_may(num_residents: int, tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "model")
    with open_tiny(folder, num_residents=num_residents) as opened:
        target = opened.session.engine.target
        begun: list[int] = []
        for index, layer in enumerate(target.parts.layers):
            layer.register_forward_hook(lambda *_, index=index: begun.append(index))
        hook = target.parts.layers[1].register_forward_hook(lambda *_: target.cancel())
        with pytest.raises(PassCancelledError, match="before layer 2"):
            target.run_pass(chain_input(TOKENS, num_cached=0))
        hook.remove()
        with pytest.raises(PassCancelledError, match="before its first layer"):
            target.run_pass(chain_input(TOKENS, num_cached=0))
        assert (begun, target.cache.num_cached) == ([0, 1], 0)
        target.allow()
        logits = target.logits(target.run_pass(chain_input(TOKENS, num_cached=0)))
    torch.testing.assert_close(logits, own_logits(folder, TOKENS), rtol=1e-5, atol=1e-5)


def test_a_layer_cannot_compute_after_its_slot_was_released(tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "model")
    with open_tiny(folder, num_residents=0) as opened:
        target = opened.session.engine.target
        target.run_pass(chain_input(TOKENS, num_cached=0))
        mlp = target.parts.layers[0].get_submodule("mlp")
        with pytest.raises(AssertionError, match="released"):
            mlp(torch.zeros(1, 1, 32))


class CountingHead:
    """Logits are the hidden states doubled; remembers which rows were asked for in each product."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.batches.append(hidden[:, 0].tolist())
        return 2 * hidden


@pytest.fixture
def head() -> CountingHead:
    return CountingHead()


def lazy(head: CountingHead, child_counts: Sequence[int]) -> LazyLogits:
    topology = tree_of_counts(child_counts)
    hidden = torch.arange(topology.num_nodes, dtype=torch.float32)[:, None].expand(-1, 3)
    return LazyLogits(head, hidden, topology)  # type: ignore[arg-type]


def test_a_row_brings_its_first_descent_along_in_one_product(head: CountingHead) -> None:
    rows = lazy(head, [2, 2, 1, 0, 0, 0])
    assert rows.row(0).tolist() == [0, 0, 0]
    assert rows.row(1).tolist() == [2, 2, 2]
    assert rows.row(3).tolist() == [6, 6, 6]
    assert head.batches == [[0, 1, 3]]


def test_a_descent_of_a_deep_tree_comes_in_parts_of_as_many_rows_as_are_counted(head: CountingHead) -> None:
    rows = lazy(head, [*[1] * 99, 0])
    for node in range(100):
        assert rows.row(node).tolist() == [2 * node] * 3
    assert list(map(len, head.batches)) == [WALK_ROWS, 100 - WALK_ROWS]


def test_leaving_the_descent_computes_only_what_is_new(head: CountingHead) -> None:
    rows = lazy(head, [2, 2, 1, 0, 0, 0])
    rows.row(0)
    assert rows.row(2).tolist() == [4, 4, 4]
    assert rows.row(5).tolist() == [10, 10, 10]
    assert head.batches == [[0, 1, 3], [2, 5]]


def test_plain_decoding_computes_one_row(head: CountingHead) -> None:
    lazy(head, [0]).row(0)
    assert head.batches == [[0]]


@pytest.mark.parametrize("kind", [*MAIN_KINDS, "gemma2", "gpt2", "phi"])
def test_texts_of_one_pass_have_the_logits_of_each_alone(kind: str, tmp_path: Path) -> None:
    """A text, a tree behind a context, and a text with the first one's beginning; longer than the sliding windows."""
    folder = save_tiny_folder(tmp_path / kind, kind)
    tree = TokenTree(tree_of_counts([2, 1, 0, 0]), np.array([TOKENS[-1], 7, 8, 9]))
    other = [*TOKENS[:9], 3, 4, 5]
    with open_tiny(folder, num_residents=1, num_texts=3) as opened:
        target = opened.session.engine.target
        target.run_pass(replace(chain_input(TOKENS[:13], num_cached=0), lane=1))
        parts = [
            chain_input(TOKENS[:11], num_cached=0),
            replace(verify_input(TOKENS, tree, num_cached=13), lane=1),
            chain_input(other[9:], num_cached=9, lane=2, shared=(0, 9)),
        ]
        first, nodes, last = target.run_batch(parts, num_wanted=[11, 4, 1])
        counts = [target.cache.num_cached_in(lane) for lane in range(3)]
        logits = [target.logits(rows) for rows in (first, nodes, last)]
    assert counts == [11, 18 + 3, 12]
    torch.testing.assert_close(logits[0], own_logits(folder, TOKENS[:11]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits[2], own_logits(folder, other)[-1:], rtol=1e-5, atol=1e-5)
    for node in range(4):
        path = [*TOKENS[:-1], *tree.path_token_ids(node).tolist()]
        torch.testing.assert_close(logits[1][node], own_logits(folder, path)[-1], rtol=1e-5, atol=1e-5)


def test_no_text_is_multiplied_with_anothers_keys(tmp_path: Path) -> None:
    """Two texts of equal length have half of the products that one masked block would have."""
    folder = save_tiny_folder(tmp_path / "model")
    sizes = []
    real = torch.nn.functional.scaled_dot_product_attention

    def watch(query: torch.Tensor, key: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        sizes.append((query.shape[-2], key.shape[-2]))
        return real(query, key, *args, **options)

    with open_tiny(folder, num_texts=2) as opened, pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
        parts = [chain_input(TOKENS[:5], num_cached=0), chain_input(TOKENS[:7], num_cached=0, lane=1)]
        opened.session.engine.target.run_batch(parts)
    assert set(sizes) == {(5, 5), (7, 7)}


def test_a_pass_over_texts_that_fails_leaves_every_lane_as_it_was(tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "model")
    with open_tiny(folder, num_residents=0, num_texts=2) as opened:
        target = opened.session.engine.target
        target.run_pass(chain_input(TOKENS[:4], num_cached=0))

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        parts = [chain_input(TOKENS[4:6], num_cached=4), chain_input(TOKENS[3:], num_cached=3, lane=1, shared=(0, 3))]
        hook = target.parts.layers[2].register_forward_pre_hook(fail)
        with pytest.raises(ZeroDivisionError):
            target.run_batch(parts)
        hook.remove()
        assert [target.cache.num_cached_in(lane) for lane in range(2)] == [4, 0]
        rows = target.run_batch(parts, num_wanted=[1, 1])
        logits = target.logits(torch.cat(rows))
    torch.testing.assert_close(logits[1], own_logits(folder, TOKENS)[-1], rtol=1e-5, atol=1e-5)
