"""The marks around thinking and calls of tools, and which a model writes: those of its template, else its tokens.

Sources: the chat templates of the families that each row names.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.tokenizer.chat_template import REASONING, ReasoningMarks, chat_template
from runtime.tokenizer.tool_texts import (
    Call,
    KnownTools,
    calls_of_gemma,
    calls_of_json,
    calls_of_json_or_xml,
    calls_of_python,
    calls_of_xml,
)


@dataclass(frozen=True, slots=True)
class CallMarks:
    """What stands around a call of a tool, and how it is read."""

    begin: str
    end: str | None
    """None: the call ends with its last bracket."""
    read: Callable[[str, KnownTools], list[Call] | None]
    words: tuple[str, ...] = ()
    """Further tokens inside of a call."""

    @property
    def tokens(self) -> tuple[str, ...]:
        return (self.begin, *([] if self.end is None else [self.end]), *self.words)


PYTHON_TAG, TOOL_CALLS = "<|python_tag|>", "[TOOL_CALLS]"
FUNCTION = "<function="
CALLS = (
    CallMarks("<tool_call>", "</tool_call>", calls_of_json_or_xml),  # Hermes, Qwen, SmolLM 3, Granite 4
    CallMarks(FUNCTION, "</function>", calls_of_xml),  # Qwen3-Coder, where it forgets the mark before
    CallMarks("<seed:tool_call>", "</seed:tool_call>", calls_of_json_or_xml),  # Seed-OSS
    CallMarks(TOOL_CALLS, None, calls_of_json, ("[ARGS]", "[CALL_ID]")),  # Mistral
    CallMarks(PYTHON_TAG, None, calls_of_json),  # Llama 3.1 and later, which may also leave it out
    CallMarks("<|tool_call>", "<tool_call|>", calls_of_gemma, ('<|"|>',)),  # Gemma 4
    CallMarks("<|START_ACTION|>", "<|END_ACTION|>", calls_of_json),  # Command A and R7B
    CallMarks("<|tools_prefix|>", "<|tools_suffix|>", calls_of_json),  # Apertus
    CallMarks("<TOOLCALL>", "</TOOLCALL>", calls_of_json),  # Nemotron
    CallMarks("```tool_code", "```", calls_of_python),  # Gemma 3
)
FENCE = CallMarks("```", None, calls_of_json)
"""No family's own: what a model may write instead of its marks, see `unmarked_calls`."""


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """Which marks a model writes."""

    reasoning: ReasoningMarks | None = None
    calls: tuple[CallMarks, ...] = ()

    @classmethod
    def named(cls, begins: Sequence[str]) -> "AnswerForm":
        """Return the form of these marks, each named by its beginning; others are not known."""
        reasoning = next((marks for marks in REASONING if marks.begin in begins), None)
        return cls(reasoning, tuple(marks for marks in CALLS if marks.begin in begins))

    @property
    def begins(self) -> list[str]:
        """Return the beginning of each of its marks."""
        first = [] if self.reasoning is None else [self.reasoning.begin]
        return [*first, *(marks.begin for marks in self.calls)]

    def tokens(self, *, has_tools: bool) -> tuple[str, ...]:
        """Return the tokens whose text an answer keeps, although they may be special, so that its parts are found."""
        calls = [token for marks in self.calls for token in marks.tokens] if has_tools else []
        return (*(() if self.reasoning is None else self.reasoning.tokens), *calls)

    def is_thinking(self, text: str, *, is_continued: bool = False) -> bool:
        """Return whether an answer behind a prompt that ends so begins inside of thinking.

        Many templates open it in the prompt. Of one that `is_continued`, `text` is what the assistant said so far.
        """
        if self.reasoning is None:
            return False
        if is_continued:
            return text.rfind(self.reasoning.begin) > text.rfind(self.reasoning.end)
        return text.rstrip().endswith(self.reasoning.begin)


def answer_form(tokenizer: Any) -> AnswerForm:
    """Return the form of a model's answers: the marks that its chat template writes, else those that are its tokens."""
    literals = "\0".join(chat_template(tokenizer, has_tools=has_tools).literals for has_tools in (False, True))
    vocabulary = {token.content for token in getattr(tokenizer, "added_tokens_decoder", {}).values()}
    reasoning = [marks.begin for marks in REASONING if marks.begin in literals or marks.end in literals]
    calls = [marks.begin for marks in CALLS if marks.begin in literals]
    reasoning = reasoning or [
        marks.begin
        for marks in REASONING
        if vocabulary.issuperset(marks.tokens) or vocabulary.issuperset((marks.begin, marks.end))
    ]
    calls = calls or [marks.begin for marks in CALLS if marks.begin in vocabulary]
    return AnswerForm.named([*reasoning, *calls])
