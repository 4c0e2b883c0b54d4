"""From a prompt to token ids by a tokenizer of transformers, with every way in which that fails as one sentence."""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from runtime.errors import OptionError
from runtime.tokenizer.loading import reason


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of raw text, special tokens around it as the tokenizer wants. Raises OptionError."""
    try:
        token_ids = tokenizer(text)["input_ids"]
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        raise OptionError(f"the target's tokenizer fails on the prompt ({reason(error)})") from error
    return _some(token_ids)


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


def _said(error: TemplateError) -> str:
    """Return what a template's author has to say."""
    return reason(error).removeprefix(f"{type(error).__name__}: ")


def _some(token_ids: Any) -> list[int]:
    if not token_ids:
        raise OptionError("the prompt holds no token; give it some text")
    return list(token_ids)
