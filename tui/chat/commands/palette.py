"""The commands in Textual's palette: the same entries as behind slashes and keys, so that the three never disagree."""

from functools import partial
from typing import Protocol, runtime_checkable

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.content import Content
from textual.fuzzy import Matcher
from textual.types import IgnoreReturnCallbackType

from tui.chat.commands.registry import COMMANDS, Command, key_text
from tui.chat.commands.slash import CommandLine

_BY_HELP, _BY_ALIAS = 0.5, 0.9  # what a match there weighs beside one in the title


@runtime_checkable
class CommandHost(Protocol):
    """The screen that obeys commands."""

    async def run_command(self, line: CommandLine) -> None:
        """Do what a command asks for."""

    def begin_command(self, text: str) -> None:
        """Put the beginning of a command where it can be finished."""


class CommandProvider(Provider):
    """Finds commands by title, name, alias and help."""

    async def discover(self) -> Hits:
        """Offer all commands, in the order of the registry."""
        for command in self._available():
            yield DiscoveryHit(_title(command), self._doing(command), text=command.title, help=command.help)

    async def search(self, query: str) -> Hits:
        """Offer those that match."""
        matcher = self.matcher(query)
        for command in self._available():
            score = match_score(matcher, command)
            if score > 0:
                shown = Content.assemble(matcher.highlight(command.title), (_usage(command), "$text-muted"))
                yield Hit(score, shown, self._doing(command), text=command.title, help=command.help)

    def _available(self) -> tuple[Command, ...]:
        return COMMANDS if isinstance(self.screen, CommandHost) else ()

    def _doing(self, command: Command) -> IgnoreReturnCallbackType:
        host = self.screen
        assert isinstance(host, CommandHost)
        if command.needs_arguments:
            return partial(host.begin_command, f"/{command.name} ")
        return partial(host.run_command, CommandLine(command))


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
