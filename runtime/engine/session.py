"""Conversations: chat template, prefix reuse, where an answer ends, text as it comes; one at a time, or many together.

Turns a `PromptRequest` into token ids, drives the engine, and ends the answer exactly where plain decoding would: at
an end token, a stop string, the token limit or the context's end, also in the middle of an accepted path.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np

from offload.errors import PassCancelledError
from profiles.errors import OverstoryError
from runtime.config import UNLIMITED_THINKING, Generation, SamplingParams
from runtime.engine.engine import Engine
from runtime.engine.guessed_text import GuessedText
from runtime.engine.token_sequence import TokenSequence
from runtime.errors import OptionError, PromptTooLongError
from runtime.events import (
    Event,
    Finished,
    FinishReason,
    GenerationStatistics,
    PrefillProgress,
    Round,
    TextDelta,
    TokenLogprobs,
)
from runtime.model.generation_config import AnswerChoices, GenerationConfig
from runtime.model.streamed_model import StreamedModel
from runtime.prompts.headless import AnswerEvent
from runtime.prompts.prompt_file import PromptRequest
from runtime.speculation.grammar import AnswerGrammar, Grammars
from runtime.speculation.thinking import ThinkingRules, num_opening, num_thinking, num_thought
from runtime.tokenizer.answer_forms import AnswerForm
from runtime.tokenizer.answer_parts import AnswerSplitter, Part
from runtime.tokenizer.box import BoxedAnswer, Tokenizer, check_schema

MOST_BLANKS = 3
"""Tokens of line ends that a chat template may write behind the mark with which it begins the thinking."""
_TAIL_TOKENS = 16
"""The end of a prompt, where a template may have opened the answer's thinking."""


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
        self._ends_lock = threading.Lock()  # over the next two, and whether the models may run
        self._live_ids: set[str] = set()
        self._dropped_ids: set[str] = set()
        self._grammars: Grammars | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The target's, for any thread."""
        return self._tokenizer

    @property
    def has_chat_template(self) -> bool:
        """Whether requests may hold messages; a raw prompt is always possible."""
        return self._tokenizer.has_chat_template

    @property
    def knows_tools(self) -> bool:
        """Whether requests may hold tools."""
        return self._tokenizer.knows_tools

    @property
    def can_think(self) -> bool:
        """Whether marks of thinking are known of the model."""
        return self._tokenizer.thinking_marks is not None

    def format_prompt(self, request: PromptRequest) -> list[int]:
        """Return the request's token ids, chat template applied unless it is raw.

        Raises OptionError if that fails, if the tokenizer has given an id that the model has no row for, or one that
        stands for an image.
        """
        prompt = format_prompt(self._tokenizer, request)
        target = self.engine.target
        check_tokens(
            prompt, self._tokenizer, vocab_size=target.vocab_size, other_token_ids=target.parts.other_token_ids
        )
        return prompt

    def prefill_start(self, request: PromptRequest) -> PrefillProgress:
        """Return where the request's prefill will begin: behind what the target's cache holds of its prompt already."""
        return self.engine.prompt_progress(self.format_prompt(request))

    def stop(self) -> None:
        """End the answer under way after the layer that computes now; it is `Finished` as stopped. From any thread."""
        with self._ends_lock:
            self._is_stopped.set()
            self._cancel()

    def drop(self, request_id: str) -> None:
        """End one of the answers that are given together; it is `Finished` as stopped. From any thread.

        The last one of them ends after the layer that computes now, others with the pass, of which the rest lose
        nothing. One that has not begun, or has ended, is left as it is.
        """
        with self._ends_lock:
            if request_id in self._live_ids:
                self._dropped_ids.add(request_id)
                if not self._live_ids - self._dropped_ids:
                    self._cancel()

    def _cancel(self) -> None:
        for model in self._models:
            model.cancel()

    def generate(self, request: PromptRequest) -> Generator[Event, None, None]:
        """Answer one request; the last event is Finished. Closing early leaves the session ready for the next.

        Raises PromptTooLongError, where the events begin, if the context has no room for an answer.
        """
        self._allow()
        return self._events(request)

    def _allow(self) -> None:
        self._is_stopped.clear()
        for model in self._models:
            model.allow()

    @property
    def _models(self) -> list[StreamedModel]:
        drafter = self.engine.drafter
        return [self.engine.target] if drafter is None else [self.engine.target, drafter.model]

    def _events(self, request: PromptRequest) -> Generator[Event, None, None]:
        answer = self._begin(request, lane=0)
        try:
            while self._goes_on(answer):
                with closing(self._step([answer])) as events:
                    for _, event in events:
                        yield event
        finally:
            self._end(answer)
        yield from answer.last_events()

    def generate_all(self, requests: Iterable[PromptRequest]) -> Generator[AnswerEvent, None, None]:
        """Answer requests together, as many at a time as there are lanes; each one's last event is Finished.

        One that ends is replaced at once, and `requests` are asked for only then. One that fails, also in a pass of its
        own, ends with its error instead. Closing early leaves the session ready.
        """
        return self.answer_coming(partial(next, iter(requests), None))

    def answer_coming(self, next_request: Callable[[], PromptRequest | None]) -> Generator[AnswerEvent, None, None]:
        """Answer requests together as `generate_all` does, also those that come while others are being answered.

        `next_request` is asked before each pass, as often as there are free lanes; None means that there is none now.
        Their ids differ. Ends once no answer is under way and none is asked for.
        """
        self._allow()
        live = dict[int, _Answer]()
        try:
            while True:
                yield from self._fill(live, next_request)
                if not live:
                    return
                self._allow_pass()
                yield from self._step_together(live)
        finally:
            for answer in live.values():
                self._end(answer)
                self._forget(answer)

    def _allow_pass(self) -> None:
        """Let the models run again where those whose pass was cancelled are not the only ones any more."""
        with self._ends_lock:
            if not self._is_stopped.is_set() and self._live_ids - self._dropped_ids:
                for model in self._models:
                    model.allow()

    def _forget(self, answer: "_Answer") -> None:
        with self._ends_lock:
            self._live_ids.discard(answer.request.id)
            self._dropped_ids.discard(answer.request.id)

    def _is_dropped(self, answer: "_Answer") -> bool:
        return answer.request.id in self._dropped_ids

    def _is_cut(self, answers: Sequence["_Answer"]) -> bool:
        """Return whether nobody waits for the end of these answers' pass."""
        return self._is_stopped.is_set() or all(map(self._is_dropped, answers))

    def _fill(
        self, live: dict[int, "_Answer"], next_request: Callable[[], PromptRequest | None]
    ) -> Iterator[AnswerEvent]:
        """Give every free lane a request, the one to each whose text begins most like it."""
        while not self._is_stopped.is_set():
            free = [sequence for sequence in self.engine.sequences if sequence.lane not in live]
            if not free or (request := next_request()) is None:
                return
            try:
                prompt = self._prompt_with_room(request)
                lane = max(free, key=lambda sequence: sequence.num_shared(prompt)).lane
                live[lane] = self._begin(request, lane=lane, prompt=prompt)
            except OverstoryError as error:
                yield request, error
            else:
                with self._ends_lock:
                    self._live_ids.add(request.id)
                yield request, self.engine.prompt_progress(prompt, lane=lane)

    def _step_together(self, live: dict[int, "_Answer"]) -> Iterator[AnswerEvent]:
        """Run one pass for all answers, and end those that it completes or that somebody dropped."""
        if going := [answer for answer in live.values() if self._goes_on(answer)]:
            yield from self._step_or_halve(going)
        for lane, answer in list(live.items()):
            if answer.error is None and self._goes_on(answer):
                continue
            self._end(live.pop(lane))
            if self._is_dropped(answer):
                answer.finish_reason = answer.finish_reason or "stopped"
            self._forget(answer)
            if answer.error is not None:
                yield answer.request, answer.error
            else:
                try:
                    last_events: list[Event | OverstoryError] = [*answer.last_events()]
                except OverstoryError as error:
                    last_events = [error]
                for event in last_events:
                    yield answer.request, event

    def _step_or_halve(self, answers: Sequence["_Answer"]) -> Iterator[AnswerEvent]:
        """Run one pass for these answers; where it fails one for each half of them, down to those whose fault it is."""
        try:
            with closing(self._step(answers)) as events:
                for answer, event in events:
                    yield answer.request, event
            return
        except OverstoryError as error:
            if len(answers) == 1:
                answers[0].error = error
                return
        for answer in answers:
            self.engine.roll_back(lane=answer.sequence.lane)
        middle = len(answers) // 2
        for half in (answers[:middle], answers[middle:]):
            if left := [answer for answer in half if answer.error is None and self._goes_on(answer)]:
                yield from self._step_or_halve(left)

    def _goes_on(self, answer: "_Answer") -> bool:
        is_open = answer.finish_reason is None and not self._is_dropped(answer)
        return is_open and self.engine.has_room(answer.sequence)

    def _step(self, answers: Sequence["_Answer"]) -> Generator[tuple["_Answer", Event], None, None]:
        """Yield the events of one pass for these answers; where they are stopped, its end is not waited for.

        An answer whose text cannot be made of its tokens has an error then, if it is not alone, which raises it.
        """
        by_lane = {answer.sequence.lane: answer for answer in answers}
        try:
            with closing(self.engine.step([answer.sequence for answer in answers])) as events:
                for sequence, event in events:
                    answer = by_lane[sequence.lane]
                    yield answer, event
                    if isinstance(event, Round) and (released := self._add(answer, event, len(answers))):
                        for part in answer.parts_of(released):
                            yield answer, part
                    if self._is_cut(answers):
                        break
        except PassCancelledError:
            if not self._is_cut(answers):
                raise
        if self._is_stopped.is_set():
            for answer in answers:
                answer.finish_reason = answer.finish_reason or "stopped"

    @staticmethod
    def _add(answer: "_Answer", done: Round, num_answers: int) -> str:
        """Add a round to an answer, whose own an error is if it is not alone."""
        try:
            return answer.add(done)
        except OverstoryError as error:
            if num_answers == 1:
                raise
            answer.error = error
            return ""

    def _begin(self, request: PromptRequest, *, lane: int, prompt: Sequence[int] | None = None) -> "_Answer":
        engine = self.engine
        prompt = self._prompt_with_room(request) if prompt is None else prompt
        choices = self.generation.choices(
            request.params, request.unchosen, num_prompt_tokens=len(prompt), end_token_ids=self.end_token_ids
        )
        params = choices.params
        grammar = None if request.response_schema is None else self._begin_grammar(request.response_schema)
        form = self._tokenizer.answer_form if request.wants_parts else AnswerForm()
        text = self._tokenizer.begin_answer(
            params.stop,
            behind=prompt[-4:] if request.is_continued else (),
            kept=form.tokens(has_tools=request.tools is not None),
            tail=prompt[-_TAIL_TOKENS:] if request.wants_parts else (),
            has_ends=request.wants_guesses,
        )
        thinking = self._thinking_rules(request, prompt, params)
        is_ruled = thinking is not None and (thinking.budget is not None or grammar is not None)
        guesses = GuessedText(text) if request.wants_guesses else None
        expected = engine.prompt_progress(prompt, lane=lane).expected_seconds
        sequence = engine.begin(
            prompt,
            params,
            np.random.default_rng(params.seed),
            rules=choices.rules,
            lane=lane,
            top_logprobs=request.top_logprobs,
            grammar=grammar,
            thinking=thinking if is_ruled else None,
            logit_bias=request.logit_bias,
            border=len(prompt) - self._num_opening(request, prompt),
        )
        return _Answer(
            request,
            sequence,
            text,
            choices,
            self.end_token_ids,
            expected=expected,
            generation=self.generation.choice,
            splitter=_splitter(form, request, text.tail_text, guesses) if request.wants_parts else None,
            thinking=thinking,
            guesses=guesses,
        )

    def _num_opening(self, request: PromptRequest, prompt: Sequence[int]) -> int:
        """Return with how many tokens of thinking the template ends the prompt, which it leaves out of later ones."""
        marks = self._tokenizer.thinking_marks
        if marks is None or request.messages is None or request.is_continued:
            return 0
        return num_opening(prompt[-_TAIL_TOKENS:], begin=marks.begin)

    def _thinking_rules(
        self, request: PromptRequest, prompt: Sequence[int], params: SamplingParams
    ) -> ThinkingRules | None:
        """Return what holds for an answer's thinking; None where the model marks none."""
        marks, budget = self._tokenizer.thinking_marks, params.thinking_budget
        if budget == UNLIMITED_THINKING:
            budget = None
        if marks is None:
            return None
        if marks.end[-1][0] >= self.engine.target.vocab_size:  # a token that the model has no row for, and never writes
            return None
        num_begun = None
        if request.is_continued and request.messages is not None:
            said = request.messages[-1].content
            if said.rfind(marks.begin_text) > said.rfind(marks.end_text):
                num_begun = num_thought(prompt, begin=marks.begin, end=marks.end)
        else:
            opened = num_thought(prompt[-len(marks.begin) - MOST_BLANKS :], begin=marks.begin, end=marks.end)
            if opened is not None and self._is_blank(prompt[len(prompt) - opened :]):
                num_begun = 0
        return ThinkingRules(begin=marks.begin, end=marks.end, budget=budget, num_begun=num_begun)

    def _is_blank(self, token_ids: Sequence[int]) -> bool:
        return not token_ids or not any(text.strip() for text, _ in self._tokenizer.contents(token_ids))

    def _begin_grammar(self, schema: str) -> AnswerGrammar:
        """Return what holds an answer to its schema; the first one reads the whole vocabulary, byte by byte."""
        if self._grammars is None:
            contents = self._tokenizer.contents(range(len(self._tokenizer)))
            self._grammars = Grammars(
                [content or b"" for _, content in contents],
                vocab_size=self.engine.target.vocab_size,
                end_token_ids=sorted(self.end_token_ids),
                check=check_schema,
            )
        return self._grammars.begin(schema)

    def _end(self, answer: "_Answer") -> None:
        """Leave the lane's caches with the prompt and what the answer shows."""
        self.engine.end(answer.sequence)
        self.engine.truncate(answer.num_prompt + len(answer.text.token_ids), lane=answer.sequence.lane)

    def _prompt_with_room(self, request: PromptRequest) -> list[int]:
        prompt = self.format_prompt(request)
        check_room(prompt, self.engine.context_tokens)
        return prompt


class _Answer:
    """An answer as it grows: its text, why it ends, and what its rounds cost; the first one ends the prefill."""

    def __init__(
        self,
        request: PromptRequest,
        sequence: TokenSequence,
        text: BoxedAnswer,
        choices: AnswerChoices,
        end_token_ids: frozenset[int],
        *,
        expected: float | None,
        generation: Generation,
        splitter: AnswerSplitter | None,
        thinking: ThinkingRules | None,
        guesses: GuessedText | None,
    ) -> None:
        """`expected` seconds of the prefill; `splitter`: what gives the text's parts, None: it has none.

        `thinking`: how its thinking is known, None: the model marks none; `guesses`: what tells which text was guessed,
        if that is wanted.
        """
        self._splitter = splitter
        self._thinking = thinking
        self._guesses = guesses
        self._num_released = 0  # characters
        self.request = request
        self.sequence = sequence
        self.text = text
        self.num_prompt = len(sequence.text)
        self.finish_reason: FinishReason | None = None
        self.error: OverstoryError | None = None
        self._choices = choices
        self._end_token_ids = end_token_ids
        self._expected, self._generation = expected, generation
        self._begun, self._bytes_before = time.perf_counter(), sequence.bytes_streamed
        self._prefill_seconds = 0.0
        self._rounds: list[Round] = []
        self._new_tokens = self._first_round_tokens = 0

    def add(self, done: Round) -> str:
        """Add a round and what it emitted, up to the answer's end, and return the text that it releases."""
        self._rounds.append(done)
        assert self.sequence.choosing is not None, "an answer that grows is being decoded"
        if (failure := self.sequence.choosing.processor.failure) is not None:
            raise OptionError(f"the answer cannot be held to its JSON schema: {failure}; make the schema simpler")
        if len(self._rounds) == 1:
            self._prefill_seconds = time.perf_counter() - self._begun
        num_before = len(self.text.token_ids)
        wanted, self.finish_reason = self._cut(done.token_ids, self._choices.params.max_new_tokens - num_before)
        released = self.text.add(wanted)
        num_added = len(self.text.token_ids) - num_before
        if self.text.is_stopped:
            self.finish_reason = "stop"
        elif self.finish_reason == "stop":
            num_added += 1  # the end token
        self._new_tokens += num_added
        if self._guesses is not None:
            num_text = len(self.text.token_ids) - num_before
            self._guesses.add(num_text, num_new=num_added, num_accepted=len(done.token_ids) - 1)
        if len(self._rounds) == 1:
            self._first_round_tokens = num_added
        return released

    def parts_of(self, released: str) -> Sequence[Part]:
        """Return the events of more text."""
        if self._splitter is None:
            start, self._num_released = self._num_released, self._num_released + len(released)
            return [
                TextDelta(released, None if self._guesses is None else self._guesses.spans(start, self._num_released))
            ]
        parts = self._splitter.add(released)
        if self._splitter.is_full:
            self.finish_reason = "stop"
        return parts

    def last_events(self) -> Iterator[Event]:
        """Yield the text that was held back, and the end; no token follows."""
        if released := self.text.finish():
            yield from self.parts_of(released)
        if self._splitter is not None:
            yield from self._splitter.finish()
        yield Finished(
            self.finish_reason or "context",
            self.text.text,
            self._statistics(),
            verification=self._choices.params.scheme_name,
            generation=self._generation,
            num_guessed_tokens=None if self._guesses is None else self._guesses.num_guessed,
            own_settings=self._choices.own,
            expected_prefill_seconds=self._expected,
            stop_string=self.text.stop_string,
            parts=None if self._splitter is None else self._splitter.parts,
            logprobs=None if self.request.top_logprobs is None else self.text.named(self._logprobs()),
        )

    def _logprobs(self) -> list[TokenLogprobs]:
        """Return one of each token that the rounds emitted, those behind the answer's end included."""
        return [each for done in self._rounds for each in done.logprobs]

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

    def _statistics(self) -> GenerationStatistics:
        """Return the costs of the finished answer; one that was stopped in its first round is all prefill.

        Its seconds are those that its passes took; of what crossed the link in them it has its share.
        """
        seconds = time.perf_counter() - self._begun
        prefill_seconds = self._prefill_seconds if self._rounds else seconds
        decoding = self._rounds[1:]
        return GenerationStatistics(
            prompt_tokens=self.num_prompt,
            new_tokens=self._new_tokens,
            rounds=len(self._rounds),
            prefill_seconds=prefill_seconds,
            decode_seconds=seconds - prefill_seconds,
            decode_tokens=self._new_tokens - self._first_round_tokens,
            draft_seconds=sum((done.draft_seconds for done in decoding), 0.0),
            verify_seconds=sum((done.verify_seconds for done in decoding), 0.0),
            bytes_streamed=round(self.sequence.bytes_streamed - self._bytes_before),
            link_busy_seconds=sum((done.pass_statistics.link_busy_seconds for done in decoding), 0.0),
            decode_bytes_streamed=round(sum(done.pass_statistics.link_bytes / done.num_texts for done in decoding)),
            cached_tokens=self.sequence.num_cached,
            reasoning_tokens=self._num_thinking(),
        )

    def _num_thinking(self) -> int:
        if self._thinking is None or (self._splitter is not None and self._splitter.parts.reasoning_content is None):
            return 0
        return num_thinking(self.text.token_ids, self._thinking)


def _splitter(form: AnswerForm, request: PromptRequest, tail_text: str, guesses: GuessedText | None) -> AnswerSplitter:
    """Return what splits the answer to a prompt that ends with `tail_text`."""
    said = request.messages[-1].content if request.is_continued and request.messages else ""
    is_thinking = form.is_thinking(said, is_continued=True) if said.strip() else form.is_thinking(tail_text)
    return AnswerSplitter(
        form,
        tools=request.tools,
        is_thinking=is_thinking,
        is_all_calls=request.is_all_calls,
        has_one_call=request.has_one_call,
        guessed=None if guesses is None else guesses.spans,
    )


def check_room(prompt: Sequence[int], context_tokens: int) -> None:
    """Raise PromptTooLongError where the context has no room for an answer."""
    if len(prompt) >= context_tokens:
        raise PromptTooLongError(
            f"the prompt has {len(prompt)} tokens and the context holds {context_tokens}, answer included; "
            "give a larger --context (the model's own limit is the most) or a shorter prompt"
        )


def check_tokens(
    token_ids: Sequence[int], tokenizer: Tokenizer, *, vocab_size: int, other_token_ids: frozenset[int]
) -> None:
    """Raise OptionError for a token of a prompt that the model has no row for, or that stands for an image.

    The latter are `other_token_ids`.
    """
    if others := other_token_ids.intersection(token_ids):
        first = min(others)
        raise OptionError(
            f"the prompt holds the token {tokenizer.name(first)}, id {first}, in whose place the model wants an image, "
            "a video or sound, and only text is answered; leave it out"
        )
    if (largest := max(token_ids)) >= vocab_size:
        raise OptionError(
            f"the prompt holds the token {tokenizer.name(largest)}, id {largest}, and the model has none beyond "
            f"{vocab_size - 1}; leave it out"
        )


def format_prompt(tokenizer: Tokenizer, request: PromptRequest) -> list[int]:
    """Return a request's token ids, at least one. Raises OptionError if the tokenizer or its template refuses it."""
    if request.token_ids is not None:
        return list(request.token_ids)
    if request.prompt is not None:
        return tokenizer.encode(request.prompt)
    marks, budget = tokenizer.thinking_marks, request.params.thinking_budget
    is_open = request.thinking is None and request.reasoning_effort is None
    if budget is not None and is_open and marks is not None and marks.has_switch:
        request = replace(request, thinking=budget > 0)
    return tokenizer.encode_conversation(request)
