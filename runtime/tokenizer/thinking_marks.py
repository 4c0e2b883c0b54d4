"""Which marks a model sets around its thinking, as tokens: found in its chat template, or among its tokens."""

from collections.abc import Sequence
from typing import Any

from runtime.tokenizer.answer_forms import answer_form
from runtime.tokenizer.chat_template import chat_template
from runtime.tokenizer.messages import ThinkingMarks

_SPACES = "\u2581\u0120"
"""Signs of vocabularies for the space before a token."""


def thinking_marks(tokenizer: Any) -> ThinkingMarks | None:
    """Return the marks of `answer_form`, as tokens."""
    marks = answer_form(tokenizer).reasoning
    if marks is None:
        return None
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    begin, end = (_places(tokenizer, vocabulary, mark) for mark in (marks.begin, marks.end))
    return ThinkingMarks(marks.begin, marks.end, chat_template(tokenizer, has_tools=False).has_switch, begin, end)


def _places(tokenizer: Any, vocabulary: dict[str, int], mark: str) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of each place of a mark.

    One that is several tokens grows together with what stands around it, as in `>\\n`: its first place may be any token
    that ends with the mark's first one, and its last one any that begins with its last.
    """
    if mark in vocabulary:
        return ((vocabulary[mark],),)
    token_ids: list[int] = tokenizer(mark, add_special_tokens=False)["input_ids"]
    if len(token_ids) < 2:
        return tuple((token_id,) for token_id in token_ids)
    first, *inner, last = token_ids
    names: Sequence[str] = tokenizer.convert_ids_to_tokens([first, last])
    head, tail = names[0].lstrip(_SPACES), names[1]
    heads = sorted(token_id for name, token_id in vocabulary.items() if name.endswith(head) and token_id != first)
    tails = sorted(token_id for name, token_id in vocabulary.items() if name.startswith(tail) and token_id != last)
    return ((first, *heads), *((token_id,) for token_id in inner), (last, *tails))
