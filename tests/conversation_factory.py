"""Messages of conversations, as the store hands them out."""

from tui.chat.conversation_records import Message, MessageState


def prompt(message_id: int, content: str) -> Message:
    return Message(
        id=message_id, conversation_id=1, role="user", content=content, state="complete", model="", created_at=0.0
    )


def answer(message_id: int, content: str, *, state: MessageState = "complete", **statistics: object) -> Message:
    return Message(
        id=message_id,
        conversation_id=1,
        role="assistant",
        content=content,
        state=state,
        model="tiny",
        statistics=statistics,
        created_at=0.0,
    )
