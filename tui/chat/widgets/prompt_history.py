"""Earlier prompts, stepped through as in a shell: what was being written waits at the newest end. Knows no widget."""

from collections.abc import Iterable


class PromptHistory:
    """The prompts of a conversation and a place among them."""

    def __init__(self, prompts: Iterable[str] = ()) -> None:
        self._prompts = list(prompts)
        self._index = len(self._prompts)  # of what is shown; the length: what is being written
        self._unsent = ""

    def add(self, prompt: str) -> None:
        """One more was sent; the place is the newest end again. The same one twice in a row is kept once."""
        if not self._prompts or self._prompts[-1] != prompt:
            self._prompts.append(prompt)
        self._index = len(self._prompts)
        self._unsent = ""

    def older(self, shown: str) -> str | None:
        """The prompt before the one that is `shown`; None at the oldest."""
        if self._index == 0:
            return None
        if self._index == len(self._prompts):
            self._unsent = shown
        self._index -= 1
        return self._prompts[self._index]

    def newer(self) -> str | None:
        """The prompt after; at the end what was being written; None beyond that."""
        if self._index == len(self._prompts):
            return None
        self._index += 1
        return self._unsent if self._index == len(self._prompts) else self._prompts[self._index]
