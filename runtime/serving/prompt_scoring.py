"""How likely the tokens of prompts are, many prompts to a pass: what `echo` with log-probabilities asks for.

The first token behind a prompt comes from the same pass where it is all that is wanted and nothing but the logits
decide it, as lm-evaluation-harness asks thousands of times.
"""

import math
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np

from profiles.errors import OverstoryError
from runtime.engine.loading import OpenSession
from runtime.engine.session import Session, check_room
from runtime.events import Finished, GenerationStatistics, PromptScored, TokenLogprob, TokenLogprobs
from runtime.prompts.prompt_file import PromptRequest
from runtime.scoring.scorer import Scorer, TokenPair
from runtime.serving.answer import Wanted
from runtime.speculation.logit_processors import LogitProcessor
from runtime.tokenizer.box import Tokenizer

ScoredEvent = PromptScored | Finished | OverstoryError
_ANY_TOKEN = 0
"""Stands where the first token behind a prompt is predicted."""


def score_prompts(
    opened: OpenSession, wanted: Sequence[Wanted], *, is_wanted: Callable[[int], bool]
) -> Generator[tuple[int, ScoredEvent], None, None]:
    """Yield of each prompt its scored tokens, by its index, and then Finished where that is all.

    One that is to be answered by more than its likeliest next token has no Finished. An error is that of its own
    prompt. Ends early once `is_wanted` is true of no index that is left.
    """
    session, tokenizer = opened.session, opened.plan.tokenizer
    pairs: dict[int, TokenPair] = {}
    for index, each in enumerate(wanted):
        try:
            prompt = session.format_prompt(each.request)
            check_room(prompt, session.engine.context_tokens)
            pairs[index] = TokenPair(np.array([*prompt, _ANY_TOKEN], dtype=np.int64), len(prompt))
        except OverstoryError as error:
            yield index, error
    if not pairs:
        return
    left = list(pairs)
    num_likeliest = max(1, *(each.request.top_logprobs or 0 for each in wanted))
    passes = Scorer(session.engine, tokenizer).score(list(pairs.values()), num_likeliest=num_likeliest)
    order = list(pairs)
    for done in passes:
        for number, predictions in done.predictions.items():
            index = order[number]
            left.remove(index)
            for event in _events(session, tokenizer, wanted[index], pairs[index], predictions):
                yield index, event
        if left and not any(map(is_wanted, left)):
            return


def _events(
    session: Session, tokenizer: Tokenizer, wanted: Wanted, pair: TokenPair, predictions: Sequence[TokenLogprobs]
) -> Iterator[ScoredEvent]:
    request = wanted.request
    prompt = pair.token_ids[:-1].tolist()
    first = TokenLogprobs(TokenLogprob(prompt[0], math.nan))
    num_listed = request.top_logprobs or 0
    listed = [first, *(TokenLogprobs(each.chosen, each.likeliest[:num_listed]) for each in predictions[:-1])]
    try:
        named = (*tokenizer.named(listed[:1], is_first=True), *tokenizer.named(listed[1:]))
        yield PromptScored(_text(named) if request.prompt is None else request.prompt, named)
        if not wanted.is_answered:
            yield Finished("length", "", _statistics(len(prompt), 0), logprobs=())
        elif _is_read_off(session, request, len(prompt)):
            likeliest = predictions[-1].likeliest
            (token,) = tokenizer.named([TokenLogprobs(likeliest[0], likeliest[:num_listed])])
            is_end = token.chosen.token_id in session.end_token_ids
            # An end token is listed too, though it is no text: whoever counts from the end counts on one more token.
            yield Finished(
                "stop" if is_end else "length",
                "" if is_end else _text([token]),
                _statistics(len(prompt), 1),
                logprobs=None if request.top_logprobs is None else (token,),
            )
    except OverstoryError as error:
        yield error


def _is_read_off(session: Session, request: PromptRequest, num_prompt_tokens: int) -> bool:
    """Return whether the answer is the likeliest next token alone."""
    choices = session.generation.choices(
        request.params,
        request.unchosen,
        num_prompt_tokens=num_prompt_tokens,
        end_token_ids=session.end_token_ids,
    )
    params = choices.params
    if params.max_new_tokens != 1 or not params.is_greedy or params.stop or request.logit_bias:
        return False
    vocab_size = session.engine.target.vocab_size
    processor = LogitProcessor(params, prompt=(), vocab_size=vocab_size, rules=choices.rules)
    return request.response_schema is None and processor.is_idle


def _text(named: Sequence[TokenLogprobs]) -> str:
    return b"".join(each.chosen.content or b"" for each in named).decode(errors="replace")


def _statistics(num_prompt_tokens: int, num_new_tokens: int) -> GenerationStatistics:
    """Return the costs, as far as they are one prompt's: passes are those of many."""
    return GenerationStatistics(
        prompt_tokens=num_prompt_tokens,
        new_tokens=num_new_tokens,
        rounds=0,
        prefill_seconds=0.0,
        decode_seconds=0.0,
        decode_tokens=0,
        draft_seconds=0.0,
        verify_seconds=0.0,
        bytes_streamed=0,
        link_busy_seconds=0.0,
        decode_bytes_streamed=0,
    )
