"""One entry per thing to ask for: slash, palette and keys cannot disagree."""

from collections import Counter

from tui.chat.commands.registry import COMMANDS, GROUPS, commands_of, find_command, key_text

PROMISED = (
    *("model", "system", "set", "tree", "export", "import", "clear", "new", "rename", "delete", "search"),
    *("regenerate", "edit", "continue", "stats", "theme", "help", "quit"),
)


def test_every_promised_command_is_there():
    assert {name for name in PROMISED if find_command(name) is None} == set()


def test_no_name_or_key_is_given_twice():
    names = Counter(name for command in COMMANDS for name in (command.name, *command.aliases))
    keys = Counter(command.key for command in COMMANDS if command.key)
    assert [name for each in (names, keys) for name, count in each.items() if count > 1] == []


def test_every_command_says_what_it_does_in_a_sentence():
    assert [command.name for command in COMMANDS if not command.help.endswith(".") or len(command.help) > 90] == []
    assert [command.name for command in COMMANDS if not 0 < len(command.title) <= 22] == []


def test_every_command_does_something_without_arguments():
    """A bare /rename once said that it needs a title, though there is a dialog that asks for one."""
    words = [word for command in COMMANDS for word in command.usage.split()[1:]]
    assert words and all(word.startswith("[") for word in words)


def test_usage_marks_what_may_be_left_out():
    usages = [find_command(name).usage for name in ("rename", "set", "quit")]
    assert usages == ["/rename [TITLE]", "/set [NAME] [VALUE]", "/quit"]


def test_aliases_and_capitals_find_the_same_command():
    assert find_command("Exit") is find_command("quit")
    assert find_command("nothing") is None


def test_keys_are_written_as_on_the_keyboard():
    assert [key_text(key) for key in ("ctrl+n", "f2", "escape")] == ["Ctrl+N", "F2", "Esc"]


def test_every_command_belongs_to_one_group():
    grouped = [command for group in GROUPS for command in commands_of(group)]
    assert sorted(grouped, key=COMMANDS.index) == list(COMMANDS)
    assert [name for names in GROUPS.values() for name in names if find_command(name) is None] == []
