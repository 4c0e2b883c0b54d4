"""From a prompt to token ids by a tokenizer of transformers, with every way in which that fails as one sentence."""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from runtime.errors import OptionError
from runtime.tokenizer.loading import reason


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


def encode_conversation(tokenizer: Any, turns: Sequence[tuple[str, str]], *, is_continued: bool) -> list[int]:
    """Apply the chat template to the turns, (role, content) each, open at the end for the answer.

    If it `is_continued`, the answer writes on where the last turn ends. Raises OptionError.
    """
    if not tokenizer.chat_template:
        raise OptionError("the target's tokenizer has no chat template; add --raw to send prompts as they are")
    conversation = [{"role": role, "content": content} for role, content in turns]
    if is_continued and not conversation[-1]["content"].strip():
        del conversation[-1]  # nothing to write on from: the answer begins
        is_continued = False
    how = {"continue_final_message": True} if is_continued else {"add_generation_prompt": True}
    try:
        token_ids = tokenizer.apply_chat_template(conversation, return_dict=True, **how)["input_ids"]
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except TemplateError as error:
        raise OptionError(f"the target's chat template refuses the conversation: {_said(error)}; use --raw") from error
    except BaseException as error:  # a template can raise anything, and a panic of Rust is no Exception
        if not isinstance(error, Exception):
            raise OptionError(f"the target's tokenizer fails on the prompt ({reason(error)})") from error
        if is_continued and isinstance(error, ValueError):
            raise OptionError(
                "the target's chat template changes what the assistant said, so that the answer cannot be continued; "
                "ask for it again instead"
            ) from error
        raise OptionError(
            f"the target's chat template fails on the conversation ({reason(error)}); use --raw"
        ) from error
    return _some(token_ids)


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
