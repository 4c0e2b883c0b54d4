"""One conversation: chat template, prefix reuse, where an answer ends, text as it comes.

Turns a `PromptRequest` into token ids, drives the engine, and ends the answer exactly where plain decoding would: at
an end token, a stop string, the token limit or the context's end, also in the middle of an accepted path.
"""

import threading
import time
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
from jinja2 import TemplateError
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from offload.errors import PassCancelledError
from runtime.engine.engine import Engine
from runtime.errors import OptionError, PromptTooLongError
from runtime.events import Event, Finished, FinishReason, GenerationStatistics, PrefillProgress, Round, TextDelta
from runtime.model.generation_config import GenerationConfig
from runtime.model.streamed_model import StreamedModel
from runtime.prompts.prompt_file import PromptRequest

_UNFINISHED_CHARACTER = "\ufffd"
_PROBE = "is it ? no , it 's ."
"""What cleaning up spaces would change."""


class Session:
    """Answers requests one after another; what two prompts have in common stays in the caches."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any,
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

    def format_prompt(self, request: PromptRequest) -> list[int]:
        """Return the request's token ids, chat template applied unless it is raw. Raises OptionError if that fails."""
        return format_prompt(self._tokenizer, request)

    def prefill_start(self, request: PromptRequest) -> PrefillProgress:
        """Return where the request's prefill will begin: behind what the target's cache holds of its prompt already."""
        prompt = self.format_prompt(request)
        num_cached = min(self.engine.num_committed, self.engine.num_shared(prompt))
        return PrefillProgress(num_done_tokens=num_cached, num_prompt_tokens=len(prompt))

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
        text = AnswerText(self._tokenizer, params.stop, behind=prompt[-4:] if request.is_continued else ())
        answer = _Answer(text, self.end_token_ids, max_tokens=params.max_new_tokens)
        bytes_before = engine.bytes_streamed
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
        )

    def _prompt_with_room(self, request: PromptRequest) -> list[int]:
        prompt = self.format_prompt(request)
        if len(prompt) >= self.engine.context_tokens:
            raise PromptTooLongError(
                f"the prompt has {len(prompt)} tokens and the context holds {self.engine.context_tokens}, answer "
                "included; give a larger --context (the model's own limit is the most) or a shorter prompt"
            )
        if (largest := max(prompt)) >= (vocab_size := self.engine.target.vocab_size):
            raise OptionError(
                f"the prompt holds the token {self._tokenizer.convert_ids_to_tokens(largest)!r}, id {largest}, and the "
                f"model has none beyond {vocab_size - 1}; leave it out"
            )
        return prompt


class _Answer:
    """An answer as it grows: its text, why it ends, and what its rounds cost; the first one ends the prefill."""

    def __init__(self, text: "AnswerText", end_token_ids: frozenset[int], *, max_tokens: int) -> None:
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
            decode_bytes_streamed=sum(done.pass_statistics.bytes_streamed for done in decoding),
        )


class AnswerText:
    """Turns accepted tokens into text as they come: no character is split, and no stop string is ever shown."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), *, behind: Sequence[int] = ()) -> None:
        """`behind`: the last tokens of a text that is written on; many tokenizers drop a text's first space."""
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._behind = list(behind)
        self._before = tokenizer.decode(self._behind, skip_special_tokens=True) if self._behind else ""
        self._stream = None if self._before.endswith(_UNFINISHED_CHARACTER) else _decode_stream(tokenizer, behind)
        self._streamed = ""
        self._num_released = 0
        self.token_ids: list[int] = []
        self.is_stopped = False
        """Whether a stop string was found; later tokens change nothing."""

    @property
    def text(self) -> str:
        text = self._decode(self.token_ids)
        ends = [index for stop in self._stop if (index := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text

    def add(self, token_ids: Sequence[int]) -> str:
        """Append tokens and return the text they release; stop after the token that completes a stop string."""
        for token_id in token_ids:
            if self.is_stopped:
                break
            self.token_ids.append(token_id)
            self._advance(token_id)
            self.is_stopped = bool(self._stop) and self._has_stop()
        return self._release(self.text if self.is_stopped else self._settled())

    def finish(self) -> str:
        """Return the text held back so far, once no token follows."""
        return self._release(self.text)

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode([*self._behind, *token_ids], skip_special_tokens=True)
        return text[len(self._before) :]

    def _advance(self, token_id: int) -> None:
        """Decode one more token, so that a round costs its own tokens and not the whole answer."""
        if self._stream is None:
            return
        try:
            self._streamed += self._stream.step(self._tokenizer.backend_tokenizer, token_id) or ""
        except Exception:  # of Rust: bytes that are no UTF-8 change how those before them are decoded
            self._stream = None

    def _settled(self) -> str:
        """Return the text that no later token changes and that begins no stop string."""
        text = self._decode(self.token_ids) if self._stream is None else self._streamed
        text = text.rstrip(_UNFINISHED_CHARACTER)
        return text[: len(text) - self._held_for_stop(text)]

    def _release(self, text: str) -> str:
        released = text[self._num_released :]
        self._num_released = max(self._num_released, len(text))
        return released

    def _has_stop(self) -> bool:
        # The tail is enough: a stop string that ends with this token covers at most as many tokens as it has bytes.
        longest = max(len(stop.encode()) for stop in self._stop)
        tail = self._tokenizer.decode(self.token_ids[-longest - 8 :], skip_special_tokens=True)
        return any(stop in tail for stop in self._stop)

    def _held_for_stop(self, text: str) -> int:
        """Return how many last characters could be the beginning of a stop string."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for num_held in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-num_held:]) for stop in self._stop):
                return num_held
        return 0


def _decode_stream(tokenizer: Any, behind: Sequence[int]) -> DecodeStream | None:
    """Return a stream of what `tokenizer` decodes; None if its text is not that of the library below it.

    Tokenizers written in Python have no such library, and some take spaces before punctuation away afterwards.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return None
    probe: list[int] = backend.encode(_PROBE, add_special_tokens=False).ids
    if tokenizer.decode(probe, skip_special_tokens=True) != backend.decode(probe, skip_special_tokens=True):
        return None
    return DecodeStream(ids=list(behind), skip_special_tokens=True)


def format_prompt(tokenizer: Any, request: PromptRequest) -> list[int]:
    """Return a request's token ids. Raises OptionError if the tokenizer has no chat template or the prompt is empty."""
    if request.prompt is not None:
        token_ids: list[int] = tokenizer(request.prompt)["input_ids"]
    else:
        token_ids = _format_conversation(tokenizer, request)
    if not token_ids:
        raise OptionError("the prompt holds no token; give it some text")
    return list(token_ids)


def _format_conversation(tokenizer: Any, request: PromptRequest) -> list[int]:
    """Apply the chat template to the request's messages, open at the end for the answer."""
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
