"""The palette offers the registry's commands; that one does what its key does is a story of the machine panel."""

from textual.content import Content
from textual.fuzzy import Matcher

from tests.support.chat_stories import tell, telling
from tests.support.screen_text import screen_text
from tui.chat.commands.registry import COMMANDS, find_command


def test_the_palette_lists_usage_key_and_help(tmp_path):
    async def story():
        async with telling(tmp_path, size=(100, 24)) as teller:
            await teller.press("ctrl+p")
            await teller.type("new conv")
            await teller.until(lambda: "New conversation  /new  Ctrl+N" in screen_text(teller.app))
            assert find_command("new").help in screen_text(teller.app)
            await teller.press("escape", "escape")
            await teller.until(lambda: teller.app.screen is teller.screen)

    tell(story)


def test_every_command_is_found_first_by_its_own_title_and_does_what_its_slash_command_does(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            offered = list(teller.app.get_system_commands(teller.screen))
            for command, (title, words, act, _) in zip(COMMANDS, offered, strict=True):
                assert max((each.title for each in offered), key=Matcher(command.title).match) == title
                assert Content.from_markup(title).plain == title
                assert all(Matcher(name).match(title) for name in (command.name, *command.aliases))
                assert (words, act.args) == (command.help, (f"do('{command.name}')",))
            await teller.press("f5")
            await teller.until(lambda: teller.app.screen is not teller.screen)
            assert list(teller.app.get_system_commands(teller.app.screen)) == []  # a dialog obeys no commands
            await teller.press("escape")
            await teller.until(lambda: teller.app.screen is teller.screen)

    tell(story)
