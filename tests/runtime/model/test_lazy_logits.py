from collections.abc import Sequence

import pytest
import torch

from runtime.model.lazy_logits import LazyLogits
from runtime.speculation.token_tree import TreeTopology


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
    topology = TreeTopology.from_child_counts(child_counts)
    hidden = torch.arange(topology.num_nodes, dtype=torch.float32)[:, None].expand(-1, 3)
    return LazyLogits(head, hidden, topology)  # type: ignore[arg-type]


def test_a_row_brings_its_first_descent_along_in_one_product(head: CountingHead) -> None:
    rows = lazy(head, [2, 2, 1, 0, 0, 0])
    assert rows.row(0).tolist() == [0, 0, 0]
    assert rows.row(1).tolist() == [2, 2, 2]
    assert rows.row(3).tolist() == [6, 6, 6]
    assert head.batches == [[0, 1, 3]]


def test_leaving_the_descent_computes_only_what_is_new(head: CountingHead) -> None:
    rows = lazy(head, [2, 2, 1, 0, 0, 0])
    rows.row(0)
    assert rows.row(2).tolist() == [4, 4, 4]
    assert rows.row(5).tolist() == [10, 10, 10]
    assert head.batches == [[0, 1, 3], [2, 5]]
    assert rows.num_computed == 5


def test_plain_decoding_computes_one_row(head: CountingHead) -> None:
    lazy(head, [0]).row(0)
    assert head.batches == [[0]]
