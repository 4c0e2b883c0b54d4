"""The file says what the settings are and what they mean; nothing in it keeps the app from starting."""

import os
import stat
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.errors import WriteError
from tests.tui.chat.settings.test_settings import CHOSEN
from tui.chat.settings.file import (
    MAX_FILE_BYTES,
    RememberedSettings,
    format_settings,
    read_settings,
    write_settings,
)
from tui.chat.settings.settings import SETTINGS, ChatSettings

PIECES = (
    "# a comment of mine\n",
    "\n",
    "temperature = 0.2   # cool\r\n",
    '"theme" = "nord" # dark\n',
    "theme = { name = 'nord' }\n",
    "theme.name = 'nord'\n",
    "  seed = 0x10\n",
    'recent_targets = [\n  "a", # first\n]\n',
    "system_prompt = '''one\ntwo'''\n",
    "top_k = 3",
    "other.key = 1979-05-27\n",
    "[answers]\ntop_p = 2 # not ours\n",
    "[theme]\nname = 'nord'\n",
    "[theme.more]\nx = 1\n",
    "[[recent_targets]]\nname = 'a'\n",
)
"""Pieces of files as people write them; not every sequence of them is TOML."""
CHANGES = {"temperature": 0.25, "theme": "a\x9bb", "seed": 7, "recent_targets": ("x", "y"), "system_prompt": "p\nq"}


def changed_file(path, text, **changes):
    """Write the text, change these settings in it, and return what is in the file then."""
    path.write_bytes(text.encode())
    write_settings(path, ChatSettings(**changes), changes)
    return path.read_bytes().decode()


def test_without_a_file_all_settings_have_their_defaults(tmp_path):
    assert read_settings(tmp_path / "none" / "settings.toml") == (ChatSettings(), ())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [ChatSettings(), CHOSEN])
def test_what_was_written_is_read(tmp_path, settings):
    path = tmp_path / "made" / "settings.toml"
    write_settings(path, ChatSettings(theme="another"), ["theme"])
    write_settings(path, settings, SETTINGS)
    assert read_settings(path) == (settings, ())
    assert [file.name for file in path.parent.iterdir()] == ["settings.toml"]
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "text",
    [
        "one line",
        "two\nlines",
        "\n\nends in newlines\n\n",
        'quotes """ and \\ backslashes \\n\n"""',
        "carriage\r\nreturn\ttab\x01\x1b[31m\x7f\x9b",
        "ü 日本 😀 \u2028",
        "# no comment = 1",
    ],
)
def test_any_text_comes_back(tmp_path, text):
    path = tmp_path / "settings.toml"
    settings = ChatSettings(system_prompt=text, recent_targets=(text, "b"))
    for _ in ("a new file", "the same again"):
        write_settings(path, settings, SETTINGS)
        assert read_settings(path) == (settings, ())


def test_what_no_file_can_hold_is_replaced(tmp_path):
    """A terminal may paste half a surrogate pair."""
    path = tmp_path / "settings.toml"
    write_settings(path, ChatSettings(system_prompt="a\ud800b\0c"), ["system_prompt"])
    assert read_settings(path)[0].system_prompt == "a\ufffdb\ufffdc"


def test_every_setting_stands_under_its_comment():
    lines = format_settings(CHOSEN).splitlines()
    for name, setting in SETTINGS.items():
        (place,) = (number for number, line in enumerate(lines) if line.startswith(f"{name} = "))
        assert lines[place - 1] == f"# {setting.help}"
    assert list(tomllib.loads(format_settings(CHOSEN))) == list(SETTINGS)


def test_a_change_leaves_everything_else_in_the_file_as_it_is(tmp_path):
    mine = (
        "# mine\n\ntheme = 'nord'  # dark\n"
        'temperature = "hot"\ntemprature = 1\n'
        "recent_targets = [\n  'a', # first\n]\n\n[other]\nkey = 1\n"
    )
    assert changed_file(tmp_path / "s.toml", mine, theme="dracula") == mine.replace("'nord'", '"dracula"')
    added = changed_file(tmp_path / "s.toml", mine, top_k=3)
    assert added == mine.replace("]\n\n[other]", f"]\n# {SETTINGS['top_k'].help}\ntop_k = 3\n\n[other]")


@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=6), names=st.sets(st.sampled_from(sorted(CHANGES)), min_size=1)
)
def test_whatever_the_file_holds_only_what_changed_reads_otherwise(tmp_path_factory, pieces, names):
    path = tmp_path_factory.mktemp("settings") / "settings.toml"
    text, changes = "".join(pieces), {name: CHANGES[name] for name in names}
    try:
        before = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        with pytest.raises(WriteError, match="is no settings file now"):
            changed_file(path, text, **changes)
        assert path.read_bytes().decode() == text
        return
    after = changed_file(path, text, **changes)
    wanted = {name: list(value) if isinstance(value, tuple) else value for name, value in changes.items()}
    assert tomllib.loads(after) == before | wanted
    if not any(isinstance(before.get(name), dict) for name in names) and "[[" not in text:  # these hold comments
        assert after.count("# a comment of mine") == text.count("# a comment of mine")
    assert changed_file(path, after, **changes) == after


def test_what_a_person_changes_while_the_app_is_open_stays(tmp_path):
    path = tmp_path / "settings.toml"
    remembered = RememberedSettings(ChatSettings(), path=path)
    remembered.replace(ChatSettings(theme="nord"))
    path.write_text(path.read_text().replace('top_k = "auto"', "top_k = 5 # mine"))
    remembered.replace(ChatSettings(theme="nord", temperature=0.1))
    assert read_settings(path)[0] == ChatSettings(theme="nord", temperature=0.1, top_k=5)
    assert "top_k = 5 # mine" in path.read_text()


def test_no_control_that_a_terminal_obeys_is_in_the_file():
    text = format_settings(ChatSettings(system_prompt="a\x1b]0;t\x07\nb\x9b2J\r", target="\x1b[2J"))
    assert all(character.isprintable() or character == "\n" for character in text)


def test_a_bad_value_gives_way_to_its_default_and_the_others_stay(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text('temperature = "hot"\ntop_k = 20\ntop_p = 2\ntheme = "nord"\n')
    assert read_settings(path) == (
        ChatSettings(top_k=20, theme="nord"),
        (
            f"{path}: temperature is 'hot'; it must be a number or auto; the default, \"auto\", is used instead",
            f"{path}: top_p is 2; it must be from 0 (the likeliest token alone) to 1 (off); the default, "
            '"auto", is used instead',
        ),
    )


def test_unknown_keys_are_told_in_one_sentence(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text('temprature = 1\n"\\u001b[2J" = 2\ntop_k = 20\n[answers]\ntop_p = 2\n')
    settings, notices = read_settings(path)
    assert settings == ChatSettings(top_k=20)
    assert notices == (f"{path}: 'temprature', '\\x1b[2J', 'answers' are no settings and are ignored",)


@pytest.mark.parametrize(
    "content",
    [
        b"temperature = ",
        b"\x00\xff garbage",
        b"a = 1\na = 2\n",
        b"a = " + b"[" * 5000,
        b"#" * (MAX_FILE_BYTES + 1),
    ],
)
def test_a_file_that_is_no_toml_is_set_aside_and_told(tmp_path, content):
    path = tmp_path / "settings.toml"
    path.write_bytes(content)
    settings, (notice,) = read_settings(path)
    (aside,) = tmp_path.iterdir()
    assert aside.read_bytes() == content and aside.name.startswith("settings-damaged-")
    assert settings == ChatSettings()
    assert notice.startswith(f"{path} is no settings file (") and notice.endswith(f"it was renamed to {aside.name}")
    assert notice.isprintable()


def test_an_editor_may_put_a_mark_in_front(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_bytes(b"\xef\xbb\xbftop_k = 3\r\n")
    assert read_settings(path) == (ChatSettings(top_k=3), ())


def test_a_folder_in_the_place_of_the_file_is_told(tmp_path):
    path = tmp_path / "settings.toml"
    path.mkdir()
    settings, (notice,) = read_settings(path)
    assert settings == ChatSettings() and "cannot be read (" in notice
    with pytest.raises(WriteError, match=r"the settings cannot be written to .*set OVERSTORY_CONFIG"):
        write_settings(path, ChatSettings(), ["theme"])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_a_pipe_in_the_place_of_the_file_does_not_wait_for_ever(tmp_path):
    os.mkfifo(tmp_path / "settings.toml")
    assert "not a regular file" in read_settings(tmp_path / "settings.toml")[1][0]


def test_a_file_that_cannot_be_renamed_is_told(tmp_path, monkeypatch):
    path = tmp_path / "settings.toml"
    path.write_text("x")

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tui.chat.settings.file.set_aside", refuse)
    assert read_settings(path)[1][0].endswith("it could not be renamed (Permission denied)")


def test_the_command_line_comes_before_what_is_remembered():
    overrides = {"target": "b", "link": "1GB/s", "temperature": 0.0, "system_prompt": "Be brief."}
    remembered = RememberedSettings(ChatSettings(target="a", temperature=0.9, top_k=5), overrides=overrides)
    assert remembered.config().target == "b"
    assert remembered.config().link == "1GB/s"
    assert (remembered.params().temperature, remembered.params().top_k) == (0.0, 5)
    assert remembered.system_prompt == "Be brief."


def test_what_nobody_chose_is_left_to_the_model_and_else_as_the_app_has_it():
    remembered = RememberedSettings(ChatSettings(top_k=5), overrides={"min_p": 0.1})
    params = remembered.params()
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.7, 0.95, 5, 0.1)
    assert remembered.unchosen() == {"temperature", "top_p", "repetition_penalty", "stop"}
    assert not remembered.is_greedy
    remembered.own = {"temperature": 0, "top_k": 20}
    assert remembered.is_greedy
    remembered.replace(remembered.settings.replace(temperature=0.7))
    assert "temperature" not in remembered.unchosen() and not remembered.is_greedy, "also what is the default anyway"


def test_a_setting_is_told_with_where_it_comes_from():
    remembered = RememberedSettings(ChatSettings(top_k=5), overrides={"min_p": 0.1})
    remembered.own = {"temperature": 0.6, "top_k": 20}
    assert remembered.described("temperature") == "auto: 0.6, the model's own"
    assert remembered.described("top_p") == "auto: 0.95, as the model has none of its own"
    assert remembered.described("min_p") == "0.1, from the command line, this time only"
    assert (remembered.described("top_k"), remembered.described("system_prompt")) == ("5", "empty")
    assert remembered.described_elsewhere().keys() == {"temperature", "top_p", "min_p", "repetition_penalty"}


def test_a_change_in_the_app_holds_against_the_command_line(tmp_path):
    path = tmp_path / "settings.toml"
    overrides = {"device_memory_bytes": 0, "tree": "8x4", "temperature": 0.0}
    remembered = RememberedSettings(ChatSettings(), path=path, overrides=overrides)
    changed = remembered.settings.replace(temperature=0.5, device_memory="2GB")
    remembered.replace(changed)
    assert remembered.params().temperature == 0.5
    assert remembered.config().device_memory_bytes == 2_000_000_000
    assert remembered.config().tree == "8x4"
    assert read_settings(path)[0] == changed


def test_a_model_that_is_chosen_comes_before_the_command_line():
    overrides = {"target": "b", "draft": "none", "link": "1GB/s"}
    remembered = RememberedSettings(ChatSettings(target="a"), overrides=overrides)
    remembered.choose_model("a", draft="substitute")
    assert (remembered.config().target, remembered.config().draft) == ("a", "substitute")
    assert remembered.config().link == "1GB/s"
    assert remembered.settings.recent_targets == ()
    remembered.keep_model()
    assert remembered.settings.recent_targets == ("a",)
    assert (remembered.config().target, remembered.config().draft) == ("a", "substitute")


def test_a_model_is_remembered_only_once_it_could_be_loaded(tmp_path):
    path = tmp_path / "settings.toml"
    remembered = RememberedSettings(ChatSettings(target="a"), path=path, overrides={"draft": "none"})
    remembered.choose_model("typo", draft="substitute")
    remembered.forget_choice()
    assert (remembered.config().target, remembered.config().draft) == ("a", "none")
    remembered.choose_model("", draft="none")  # the demo model
    assert remembered.config().target is None
    remembered.keep_model()
    assert (read_settings(path)[0].target, read_settings(path)[0].draft) == ("", "none")
    for target in ("b", "c"):
        remembered.choose_model(target, draft="substitute")
        remembered.keep_model()
    remembered.forget_recent("b")
    assert read_settings(path)[0].recent_targets == ("c",)


def test_a_context_is_remembered_only_once_a_model_could_be_loaded_with_it(tmp_path):
    path = tmp_path / "settings.toml"
    remembered = RememberedSettings(ChatSettings(target="a"), path=path, overrides={"context_tokens": 2048})
    remembered.choose_context(8192)
    assert remembered.config().context_tokens == 8192
    remembered.forget_choice()
    assert remembered.config().context_tokens == 2048
    remembered.choose_context(8192)
    remembered.keep_model()
    assert remembered.config().context_tokens == 8192 == read_settings(path)[0].context_tokens
    remembered.choose_context("auto")
    assert remembered.config().context_tokens is None
    remembered.keep_model()
    assert read_settings(path)[0].context_tokens == "auto"


def test_nothing_that_the_command_line_says_is_remembered_but_that_its_model_was_used(tmp_path):
    path = tmp_path / "settings.toml"
    overrides = {"target": "b", "draft": "none", "temperature": 0.0}
    remembered = RememberedSettings(ChatSettings(target="a"), path=path, overrides=overrides)
    remembered.keep_model()
    assert read_settings(path)[0] == ChatSettings(target="a", recent_targets=("b",))
    assert (remembered.config().target, remembered.config().draft) == ("b", "none")


def test_what_holds_is_shown_as_it_would_be_typed():
    overrides = {
        "temperature": 0.0,
        "device_memory_bytes": 2_700_000_000,
        "host_memory_bytes": 0,
        "context_tokens": 2048,
        "target": None,
        "system_prompt": "Be brief.",
    }
    remembered = RememberedSettings(ChatSettings(target="a"), overrides=overrides)
    shown = remembered.shown
    values = {name: shown[name] for name in ("temperature", "device_memory", "host_memory", "context_tokens", "target")}
    assert values == {
        "temperature": 0.0,
        "device_memory": "2.70 GB",
        "host_memory": "min",
        "context_tokens": 2048,
        "target": "",
    }
    assert shown.system_prompt == "Be brief."
    odd = RememberedSettings(ChatSettings(), overrides={"device_memory_bytes": 123_456_789})
    assert odd.shown.device_memory == "123456789"


def test_what_is_chosen_holds_before_the_command_line_even_if_it_was_remembered_already(tmp_path):
    remembered = RememberedSettings(ChatSettings(temperature=0.7), overrides={"temperature": 0.0, "top_k": 5})
    remembered.replace(remembered.settings, chosen=("temperature",))
    assert (remembered.params().temperature, remembered.params().top_k) == (0.7, 5)


def test_without_a_seed_each_answer_gets_its_own():
    seeds = iter((7, 8))
    remembered = RememberedSettings(ChatSettings(), draw_seed=lambda: next(seeds))
    assert [remembered.params().seed, remembered.params().seed] == [7, 8]
    assert RememberedSettings(ChatSettings(seed=3)).params().seed == 3


def test_settings_that_cannot_be_written_hold_all_the_same(tmp_path):
    path = tmp_path / "file" / "settings.toml"
    path.parent.touch()
    remembered = RememberedSettings(ChatSettings(), path=path)
    with pytest.raises(WriteError):
        remembered.replace(ChatSettings(temperature=0.1))
    assert remembered.settings.temperature == 0.1
    path.parent.unlink()
    remembered.replace(ChatSettings(temperature=0.1, seed=3))
    assert read_settings(path)[0] == ChatSettings(temperature=0.1, seed=3)


def test_a_file_that_is_damaged_while_the_app_is_open_is_left_alone_until_it_is_mended(tmp_path):
    """A person may be in the middle of a change."""
    path = tmp_path / "settings.toml"
    path.write_text("top_k = ")
    remembered = RememberedSettings(ChatSettings(), path=path)
    with pytest.raises(WriteError, match=r"which is no settings file now \(.*mend the file or move it away"):
        remembered.replace(ChatSettings(seed=3))
    assert path.read_text() == "top_k = "
    path.write_text("top_k = 5")
    remembered.replace(ChatSettings(seed=3, theme="nord"))
    assert read_settings(path)[0] == ChatSettings(seed=3, theme="nord", top_k=5)


def test_nothing_is_written_where_nothing_changed(tmp_path):
    RememberedSettings(ChatSettings(), path=tmp_path / "settings.toml").replace(ChatSettings())
    assert list(tmp_path.iterdir()) == []
