"""A queue in which clients take turns: one that asks much makes nobody wait who asks little. For one thread at a
time.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable

from runtime.serving.answer import Answer


class FairQueue:
    """Answers that wait, in order within a client, the clients one after another."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Hashable, deque[Answer]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def append(self, answer: Answer) -> None:
        """Let an answer wait behind its client's others; a client who waits for nothing yet is the last in turn."""
        self._waiting.setdefault(answer.client, deque()).append(answer)

    def insert(self, answer: Answer) -> None:
        """Let an answer be the next of all."""
        self._waiting.setdefault(answer.client, deque()).appendleft(answer)
        self._waiting.move_to_end(answer.client, last=False)

    def first(self) -> Answer | None:
        """Return whose turn it is, without taking it."""
        return next((answers[0] for answers in self._waiting.values()), None)

    def pop(self) -> Answer:
        """Take the first, whose client is the last in turn then."""
        client, answers = next(iter(self._waiting.items()))
        answer = answers.popleft()
        self._waiting.move_to_end(client)
        if not answers:
            del self._waiting[client]
        return answer

    def remove(self, answer: Answer) -> bool:
        """Take an answer out, wherever it stands; return whether it was there."""
        answers = self._waiting.get(answer.client, deque())
        if answer not in answers:
            return False
        answers.remove(answer)
        if not answers:
            del self._waiting[answer.client]
        return True
