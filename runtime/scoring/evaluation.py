"""What lm-evaluation-harness asks of a model, answered by a session: scores, perplexities and texts.

Numbers and texts are those of its own `hf` model, but for ties of float32 rounding. Knows the form of its requests
without importing it: `harness.py` is where it is met.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from profiles.errors import OverstoryError, quote
from profiles.steps import finish
from runtime.config import EngineConfig, SamplingParams, options_of
from runtime.engine.loading import open_session
from runtime.engine.model_folders import locate_models
from runtime.errors import OptionError
from runtime.events import Finished
from runtime.prompts.prompt_file import PromptRequest
from runtime.scoring.score_file import Score
from runtime.scoring.scorer import Scorer, TokenPair

_LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What tasks call the most tokens of a text; the first that is given holds."""
_SAMPLING_NAMES = ("top_p", "top_k", "min_p", "repetition_penalty")
_UNCHOSEN_DEVICE = "cuda:0"
"""What lm_eval's command line asks for unless it is told otherwise, whatever the machine has."""
_IDLE: Mapping[str, object] = {"num_beams": 1, "use_cache": True}
"""What tasks write, and what is so anyway."""


class Request(Protocol):
    """One of lm_eval's `Instance` objects."""

    @property
    def args(self) -> tuple[Any, ...]:
        """Return (context, continuation), (text,) or (context, choices of the generation)."""


class EvaluatedModel:
    """A session that answers requests of evaluations; a context manager, or closed with `close`."""

    cache_hook: Any
    """lm_eval's: keeps answers where it was asked to."""

    def __init__(
        self,
        pretrained: str,
        *,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **options: Any,
    ) -> None:
        """Load the model that `pretrained` names: a folder, a GGUF file or a hub name.

        `max_length`: tokens of the window, as --context of `overstory run`, whose other options are `options`, as in
        device_memory=8GB or draft=none. How much goes into a pass is planned, whatever `batch_size` says. Raises
        BadInputError as opening a session does, and OptionError for an option that is none.
        """
        super().__init__()
        self._max_gen_toks = max_gen_toks
        device = None if device == _UNCHOSEN_DEVICE else device
        config = engine_config({"target": pretrained, "context": max_length, "device": device, **options})
        config = finish(locate_models(config, cache_folder=Path()))
        self._stack = ExitStack()
        opened = self._stack.enter_context(open_session(config))
        self._session = opened.session
        self._scorer = Scorer(opened.session.engine, opened.plan.tokenizer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the model's memory back."""
        self._stack.close()

    @property
    def max_length(self) -> int:
        """Tokens of the window; longer texts lose their beginning."""
        return self._session.engine.context_tokens

    def loglikelihood(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return log P(continuation | context) of each request, and whether greedy decoding would write it."""
        texts = [request.args for request in requests]
        scores = self._score([self._scorer.encode(context, continuation) for context, continuation in texts])
        answers = [(score.log_likelihood, score.is_greedy) for score in scores]
        for text, answer in zip(texts, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[float]:
        """Return log P of each whole text, long ones in windows, each of whose tokens is scored once."""
        windows = [list(self._windows(*request.args)) for request in requests]
        scores = iter(self._score([window for of_text in windows for window in of_text]))
        answers = [sum(next(scores).log_likelihood for _ in of_text) for of_text in windows]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answer)
        return answers

    def generate_until(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[str]:
        """Return the text behind each context, up to a stop string or its most tokens, many at a time."""
        prompts = (self._prompt(str(index), *request.args) for index, request in enumerate(requests))
        answers: dict[int, str] = {}
        for prompt, event in self._session.generate_all(prompts):
            if isinstance(event, OverstoryError):
                raise event
            if isinstance(event, Finished):
                answers[int(prompt.id)] = event.text
                self.cache_hook.add_partial("generate_until", requests[int(prompt.id)].args, event.text)
        return [answers[index] for index in range(len(requests))]

    def _score(self, pairs: Sequence[TokenPair]) -> list[Score]:
        scores: dict[int, Score] = {}
        for done in self._scorer.score(pairs):
            scores |= done.scores
        return [scores[index] for index in range(len(pairs))]

    def _windows(self, text: str) -> Iterator[TokenPair]:
        if text:
            begin_ids, token_ids = self._scorer.encode_ids(None, text)
            yield from rolling_windows(begin_ids + token_ids, window=self.max_length)

    def _prompt(self, name: str, context: str, choices: Mapping[str, Any]) -> PromptRequest:
        params, chosen = sampling_params(choices, max_gen_toks=self._max_gen_toks)
        room = self.max_length - params.max_new_tokens
        if room < 1:
            raise OptionError(
                f"max_gen_toks is {params.max_new_tokens} and max_length {self.max_length}, which leaves no room for "
                "a context; give a smaller max_gen_toks or a larger max_length"
            )
        _, token_ids = self._scorer.encode_ids(None, context)
        return PromptRequest(
            id=name,
            token_ids=tuple(token_ids[-room:]),
            params=params,
            unchosen=frozenset(options_of(SamplingParams)) - chosen,
        )


def rolling_windows(token_ids: Sequence[int], *, window: int) -> Iterator[TokenPair]:
    """Yield pairs that score all tokens but the first, once each, with as many before them as fit into `window`.

    As lm_eval's get_rolling_token_windows with a context of one token.
    """
    ids = np.array(token_ids, dtype=np.int64)
    for start in range(1, len(ids), window):
        stop = min(start + window, len(ids))
        yield TokenPair(ids[max(0, stop - window - 1) : stop], stop - start)


def engine_config(options: Mapping[str, Any]) -> EngineConfig:
    """Return the choices of a session, by the names of command-line options; None leaves the default of `run`.

    Raises OptionError, also for a name that is none.
    """
    known = {option.typed_name: option for option in options_of(EngineConfig).values()}
    chosen: dict[str, Any] = {"draft": "auto", "lookup": "on", "generation": "auto", "num_texts": None}
    for name, value in options.items():
        if name not in known:
            raise OptionError(f"unknown model argument {quote(name)}; there are pretrained, {', '.join(known)}")
        parse = known[name].parse
        if value is not None:
            chosen[known[name].name] = parse(value, name) if parse and isinstance(value, str) else value
    return EngineConfig(**chosen)


def sampling_params(choices: Mapping[str, Any], *, max_gen_toks: int) -> tuple[SamplingParams, frozenset[str]]:
    """Return how a task wants its texts, and which fields of it are its own choice, as lm_eval's `hf` model reads it.

    `max_gen_toks` where it does not say. Raises OptionError for what is not done here.
    """
    wanted = {name: value for name, value in choices.items() if value is not None}
    until = wanted.pop("until", [])
    lengths = [wanted.pop(name) for name in _LENGTH_NAMES if name in wanted]
    temperature = float(wanted.pop("temperature", 0.0))
    is_sampled = wanted.pop("do_sample", temperature > 0)
    chosen: dict[str, Any] = {
        "temperature": temperature if is_sampled else 0.0,
        "max_new_tokens": int(lengths[0]) if lengths else max_gen_toks,
        "stop": tuple(filter(None, [until] if isinstance(until, str) else until)),
    }
    for name, value in wanted.items():
        if name in _SAMPLING_NAMES:
            chosen[name] = value
        elif _IDLE.get(name) != value:
            raise OptionError(f"a task asks for {quote(name)}, {quote(str(value))}, which is not done here")
    return SamplingParams(**chosen), frozenset(chosen)
