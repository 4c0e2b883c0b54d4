"""Does what the tokenizer's process is asked, one task at a time, and turns whatever goes wrong into a sentence."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from offload.checkpoint.border import link_places
from offload.checkpoint.gguf_file import part_files
from profiles.errors import OverstoryError, quote
from runtime.errors import OptionError
from runtime.tokenizer import messages as m
from runtime.tokenizer.answer_forms import answer_form
from runtime.tokenizer.answer_text import AnswerText
from runtime.tokenizer.formatting import encode_conversation, encode_pair, encode_text
from runtime.tokenizer.json_schema import compile_schema
from runtime.tokenizer.limits import FileGuard
from runtime.tokenizer.loading import load_tokenizer, reason
from runtime.tokenizer.match import first_difference
from runtime.tokenizer.thinking_marks import thinking_marks
from runtime.tokenizer.token_contents import token_contents

MAX_PROMPT_TOKENS = 2**24
"""More than any context holds."""


class Desk:
    """Does the tasks, and keeps what later ones refer to."""

    def __init__(self, guard: FileGuard | None = None) -> None:
        """`guard`: what files may be opened while a tokenizer is loaded; None: any."""
        self._guard = guard
        self._tokenizers: dict[int, Any] = {}
        self._answers: dict[int, AnswerText] = {}
        self._tasks: dict[type, Callable[[Any], m.Reply]] = {
            m.Load: self._load,
            m.Encode: self._encode,
            m.EncodeConversation: self._encode_conversation,
            m.EncodePair: self._encode_pair,
            m.Name: self._name,
            m.Describe: self._describe,
            m.Compare: self._compare,
            m.CheckSchema: self._check_schema,
            m.Begin: self._begin,
            m.Add: self._add,
            m.End: self._end,
        }

    def reply(self, request: m.Request) -> m.Reply:
        """Return the task's result, or the sentence that says why there is none."""
        for key in request.dropped_keys:
            self._tokenizers.pop(key, None)
            self._answers.pop(key, None)
        try:
            return self._tasks[type(request.task)](request.task)
        except (KeyboardInterrupt, SystemExit):
            raise
        except OverstoryError as error:
            return m.Refused(str(error).encode(errors="backslashreplace").decode())  # folders' names may be no text
        except MemoryError:  # what is left may be in pieces
            return m.Refused("", ends=True)
        except BaseException as error:  # a panic of Rust is no Exception
            return m.Refused(f"the tokenizer fails ({reason(error)}); download the model's tokenizer files again")

    def _load(self, task: m.Load) -> m.Reply:
        folder = Path(os.fsdecode(task.folder))
        if self._guard is None:
            tokenizer = load_tokenizer(folder)
        else:
            is_file = folder.is_file()
            with self._guard.opened(part_files(folder) if is_file else link_places(folder), are_small=not is_file):
                tokenizer = load_tokenizer(folder)
        self._tokenizers[task.key] = tokenizer
        end = tokenizer.eos_token_id
        return m.Loaded(
            end if type(end) is int else None,
            bool(tokenizer.chat_template),
            len(tokenizer),
            thinking=thinking_marks(tokenizer),
            marks=answer_form(tokenizer).begins,
        )

    def _encode(self, task: m.Encode) -> m.Reply:
        return _encoded(encode_text(self._tokenizers[task.key], task.text))

    def _encode_conversation(self, task: m.EncodeConversation) -> m.Reply:
        token_ids = encode_conversation(
            self._tokenizers[task.key],
            task.turns,
            is_continued=task.is_continued,
            tools=task.tools,
            thinking=task.thinking,
            reasoning_effort=task.reasoning_effort,
        )
        return _encoded(token_ids)

    def _encode_pair(self, task: m.EncodePair) -> m.Reply:
        context_ids, continuation_ids = encode_pair(self._tokenizers[task.key], task.context, task.continuation)
        if (refused := _too_many(len(context_ids) + len(continuation_ids))) is not None:
            return refused
        return m.EncodedPair(context_ids, continuation_ids)

    def _name(self, task: m.Name) -> m.Reply:
        return m.Text(quote(self._tokenizers[task.key].convert_ids_to_tokens(task.token_id)))

    def _describe(self, task: m.Describe) -> m.Reply:
        return m.Described(token_contents(self._tokenizers[task.key], task.token_ids, is_first=task.is_first))

    def _compare(self, task: m.Compare) -> m.Reply:
        return first_difference(self._tokenizers[task.key], self._tokenizers[task.other_key])

    def _check_schema(self, task: m.CheckSchema) -> m.Reply:
        compile_schema(task.schema)
        return m.Ready()

    def _begin(self, task: m.Begin) -> m.Reply:
        tokenizer = self._tokenizers[task.key]
        self._answers[task.answer_key] = AnswerText(
            tokenizer, task.stop, behind=task.behind, kept=task.kept, has_ends=task.has_ends
        )
        return m.Text(tokenizer.decode(task.tail) if task.tail else "")

    def _add(self, task: m.Add) -> m.Reply:
        answer = self._known(task.answer_key)
        num_ends = len(answer.ends)
        released = answer.add(task.token_ids)
        return m.Released(released, len(answer.token_ids), answer.is_stopped, answer.ends[num_ends:])

    def _end(self, task: m.End) -> m.Reply:
        answer = self._known(task.answer_key)
        return m.Ended(answer.finish(), answer.text, answer.num_tokens, answer.stop_string)

    def _known(self, answer_key: int) -> AnswerText:
        if answer_key not in self._answers:
            raise OptionError("the text of this answer is lost, since the tokenizer's process was ended; ask again")
        return self._answers[answer_key]


def _encoded(token_ids: list[int]) -> m.Reply:
    return _too_many(len(token_ids)) or m.Encoded(token_ids)


def _too_many(num_tokens: int) -> m.Refused | None:
    if num_tokens <= MAX_PROMPT_TOKENS:
        return None
    return m.Refused(f"the prompt has become {num_tokens} tokens; expected at most {MAX_PROMPT_TOKENS}")
