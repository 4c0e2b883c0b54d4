"""The tree that the messages of one conversation are: what follows what, and which of its branches is gone to next.

Each message follows another one, or none, and ends a branch that begins at the root. Messages that follow the same one
are versions of each other: answers to one prompt, or prompts in each other's place.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from tui.chat.store.records import Role

ROOT = 0
"""What the first message of each branch follows."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a conversation one stands after a step."""

    number: int
    """Of the version that is shown, from 1 in the order in which they were begun."""
    num_versions: int
    is_answer: bool
    """Whether they are answers to one prompt; else prompts that took each other's place."""
    message_id: int
    """The version that is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One way through the tree to its end, with what tells it from all others."""

    leaf_id: int
    num_messages: int
    role: Role
    words: str
    """The message with which it parts from its neighbour, the last such one."""
    follows: str
    """The message before that, where they part; empty where they part at the beginning."""
    parting_number: int
    """Which of the branch's messages that is, from 1."""
    updated_at: float
    """When its last message was begun."""
    is_shown: bool


@dataclass(frozen=True, slots=True)
class Node:
    """A message as the tree knows it."""

    id: int
    parent_id: int
    """Of a lower id than its own; ROOT for none."""
    last_shown: int = 0
    """The later a branch that was shown and ended here was left, the higher; 0 for never."""


class MessageTree:
    """All messages of one conversation."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._parents: dict[int, int] = {}
        self._children: dict[int, list[int]] = defaultdict(list)
        ends: dict[int, tuple[int, int]] = {}  # the end of the branch shown last below each, and when
        for node in sorted(nodes, key=lambda node: node.id):
            parent_id = node.parent_id if node.parent_id < node.id else ROOT  # a damaged file may lead in a circle
            self._parents[node.id] = parent_id
            self._children[parent_id].append(node.id)
            ends[node.id] = (node.last_shown, node.id)
        for message_id in reversed(self._parents):
            parent_id = self._parents[message_id]
            ends[parent_id] = max(ends.get(parent_id, (0, ROOT)), ends[message_id])
        self._ends = ends

    def path(self, leaf_id: int) -> tuple[int, ...]:
        """Return the messages of the branch that ends with `leaf_id`, oldest first."""
        path = []
        while leaf_id in self._parents:
            path.append(leaf_id)
            leaf_id = self._parents[leaf_id]
        return tuple(reversed(path))

    def versions(self, message_id: int) -> tuple[int, ...]:
        """Return the messages that follow the same one, itself among them, in the order in which they were begun."""
        return tuple(self._children[self._parents[message_id]])

    def latest_leaf(self, message_id: int) -> int:
        """Return the end of the branch with `message_id` that was shown last; of the newest if none ever was."""
        return self._ends[message_id][1]

    def leaves(self) -> tuple[int, ...]:
        """Return the last message of each branch, oldest first."""
        return tuple(message_id for message_id in self._parents if not self._children.get(message_id))

    def parting(self, leaf_id: int) -> int:
        """Return the last message of a branch that has other versions, which no other branch has for its last one.

        The first message where nothing has.
        """
        path = self.path(leaf_id)
        return next((each for each in reversed(path) if len(self.versions(each)) > 1), path[0])

    def neighbour(self, leaf_id: int, *, is_back: bool) -> int | None:
        """Return the version before, or after, at the last place of a branch that has one; None if no place has.

        What follows the end of the branch, where that was cleared, comes first of all: the version shown last.
        """
        if is_back and (following := self._children.get(leaf_id)):
            return max(following, key=lambda each: self._ends[each])
        for message_id in reversed(self.path(leaf_id)):
            versions = self.versions(message_id)
            index = versions.index(message_id) + (-1 if is_back else 1)
            if 0 <= index < len(versions):
                return versions[index]
        return None
