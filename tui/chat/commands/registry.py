"""Everything a person can ask the chat app to do, once: for slash commands, the palette and the key bindings alike.

Names and words only: what an action does is the app's.
"""

from dataclasses import dataclass
from typing import Literal

ArgumentKind = Literal["text", "path", "setting", "value", "theme", "tree", "model", "command"]
"""What an argument is: free `text` to the end of the line, a `path`, the name of a `setting`, the `value` of the
setting before it, a `theme`, a `tree`, a `model` or the name of a `command`."""
TO_THE_END: tuple[ArgumentKind, ...] = ("text", "path", "model", "value")
"""Kinds that take the rest of the line, spaces included."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One thing that a command needs or takes."""

    name: str
    """As in the usage sentence."""
    kind: ArgumentKind
    """What may be given, and so what completes it."""
    is_required: bool = False
    """Whether the command means nothing without it."""

    @property
    def usage(self) -> str:
        """`TITLE` or `[TITLE]`."""
        return self.name if self.is_required else f"[{self.name}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One thing to ask for, however it is asked."""

    name: str
    """After the slash; also what usage sentences call it."""
    title: str
    """In the palette and in the footer: a few words."""
    help: str
    """One sentence: for the palette, the completion and as a key's tooltip."""
    action: str
    """The app's action, without `action_`; called with the arguments that were given."""
    arguments: tuple[Argument, ...] = ()
    """In the order of the line; only the last may take the rest of it."""
    key: str = ""
    """The key that does it without arguments, as Textual names keys; empty for none."""
    aliases: tuple[str, ...] = ()
    """Other names that people try."""

    @property
    def usage(self) -> str:
        """`/rename TITLE`."""
        return " ".join((f"/{self.name}", *(argument.usage for argument in self.arguments)))

    @property
    def needs_arguments(self) -> bool:
        """Whether it cannot be run from a key or from the palette without asking more."""
        return any(argument.is_required for argument in self.arguments)


COMMANDS: tuple[Command, ...] = (
    Command(
        name="new",
        title="New conversation",
        help="Start an empty conversation; the others stay in the list.",
        action="new_conversation",
        key="ctrl+n",
    ),
    Command(
        name="search",
        title="Search conversations",
        help="Find words in all conversations.",
        action="search_conversations",
        arguments=(Argument("WORDS", "text"),),
        key="ctrl+f",
        aliases=("find",),
    ),
    Command(
        name="list",
        title="Conversation list",
        help="Show or hide the list of conversations.",
        action="toggle_conversations",
        key="f3",
        aliases=("conversations", "history"),
    ),
    Command(
        name="rename",
        title="Rename conversation",
        help="Give this conversation another title.",
        action="rename_conversation",
        arguments=(Argument("TITLE", "text", is_required=True),),
        aliases=("title",),
    ),
    Command(
        name="delete",
        title="Delete conversation",
        help="Delete this conversation; /undo brings it back.",
        action="delete_conversation",
    ),
    Command(
        name="clear",
        title="Clear conversation",
        help="Remove all messages of this conversation; /undo brings them back.",
        action="clear_conversation",
    ),
    Command(
        name="undo",
        title="Undo delete",
        help="Bring back what was deleted, cleared or written anew last.",
        action="undo_delete",
    ),
    Command(
        name="regenerate",
        title="Regenerate answer",
        help="Write the last answer anew.",
        action="regenerate",
        key="ctrl+r",
        aliases=("retry",),
    ),
    Command(
        name="edit",
        title="Edit last prompt",
        help="Take the last prompt back into the editor, to change and send it again.",
        action="edit_last",
        key="ctrl+o",
    ),
    Command(
        name="continue",
        title="Continue answer",
        help="Let the last answer go on where it ended.",
        action="continue_answer",
        key="ctrl+g",
    ),
    Command(
        name="stop",
        title="Stop answer",
        help="Stop the answer after the layer that computes now; what came is kept.",
        action="stop_answer",
        key="escape",
    ),
    Command(
        name="copy",
        title="Copy answer",
        help="Copy the last answer to the clipboard.",
        action="copy_answer",
        key="f8",
    ),
    Command(
        name="code",
        title="Copy code",
        help="Copy the last code block to the clipboard; again, the one above it.",
        action="copy_code",
        key="f9",
    ),
    Command(
        name="export",
        title="Export conversation",
        help="Write this conversation to a file: Markdown, or JSON if its name ends in .json.",
        action="export_conversation",
        arguments=(Argument("FILE", "path"),),
        aliases=("save",),
    ),
    Command(
        name="import",
        title="Import conversation",
        help="Read a conversation from a JSON file that was exported.",
        action="import_conversation",
        arguments=(Argument("FILE", "path", is_required=True),),
    ),
    Command(
        name="model",
        title="Choose model",
        help="Choose a model, with what each would need here; or load the one that is named.",
        action="choose_model",
        arguments=(Argument("MODEL", "model"),),
        key="f4",
        aliases=("load", "models"),
    ),
    Command(
        name="restart",
        title="Restart engine",
        help="End the engine's process and load the model again; the conversation stays.",
        action="restart_engine",
    ),
    Command(
        name="set",
        title="Settings",
        help="Open the settings, or change one of them.",
        action="set_setting",
        arguments=(Argument("NAME", "setting"), Argument("VALUE", "value")),
        key="f5",
        aliases=("settings", "config"),
    ),
    Command(
        name="system",
        title="System prompt",
        help="Change what the model is told before the conversation begins.",
        action="set_system",
        arguments=(Argument("TEXT", "text"),),
    ),
    Command(
        name="tree",
        title="Tree",
        help="Set the tree that is verified in a pass: auto, or nodes x levels as in 64x10.",
        action="set_tree",
        arguments=(Argument("TREE", "tree", is_required=True),),
    ),
    Command(
        name="trim",
        title="Trim oldest turns",
        help="Leave the oldest turns out of what the model reads, so that the context has room.",
        action="trim_conversation",
    ),
    Command(
        name="untrim",
        title="Read all turns",
        help="Let the model read the turns again that were left out.",
        action="untrim_conversation",
    ),
    Command(
        name="stats",
        title="Machine panel",
        help="Show or hide the machine: layers, ring, tree, acceptance, rates.",
        action="toggle_machine",
        key="f2",
        aliases=("machine",),
    ),
    Command(
        name="theme",
        title="Theme",
        help="Change the colours.",
        action="choose_theme",
        arguments=(Argument("THEME", "theme"),),
    ),
    Command(
        name="help",
        title="Help",
        help="List the commands and the keys, or say how one command is used.",
        action="show_help",
        arguments=(Argument("COMMAND", "command"),),
        key="f1",
        aliases=("?",),
    ),
    Command(
        name="quit",
        title="Quit",
        help="End the app; every conversation is kept.",
        action="quit",
        key="ctrl+q",
        aliases=("exit", "bye"),
    ),
)
"""In the order in which people read them."""


def find_command(name: str) -> Command | None:
    """The command of that name or alias, without the slash; upper and lower case are the same."""
    wanted = name.lower()
    return next((command for command in COMMANDS if wanted == command.name or wanted in command.aliases), None)
