"""One conversation: chat template, prefix reuse, where an answer ends, text as it comes.

Turns a `PromptRequest` into token ids, drives the engine, and ends the answer exactly where plain decoding would: at
an end token, a stop string, the token limit or the context's end, also in the middle of an accepted path.
"""

import threading
import time
from collections.abc import Generator, Sequence

import numpy as np

from offload.errors import PassCancelledError
from runtime.engine.engine import Engine
from runtime.errors import OptionError, PromptTooLongError
from runtime.events import Event, Finished, FinishReason, GenerationStatistics, PrefillProgress, Round, TextDelta
from runtime.model.generation_config import GenerationConfig
from runtime.model.streamed_model import StreamedModel
from runtime.prompts.prompt_file import PromptRequest
from runtime.tokenizer.box import BoxedAnswer, Tokenizer


class Session:
    """Answers requests one after another; what two prompts have in common stays in the caches."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        end_token_ids: Sequence[int],
        generation: GenerationConfig | None = None,
    ) -> None:
        """`generation`: the model's own generation settings, which hold where nobody chose; None: there are none."""
        self.engine = engine
        self.end_token_ids = frozenset(end_token_ids)
        self.generation = generation or GenerationConfig()
        self._tokenizer = tokenizer
        self._is_stopped = threading.Event()

    @property
    def has_chat_template(self) -> bool:
        """Whether requests may hold messages; a raw prompt is always possible."""
        return self._tokenizer.has_chat_template

    def format_prompt(self, request: PromptRequest) -> list[int]:
        """Return the request's token ids, chat template applied unless it is raw.

        Raises OptionError if that fails, if the tokenizer has given an id that the model has no row for, or one that
        stands for an image.
        """
        prompt = format_prompt(self._tokenizer, request)
        if others := self.engine.target.parts.other_token_ids.intersection(prompt):
            first = min(others)
            raise OptionError(
                f"the prompt holds the token {self._tokenizer.name(first)}, id {first}, in whose place the model "
                "wants an image, a video or sound, and only text is answered; leave it out"
            )
        if (largest := max(prompt)) >= (vocab_size := self.engine.target.vocab_size):
            raise OptionError(
                f"the prompt holds the token {self._tokenizer.name(largest)}, id {largest}, and the "
                f"model has none beyond {vocab_size - 1}; leave it out"
            )
        return prompt

    def prefill_start(self, request: PromptRequest) -> PrefillProgress:
        """Return where the request's prefill will begin: behind what the target's cache holds of its prompt already."""
        prompt = self.format_prompt(request)
        return self._prefill_start(prompt)

    def _prefill_start(self, prompt: Sequence[int]) -> PrefillProgress:
        num_cached = min(self.engine.num_committed, self.engine.num_shared(prompt))
        return self.engine.prefill_progress(num_cached, len(prompt))

    def stop(self) -> None:
        """End the answer under way after the layer that computes now; it is `Finished` as stopped. From any thread."""
        self._is_stopped.set()
        for model in self._models:
            model.cancel()

    def generate(self, request: PromptRequest) -> Generator[Event, None, None]:
        """Answer one request; the last event is Finished. Closing early leaves the session ready for the next.

        Raises PromptTooLongError, where the events begin, if the context has no room for an answer.
        """
        self._is_stopped.clear()
        for model in self._models:
            model.allow()
        return self._events(request)

    @property
    def _models(self) -> list[StreamedModel]:
        drafter = self.engine.drafter
        return [self.engine.target] if drafter is None else [self.engine.target, drafter.model]

    def _events(self, request: PromptRequest) -> Generator[Event, None, None]:
        engine = self.engine
        prompt = self._prompt_with_room(request)
        choices = self.generation.choices(
            request.params, request.unchosen, num_prompt_tokens=len(prompt), end_token_ids=self.end_token_ids
        )
        params = choices.params
        text = self._tokenizer.begin_answer(params.stop, behind=prompt[-4:] if request.is_continued else ())
        answer = _Answer(text, self.end_token_ids, max_tokens=params.max_new_tokens)
        bytes_before, expected = engine.bytes_streamed, self._prefill_start(prompt).expected_seconds
        rounds = engine.generate(prompt, params, np.random.default_rng(params.seed), rules=choices.rules)
        try:
            for event in rounds:
                yield event
                if isinstance(event, Round) and (released := answer.add(event)):
                    yield TextDelta(released)
                if answer.finish_reason is None and self._is_stopped.is_set():
                    answer.finish_reason = "stopped"
                if answer.finish_reason is not None:
                    break
        except PassCancelledError:
            if not self._is_stopped.is_set():
                raise
            answer.finish_reason = "stopped"
        finally:
            rounds.close()
            engine.truncate(len(prompt) + len(text.token_ids))
        if released := text.finish():
            yield TextDelta(released)
        costs = answer.statistics(prompt_tokens=len(prompt), bytes_streamed=engine.bytes_streamed - bytes_before)
        yield Finished(
            answer.finish_reason or "context",
            text.text,
            costs,
            verification=params.scheme_name,
            generation=self.generation.choice,
            own_settings=choices.own,
            expected_prefill_seconds=expected,
        )

    def _prompt_with_room(self, request: PromptRequest) -> list[int]:
        prompt = self.format_prompt(request)
        if len(prompt) >= self.engine.context_tokens:
            raise PromptTooLongError(
                f"the prompt has {len(prompt)} tokens and the context holds {self.engine.context_tokens}, answer "
                "included; give a larger --context (the model's own limit is the most) or a shorter prompt"
            )
        return prompt


class _Answer:
    """An answer as it grows: its text, why it ends, and what its rounds cost; the first one ends the prefill."""

    def __init__(self, text: BoxedAnswer, end_token_ids: frozenset[int], *, max_tokens: int) -> None:
        self._text = text
        self._end_token_ids = end_token_ids
        self._max_tokens = max_tokens
        self._begun = time.perf_counter()
        self._prefill_seconds = 0.0
        self._rounds: list[Round] = []
        self._new_tokens = self._first_round_tokens = 0
        self.finish_reason: FinishReason | None = None

    def add(self, done: Round) -> str:
        """Add a round and what it emitted, up to the answer's end, and return the text that it releases."""
        self._rounds.append(done)
        if len(self._rounds) == 1:
            self._prefill_seconds = time.perf_counter() - self._begun
        num_before = len(self._text.token_ids)
        wanted, self.finish_reason = self._cut(done.token_ids, self._max_tokens - num_before)
        released = self._text.add(wanted)
        num_added = len(self._text.token_ids) - num_before
        if self._text.is_stopped:
            self.finish_reason = "stop"
        elif self.finish_reason == "stop":
            num_added += 1  # the end token
        self._new_tokens += num_added
        if len(self._rounds) == 1:
            self._first_round_tokens = num_added
        return released

    def _cut(self, token_ids: Sequence[int], room: int) -> tuple[list[int], FinishReason | None]:
        """Return the tokens before the first end token or the limit, and why no more follow (None if more may)."""
        wanted: list[int] = []
        for token_id in token_ids:
            if token_id in self._end_token_ids:
                return wanted, "stop"
            wanted.append(token_id)
            if len(wanted) == room:
                return wanted, "length"
        return wanted, None

    def statistics(self, *, prompt_tokens: int, bytes_streamed: int) -> GenerationStatistics:
        """Return the costs of the finished answer; one that was stopped in its first round is all prefill."""
        seconds = time.perf_counter() - self._begun
        prefill_seconds = self._prefill_seconds if self._rounds else seconds
        decoding = self._rounds[1:]
        return GenerationStatistics(
            prompt_tokens=prompt_tokens,
            new_tokens=self._new_tokens,
            rounds=len(self._rounds),
            prefill_seconds=prefill_seconds,
            decode_seconds=seconds - prefill_seconds,
            decode_tokens=self._new_tokens - self._first_round_tokens,
            draft_seconds=sum((done.draft_seconds for done in decoding), 0.0),
            verify_seconds=sum((done.verify_seconds for done in decoding), 0.0),
            bytes_streamed=bytes_streamed,
            link_busy_seconds=sum((done.pass_statistics.link_busy_seconds for done in decoding), 0.0),
            decode_bytes_streamed=sum(done.pass_statistics.link_bytes for done in decoding),
        )


def format_prompt(tokenizer: Tokenizer, request: PromptRequest) -> list[int]:
    """Return a request's token ids, at least one. Raises OptionError if the tokenizer or its template refuses it."""
    if request.token_ids is not None:
        return list(request.token_ids)
    if request.prompt is not None:
        return tokenizer.encode(request.prompt)
    assert request.messages is not None
    turns = [(message.role, message.content) for message in request.messages]
    return tokenizer.encode_conversation(turns, is_continued=request.is_continued)
