"""States of recurrent layers among what is kept of texts: each in a file of its own, beside the blocks of tokens.

No token can be taken out of a state, so that a text that is opened again goes on where one was kept: where a prompt
ended, and every so many tokens behind it. That is hardly ever where a block of tokens ends. A file holds the states of
all layers, and what attention keeps of the tokens behind the last whole block.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from runtime.engine.prefix_block import BlockForm
from runtime.model.tree_cache import TreeCache

STATE_TOKENS = 2048
"""Behind a state that is kept, the next one is. One of Qwen3.5-27B takes 154 MB, keys and values of so many 134."""


@dataclass(frozen=True, slots=True)
class StateForm:
    """What the files of a model's states are like."""

    file: BlockForm
    """Of one file; its tokens are a block's."""
    rows_bytes: int
    """Of these tokens, all of which have room in each file."""

    @classmethod
    def of(cls, model: Mapping[str, object], blocks: BlockForm, state_bytes: Sequence[int]) -> "StateForm | None":
        """Return the form beside a model's `blocks`; None where no layer keeps a state."""
        if not state_bytes:
            return None
        parts = [*blocks.parts, *((f"state {index}", size) for index, size in enumerate(state_bytes))]
        file = BlockForm.of({**model, "keeps": "states"}, num_tokens=blocks.num_tokens, parts=parts)
        return cls(file, blocks.num_bytes)

    def names(self, text: Sequence[int], blocks: Sequence[str], *, first: int = 1) -> Iterator[tuple[int, str]]:
        """Yield how many tokens a state may hold, from `first` on, up to the whole text, and its file's name then.

        `blocks` are the names of the text's blocks, all that are whole.
        """
        size = self.file.num_tokens
        for start in range(first // size * size, len(text) + 1, size):
            before = blocks[start // size - 1] if start else ""
            digest = hashlib.sha256((self.file.identity + before).encode())
            for num_tokens in range(start, min(start + size, len(text) + 1)):
                if num_tokens > start:
                    digest.update(int(text[num_tokens - 1]).to_bytes(8, "little"))
                if num_tokens >= first:
                    yield num_tokens, digest.hexdigest()

    def fill(self, cache: TreeCache, num_tokens: int, lane: int, content: npt.NDArray[np.uint8]) -> None:
        """Copy a lane's mark of so many tokens, and the rows of those behind the last whole block."""
        whole = num_tokens // self.file.num_tokens * self.file.num_tokens
        content[: self.rows_bytes] = 0
        into = torch.from_numpy(content)
        if num_tokens > whole:
            cache.take_rows(whole, num_tokens - whole, into, lane=lane)
        cache.take_states(num_tokens, into[self.rows_bytes :], lane=lane)
