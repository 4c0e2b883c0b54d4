"""What a model's author says of its texts: generation_config.json, read strictly and taken as generate() takes it.

A folder without the file may say the same in its config.json, as folders did before there was such a file.
Whoever asks for an answer comes first, then this file, then our own defaults. What is not done here and would change
the text is refused by its name; keys that concern no text, such as those of caches, beams of width 1 and versions, are
passed over. Imports no torch.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from offload.checkpoint.strict_json import read_json
from offload.errors import CheckpointError
from profiles.errors import quote
from runtime.config import MAX_TEMPERATURE, Generation, SamplingParams
from runtime.errors import OptionError
from runtime.speculation.logit_processors import TextRules

FILE_NAME = "generation_config.json"
MAX_FILE_BYTES = 1 << 20
"""Published ones have at most a few thousand."""
DEFAULT_TOP_K = 50
"""What transformers samples with where a file that asks for sampling does not say."""
_LARGEST = 1 << 31

_Count = Annotated[int, Meta(ge=0, le=_LARGEST)]
_Share = Annotated[float, Meta(ge=0, le=1)]
_TokenIds = tuple[_Count, ...]
_Words = Annotated[tuple[Annotated[_TokenIds, Meta(min_length=1)], ...], Meta(min_length=1)]
_Text = Annotated[str, Meta(min_length=1, max_length=1000)]
_Texts = Annotated[tuple[_Text, ...], Meta(max_length=100)]
"""They are searched for behind every token, so that there must not be any number of them."""
_MEANINGLESS = (msgspec.ValidationError, OverflowError, UnicodeEncodeError)
"""What msgspec raises for a value of another kind, a number beyond its own, and half a surrogate pair."""
_COUNT = "a whole number, 0 or more"
_IDS = "a list of token ids, which are whole numbers, 0 or more"
_TOKEN = "a token id, which is a whole number, 0 or more"
_KINDS: Mapping[str, tuple[Any, str]] = {
    "eos_token_id": (int | tuple[int, ...], "a token id or a list of them, which are whole numbers"),
    "pad_token_id": (int, "a token id, which is a whole number"),
    "bos_token_id": (int | tuple[int, ...], "a token id or a list of them, which are whole numbers"),
    "do_sample": (bool, "true or false"),
    "temperature": (Annotated[float, Meta(ge=0, le=MAX_TEMPERATURE)], f"a number from 0 to {MAX_TEMPERATURE:g}"),
    "top_p": (_Share, "a number from 0 to 1"),
    "top_k": (_Count, f"{_COUNT}"),
    "min_p": (_Share, "a number from 0 to 1"),
    "repetition_penalty": (Annotated[float, Meta(ge=0.01, le=100)], "a number from 0.01 to 100"),
    "max_new_tokens": (Annotated[int, Meta(ge=1, le=_LARGEST)], "a whole number, 1 or more"),
    "max_length": (Annotated[int, Meta(ge=1, le=_LARGEST)], "a whole number, 1 or more"),
    "min_new_tokens": (_Count, _COUNT),
    "min_length": (_Count, _COUNT),
    "stop_strings": (_Text | _Texts, "a text of 1 to 1000 characters of Unicode, or a list of at most 100"),
    "no_repeat_ngram_size": (_Count, _COUNT),
    "bad_words_ids": (_Words, "a list of lists of token ids, none of them empty"),
    "suppress_tokens": (_TokenIds, _IDS),
    "begin_suppress_tokens": (_TokenIds, _IDS),
    "forced_bos_token_id": (_Count, _TOKEN),
    "forced_eos_token_id": (_Count | _TokenIds, "a token id or a list of them, 0 or more"),
}
"""What each key that is used, or that says which tokens are special, may hold beside null; and in words."""
_HARMLESS: Mapping[str, Callable[[Any], bool]] = {
    "num_beams": lambda value: value == 1,
    "guidance_scale": lambda value: value == 1,
    "encoder_repetition_penalty": lambda value: value == 1,
    "encoder_no_repeat_ngram_size": lambda value: value == 0,
    "exponential_decay_length_penalty": lambda _: False,
    "sequence_bias": lambda _: False,
    "constraints": lambda _: False,
    "force_words_ids": lambda _: False,
    "dola_layers": lambda _: False,
    "token_healing": lambda value: value is False,
    "max_time": lambda _: False,
    "watermarking_config": lambda _: False,
}
"""When each key that is not done here leaves the text as it is; null always does."""
_HARMLESS_SAMPLED: Mapping[str, Callable[[Any], bool]] = {
    "typical_p": lambda value: value == 1,
    "epsilon_cutoff": lambda value: value == 0,
    "eta_cutoff": lambda value: value == 0,
    "top_h": lambda _: False,
}
"""The same of keys that greedy text does not depend on."""
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
_NEUTRAL = SamplingParams()
_WORDS: Mapping[str, str] = {
    "top_p": "top-p {:g}",
    "top_k": "top-k {:g}",
    "min_p": "min-p {:g}",
    "stop": "{:g} stop strings",
    "max_new_tokens": "at most {:g} new tokens",
    "no_repeat_ngram_size": "no {:g} tokens in a row twice",
    "bad_words_ids": "{:g} banned sequences",
    "suppress_tokens": "{:g} banned tokens",
    "begin_suppress_tokens": "{:g} tokens that begin no answer",
    "min_new_tokens": "at least {:g} new tokens",
    "forced_bos_token_id": "begins with token {:g}",
    "forced_eos_token_id": "{:g} tokens that may end the longest answer",
}

OwnSettings = Mapping[str, float]
"""What of an answer's choices is the model's own, by names of `SamplingParams`, or the file's for what those lack; of
lists it is how many entries they have."""


@dataclass(frozen=True, slots=True)
class AnswerChoices:
    """How one answer is written, once its prompt is known."""

    params: SamplingParams
    rules: TextRules
    own: OwnSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """What the file says, as far as it concerns texts; each field is its key, None or () where that is missing."""

    choice: Generation = "plain"
    """Whether it was read for more than its end tokens."""
    eos_token_ids: tuple[int, ...] = ()
    do_sample: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int | None = None
    stop_strings: tuple[str, ...] = ()
    no_repeat_ngram_size: int | None = None
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_ids: tuple[int, ...] = ()
    refused_when_sampling: tuple[str, ...] = ()
    """Keys, with their values, that would change sampled texts and are not done here."""

    def sampling(self, params: SamplingParams, unchosen: Collection[str]) -> dict[str, float]:
        """Return the values of `SamplingParams` that the file fills, by name, but for lengths and texts that end it.

        `unchosen` are the fields of `params` that nobody chose. Where neither the file nor `params` asks for sampling
        the text is greedy, whatever temperature the file lists, as in transformers.
        """
        wanted = {name: value for name in _SAMPLING if (value := getattr(self, name)) is not None}
        if self.do_sample:
            wanted = {"temperature": 1.0, "top_k": DEFAULT_TOP_K} | wanted
        elif params.is_greedy:
            wanted = {}
        if self.repetition_penalty is not None:
            wanted["repetition_penalty"] = self.repetition_penalty
        return {name: value for name, value in wanted.items() if name in unchosen}

    def choices(
        self,
        params: SamplingParams,
        unchosen: Collection[str] = (),
        *,
        num_prompt_tokens: int,
        end_token_ids: Collection[int] = (),
    ) -> AnswerChoices:
        """Return how an answer behind that many tokens is written, what its asker chose left as it is.

        Raises OptionError for what cannot be done, or for a prompt that is longer than the file's max_length.
        """
        taken: dict[str, Any] = dict(self.sampling(params, unchosen))
        if "stop" in unchosen and self.stop_strings:
            taken["stop"] = self.stop_strings
        most = self._max_new_tokens(num_prompt_tokens) if "max_new_tokens" in unchosen else None
        if most is not None and most < params.max_new_tokens:
            taken["max_new_tokens"] = most
        before, params = params, replace(params, **taken)
        if self.refused_when_sampling and not params.is_greedy:
            raise OptionError(_refusal("the model's author", self.refused_when_sampling))
        rules = self._rules(num_prompt_tokens, end_token_ids)
        own = {name: value for name, value in taken.items() if _matters(name, before, params)} | _rules_by_key(rules)
        return AnswerChoices(params, rules, {name: len(v) if isinstance(v, tuple) else v for name, v in own.items()})

    def _max_new_tokens(self, num_prompt_tokens: int) -> int | None:
        """Return the most that an answer may have by the file. Raises OptionError if nothing may follow the prompt."""
        if self.max_new_tokens is not None or self.max_length is None:
            return self.max_new_tokens
        if self.max_length <= num_prompt_tokens:
            raise OptionError(
                f"the prompt has {num_prompt_tokens} tokens, and the model's own max_length is {self.max_length}, "
                "answer included; give --max-new-tokens or --generation plain"
            )
        return self.max_length - num_prompt_tokens

    def _rules(self, num_prompt_tokens: int, end_token_ids: Collection[int]) -> TextRules:
        least = self.min_new_tokens
        if least is None:
            least = max(0, (self.min_length or 0) - num_prompt_tokens)
        ends = {(token_id,) for token_id in self.eos_token_ids} if self.bad_words_ids else set()
        return TextRules(
            no_repeat_ngram_size=self.no_repeat_ngram_size or 0,
            banned_sequences=tuple(word for word in self.bad_words_ids if word not in ends),
            banned_tokens=self.suppress_tokens,
            banned_first_tokens=self.begin_suppress_tokens,
            min_new_tokens=least,
            end_token_ids=tuple(sorted(end_token_ids)) if least else (),
            # As in transformers: the first token of the whole text, whose prompt is the one that begins every text.
            first_token=self.forced_bos_token_id if num_prompt_tokens == 1 else None,
            last_tokens=self.forced_eos_token_ids,
        )


def read_generation_config(
    folder: Path, choice: Generation, *, vocab_size: int, model_config: Mapping[str, Any] | None = None
) -> GenerationConfig:
    """Return what the folder's file says; with `plain` only which tokens end an answer.

    `model_config` is the folder's config.json: as in transformers it says what the file would where that is missing.
    Raises CheckpointError for a value that means nothing or would change texts in a way that is not done here.
    """
    file, found = folder / FILE_NAME, model_config or {}
    if file.exists() or file.is_symlink():
        found = read_json(file, max_bytes=MAX_FILE_BYTES)
    else:
        file = folder / "config.json"
    if choice == "plain":
        return GenerationConfig(eos_token_ids=token_ids_of(found, "eos_token_id", where=str(file)))
    values = {key: _checked(found, key, file) for key in _KINDS}
    _check_ids(values, file, vocab_size=vocab_size)
    if refused := tuple(_refused(found, _HARMLESS)) or tuple(_contrastive(found, values)):
        raise CheckpointError(_refusal(str(file), refused))
    refused = tuple(_refused(found, _HARMLESS_SAMPLED))
    if refused and values["do_sample"]:
        raise CheckpointError(_refusal(str(file), refused))
    stop = values["stop_strings"]
    return GenerationConfig(
        choice=choice,
        eos_token_ids=_as_tuple(values["eos_token_id"]),
        do_sample=bool(values["do_sample"]),
        stop_strings=(stop,) if isinstance(stop, str) else stop or (),
        forced_eos_token_ids=_as_tuple(values["forced_eos_token_id"]),
        bad_words_ids=values["bad_words_ids"] or (),
        suppress_tokens=values["suppress_tokens"] or (),
        begin_suppress_tokens=values["begin_suppress_tokens"] or (),
        refused_when_sampling=refused,
        **{key: values[key] for key in (*_SAMPLING, *_PLAIN_KEYS)},
    )


_PLAIN_KEYS = (
    *("repetition_penalty", "max_new_tokens", "max_length", "min_new_tokens", "min_length"),
    *("no_repeat_ngram_size", "forced_bos_token_id"),
)
"""Keys whose value is that of the field, beside those of sampling."""


def token_ids_of(settings: Mapping[str, Any], key: str, *, where: str) -> tuple[int, ...]:
    """Return the token ids that a file's `key` holds, one or a list of them. Raises CheckpointError."""
    try:
        return _as_tuple(msgspec.convert(settings.get(key), int | tuple[int, ...] | None))
    except _MEANINGLESS as error:
        expected = _KINDS["eos_token_id"][1]
        raise CheckpointError(
            f"{where}: {key} is {quote(settings[key])}; it must be {expected}; download the file again"
        ) from error


def describe_own_settings(own: OwnSettings) -> str:
    """Return them for people, as in `repetition penalty 1.05, top-k 20`."""
    return ", ".join(_WORDS.get(name, name.replace("_", " ") + " {:g}").format(own[name]) for name in own)


def _matters(name: str, before: SamplingParams, params: SamplingParams) -> bool:
    """Return whether a text may depend on a value that was filled."""
    if params.is_greedy and name in ("top_p", "top_k", "min_p"):
        return False
    return not getattr(before, name) == getattr(params, name) == getattr(_NEUTRAL, name)


def _rules_by_key(rules: TextRules) -> dict[str, Any]:
    """Return the rules that are any, by the key of the file that they come from."""
    by_key = {
        "no_repeat_ngram_size": rules.no_repeat_ngram_size,
        "bad_words_ids": rules.banned_sequences,
        "suppress_tokens": rules.banned_tokens,
        "begin_suppress_tokens": rules.banned_first_tokens,
        "min_new_tokens": rules.min_new_tokens,
        "forced_bos_token_id": rules.first_token,
        "forced_eos_token_id": rules.last_tokens,
    }
    return {
        key: value
        for key, value in by_key.items()
        if value not in ((), None) and (value != 0 or key == "forced_bos_token_id")
    }


def _checked(found: Mapping[str, Any], key: str, file: Path) -> Any:
    kind, expected = _KINDS[key]
    try:
        value = msgspec.convert(found.get(key), kind | None)
        if key == "stop_strings":
            "".join(value or ()).encode()  # half a surrogate pair is no text
        return value
    except _MEANINGLESS as error:
        raise CheckpointError(
            f"{file}: {key} is {quote(found[key])}; it must be {expected}; {_way_out(key)}"
        ) from error


def _way_out(key: str) -> str:
    return "download the file again" if key == "eos_token_id" else "mend the file, or give --generation plain"


def _check_ids(values: Mapping[str, Any], file: Path, *, vocab_size: int) -> None:
    """Raise CheckpointError if a ban or a forced token is none of the model's, or if no token is left."""
    for key in ("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id"):
        listed = values[key]
        ids = [each for word in listed or () for each in word] if key == "bad_words_ids" else _as_tuple(listed)
        _check_known(ids, key, file, vocab_size=vocab_size)
        if key == "suppress_tokens" and len(set(ids)) == vocab_size:
            raise CheckpointError(f"{file}: {key} holds all {vocab_size} ids of the model; {_way_out(key)}")
    _check_known(_as_tuple(values["forced_eos_token_id"]), "forced_eos_token_id", file, vocab_size=vocab_size)


def _check_known(ids: Sequence[int], key: str, file: Path, *, vocab_size: int) -> None:
    if (largest := max(ids, default=0)) >= vocab_size:
        raise CheckpointError(
            f"{file}: {key} holds {largest}; the model's ids are 0 to {vocab_size - 1}; {_way_out(key)}"
        )


def _refused(found: Mapping[str, Any], harmless: Mapping[str, Callable[[Any], bool]]) -> Iterator[str]:
    for key, leaves_text in harmless.items():
        value = found.get(key)
        if value is not None and not leaves_text(value):
            yield f"{key} {quote(value)}"


def _contrastive(found: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[str]:
    """Greedy text with penalty_alpha is another search, where it has tokens to choose from."""
    top_k = DEFAULT_TOP_K if values["top_k"] is None else values["top_k"]
    if not values["do_sample"] and top_k > 1 and found.get("penalty_alpha") not in (None, 0):
        yield f"penalty_alpha {quote(found['penalty_alpha'])}"


def _refusal(where: str, refused: Sequence[str]) -> str:
    return (
        f"{where} asks for {', '.join(refused)}, which is not done here and would change the text; "
        "give --generation plain to go on without the model's own generation settings"
    )


def _as_tuple(value: int | tuple[int, ...] | None) -> tuple[int, ...]:
    return () if value is None else (value,) if isinstance(value, int) else value
