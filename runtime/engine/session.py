"""One conversation: chat template, prefix reuse, where an answer ends, text as it comes.

Turns a `PromptRequest` into token ids, drives the engine, and ends the answer exactly where plain decoding would: at
an end token, a stop string, the token limit or the context's end, also in the middle of an accepted path. Knows no
files and no terminal.
"""

import itertools
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import TemplateError

from offload.errors import PassCancelledError
from runtime.engine.detokenizer import DecoderBehind, IncrementalDetokenizer
from runtime.engine.engine import Engine
from runtime.errors import OptionError, PromptTooLongError
from runtime.events import (
    Event,
    Finished,
    FinishReason,
    GenerationStatistics,
    PrefillProgress,
    Round,
    TextDelta,
    TokensAccepted,
)
from runtime.model.streamed_model import StreamedModel
from runtime.prompts.prompt_file import PromptRequest


@dataclass(slots=True)
class _Tally:
    """Sums of one answer's rounds; the first round ends the prefill."""

    begun: float
    prefill_seconds: float = 0.0
    rounds: int = 0
    first_round_tokens: int = 0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    link_busy_seconds: float = 0.0
    new_tokens: int = 0
    decode_bytes_streamed: int = 0

    def add(self, done: Round) -> None:
        """Count one round."""
        self.rounds += 1
        if self.rounds == 1:
            self.prefill_seconds = time.perf_counter() - self.begun
            return
        self.draft_seconds += done.draft_seconds
        self.verify_seconds += done.verify_seconds
        self.link_busy_seconds += done.pass_statistics.link_busy_seconds
        self.decode_bytes_streamed += done.pass_statistics.bytes_streamed

    def add_tokens(self, num_tokens: int) -> None:
        """Count the tokens that a round added to the answer."""
        self.new_tokens += num_tokens
        if self.rounds == 1:
            self.first_round_tokens = num_tokens

    def statistics(self, *, prompt_tokens: int, bytes_streamed: int) -> GenerationStatistics:
        """The finished answer's statistics; one that was stopped in its first round is all prefill."""
        seconds = time.perf_counter() - self.begun
        prefill_seconds = self.prefill_seconds if self.rounds else seconds
        return GenerationStatistics(
            prompt_tokens=prompt_tokens,
            new_tokens=self.new_tokens,
            rounds=self.rounds,
            prefill_seconds=prefill_seconds,
            decode_seconds=seconds - prefill_seconds,
            decode_tokens=self.new_tokens - self.first_round_tokens,
            draft_seconds=self.draft_seconds,
            verify_seconds=self.verify_seconds,
            bytes_streamed=bytes_streamed,
            link_busy_seconds=self.link_busy_seconds,
            decode_bytes_streamed=self.decode_bytes_streamed,
        )


class Session:
    """Answers requests one after another; what two prompts have in common stays in the caches."""

    def __init__(self, engine: Engine, tokenizer: Any, *, end_token_ids: Sequence[int]) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._end_token_ids = frozenset(end_token_ids)
        self._is_stopped = threading.Event()

    @property
    def engine(self) -> Engine:
        """The round loop and its caches."""
        return self._engine

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Ids that end an answer."""
        return self._end_token_ids

    def format_prompt(self, request: PromptRequest) -> list[int]:
        """The request's token ids, chat template applied unless it is raw. Raises OptionError if that fails."""
        return format_prompt(self._tokenizer, request)

    def prefill_start(self, request: PromptRequest) -> PrefillProgress:
        """Where the request's prefill will begin: behind what the target's cache holds of its prompt already."""
        prompt = self.format_prompt(request)
        most = min(self._engine.num_committed, len(prompt) - 1)
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(self._engine.text[:most], prompt, strict=False))
        return PrefillProgress(num_done_tokens=sum(1 for _ in same), num_prompt_tokens=len(prompt))

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
        drafter = self._engine.drafter
        return [self._engine.target] if drafter is None else [self._engine.target, drafter.model]

    def _events(self, request: PromptRequest) -> Generator[Event, None, None]:
        prompt = self.format_prompt(request)
        if len(prompt) >= self._engine.context_tokens:
            raise PromptTooLongError(
                f"the prompt has {len(prompt)} tokens and the context holds {self._engine.context_tokens}, answer "
                "included; give a larger --context (the model's own limit is the most) or a shorter prompt"
            )
        tally = _Tally(begun=time.perf_counter())
        bytes_before = self._engine.bytes_streamed
        decoder = DecoderBehind(self._tokenizer, prompt[-4:]) if request.is_continued else self._tokenizer
        answer = IncrementalDetokenizer(decoder, request.params.stop)
        reason: FinishReason = "context"
        rounds = self._engine.generate(prompt, request.params, np.random.default_rng(request.params.seed))
        try:
            for event in rounds:
                yield event
                if isinstance(event, Round):
                    tally.add(event)
                    continue  # its tokens follow
                if isinstance(event, TokensAccepted):
                    wanted, ended = self._cut(event.token_ids, request.params.max_new_tokens - len(answer.token_ids))
                    num_before = len(answer.token_ids)
                    text = answer.add(wanted)
                    tally.add_tokens(len(answer.token_ids) - num_before + (ended == "stop" and not answer.is_stopped))
                    if text:
                        yield TextDelta(text)
                    if answer.is_stopped or ended:
                        reason = "stop" if answer.is_stopped else ended or reason
                        break
                if self._is_stopped.is_set():
                    reason = "stopped"
                    break
        except PassCancelledError:
            if not self._is_stopped.is_set():
                raise
            reason = "stopped"
        finally:
            rounds.close()
            self._engine.truncate(len(prompt) + len(answer.token_ids))
        if text := answer.finish():
            yield TextDelta(text)
        statistics = tally.statistics(
            prompt_tokens=len(prompt), bytes_streamed=self._engine.bytes_streamed - bytes_before
        )
        yield Finished(reason, answer.text, statistics, verification=request.params.scheme_name)

    def _cut(self, token_ids: Sequence[int], room: int) -> tuple[list[int], FinishReason | None]:
        """The tokens before the first end token or the limit, and why no more follow (None if more may)."""
        wanted: list[int] = []
        for token_id in token_ids:
            if token_id in self._end_token_ids:
                return wanted, "stop"
            wanted.append(token_id)
            if len(wanted) == room:
                return wanted, "length"
        return wanted, None


def format_prompt(tokenizer: Any, request: PromptRequest) -> list[int]:
    """Token ids of a request. Raises OptionError if the tokenizer has no chat template or the prompt is empty."""
    if request.prompt is not None:
        token_ids: list[int] = tokenizer(request.prompt)["input_ids"]
    else:
        token_ids = _format_conversation(tokenizer, request)
    if not token_ids:
        raise OptionError("the prompt holds no token; give it some text")
    return list(token_ids)


def _format_conversation(tokenizer: Any, request: PromptRequest) -> list[int]:
    """The chat template over the request's messages, open at the end for the answer."""
    assert request.messages is not None
    if not tokenizer.chat_template:
        raise OptionError("the target's tokenizer has no chat template; add --raw to send prompts as they are")
    conversation = [{"role": message.role, "content": message.content} for message in request.messages]
    is_continued = request.is_continued
    if is_continued and not conversation[-1]["content"].strip():
        del conversation[-1]  # nothing to write on from: the answer begins
        is_continued = False
    how = {"continue_final_message": True} if is_continued else {"add_generation_prompt": True}
    try:
        encoded = tokenizer.apply_chat_template(conversation, return_dict=True, **how)
    except TemplateError as error:
        raise OptionError(f"the target's chat template refuses the conversation: {error}; use --raw") from error
    except ValueError as error:
        if not is_continued:
            raise
        raise OptionError(
            "the target's chat template changes what the assistant said, so that the answer cannot be continued; "
            "ask for it again instead"
        ) from error
    token_ids: list[int] = encoded["input_ids"]
    return token_ids
