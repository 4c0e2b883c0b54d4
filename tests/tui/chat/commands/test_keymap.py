"""Keys that a person chooses: which hold, which are taken from others, and what is said of the rest."""

import pytest
from textual.binding import Binding

from tui.chat.app import ChatApp
from tui.chat.commands.keymap import DEFAULT_KEYS, NO_KEY, PLACES, make_keymap, normal_key
from tui.chat.commands.registry import COMMANDS
from tui.chat.screen import ChatScreen
from tui.chat.settings.screen import SettingsScreen
from tui.chat.widgets.attachments import AttachmentList
from tui.chat.widgets.choice import ChoiceField
from tui.chat.widgets.deleted import DeletedScreen
from tui.chat.widgets.dialogs import HelpScreen, LineDialog, TextDialog
from tui.chat.widgets.lists import ConversationList
from tui.chat.widgets.notice import NoticeBar
from tui.chat.widgets.picker import ModelPicker
from tui.chat.widgets.prompt import PromptArea
from tui.chat.widgets.thinking import ThinkingFold

OWNERS = (
    *(
        ChatApp,
        ChatScreen,
        PromptArea,
        AttachmentList,
        ConversationList,
        NoticeBar,
        SettingsScreen,
        ChoiceField,
        LineDialog,
    ),
    *(LineDialog, TextDialog, HelpScreen, ModelPicker, DeletedScreen, ThinkingFold),
)


def own_bindings():
    return [each for owner in OWNERS for part in owner.__mro__ for each in vars(part).get("BINDINGS", ())]


def test_every_binding_of_the_chat_has_a_name_and_every_name_a_binding():
    ours = [each for each in own_bindings() if isinstance(each, Binding) and each.tooltip and each.id]
    assert {each.id for each in ours} == set(DEFAULT_KEYS)
    unnamed = {each.key for owner in OWNERS for each in vars(owner).get("BINDINGS", ()) if each.id is None}
    assert unnamed == {"ctrl+c"}  # Textual's own answer in dialogs


def test_a_name_has_the_same_keys_wherever_it_is_pressed():
    for name in DEFAULT_KEYS:
        assert len({place[name] for place in PLACES.values() if name in place}) == 1, name


def test_the_usual_keys_do_one_thing_in_each_place():
    for place, names in PLACES.items():
        everywhere = PLACES["everywhere"].values() if place != "everywhere" else ()
        keys = [key for group in (*names.values(), *everywhere) for key in group.split(",") if key != NO_KEY]
        assert sorted(keys) == sorted(set(keys)), place


def test_nothing_chosen_changes_nothing():
    assert make_keymap({}) == make_keymap({"new": "Ctrl+N"})
    assert make_keymap({}).chosen == {} and make_keymap({}).problems == ()


@pytest.mark.parametrize(
    ("choices", "chosen"),
    [
        ({"new": "F11"}, {"new": "f11"}),
        ({"new": "f11, alt+x"}, {"new": "f11,alt+x"}),
        ({"new": ["f11", "Shift+Ctrl+Left"]}, {"new": "f11,ctrl+shift+left"}),
        ({"undo": "ctrl++"}, {"undo": "ctrl+plus"}),
        ({"regenerate": "none"}, {"regenerate": NO_KEY}),
        ({"new": "ctrl+r", "regenerate": "ctrl+n"}, {"new": "ctrl+r", "regenerate": "ctrl+n"}),
        ({"send": "ctrl+enter", "new_line": "enter"}, {"send": "ctrl+enter", "new_line": "enter"}),
        ({"list_rename": "e"}, {"list_rename": "e"}),
        ({"new": "ctrl+s"}, {"new": "ctrl+s"}),  # which keeps what is written in a dialog, another place
    ],
)
def test_what_can_hold_holds_without_a_word(choices, chosen):
    found = make_keymap(choices)
    assert (dict(found.chosen), found.problems) == (chosen, ())


@pytest.mark.parametrize(
    ("choices", "chosen", "words"),
    [
        ({"nwe": "f11"}, {}, "nothing is called nwe; did you mean new"),
        ({"zzzz": "f11"}, {}, "nothing is called zzzz; /help lists the names"),
        ({"new": 5}, {}, 'new is 5; give a key such as "ctrl+n"'),
        ({"new": "ctrl+frob"}, {}, "new is 'ctrl+frob', which is no key; keys are written as ctrl+n"),
        ({"new": "hat+n"}, {}, "which is no key"),
        ({"new": "n"}, {}, "new is 'n', which is for writing; add ctrl or alt"),
        ({"new": "space"}, {}, "which is for writing"),
        ({"new": "ctrl+i"}, {}, "which a terminal cannot tell from Tab; it keeps Ctrl+N"),
        ({"send": "none"}, {}, "send must have a key; it keeps Enter"),
        ({"new": "enter"}, {}, "Enter is chosen for new, but send must have a key, and new keeps Ctrl+N"),
        (
            {"new": "f11", "copy": "f11"},
            {"new": "f11"},
            "F11 is chosen for both new and copy; new has it, and copy keeps F8",
        ),
        (
            {"new": "ctrl+r"},
            {"new": "ctrl+r", "regenerate": NO_KEY},
            "Ctrl+R is for new now, no longer for regenerate; /regenerate still does it",
        ),
        ({"quit": "ctrl+s"}, {"quit": "ctrl+s", "keep": NO_KEY}, "no longer for keep; give keep another key"),
        ({"older": "ctrl+j"}, {"older": "ctrl+j", "new_line": "shift+enter"}, "Ctrl+J is for older now"),
    ],
)
def test_what_does_not_hold_is_told_in_a_sentence(choices, chosen, words):
    found = make_keymap(choices)
    assert dict(found.chosen) == chosen
    assert len(found.problems) == 1 and words in found.problems[0] and found.problems[0].startswith("[keys] in")


@pytest.mark.parametrize("value", [5, "ctrl+n", ["f11"], None])
def test_what_is_no_table_is_told(value):
    assert make_keymap(value).chosen == {} and "is no table" in make_keymap(value).problems[0]


def test_whatever_a_file_holds_each_key_does_one_thing_and_nothing_needed_is_lost():
    """Every name with every other's keys: no two choices leave a key with two meanings, or none that sends."""
    names = [name for name in DEFAULT_KEYS if DEFAULT_KEYS[name] != NO_KEY]
    for one in names:
        for other in names:
            chosen = make_keymap({one: DEFAULT_KEYS[other], "undo": DEFAULT_KEYS[one]}).chosen
            now = {**DEFAULT_KEYS, **chosen}
            assert NO_KEY not in (now["send"], now["quit"])
            for place in PLACES.values():
                keys = [key for name in {**place, **PLACES["everywhere"]} for key in now[name].split(",")]
                keys = [key for key in keys if key != NO_KEY]
                assert sorted(keys) == sorted(set(keys)), (one, other)


def test_keys_are_read_as_people_write_them():
    spelled = {
        **{"Ctrl+N": "ctrl+n", "esc": "escape", "Control+PgUp": "ctrl+pageup", "?": "question_mark", "F12": "f12"},
        **{"ctrl+_": "ctrl+underscore", "frob": None, "": None, "ctrl+": None, "é": "é"},
    }
    assert {text: normal_key(text) for text in spelled} == spelled


def test_every_command_can_have_a_key():
    for command in COMMANDS:
        assert make_keymap({command.name: "f20"}).chosen == {command.name: "f20"}
