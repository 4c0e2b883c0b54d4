"""What the engine yields while it answers one prompt: frozen values, importable without torch.

A consumer that stops early loses nothing: closing the generator at any event rolls both caches back to the last commit.
The last event is always `Finished`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from offload.pass_statistics import PassStatistics
from runtime.config import SCHEMES_OF_ONE_TEXT, Generation
from runtime.prompts.prompt_file import ToolCall

FinishReason = Literal["stop", "length", "context", "stopped"]
Usage = dict[str, int | dict[str, int]]
"""Counts of tokens by the names of OpenAI's API, some of them parts of others."""


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """One more piece of the models is in memory."""

    what: str
    """What is being read now."""
    num_done_bytes: int
    """Weight bytes read so far."""
    num_bytes: int
    """Weight bytes that have to be read before the first pass can end."""


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """One more chunk of the prompt is in the target's cache, and the one before it in the draft's."""

    num_done_tokens: int
    """Prompt tokens in the target's cache so far, those of an earlier prompt with the same prefix included."""
    num_prompt_tokens: int
    num_pass_tokens: int = 0
    """Prompt tokens that the next pass computes; 0 where that is not said."""
    expected_seconds: float | None = None
    """From here to the first tokens of the answer, by what passes took so far; None where that is not known."""


@dataclass(frozen=True, slots=True)
class LevelDrafted:
    """The draft model has proposed one more level of the round's tree."""

    level: int
    """Depth of the level; the root is level 0."""
    width: int
    """Nodes of the level."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, and how likely it was in one place of an answer."""

    token_id: int
    logprob: float
    """ln P by the target's own logits there: before temperature, filters, penalties and bans, as OpenAI reports it."""
    text: str = ""
    """What it adds to the text, with bytes that are no character by themselves as `\\xf0`; the name of one that adds
    nothing. Known once the answer has ended."""
    content: bytes | None = None
    """The bytes that it adds; None if it adds nothing."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token of an answer, and the likeliest tokens in its place."""

    chosen: TokenLogprob
    likeliest: tuple[TokenLogprob, ...] = ()
    """As many as the request wants, in descending order; the chosen one may be among them."""


@dataclass(frozen=True, slots=True)
class Round:
    """One round as it was measured: a tree was drafted, one pass verified it, and both caches kept its path."""

    parents: tuple[int, ...]
    """(N,) of the verified tree, breadth first; the root's is -1."""
    path: tuple[int, ...]
    """The accepted nodes, from the root down."""
    draft_seconds: float
    """Wall time of growing the tree."""
    verify_seconds: float
    """Wall time of the pass, the head, the walk and the commit."""
    pass_statistics: PassStatistics
    """The pass alone, as the streamer measured it."""
    num_pass_tokens: int
    """Tokens that the pass computed: the tree, and text that the target had not seen."""
    draft_steps: tuple[tuple[int, float], ...] = ()
    """(width, seconds) of each draft forward."""
    placing_seconds: float = 0.0
    """Part of `draft_seconds`: from logits to children; on an accelerator the forward is waited for here."""
    walk_seconds: float = 0.0
    """Part of `verify_seconds`: fetching logits where the walk goes, and judging children by them."""
    accepted_ranks: tuple[int, ...] = ()
    """For each accepted node that the draft proposed, from the root down, the rank of the child that was accepted; 0 if
    none of the draft's was."""
    num_children: tuple[int, ...] = ()
    """For each of these nodes, how many of its children the draft proposed."""
    num_grafted: int = 0
    """Nodes that were looked up in the text, or forced by the answer's rules, instead of drafted."""
    is_in_context: bool = False
    """Whether the tree took its shape from context."""
    token_ids: tuple[int, ...] = ()
    """What it emitted: final, committed to both caches, the last one to be committed as the next root."""
    num_texts: int = 1
    """Texts whose trees the pass verified; all seconds are those of all of them together, as is the pass."""
    num_pass_nodes: int = 0
    """Nodes of all their trees; 0 stands for the one tree's."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One of each token that it emitted, if the request wants them."""

    @property
    def num_nodes(self) -> int:
        return len(self.parents)

    @property
    def num_emitted(self) -> int:
        """Return how many tokens the round emits: the accepted drafts and the one chosen after them."""
        return len(self.path)

    @property
    def seconds(self) -> float:
        return self.draft_seconds + self.verify_seconds

    @property
    def overhead_seconds(self) -> float:
        """Return the time outside the draft's forwards and the pass: placing children, head, walk and commit."""
        outside_pass = self.verify_seconds - self.pass_statistics.seconds
        outside_steps = self.draft_seconds - sum(seconds for _, seconds in self.draft_steps)
        return max(0.0, outside_pass + outside_steps)


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of the answer, cut so that no character and no stop string is split."""

    text: str
    """What to append; may hold terminal escapes, to be stripped before it is printed."""
    guessed: tuple[tuple[int, int], ...] | None = None
    """(start, end) of each stretch whose tokens a tree had proposed; None if the request does not want to know."""


@dataclass(frozen=True, slots=True)
class PromptScored:
    """The tokens of a prompt were found to be so likely, each behind those before it."""

    text: str
    logprobs: tuple[TokenLogprobs, ...]
    """One of each token; the first one, which stands behind nothing, has NaN."""


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of what the answer thinks before it says something, of a request that wants parts."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A tool that the answer calls, whole, of a request that wants parts."""

    index: int
    """How many calls the answer made before."""
    call: ToolCall


@dataclass(frozen=True, slots=True)
class AnswerParts:
    """What an answer says, thinks and calls, apart from each other and without marks."""

    content: str
    """Its `TextDelta` texts joined."""
    reasoning_content: str | None = None
    """Its `ReasoningDelta` texts joined; None if it did not think."""
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationStatistics:
    """What one answer cost; sums, so that several answers add up to one."""

    prompt_tokens: int
    """Tokens of the prompt, template included."""
    new_tokens: int
    rounds: int
    """Rounds, one pass each; the first one also carries the end of the prompt."""
    prefill_seconds: float
    """Wall time from the start to the end of the first round."""
    decode_seconds: float
    """Wall time from there to the end of the answer."""
    decode_tokens: int
    """Tokens of the answer that came after the first round."""
    draft_seconds: float
    """Part of `decode_seconds` spent growing trees."""
    verify_seconds: float
    """Part of `decode_seconds` spent in the target's passes."""
    bytes_streamed: int
    """Bytes that crossed the link, prefill included."""
    link_busy_seconds: float
    """Time while decoding in which the link carried bytes."""
    decode_bytes_streamed: int
    """Bytes that crossed the link while decoding."""
    cached_tokens: int = 0
    """Tokens of the prompt that were held already and not computed: see `TokenSequence.num_cached`."""
    reasoning_tokens: int = 0
    """Tokens of the answer between the marks of its thinking."""

    @classmethod
    def total(cls, statistics: Iterable["GenerationStatistics"]) -> "GenerationStatistics":
        """Return the sum of several answers, whose ratios are those of the whole run."""
        rows = list(statistics)
        return cls(**{each.name: sum(getattr(row, each.name) for row in rows) for each in fields(cls)})

    @property
    def usage(self) -> Usage:
        """Return the tokens by the names of OpenAI's API."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.new_tokens,
            "total_tokens": self.prompt_tokens + self.new_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }

    @property
    def tokens_per_round(self) -> float | None:
        """Return the answer's tokens per pass of the target; None before the first pass."""
        return self.new_tokens / self.rounds if self.rounds else None

    @property
    def seconds_per_token(self) -> float | None:
        """Return the decoding time per token after the first round; None when there is no such token."""
        return self.decode_seconds / self.decode_tokens if self.decode_tokens else None

    @property
    def link_utilization(self) -> float | None:
        """Return the share of the decoding time in which the link carried bytes; None when nothing streams."""
        if not self.decode_bytes_streamed or not self.decode_seconds:
            return None
        return self.link_busy_seconds / self.decode_seconds


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete; always the last event."""

    finish_reason: FinishReason
    """An end token or stop string; the token limit; no room left in the context; somebody stopped it."""
    text: str
    """The whole answer, equal to its `TextDelta` texts joined; if it has `parts`, with all of them and their marks."""
    statistics: GenerationStatistics
    verification: str = "greedy"
    """The scheme that its tokens were verified with."""
    generation: Generation = "plain"
    """Whether the model's own generation settings held where nobody chose."""
    num_guessed_tokens: int | None = None
    """How many of its `new_tokens` trees had proposed; None if the request does not want to know."""
    own_settings: Mapping[str, float] = field(default_factory=dict)
    """What of its choices was the model's own: see `model.generation_config.OwnSettings`."""
    expected_prefill_seconds: float | None = None
    """What `prefill_seconds` was expected to be when the answer began; None where nothing was known."""
    stop_string: str | None = None
    """The stop string that ended it, if one did."""
    parts: AnswerParts | None = None
    """The text apart, if the request wants that."""
    logprobs: tuple[TokenLogprobs, ...] | None = None
    """One of each token of the text, if the request wants them: no end token has one, and none that belongs to a stop
    string altogether."""

    @property
    def is_text_fixed(self) -> bool:
        """Return whether an answer that was proposed otherwise, or by nobody, would have the same text."""
        return self.verification in SCHEMES_OF_ONE_TEXT


Event = PrefillProgress | LevelDrafted | Round | TextDelta | ReasoningDelta | ToolCallDelta | Finished
