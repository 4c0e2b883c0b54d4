"""How many tokens the prompt that is being written has, and whether there is room for it: said before it is sent.

The engine counts, a moment after the last key, also while it writes an answer.
"""

from itertools import count

from textual.screen import Screen
from textual.timer import Timer

from tui.attachments import Attachment
from tui.chat.commands.slash import is_command
from tui.chat.dialogue import Dialogue
from tui.chat.engine.client import EngineClient
from tui.chat.engine.messages import CountTokens, Loaded, TokensCounted
from tui.chat.widgets.prompt import PromptArea
from tui.terminal_text import counted

COUNT_SECONDS = 0.3
"""From the last key to the question; whoever types on is not counted meanwhile."""
_TIGHT_SHARE = 4
"""What leaves less than a quarter of the context for the answer is told so."""


def count_words(num_tokens: int, total: int | None, model: Loaded) -> str:
    """Say what a prompt of `num_tokens` takes, with its conversation `total`, where that is known."""
    words, held = counted(num_tokens, "token"), model.context_tokens
    if total is None or held - total >= held // _TIGHT_SHARE:
        return words
    if total < held:
        return f"{words}, leaves {held - total:,} for the answer"
    room = next((size for size, _ in model.larger_contexts if size > total), None)
    hint = "" if room is None else f"; /context {room} has room"
    return f"too long: {total:,} of {held:,} tokens{hint}"


class PromptCounter:
    """Shows the count at the prompt and at what is attached to it."""

    def __init__(self, screen: Screen[None], dialogue: Dialogue, engine: EngineClient, prompt: PromptArea) -> None:
        self._screen, self._dialogue, self._engine, self._prompt = screen, dialogue, engine, prompt
        self._ids = count(1)
        self._asked_id = 0
        self._asked_conversation: int | None = None  # of which that was
        self._asked: tuple[Attachment, ...] = ()  # those that are counted for the first time
        self._known: dict[Attachment, int] = {}
        self._model: Loaded | None = None  # which counted them
        self._conversation: tuple[int | None, int] = (None, 0)  # counted last without a prompt, and its tokens
        self._waiting: Timer | None = None

    def refresh(self) -> None:
        """Count what is written now, once no more keys come for a moment."""
        if self._waiting is not None:
            self._waiting.stop()
        self._waiting = self._screen.set_timer(COUNT_SECONDS, self._ask)

    @property
    def num_conversation_tokens(self) -> int | None:
        """What the open conversation takes of the context, as far as the engine was asked."""
        counted_id, num_tokens = self._conversation
        is_known = counted_id is not None and counted_id == self._dialogue.conversation_id
        return num_tokens if is_known else self._dialogue.num_context_tokens

    def take(self, report: TokensCounted) -> None:
        """Show what was counted, unless something else was written since."""
        model = self._model
        if report.count_id != self._asked_id or report.num_tokens is None or model is None:
            return
        if self._asked_conversation != self._dialogue.conversation_id:  # another one was opened since
            return
        if not report.num_tokens:
            self._conversation = (self._asked_conversation, report.num_prompt_tokens or 0)
            return
        num_tokens, *others = report.num_tokens
        self._known.update(zip(self._asked, others, strict=True))
        self._prompt.attached.show_tokens(self._known)
        total = report.num_prompt_tokens
        if total is None and self._dialogue.num_context_tokens is not None:  # the answer under way is part of it
            total = self._dialogue.num_context_tokens + num_tokens
        self._show(
            count_words(num_tokens, total, model), is_too_long=total is not None and total >= model.context_tokens
        )

    def _ask(self) -> None:
        self._waiting = None
        model = self._dialogue.state.model
        message = "" if is_command(self._prompt.text) else self._prompt.message
        self._asked_id = next(self._ids)  # what is still on its way is of something else
        if not message.strip():
            message = ""
            self._show("", is_too_long=False)
        if model is None:
            return
        if self._model is None or self._model.target != model.target:
            self._known, self._conversation = {}, (None, 0)
        self._model, self._asked_conversation = model, self._dialogue.conversation_id
        request = self._dialogue.request_with(message)
        if message:
            self._asked = tuple(each for each in self._prompt.attached.attachments if each not in self._known)
            texts = (message, *(each.text for each in self._asked))
            self._engine.send(CountTokens(self._asked_id, texts, request))
        elif request is not None:
            self._engine.send(CountTokens(self._asked_id, (), request))

    def _show(self, words: str, *, is_too_long: bool) -> None:
        self._prompt.border_subtitle = words
        self._prompt.set_class(is_too_long, "-too-long")
