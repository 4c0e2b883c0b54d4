"""What tests of a dialogue do again and again: let the engine answer, and read what was said."""

from dataclasses import replace

from tests.support.chat_fakes import FINISHED, answer_reports
from tui.chat.engine.messages import OfAnswer


def answered(dialogue, text="There.", **ends):
    """Let the engine answer what was asked last; returns all changes."""
    answer_id = dialogue.answer.answer_id
    reports = answer_reports(answer_id, [text], is_ended=False)
    changes = [change for report in reports for change in dialogue.take(report)]
    return [*changes, *take(dialogue, answer_id, replace(FINISHED, **ends))]


def take(dialogue, answer_id, event):
    return dialogue.take(OfAnswer(answer_id, event))


def kinds(changes):
    return [type(change) for change in changes]


def contents(dialogue):
    return [message.content for message in dialogue.messages()]


def exchange(dialogue, *texts):
    """Ask and let it be answered, in turns; returns the ids of the messages."""
    for prompt, text in zip(texts[::2], texts[1::2], strict=True):
        dialogue.ask(prompt)
        answered(dialogue, text)
    return [each.id for each in dialogue.messages()]
