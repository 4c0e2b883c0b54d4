"""Counts tokens for the app in a thread of its own: neither a pass nor a stop waits for it."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from runtime.errors import OptionError
from tui.chat.engine.messages import CountTokens, TokensCounted

if TYPE_CHECKING:
    from runtime.tokenizer.box import Tokenizer


class TokenCounter:
    """Answers the last request for a count; one that still waits when another comes is not wanted any more.

    The tokenizer's process serves answers too: what it is given here delays their text, not their passes.
    """

    def __init__(self, say: Callable[[TokensCounted], None]) -> None:
        """`say` is called from the thread, which starts with the first request."""
        self.tokenizer: Tokenizer | None = None
        """The open model's; without one nothing is counted."""
        self._say = say
        self._wanted: CountTokens | None = None
        self._has_request = threading.Condition()
        self._thread: threading.Thread | None = None

    def want(self, request: CountTokens) -> None:
        """Take a request, from any thread, without waiting."""
        with self._has_request:
            self._wanted = request
            self._has_request.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="token counter", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._has_request:
                while self._wanted is None:
                    self._has_request.wait()
                request, self._wanted = self._wanted, None
            self._say(count_tokens(self.tokenizer, request))


def count_tokens(tokenizer: "Tokenizer | None", request: CountTokens) -> TokensCounted:
    """Return how many tokens texts and a prompt have; None without a tokenizer, or where it or its template refuses."""
    if tokenizer is None:
        return TokensCounted(request.count_id, None)
    from runtime.engine.session import format_prompt  # here, since it needs torch, as does whoever has a tokenizer

    try:
        num_tokens = tuple(len(tokenizer.encode(text)) if text else 0 for text in request.texts)
        prompt = None if request.prompt is None else len(format_prompt(tokenizer, request.prompt))
    except OptionError:  # which sending it will say
        return TokensCounted(request.count_id, None)
    return TokensCounted(request.count_id, num_tokens, prompt)
