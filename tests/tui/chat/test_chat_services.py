"""What the app is given cannot change under it, and the least of it is enough."""

from dataclasses import FrozenInstanceError

import pytest

from tests.support.chat_fakes import FakeEngine
from tui.chat.chat_services import ChatServices
from tui.chat.settings.chat_settings import ChatSettings
from tui.chat.settings.remembered_settings import RememberedSettings
from tui.chat.store.store import ConversationStore


def test_store_engine_and_settings_are_enough():
    with ConversationStore(None) as store:
        services = ChatServices(store=store, engine=FakeEngine(), settings=RememberedSettings(ChatSettings()))
        assert (services.conversation_id, services.has_model, services.notices) == (None, True, ())
        with pytest.raises(FrozenInstanceError):
            services.has_model = False
