"""Runs a story of key presses against the chat app with a scripted engine and a real store."""

import asyncio
from contextlib import asynccontextmanager

from textual import events

from tests.support.chat_fakes import FakeEngine, polite
from tests.support.screen_text import places_of
from tests.support.widget_screens import until
from tui.chat.app import ChatApp
from tui.chat.display import ChatServices
from tui.chat.settings.file import RememberedSettings
from tui.chat.settings.settings import ChatSettings
from tui.chat.store.store import ConversationStore
from tui.chat.widgets.conversation import NUM_SHOWN_TURNS

NUM_KEYS = 2
"""Of a text, one by one."""


class Teller:
    """An app that runs, with what it works on."""

    def __init__(self, app, pilot, store, engine):
        self.app, self.pilot, self.store, self.engine = app, pilot, store, engine
        self.said = []
        self._notify, app.notify = app.notify, self._hear

    @property
    def screen(self):
        """The chat's, whatever lies over it."""
        return self.app.screen_stack[0]

    @property
    def chat(self):
        return self.screen.chat

    @property
    def dialogue(self):
        return self.chat.dialogue

    async def press(self, *keys):
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def type(self, text):
        """The first keys as a person hits them, a line end as Ctrl+J, and the rest at once: each key is waited for."""
        names = {"\n": "ctrl+j", " ": "space"}
        await self.press(*(names.get(character, character) for character in text[:NUM_KEYS]))
        if rest := text[NUM_KEYS:]:
            self.app.post_message(events.Paste(rest))
            await self.pilot.pause()

    async def command(self, line):
        """Type a slash command and send it."""
        await self.type(line)
        await self.press("enter")

    async def ask_for(self, way):
        """Press a key, or type a slash command and send it."""
        await (self.command(way) if way.startswith("/") else self.press(way))

    async def until(self, condition, what="what the story waits for"):
        """Let the app run until something holds."""
        await until(self.pilot, condition, what)

    async def ask(self, text, *, is_awaited=True):
        """Ask and, unless told otherwise, wait for the end of the answer."""
        before = self.num_requests("Answer")
        await self.type(text)
        await self.press("enter")
        await self.until(lambda: self.num_requests("Answer") > before, "the request")
        if is_awaited:
            await self.until(lambda: not self.dialogue.is_answering, "the end of the answer")

    async def click(self, word, *, nth=0):
        """Click a word on the screen, the first one unless told otherwise."""
        await self.until(lambda: len(places_of(self.app, word)) > nth, f"showing {word!r}")
        await self.pilot.click(offset=places_of(self.app, word)[nth])
        await self.pilot.pause()

    def num_requests(self, kind):
        return sum(type(request).__name__ == kind for request in self.engine.requests)

    @property
    def services_settings(self):
        """The settings that hold."""
        return self.chat.services.settings.settings

    async def begin_anew(self):
        """An empty conversation, nothing asked for so far, and nothing said."""
        await self.press("ctrl+n")
        self.engine.requests.clear()
        self.said.clear()

    def _hear(self, message, **options):
        """Keep what the app says for longer than it is shown."""
        self.said.append(message)
        self._notify(message, **options)

    async def hears(self, words):
        """Wait until the app says something with these words in it."""
        await self.until(lambda: any(words in each for each in self.said), f"saying {words!r}")

    @property
    def shown_ids(self):
        """The turns on the screen, in their order."""
        return [turn.message.id for turn in self.chat.view.query(".turn")]

    @property
    def said_ids(self):
        """The turns that should be."""
        return [message.id for message in self.dialogue.messages()][-NUM_SHOWN_TURNS:]

    @property
    def contents(self):
        return [message.content for message in self.dialogue.messages()]


@asynccontextmanager
async def telling(
    tmp_path, *, script=polite, size=(80, 24), settings=None, is_loaded=True, has_toasts=False, **services
):
    """The app at its first prompt, the model loaded unless it is told not to wait for that."""
    engine = services.pop("engine", None) or FakeEngine(script)
    settings = settings or RememberedSettings(ChatSettings(seed=1), path=tmp_path / "settings.toml")
    with ConversationStore(tmp_path / "conversations.db") as store:
        app = ChatApp(ChatServices(store=store, engine=engine, settings=settings, export_folder=tmp_path, **services))
        async with app.run_test(size=size, notifications=has_toasts) as pilot:
            teller = Teller(app, pilot, store, engine)
            earlier = ("no model", "loading") if is_loaded else ("no model",)
            await teller.until(lambda: teller.dialogue.state.phase not in earlier)
            yield teller
            await teller.until(lambda: teller.shown_ids == teller.said_ids, "showing each turn once")
    assert engine.is_closed


def tell(story):
    """Run a story to its end."""
    asyncio.run(story())
