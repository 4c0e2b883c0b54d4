"""What a model reads of a conversation: its turns, as a chat template takes them, or one text to be written on."""

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.config import SamplingParams
from runtime.prompts.prompt_file import Message, PromptRequest
from tui.chat.store.records import StoredMessage, raw_text, readable, system_turn, turns_with_ids


@dataclass(frozen=True, slots=True)
class Reading:
    """What a request says of a conversation."""

    turns: tuple[Message, ...]
    """Oldest first, behind the system prompt where there is one."""
    ids: tuple[int, ...] = ()
    """Of the first message of each turn, the system prompt aside."""
    is_text: bool = False
    """Whether the turns are one text to be written on."""
    tools: str | None = None
    """That may be called; the answer ends with its first call of one."""

    @classmethod
    def of(
        cls, system_prompt: str, messages: Sequence[StoredMessage], *, is_text: bool = False, tools: str | None = None
    ) -> "Reading":
        """Take all messages of a branch, less what is left out of what the model reads."""
        kept = readable([each for each in messages if not each.is_left_out])
        found = turns_with_ids(kept, knows_tools=tools is not None)
        turns = (*system_turn(system_prompt), *(turn for _, turn in found))
        return cls(turns, tuple(message_id for message_id, _ in found), is_text, tools)

    def request(
        self, params: SamplingParams, unchosen: frozenset[str], *, request_id: str = "", is_continued: bool = False
    ) -> PromptRequest:
        """Return the request for an answer; one that `is_continued` is the last turn, which goes on."""
        if self.is_text:
            return PromptRequest(id=request_id, prompt=raw_text(self.turns), params=params, unchosen=unchosen)
        return PromptRequest(
            id=request_id,
            messages=self.turns,
            params=params,
            unchosen=unchosen,
            is_continued=is_continued,
            tools=self.tools,
            wants_parts=True,
            wants_guesses=True,
            has_one_call=self.tools is not None,
        )
