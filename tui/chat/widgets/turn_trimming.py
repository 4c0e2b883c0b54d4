"""Which turns a model still reads when the context is full.

Counts characters, since tokens are the engine's to count.
"""

from collections.abc import Sequence

from tui.chat.store.records import Message


def first_kept_after_trim(messages: Sequence[Message]) -> int | None:
    """The id of the prompt from which on half of the characters or less are left; the last prompt always stays.

    None if there is only one prompt, so that nothing can be left out.
    """
    num_characters = sum(len(message.content) for message in messages)
    prompts = [(index, message) for index, message in enumerate(messages) if message.role == "user"]
    for index, prompt in prompts[1:]:
        num_left = sum(len(message.content) for message in messages[index:])
        if num_left <= num_characters / 2 or prompt is prompts[-1][1]:
            return prompt.id
    return None
