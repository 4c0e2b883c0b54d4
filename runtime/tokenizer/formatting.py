"""From a prompt to token ids by a tokenizer of transformers, with every way in which that fails as one sentence."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from runtime.errors import OptionError
from runtime.prompts.prompt_file import Message, ToolCall
from runtime.tokenizer.chat_template import ChatTemplate, chat_template
from runtime.tokenizer.loading import reason

_NO_ANSWER = "(no answer)"
"""Templates refuse one that is empty."""


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of raw text, special tokens around it as the tokenizer wants. Raises OptionError."""
    return _some(_encoded(tokenizer, text))


def encode_pair(tokenizer: Any, context: str | None, continuation: str) -> tuple[list[int], list[int]]:
    """Return the token ids of a context and of what follows it, split as lm_eval does (TemplateLM._encode_pair).

    Spaces that end the context belong to the continuation, whose tokens are those of both without as many as the
    context has alone. A context of nothing is the token that begins a text, or the one that ends it, and so it is where
    `context` is None: then the continuation has the special tokens that the tokenizer wants. Raises OptionError.
    """
    begin_id = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    begin = "" if begin_id is None else tokenizer.decode([begin_id])

    def encode(text: str) -> list[int]:
        return _encoded(tokenizer, text, has_special=not (begin and text.startswith(begin)))

    if context is not None and (kept := context.rstrip()):
        context_ids = encode(kept)
        continuation_ids = encode(context + continuation)[len(context_ids) :]
    elif begin_id is None:
        raise OptionError("there is no context, and the tokenizer has no token that begins or ends a text; give some")
    elif context is None:
        context_ids, continuation_ids = [begin_id], encode(continuation)
    else:
        continuation_ids = _encoded(tokenizer, context + continuation, has_special=False)
        num_begun = int(continuation_ids[:1] == [begin_id] and len(continuation_ids) > 1)
        context_ids, continuation_ids = [begin_id], continuation_ids[num_begun:]
    if not continuation_ids:
        raise OptionError("the continuation adds no token to the context; give it some text")
    return context_ids, continuation_ids


def encode_conversation(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    is_continued: bool,
    tools: str | None = None,
    thinking: bool | None = None,
    reasoning_effort: str | None = None,
) -> list[int]:
    """Apply the chat template to the turns, open at the end for the answer.

    If it `is_continued`, the answer writes on where the last turn ends. `tools`, `thinking` and `reasoning_effort` are
    those of a `PromptRequest`. Raises OptionError, also where the template would leave out what was asked of it.
    """
    if not tokenizer.chat_template:
        raise OptionError("the target's tokenizer has no chat template; add --raw to send prompts as they are")
    if is_continued and not messages[-1].content.strip():
        messages, is_continued = messages[:-1], False  # nothing to write on from: the answer begins
    template = chat_template(tokenizer, has_tools=tools is not None)
    how: dict[str, Any] = {"continue_final_message": True} if is_continued else {"add_generation_prompt": True}
    how |= template.choices(thinking, reasoning_effort)
    if tools is not None:
        if not template.knows_tools:
            raise OptionError(
                "the target's chat template knows no tools; leave tools out, or take a model that was trained for them"
            )
        how["tools"] = json.loads(tools)
    try:
        return _conversation_ids(tokenizer, messages, template, how)
    except OptionError as error:
        answered = _with_answers(messages)
        if answered == list(messages) or not isinstance(error.__cause__, TemplateError):
            raise
        try:
            return _conversation_ids(tokenizer, answered, template, how)
        except OptionError:
            raise error from error.__cause__  # it is about what was asked


def _conversation_ids(
    tokenizer: Any, messages: Sequence[Message], template: ChatTemplate, how: Mapping[str, Any]
) -> list[int]:
    conversation = [_turn(message, template) for message in messages]
    _check_tool_turns(tokenizer, messages, conversation, how)
    return _some(_applied(tokenizer, conversation, how, return_dict=True)["input_ids"])


def _with_answers(messages: Sequence[Message]) -> list[Message]:
    """Return the turns with an answer between what a tool said and a prompt behind it.

    Mistral's templates want one there: calls and their results aside, user and assistant must alternate. There is none
    where a person stopped or refused a call and asked something else.
    """
    answered = list[Message]()
    for message in messages:
        if message.role == "user" and answered and answered[-1].role == "tool":
            answered.append(Message("assistant", _NO_ANSWER))
        answered.append(message)
    return answered


def _turn(message: Message, template: ChatTemplate) -> dict[str, Any]:
    """Return a turn as templates take it: arguments as an object, and no key that it has nothing for."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [_call(call, template) for call in message.tool_calls]
    if message.reasoning_content is not None:
        turn["reasoning_content"] = message.reasoning_content
    if message.tool_call_id is not None:
        turn["tool_call_id"] = template.call_id(message.tool_call_id)
    if message.name is not None:
        turn["name"] = message.name
    return turn


def _call(call: ToolCall, template: ChatTemplate) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.loads(call.arguments)}
    return {"id": template.call_id(call.id), "type": "function", "function": function}


def _check_tool_turns(
    tokenizer: Any, messages: Sequence[Message], conversation: Sequence[Mapping[str, Any]], how: Mapping[str, Any]
) -> None:
    """Raise OptionError where the template leaves out what a tool was asked or what it said."""
    wanted = list(_tool_words(messages))
    if not wanted:
        return
    text: str = _applied(tokenizer, conversation, how, tokenize=False)
    for what, spellings in wanted:
        if not any(spelling in text for spelling in spellings):
            raise OptionError(
                f"the target's chat template leaves {what} out of the conversation; take a model that was trained for "
                "tools, or put it into a user turn"
            )


def _tool_words(messages: Sequence[Message]) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield what of tools must be found in the prompt, and how it may stand there."""
    for message in messages:
        for call in message.tool_calls:
            yield "calls of tools", [call.name]
        if message.role == "tool" and (said := message.content.strip()):
            word = max(said.split(), key=len)
            yield "what tools said", [word, json.dumps(word)[1:-1], json.dumps(word, ensure_ascii=False)[1:-1]]


def _applied(tokenizer: Any, conversation: Sequence[Mapping[str, Any]], how: Mapping[str, Any], **form: bool) -> Any:
    """Return what the chat template makes of a conversation, as ids or as text. Raises OptionError."""
    try:
        return tokenizer.apply_chat_template(conversation, **form, **how)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except TemplateError as error:
        raise OptionError(f"the target's chat template refuses the conversation: {_said(error)}; use --raw") from error
    except BaseException as error:  # a template can raise anything, and a panic of Rust is no Exception
        if not isinstance(error, Exception):
            raise OptionError(f"the target's tokenizer fails on the prompt ({reason(error)})") from error
        if "continue_final_message" in how and isinstance(error, ValueError):
            raise OptionError(
                "the target's chat template changes what the assistant said, so that the answer cannot be continued; "
                "ask for it again instead"
            ) from error
        raise OptionError(
            f"the target's chat template fails on the conversation ({reason(error)}); use --raw"
        ) from error


def _encoded(tokenizer: Any, text: str, *, has_special: bool = True) -> list[int]:
    """Return the ids of a text, with the special tokens that the tokenizer wants around it or without."""
    how = {} if has_special else {"add_special_tokens": False}
    try:
        return list(tokenizer(text, **how)["input_ids"])
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        raise OptionError(f"the target's tokenizer fails on the prompt ({reason(error)})") from error


def _said(error: TemplateError) -> str:
    """Return what a template's author has to say."""
    return reason(error).removeprefix(f"{type(error).__name__}: ")


def _some(token_ids: Any) -> list[int]:
    if not token_ids:
        raise OptionError("the prompt holds no token; give it some text")
    return list(token_ids)
