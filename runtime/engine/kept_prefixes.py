"""What models have computed of texts: taken from the store before a prompt is read, and given to it behind its passes.

Both models of a session keep blocks of tokens of their own. A prompt's blocks that no lane of the caches holds are read
before its first pass, as far as reading them takes less time than computing them. Between two passes whole blocks are
copied, and written meanwhile. A text after that is the text without: what is read are the very bytes that were kept.
"""

import logging
import time
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
from runtime.engine.kept_states import STATE_TOKENS, StateForm
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
_BETWEEN_BLOCKS_NS = 1000
_SPOKEN_TOKENS = 4096
"""What is measured is kept for a prompt of so many."""
Seconds = Callable[[int], float | None]
"""What computing so many last tokens of a prompt takes; None where nobody knows."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """How far a prompt is before its first pass."""

    num_held: int
    """Tokens that the target has of it; on the way to a state those, too, that count once that is read."""
    num_coming: int
    """Tokens that the target will have of it before that pass."""
    seconds: float = 0.0
    """What reading the rest of these takes; 0 where nobody knows."""


@dataclass(frozen=True, slots=True)
class _Forms:
    """What is kept of a model."""

    blocks: BlockForm
    states: StateForm | None
    """None where all layers attend."""


@dataclass(slots=True, eq=False)
class KeptModel:
    """A model, and the blocks that are kept of it."""

    model: StreamedModel
    describe: Callable[[], Mapping[str, object]]
    """Gives, in JSON's types, all that its keys and values depend on but the tokens; called once, by another thread."""
    restore: Callable[..., None]
    """`StreamedModel.restore`, or what does it for whoever follows the texts with the model."""

    count: Callable[..., None]
    """Notes for whoever follows the texts with the model that a lane holds so many tokens."""

    def forms(self, num_tokens: int) -> _Forms | None:
        """Return what its files are like; None where nobody knows yet what it keeps of a token."""
        row_bytes = self.model.row_bytes
        if row_bytes is None:
            return None
        parts = [(f"layer {index}", num_tokens * size) for index, size in enumerate(row_bytes)]
        model = {**self.describe(), "transformers": transformers.__version__}
        blocks = BlockForm.of(model, num_tokens=num_tokens, parts=parts)
        return _Forms(blocks, StateForm.of(model, blocks, self.model.state_bytes))

    def restore_states(self, num_tokens: int, lane: int, states: StateForm, content: npt.NDArray[np.uint8]) -> None:
        """Let a lane, which holds the blocks before, hold so many tokens out of a file of states."""
        whole = num_tokens // states.file.num_tokens * states.file.num_tokens
        rows = torch.from_numpy(content)
        if num_tokens > whole:
            self.model.restore(whole, num_tokens - whole, rows, lane=lane)
        self.model.restore_states(num_tokens, rows[states.rows_bytes :], lane=lane)
        self.count(num_tokens, lane=lane)

    def fill(self, start: int, num_tokens: int, lane: int, content: npt.NDArray[np.uint8]) -> None:
        """Copy what the model holds of a lane's tokens."""
        self.model.cache.take_rows(start, num_tokens, torch.from_numpy(content), lane=lane)


@dataclass(slots=True)
class _LaneText:
    """The text of a lane, as one model's blocks."""

    names: list[str] = field(default_factory=list)
    num_offered: int = 0
    """Blocks, the first ones, that have gone to the store or were there."""
    begun_ns: int = field(default_factory=time.time_ns)
    num_prompt: int = 0
    state_tokens: int = 0
    """Of the last state that has gone there."""
    is_prompt_kept: bool = False
    """Whether the last state of the prompt has."""

    def block_used_ns(self, number: int) -> int:
        """Return when a block counts as used: the earlier the further behind, since what goes first is the end."""
        return self.begun_ns - _BETWEEN_BLOCKS_NS * number

    def state_used_ns(self, num_blocks: int) -> int:
        """Return when a state does that stands on so many blocks: before them, since without the last it is worthless.

        The block behind them, which is worthless without the next state, goes earlier still.
        """
        return self.block_used_ns(num_blocks) + _BETWEEN_BLOCKS_NS // 2


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
        """`is_shared_only`: keep only what two texts begin with, for files of prompts, of which most are read once.

        Of a model with states, which are hardly ever where two texts part, that is nothing.
        """
        self.store = store
        self.num_brought_tokens = 0
        """Of prompts, that the target did not have to compute."""
        self._drafter, self._prefill = drafter, prefill
        self._is_shared_only = is_shared_only
        self._models = [KeptModel(target, describe_target, target.restore, _ignore)]
        if drafter is not None:
            self._models.append(KeptModel(drafter.model, describe_draft, drafter.restore, drafter.count_restored))
        self._begun: set[int] = set()
        self._texts: dict[tuple[int, int], _LaneText] = {}
        self._seen: set[str] = set()
        executor = ThreadPoolExecutor(1, thread_name_prefix="prefix-names")  # it reads samples of the weights
        self._forms: Future[list[_Forms | None]] = executor.submit(
            lambda: [model.forms(block_tokens) for model in self._models]
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
            if seconds and (forms := self._form(side)) is not None:
                self.store.remember(forms.blocks, seconds / _SPOKEN_TOKENS)

    def begin(self, sequence: TokenSequence) -> None:
        """Note that a lane has another text."""
        self._begun.add(sequence.lane)
        for side in range(len(self._models)):
            self._texts[sequence.lane, side] = _LaneText(num_prompt=len(sequence.text))

    def bring(self, sequence: TokenSequence, costs: RoundCosts | None) -> Generator[Outlook, None, None]:
        """Read what the store holds of a text that has begun behind what its lane holds, block by block.

        Yield how far it is behind each; closed there, the text and both caches agree. `costs` of rounds, for what
        nobody has measured.
        """
        if sequence.lane not in self._begun:
            return
        lane, text = sequence.lane, sequence.text
        self._begun.discard(lane)
        for side, model in enumerate(self._models):
            forms = self._form(side)
            if forms is None:
                continue
            form, seconds = forms.blocks, self._seconds(side, forms.blocks, costs)
            if forms.states is not None:
                yield from self._bring_state(side, forms.states, form, sequence, seconds)
                continue
            with closing(self._blocks(form, text, self._num_held(side, sequence), seconds)) as blocks:
                for start, content, num_left in blocks:
                    model.restore(start, form.num_tokens, torch.from_numpy(content), lane=lane)
                    end = start + form.num_tokens
                    if side == 0:
                        self._count_brought(sequence, end)
                    yield self._behind(
                        side, sequence, end, end + num_left * form.num_tokens, num_left * form.file_bytes
                    )

    def _behind(self, side: int, sequence: TokenSequence, num_held: int, num_coming: int, num_bytes: int) -> Outlook:
        """Return the outlook behind a model's block, where so many bytes are still to be read."""
        if side:
            return Outlook(sequence.num_committed, sequence.num_committed)
        return Outlook(num_held, num_coming, self._reading_seconds(num_bytes))

    def _reading_seconds(self, num_bytes: int) -> float:
        rate = self.store.bytes_per_second
        return num_bytes / rate if rate else 0.0

    def _count_brought(self, sequence: TokenSequence, num_tokens: int) -> None:
        """Note that the target holds so many tokens of a text."""
        num_more = num_tokens - sequence.num_committed
        self.num_brought_tokens += num_more
        sequence.num_cached += num_more
        sequence.num_committed += num_more

    def _bring_state(
        self, side: int, states: StateForm, form: BlockForm, sequence: TokenSequence, seconds: Seconds
    ) -> Generator[Outlook, None, None]:
        """Read the last state of a text that is sound, and the blocks before it, which count only with it."""
        model, lane, text = self._models[side], sequence.lane, sequence.text
        names = form.names(text[:-1])
        num_held = self._num_held(side, sequence)
        for num_tokens, name in self._states_of(states, form, text, names, num_held, seconds):
            with closing(self.store.read(states.file, [name])) as files:
                content = next(files, None)
            if content is None:
                continue
            first, last = num_held // form.num_tokens, num_tokens // form.num_tokens
            number = first
            try:
                with closing(self.store.read(form, names[first:last])) as blocks:
                    for number, block in enumerate(blocks, first + 1):
                        end = number * form.num_tokens
                        model.model.restore(end - form.num_tokens, form.num_tokens, torch.from_numpy(block), lane=lane)
                        yield self._behind(side, sequence, end, num_tokens, (last - number) * form.file_bytes)
                if number == last:
                    model.restore_states(num_tokens, lane, states, content)
                    used_ns = self._texts[lane, side].state_used_ns(last)
                    self.store.note_used(states.file, name, used_ns)
                    if side == 0:
                        self._count_brought(sequence, num_tokens)
                    return
            finally:  # where blocks are missing, or somebody has stopped: as it was
                model.model.cache.truncate(self._num_held(side, sequence), lane=lane)

    def _states_of(
        self,
        states: StateForm,
        form: BlockForm,
        text: Sequence[int],
        names: Sequence[str],
        num_held: int,
        seconds: Seconds,
    ) -> list[tuple[int, str]]:
        """Return the states that are there and pay, the longest first: how many tokens each holds, and its name."""
        there = self.store.names(states.file)
        if not there:
            return []
        _, last = self._wanted(form, names, num_held)
        end = min(len(text), (last + 1) * form.num_tokens) - 1
        found = [each for each in states.names(text[:end], names, first=num_held + 1) if each[1] in there]
        return [each for each in reversed(found) if self._state_pays(states, form, text, num_held, each[0], seconds)]

    def _state_pays(
        self, states: StateForm, form: BlockForm, text: Sequence[int], num_held: int, num_tokens: int, seconds: Seconds
    ) -> bool:
        computing, rest = seconds(len(text) - num_held), seconds(len(text) - num_tokens)
        rate = self.store.bytes_per_second
        if computing is None or rest is None or rate is None:
            return True
        return self._state_bytes(states, form, num_held, num_tokens) / rate < computing - rest

    def _state_bytes(self, states: StateForm, form: BlockForm, num_held: int, num_tokens: int) -> int:
        num_blocks = num_tokens // form.num_tokens - num_held // form.num_tokens
        return states.file.file_bytes + num_blocks * form.file_bytes

    def outlook(self, prompt: Sequence[int], num_held: int, costs: RoundCosts | None) -> Outlook:
        """Return how much of a prompt will be read behind what a lane holds."""
        forms = self._form(0)
        if forms is None:
            return Outlook(num_held, num_held)
        form, states = forms.blocks, forms.states
        names, seconds = form.names(prompt[:-1]), self._seconds(0, forms.blocks, costs)
        if states is not None:
            found = self._states_of(states, form, prompt, names, num_held, seconds)
            num_tokens = found[0][0] if found else num_held
            num_bytes = self._state_bytes(states, form, num_held, num_tokens) if found else 0
            return Outlook(num_held, num_tokens, self._reading_seconds(num_bytes))
        first, last = self._wanted(form, names, num_held)
        if not self._pays(form, len(prompt), num_held, last, seconds):
            return Outlook(num_held, num_held)
        num_bytes = (last - first) * form.file_bytes
        return Outlook(num_held, max(num_held, last * form.num_tokens), self._reading_seconds(num_bytes))

    def keep(self, sequence: TokenSequence) -> None:
        """Give the store the blocks that a lane holds now, as many as it takes; between two passes."""
        for side, model in enumerate(self._models):
            text = self._texts.get((sequence.lane, side))
            forms = None if text is None else self._form(side)
            if text is None or forms is None:
                continue
            if forms.states is not None and (self._is_shared_only or not model.model.cache.has_marks):
                continue  # no state will be kept, without which blocks are worthless
            form = forms.blocks
            num_tokens, num_held = form.num_tokens, self._num_held(side, sequence)
            if text.num_offered < num_held // num_tokens:
                text.names = form.names(sequence.text[:num_held], known=text.names[: num_held // num_tokens])
            while text.num_offered < num_held // num_tokens:
                name, start = text.names[text.num_offered], text.num_offered * num_tokens
                fill = partial(model.fill, start, num_tokens, sequence.lane)
                if self._is_shared_only and name not in self._seen:
                    self._seen.add(name)
                elif not self.store.offer(form, name, fill, used_ns=text.block_used_ns(text.num_offered)):
                    break
                text.num_offered += 1
            if forms.states is not None:
                self._keep_state(model, forms.states, text, sequence, num_held)

    def _keep_state(
        self, model: KeptModel, states: StateForm, text: _LaneText, sequence: TokenSequence, num_held: int
    ) -> None:
        """Give the store a lane's last mark, if a prompt ends there or the one before is far."""
        cache, lane = model.model.cache, sequence.lane
        num_tokens, is_read = cache.last_mark(lane=lane), num_held >= text.num_prompt - 1
        is_wanted = num_tokens - text.state_tokens >= STATE_TOKENS or (is_read and not text.is_prompt_kept)
        num_blocks = num_tokens // states.file.num_tokens
        if not is_wanted or num_tokens <= text.state_tokens or num_blocks > text.num_offered:
            return
        *_, (_, name) = states.names(sequence.text[:num_tokens], text.names, first=num_tokens)
        fill = partial(states.fill, cache, num_tokens, lane)
        if self.store.offer(states.file, name, fill, used_ns=text.state_used_ns(num_blocks)):
            text.state_tokens = num_tokens
            text.is_prompt_kept = text.is_prompt_kept or is_read

    def _form(self, side: int) -> _Forms | None:
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
    ) -> Generator[tuple[int, npt.NDArray[np.uint8], int], None, None]:
        """Yield each block's first token, what it holds, and how many follow: behind what is held, while it pays."""
        names = form.names(text[:-1])
        first, last = self._wanted(form, names, num_held)
        if not self._pays(form, len(text), num_held, last, seconds):
            return
        with closing(self.store.read(form, names[first:last])) as blocks:
            for number, content in enumerate(blocks, first):
                yield number * form.num_tokens, content, last - number - 1
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


def _ignore(_: int, *, lane: int) -> None:
    """Note nothing: of the target's texts the engine knows itself what is held."""
