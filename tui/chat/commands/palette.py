"""The commands in Textual's palette: the same entries as behind slashes and keys, so that the three never disagree."""

from functools import partial

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.content import Content
from textual.fuzzy import Matcher
from textual.types import IgnoreReturnCallbackType

from tui.chat.commands.registry import COMMANDS, Command, key_text

_BY_HELP, _BY_ALIAS = 0.5, 0.9  # what a match there weighs beside one in the title


class CommandProvider(Provider):
    """Finds commands by title, name, alias and help, for a screen that has the actions `do` and `begin`."""

    async def discover(self) -> Hits:
        """Offer all commands, in the order of the registry."""
        for command in COMMANDS:
            yield DiscoveryHit(_title(command), self._doing(command), text=command.title, help=command.help)

    async def search(self, query: str) -> Hits:
        """Offer those that match."""
        matcher = self.matcher(query)
        for command in COMMANDS:
            score = match_score(matcher, command)
            if score > 0:
                shown = Content.assemble(matcher.highlight(command.title), (_usage(command), "$text-muted"))
                yield Hit(score, shown, self._doing(command), text=command.title, help=command.help)

    def _doing(self, command: Command) -> IgnoreReturnCallbackType:
        action = "begin('/{} ')" if command.needs_arguments else "do('{}')"
        return partial(self.screen.run_action, action.format(command.name))


def match_score(matcher: Matcher, command: Command) -> float:
    """Return how well a command matches; 0 if it does not."""
    aliases = max((matcher.match(alias) for alias in command.aliases), default=0.0)
    return max(
        matcher.match(command.title),
        matcher.match(command.name),
        _BY_ALIAS * aliases,
        _BY_HELP * matcher.match(command.help),
    )


def _title(command: Command) -> Content:
    return Content.assemble(command.title, (_usage(command), "$text-muted"))


def _usage(command: Command) -> str:
    return f"  {command.usage}" + (f"  {key_text(command.key)}" if command.key else "")
