"""Everything a person can ask the chat app to do, once: for slash commands, the palette and the key bindings alike."""

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """One thing to ask for, however it is asked; the screen's actions do it in a method `do_` + its name."""

    usage: str
    """Slash, name and arguments in brackets, since each may be left out: `/set [NAME] [VALUE]`."""
    title: str
    help: str
    """One sentence: for the palette, the completion and as a key's tooltip."""
    key: str = ""
    """The key that does it without arguments, as Textual names keys; empty for none."""
    aliases: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.usage.split()[0].removeprefix("/")

    @property
    def arguments(self) -> tuple[str, ...]:
        """What it takes; the last one takes the rest of the line. VALUE is that of the setting NAME."""
        return tuple(re.findall("[A-Z]+", self.usage))


COMMANDS = (
    Command("/new", "New conversation", "Start an empty conversation; the others stay in the list.", "ctrl+n"),
    Command("/search [WORDS]", "Search conversations", "Find words in all conversations.", "ctrl+f", ("find",)),
    Command(
        "/list", "Conversation list", "Show or hide the list of conversations.", "f3", ("conversations", "history")
    ),
    Command("/rename [TITLE]", "Rename conversation", "Give this conversation another title.", "", ("title",)),
    Command("/delete", "Delete conversation", "Delete this conversation; /undo brings it back."),
    Command("/clear", "Clear conversation", "Remove all messages of this conversation; /undo brings them back."),
    Command("/undo", "Undo", "Bring back the answer or prompt before, or what was deleted."),
    Command("/deleted", "Deleted conversations", "Bring deleted conversations back, or remove them for good."),
    Command("/redo", "Redo", "Bring back the answer or prompt that /undo replaced."),
    Command("/regenerate", "Regenerate answer", "Write the last answer anew.", "ctrl+r", ("retry",)),
    Command(
        "/edit", "Edit last prompt", "Take the last prompt back into the editor, to change and send it again.", "ctrl+o"
    ),
    Command("/continue", "Continue answer", "Let the last answer go on where it ended.", "ctrl+g"),
    Command(
        "/turns",
        "Select a turn",
        "Select a turn by keys: edit it, ask again, see its versions, or copy it.",
        "alt+up",
    ),
    Command("/branches", "Branches", "List the branches of this conversation, and show another one."),
    Command("/stop", "Stop answer", "Stop the answer after the layer that computes now; what came is kept."),
    Command("/copy", "Copy answer", "Copy the last answer to the clipboard.", "f8"),
    Command(
        "/attach [FILE]",
        "Attach a text file",
        "Attach a text file, as @ does; without one, bring back what was taken out last.",
    ),
    Command(
        "/editor", "Write in your editor", "Write the prompt in $VISUAL or $EDITOR; what is saved comes back.", "ctrl+e"
    ),
    Command("/tools", "Tools", "Show the servers of tools, how they stand, and their tools; switch them on and off."),
    Command("/allow [HOW]", "Allow tool", "Let the tool run that is called: once, or always in this conversation."),
    Command(
        "/refuse [WORDS]", "Refuse tool", "Tell the model that the tool it calls may not run, perhaps with a word."
    ),
    Command("/attached", "Open attachments", "Open or fold the texts that went along with the prompts."),
    Command("/code", "Copy code", "Copy the last code block to the clipboard; again, the one above it.", "f9"),
    Command(
        "/guesses",
        "Show guesses",
        "Colour what was guessed ahead in the answers, as written; or show their Markdown again.",
        "f7",
        ("guessed",),
    ),
    Command("/wrap", "Wrap code", "Break long lines of code, or show where they are cut."),
    Command(
        "/think [THINK]",
        "Thinking",
        "Let the model think before it answers: on, off, auto, or for at most so many tokens.",
        "",
        ("thinking",),
    ),
    Command("/thoughts", "Open thinking", "Open or fold what was thought before the answers.", "ctrl+t"),
    Command(
        "/export [FILE]",
        "Export conversation",
        "Write this conversation to a file: Markdown, or JSON if its name ends in .json.",
        "",
        ("save",),
    ),
    Command(
        "/import [FILE]",
        "Import conversations",
        "Read conversations that this app, ChatGPT, OpenAI's API or ShareGPT exported.",
    ),
    Command(
        "/model [MODEL]",
        "Choose model",
        "Choose a model, with what each would need here; or load the one that is named.",
        "f4",
        ("load", "models"),
    ),
    Command("/restart", "Restart engine", "End the engine's process and load the model again; the conversation stays."),
    Command(
        "/set [NAME] [VALUE]", "Settings", "Open the settings, or change one of them.", "f5", ("settings", "config")
    ),
    Command("/system [TEXT]", "System prompt", "Change what the model is told before the conversation begins."),
    Command("/tree [TREE]", "Tree", "Set the tree that is verified in a pass: auto, or nodes x levels as in 64x10."),
    Command(
        "/context [TOKENS]",
        "Context",
        "Say how large the context is and what more costs; or load the model with another.",
    ),
    Command(
        "/trim",
        "Trim oldest turns",
        "Leave the oldest turns unread: those that have no room, else the older half of the text.",
    ),
    Command("/untrim", "Read all turns", "Let the model read the turns again that were left out."),
    Command(
        "/stats",
        "Machine panel",
        "Show or hide the machine: layers, ring, tree, acceptance, rates.",
        "f2",
        ("machine",),
    ),
    Command("/theme [THEME]", "Theme", "Change the colours."),
    Command("/help [COMMAND]", "Help", "List the commands and the keys, or say how one command is used.", "f1", ("?",)),
    Command("/quit", "Quit", "End the app; every conversation is kept.", "ctrl+q", ("exit", "bye")),
)


GROUPS: Mapping[str, tuple[str, ...]] = {
    "Answers": (
        *("stop", "regenerate", "edit", "turns", "continue", "attach", "attached", "editor", "think", "thoughts"),
        *("tools", "allow", "refuse"),
        *("copy", "code", "wrap", "guesses"),
    ),
    "Conversations": (
        *("new", "list", "search", "rename", "delete", "clear", "undo", "redo", "branches", "deleted"),
        *("export", "import", "system", "trim", "untrim"),
    ),
    "Model": ("model", "set", "context", "tree", "stats", "restart"),
    "Looks": ("theme", "help", "quit"),
}
"""The commands by what they are about, as the help shows them; what is in none belongs to the last."""


def commands_of(group: str) -> tuple[Command, ...]:
    """Return the commands of a group."""
    named = {name for names in GROUPS.values() for name in names}
    is_last = group == [*GROUPS][-1]
    found = [each for each in COMMANDS if each.name in GROUPS[group] or (is_last and each.name not in named)]
    return tuple(sorted(found, key=lambda each: [*GROUPS[group], each.name].index(each.name)))


def find_command(name: str) -> Command | None:
    """Return the command of that name or alias, without the slash; upper and lower case are the same."""
    wanted = name.lower()
    return next((command for command in COMMANDS if wanted == command.name or wanted in command.aliases), None)


_KEY_WORDS = {"escape": "Esc", "delete": "Del", "pageup": "PgUp", "pagedown": "PgDn", "underscore": "_"}


def key_text(key: str) -> str:
    """Write a key as on the keyboard: `ctrl+n` as `Ctrl+N`, `escape` as `Esc`, `ctrl+underscore` as `Ctrl+_`."""
    return "+".join(_KEY_WORDS.get(part, part.capitalize()) for part in key.split("+"))
