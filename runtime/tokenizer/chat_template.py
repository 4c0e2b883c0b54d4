"""What a chat template reads and writes, found in the template itself: tools, choices of thinking, marks in answers."""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from runtime.errors import OptionError

_SWITCHES = ("enable_thinking", "thinking")
"""What templates call the choice to think: Qwen 3, Gemma 4 and Cohere the first, DeepSeek and Granite the other."""
_EFFORTS = ("reasoning_effort", "reasoning_strength", "thinking_effort")
_BUDGET = "thinking_budget"
"""Seed-OSS's number of tokens, of which 0 is none."""
_SHORT_ID = 9
"""Characters of a call's id that Mistral's templates take, and no other number."""


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    """What stands around thinking."""

    begin: str
    end: str
    words: tuple[str, ...] = ()
    """Tokens of which the marks consist, where they are more than one."""

    @property
    def tokens(self) -> tuple[str, ...]:
        return self.words or (self.begin, self.end)


REASONING = (
    ReasoningMarks("<think>", "</think>"),  # Qwen 3, DeepSeek R1, SmolLM 3, GLM, Granite and most others
    ReasoningMarks("[THINK]", "[/THINK]"),  # Ministral 3, Magistral
    ReasoningMarks("<|channel>thought", "<channel|>", ("<|channel>", "<channel|>")),  # Gemma 4
    ReasoningMarks("<seed:think>", "</seed:think>"),  # Seed-OSS
    ReasoningMarks("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ReasoningMarks("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A and R7B
)


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """What can be said of a template without running it."""

    variables: frozenset[str]
    """Names that it expects from whoever applies it."""
    literals: str
    """Every text that it writes, a null character between two."""

    @property
    def knows_tools(self) -> bool:
        return "tools" in self.variables

    @property
    def knows_thinking(self) -> bool:
        """Return whether answers may begin with thinking, as far as its own text shows."""
        return any(marks.end in self.literals for marks in REASONING)

    @property
    def has_switch(self) -> bool:
        """Return whether it takes a choice to think or not."""
        return not self.variables.isdisjoint((*_SWITCHES, *_EFFORTS, _BUDGET))

    def choices(self, thinking: bool | None, reasoning_effort: str | None) -> dict[str, Any]:
        """Return the variables that carry both choices, in the template's own names.

        An effort is a wish, which is left out where it has no name; of "none" it means no thinking. Raises OptionError
        where `thinking` cannot be as it is wanted.
        """
        chosen: dict[str, Any] = {}
        wanted = thinking
        if wanted is None and reasoning_effort is not None:
            wanted = reasoning_effort != "none"
        if wanted is not None:
            chosen |= {name: wanted for name in _SWITCHES if name in self.variables}
            if not wanted and _BUDGET in self.variables:
                chosen[_BUDGET] = 0
        efforts = [name for name in _EFFORTS if name in self.variables]
        if reasoning_effort is None and thinking is not None and not chosen and efforts:
            reasoning_effort = "high" if thinking else "none"
        if reasoning_effort is not None:
            chosen |= dict.fromkeys(efforts, reasoning_effort)
        if thinking is not None and not chosen:
            self._refuse(thinking)
        return chosen

    def call_id(self, call_id: str) -> str:
        """Return the id of a call in a form that the template takes; equal ids stay equal."""
        if f"length {_SHORT_ID}" not in self.literals or (len(call_id) == _SHORT_ID and call_id.isalnum()):
            return call_id
        return hashlib.sha256(call_id.encode()).hexdigest()[:_SHORT_ID]

    def _refuse(self, thinking: bool) -> None:
        if thinking and not self.knows_thinking and _BUDGET not in self.variables:
            raise OptionError("the target's chat template knows no thinking; leave the choice of thinking out")
        if not thinking and self.knows_thinking:
            raise OptionError(
                "the target's chat template has no switch for thinking, so that it cannot be left out; leave the "
                "choice to the model"
            )


def chat_template(tokenizer: Any, *, has_tools: bool) -> ChatTemplate:
    """Return what is known of the template that a tokenizer of transformers applies; nothing of one that is damaged."""
    source = tokenizer.chat_template
    if isinstance(source, Mapping):
        source = source.get("tool_use" if has_tools and "tool_use" in source else "default")
    return _read(source) if isinstance(source, str) else _UNREADABLE


_UNREADABLE = ChatTemplate(frozenset(), "")


@functools.lru_cache(maxsize=8)
def _read(source: str) -> ChatTemplate:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    try:
        tree = environment.parse(source)
    except (TemplateError, RecursionError):  # whoever applies it says so
        return _UNREADABLE
    variables = meta.find_undeclared_variables(tree)
    texts = [node.data for node in tree.find_all(nodes.TemplateData)]
    texts += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    return ChatTemplate(frozenset(variables), "\0".join(texts))


class _Generation(Extension):
    """Reads what transformers adds to the language: `{% generation %}` around what the assistant says."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
