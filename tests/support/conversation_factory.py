"""Conversations and messages for tests, with every field that a test does not care about filled in."""

from tui.chat.store.records import Conversation, StoredMessage


def conversation(**fields):
    return Conversation(
        **{
            "id": 1,
            "title": "My plan",
            "system_prompt": "",
            "created_at": 1_800_000_000.123456,
            "updated_at": 1_800_000_060.5,
            "num_messages": 0,
            **fields,
        }
    )


def message(role="user", content="Hello", **fields):
    return StoredMessage(
        **{
            "id": 1,
            "conversation_id": 1,
            "role": role,
            "content": content,
            "state": "complete",
            "model": "qwen" if role == "assistant" else "",
            "statistics": {},
            "created_at": 1_800_000_001.25,
            **fields,
        }
    )
