"""What models have computed of texts: taken from the store before a prompt is read, and given to it behind its passes.

Both models of a session keep blocks of tokens of their own. A prompt's blocks that no lane of the caches holds are read
before its first pass, as far as reading them takes less time than computing them. Between two passes whole blocks are
copied, and written meanwhile. A text after that is the text without: what is read are the very bytes that were kept.
"""

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
import transformers

from profiles.errors import OverstoryError
from runtime.engine.drafter import Drafter
from runtime.engine.prefix_block import BlockForm
from runtime.engine.prefix_store import PrefixStore
from runtime.engine.token_sequence import TokenSequence
from runtime.model.streamed_model import StreamedModel
from runtime.planner.costs import RoundCosts
from runtime.planner.prefill import PrefillPlanner

logger = logging.getLogger(__name__)

BLOCK_TOKENS = 256
"""Of a block: a slice of a prompt on a processor, so that what is computed behind it has the bits that it had before.

What is left of a prompt, a block at most, goes through the pass that carries the first tree: shorter blocks spare no
pass. One takes 15 MB of a 1.5B model in float32, and 84 MB of a 70B model in bfloat16.
"""
_SPOKEN_TOKENS = 4096
"""What is measured is kept for a prompt of so many."""
Seconds = Callable[[int], float | None]
"""What computing so many last tokens of a prompt takes; None where nobody knows."""


@dataclass(slots=True, eq=False)
class KeptModel:
    """A model, and the blocks that are kept of it."""

    model: StreamedModel
    describe: Callable[[], Mapping[str, object]]
    """Gives, in JSON's types, all that its keys and values depend on but the tokens; called once, by another thread."""
    restore: Callable[..., None]
    """`StreamedModel.restore`, or what does it for whoever follows the texts with the model."""

    def form(self, num_tokens: int) -> BlockForm | None:
        """Return what its blocks are like; None where nobody knows yet what it keeps of a token."""
        row_bytes = self.model.row_bytes
        if row_bytes is None:
            return None
        parts = [(f"layer {index}", num_tokens * size) for index, size in enumerate(row_bytes)]
        model = {**self.describe(), "transformers": transformers.__version__}
        return BlockForm.of(model, num_tokens=num_tokens, parts=parts)

    def fill(self, start: int, num_tokens: int, lane: int, content: npt.NDArray[np.uint8]) -> None:
        """Copy what the model holds of a lane's tokens."""
        self.model.cache.take_rows(start, num_tokens, torch.from_numpy(content), lane=lane)


@dataclass(slots=True)
class _LaneText:
    """The text of a lane, as one model's blocks."""

    names: list[str] = field(default_factory=list)
    num_offered: int = 0
    """Blocks, the first ones, that have gone to the store or were there."""


class KeptPrefixes:
    """The store of a session: driven between its passes, by the thread that runs them."""

    def __init__(
        self,
        store: PrefixStore,
        target: StreamedModel,
        drafter: Drafter | None,
        prefill: PrefillPlanner,
        *,
        describe_target: Callable[[], Mapping[str, object]],
        describe_draft: Callable[[], Mapping[str, object]] = dict,
        is_shared_only: bool = False,
        block_tokens: int = BLOCK_TOKENS,
    ) -> None:
        """`is_shared_only`: keep only what two texts begin with, for files of prompts, of which most are read once."""
        self.store = store
        self.num_brought_tokens = 0
        """Of prompts, that the target did not have to compute."""
        self._drafter, self._prefill = drafter, prefill
        self._is_shared_only = is_shared_only
        self._models = [KeptModel(target, describe_target, target.restore)]
        if drafter is not None:
            self._models.append(KeptModel(drafter.model, describe_draft, drafter.restore))
        self._begun: set[int] = set()
        self._texts: dict[tuple[int, int], _LaneText] = {}
        self._seen: set[str] = set()
        executor = ThreadPoolExecutor(1, thread_name_prefix="prefix-names")  # it reads samples of the weights
        self._forms: Future[list[BlockForm | None]] = executor.submit(
            lambda: [model.form(block_tokens) for model in self._models]
        )
        executor.shutdown(wait=False)
        self._recalled: dict[str, float | None] = {}

    def __enter__(self) -> "KeptPrefixes":
        return self

    def __exit__(self, *exception: object) -> None:
        """Write what waits, and keep how fast tokens were computed here."""
        self.store.close()
        measured = (self._prefill.pass_seconds(_SPOKEN_TOKENS, None), self._prefill.reading_seconds(_SPOKEN_TOKENS))
        for side, seconds in enumerate(measured[: len(self._models)]):
            if seconds and (form := self._form(side)) is not None:
                self.store.remember(form, seconds / _SPOKEN_TOKENS)

    def begin(self, sequence: TokenSequence) -> None:
        """Note that a lane has another text."""
        self._begun.add(sequence.lane)
        for side in range(len(self._models)):
            self._texts[sequence.lane, side] = _LaneText()

    def bring(self, sequence: TokenSequence, costs: RoundCosts | None) -> Generator[None, None, None]:
        """Read what the store holds of a text that has begun behind what its lane holds, block by block.

        The text and both caches agree at every yield. `costs` of rounds, for what nobody has measured.
        """
        if sequence.lane not in self._begun:
            return
        lane, text = sequence.lane, sequence.text
        self._begun.discard(lane)
        for side, model in enumerate(self._models):
            form = self._form(side)
            if form is None:
                continue
            seconds = self._seconds(side, form, costs)
            with closing(self._blocks(form, text, self._num_held(side, sequence), seconds)) as blocks:
                for start, content in blocks:
                    model.restore(start, form.num_tokens, torch.from_numpy(content), lane=lane)
                    if side == 0:
                        num_more = start + form.num_tokens - sequence.num_committed
                        self.num_brought_tokens += num_more
                        sequence.num_cached += num_more
                        sequence.num_committed += num_more
                    yield

    def outlook(self, prompt: Sequence[int], num_held: int, costs: RoundCosts | None) -> tuple[int, float]:
        """Return how much of a prompt the target will hold before its first pass, and the seconds of reading it."""
        form = self._form(0)
        if form is None:
            return num_held, 0.0
        first, last = self._wanted(form, form.names(prompt[:-1]), num_held)
        if not self._pays(form, len(prompt), num_held, last, self._seconds(0, form, costs)):
            return num_held, 0.0
        rate = self.store.bytes_per_second
        return max(num_held, last * form.num_tokens), (last - first) * form.file_bytes / rate if rate else 0.0

    def keep(self, sequence: TokenSequence) -> None:
        """Give the store the blocks that a lane holds now, as many as it takes; between two passes."""
        for side, model in enumerate(self._models):
            text = self._texts.get((sequence.lane, side))
            form = None if text is None else self._form(side)
            if text is None or form is None:
                continue
            num_tokens, num_held = form.num_tokens, self._num_held(side, sequence)
            if text.num_offered < num_held // num_tokens:
                text.names = form.names(sequence.text[:num_held], known=text.names[: num_held // num_tokens])
            while text.num_offered < num_held // num_tokens:
                name, start = text.names[text.num_offered], text.num_offered * num_tokens
                fill = partial(model.fill, start, num_tokens, sequence.lane)
                if self._is_shared_only and name not in self._seen:
                    self._seen.add(name)
                elif not self.store.offer(form, name, fill):
                    break
                text.num_offered += 1

    def _form(self, side: int) -> BlockForm | None:
        try:
            return self._forms.result()[side]
        except (OverstoryError, OSError) as error:  # of files that have changed since they were loaded
            logger.debug("no prefixes are kept: %s", error)
            return None

    def _seconds(self, side: int, form: BlockForm, costs: RoundCosts | None) -> Seconds:
        """Return how long a model takes for tokens: as known in this session, else as measured in an earlier one."""
        known: Seconds = self._prefill.reading_seconds if side else partial(self._prefill.pass_seconds, costs=costs)
        if known(_SPOKEN_TOKENS) is not None:
            return known
        if form.identity not in self._recalled:
            self._recalled[form.identity] = self.store.recall(form)
        token_seconds = self._recalled[form.identity]
        return known if token_seconds is None else lambda num_tokens: num_tokens * token_seconds

    def _num_held(self, side: int, sequence: TokenSequence) -> int:
        if side == 0:
            return sequence.num_committed
        assert self._drafter is not None
        return min(self._drafter.num_committed_in(sequence.lane), len(sequence.text) - 1)

    def _blocks(
        self, form: BlockForm, text: Sequence[int], num_held: int, seconds: Seconds
    ) -> Generator[tuple[int, npt.NDArray[np.uint8]], None, None]:
        """Yield the first token of each block behind what is held, and what it holds, while reading pays."""
        names = form.names(text[:-1])
        first, last = self._wanted(form, names, num_held)
        if not self._pays(form, len(text), num_held, last, seconds):
            return
        with closing(self.store.read(form, names[first:last])) as blocks:
            for number, content in enumerate(blocks, first):
                yield number * form.num_tokens, content
                if not self._pays(form, len(text), (number + 1) * form.num_tokens, last, seconds):
                    return

    def _wanted(self, form: BlockForm, names: Sequence[str], num_held: int) -> tuple[int, int]:
        """Return the first block that is not held whole, and the one behind the last that can be read."""
        first = num_held // form.num_tokens
        return first, first + self.store.count(form, names[first:])

    def _pays(self, form: BlockForm, num_text: int, num_held: int, last: int, seconds: Seconds) -> bool:
        """Return whether reading up to a block takes less time than computing; as long as nobody knows, yes."""
        end, rate = last * form.num_tokens, self.store.bytes_per_second
        if end <= num_held:
            return False
        computing, rest = seconds(num_text - num_held), seconds(num_text - end)
        if computing is None or rest is None or rate is None:
            return True
        num_blocks = last - num_held // form.num_tokens
        return num_blocks * form.file_bytes / rate < computing - rest
