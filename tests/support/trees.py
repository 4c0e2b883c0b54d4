"""Trees written down by how many children each node has."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.speculation.token_tree import TreeTopology


def tree_of_counts(child_counts: Sequence[int] | NDArray[np.int64]) -> TreeTopology:
    """The tree whose nodes, breadth first, have these numbers of children."""
    counts = np.asarray(child_counts, dtype=np.int64)
    assert counts.sum() + 1 == len(counts), "every node but the root is a child"
    return TreeTopology(np.concatenate(([-1], np.repeat(np.arange(len(counts)), counts))))
