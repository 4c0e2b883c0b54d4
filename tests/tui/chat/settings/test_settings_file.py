"""The file says what the settings are and what they mean; nothing in it keeps the app from starting."""

import os
import stat
import tomllib

import pytest

from offload.errors import WriteError
from tests.tui.chat.settings.test_chat_settings import CHOSEN
from tui.chat.settings.chat_settings import SETTINGS, ChatSettings
from tui.chat.settings.settings_file import MAX_FILE_BYTES, ReadSettings, format_settings, read_settings, write_settings


def test_without_a_file_all_settings_have_their_defaults(tmp_path):
    assert read_settings(tmp_path / "none" / "settings.toml") == ReadSettings(ChatSettings())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [ChatSettings(), CHOSEN])
def test_what_was_written_is_read(tmp_path, settings):
    path = tmp_path / "made" / "settings.toml"
    write_settings(path, ChatSettings(theme="another"))
    write_settings(path, settings)
    assert read_settings(path) == ReadSettings(settings)
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
    write_settings(path, settings)
    assert read_settings(path) == ReadSettings(settings)


def test_what_no_file_can_hold_is_replaced(tmp_path):
    """A terminal may paste half a surrogate pair."""
    path = tmp_path / "settings.toml"
    write_settings(path, ChatSettings(system_prompt="a\ud800b\0c"))
    assert read_settings(path).settings.system_prompt == "a\ufffdb\ufffdc"


def test_every_setting_stands_under_its_comment():
    lines = format_settings(CHOSEN).splitlines()
    for setting in SETTINGS:
        (place,) = (number for number, line in enumerate(lines) if line.startswith(f"{setting.name} = "))
        assert lines[place - 1] == f"# {setting.help}"
    assert set(tomllib.loads(format_settings(CHOSEN))) == {setting.name for setting in SETTINGS}


def test_no_control_that_a_terminal_obeys_is_in_the_file():
    text = format_settings(ChatSettings(system_prompt="a\x1b]0;t\x07\nb\x9b2J\r", target="\x1b[2J"))
    assert all(character.isprintable() or character == "\n" for character in text)


def test_a_bad_value_gives_way_to_its_default_and_the_others_stay(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text('temperature = "hot"\ntop_k = 20\ntop_p = 2\ntheme = "nord"\n')
    assert read_settings(path) == ReadSettings(
        ChatSettings(top_k=20, theme="nord"),
        (
            f"{path}: temperature is 'hot'; it must be a number; the default, 0.7, is used instead",
            f"{path}: top_p is 2; it must be above 0 and at most 1; the default, 0.95, is used instead",
        ),
    )


def test_unknown_keys_are_told_in_one_sentence(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text('temprature = 1\n"\\u001b[2J" = 2\ntop_k = 20\n[answers]\ntop_p = 2\n')
    read = read_settings(path)
    assert read.settings == ChatSettings(top_k=20)
    assert read.notices == (
        f"{path}: 'temprature', '\\x1b[2J', 'answers' are no settings and are ignored; "
        "the next change of a setting removes that",
    )


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
    read = read_settings(path)
    (aside,) = tmp_path.iterdir()
    assert aside.read_bytes() == content and aside.name.startswith("settings-damaged-")
    assert read.settings == ChatSettings()
    (notice,) = read.notices
    assert notice.startswith(f"{path} is no settings file (") and notice.endswith(f"it was renamed to {aside.name}")
    assert notice.isprintable()


def test_an_editor_may_put_a_mark_in_front(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_bytes(b"\xef\xbb\xbftop_k = 3\r\n")
    assert read_settings(path) == ReadSettings(ChatSettings(top_k=3))


def test_a_folder_in_the_place_of_the_file_is_told(tmp_path):
    path = tmp_path / "settings.toml"
    path.mkdir()
    read = read_settings(path)
    assert read.settings == ChatSettings()
    assert len(read.notices) == 1 and "cannot be read (" in read.notices[0]
    with pytest.raises(WriteError, match=r"the settings cannot be written to .*set OVERSTORY_CONFIG"):
        write_settings(path, ChatSettings())
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_a_pipe_in_the_place_of_the_file_does_not_wait_for_ever(tmp_path):
    os.mkfifo(tmp_path / "settings.toml")
    assert "not a regular file" in read_settings(tmp_path / "settings.toml").notices[0]


def test_a_file_that_cannot_be_renamed_is_told(tmp_path, monkeypatch):
    path = tmp_path / "settings.toml"
    path.write_text("x")

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tui.chat.settings.settings_file.set_aside", refuse)
    assert read_settings(path).notices[0].endswith("it could not be renamed (Permission denied)")
