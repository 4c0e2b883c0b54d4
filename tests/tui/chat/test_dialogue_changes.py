"""Whatever goes wrong in a dialogue, the screen has something to offer for it."""

from typing import get_args

from tui.chat.dialogue_changes import TroubleKind
from tui.chat.display import CHOICES
from tui.chat.screen import ChatScreen


def test_every_kind_of_trouble_has_its_choices():
    """`refused` is only told."""
    assert set(CHOICES) == set(get_args(TroubleKind)) - {"refused"}


def test_every_choice_has_an_action_and_explains_itself():
    choices = [choice for offered in CHOICES.values() for choice in offered]
    assert all(hasattr(ChatScreen, f"action_{choice.action}") and choice.help for choice in choices)
