"""Logit rows of a verified tree, computed only for the nodes that the verifier visits.

The head of a large vocabulary costs more than a decoder layer, and a walk visits about as many nodes as it accepts.
The first row asked for brings those of its likeliest descendants along (first child of first child, ...), since one
product over several rows costs little more than over one. Knows nothing of verification rules.
"""

import numpy as np
import numpy.typing as npt
import torch

from runtime.model.streamed_model import StreamedModel
from runtime.speculation.token_tree import TreeTopology


class LazyLogits:
    """Rows (V,) float32 by node; each node's row is computed at most once."""

    def __init__(self, model: StreamedModel, hidden: torch.Tensor, topology: TreeTopology) -> None:
        """`hidden` (N, E): last hidden states of the tree's nodes."""
        self._model = model
        self._hidden = hidden
        self._topology = topology
        self._rows: dict[int, npt.NDArray[np.float32]] = {}

    @property
    def num_computed(self) -> int:
        """Rows that the head has computed so far."""
        return len(self._rows)

    def row(self, node: int) -> npt.NDArray[np.float32]:
        """The target's logits after `node`."""
        if node not in self._rows:
            nodes = self._first_descent(node)
            logits = self._model.logits(self._hidden[nodes]).numpy(force=True)
            self._rows.update(zip(nodes, logits, strict=True))
        return self._rows[node]

    def _first_descent(self, node: int) -> list[int]:
        nodes = [node]
        while children := self._topology.children(nodes[-1]):
            nodes.append(children[0])
        return nodes
