"""The prompt is written in a person's own editor: what is saved comes back, and a failing editor loses nothing."""

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from profiles.errors import BadInputError
from tests.support.chat_stories import tell, telling
from tui.chat import editor
from tui.chat.editor import editor_command

APPEND = "import sys; p = sys.argv[1]; open(p, 'a').write(' and owls\\n')"
FAIL = f"{APPEND}; sys.exit(3)"


def editing(tmp_path, code):
    """The environment of an editor that does this."""
    script = tmp_path / "editor.py"
    script.write_text(code)
    return {"EDITOR": f"'{sys.executable}' '{script}'"}


def test_visual_comes_before_editor_and_the_usual_ones_behind(monkeypatch):
    assert editor_command({"VISUAL": "code --wait", "EDITOR": "vi"}) == ["code", "--wait"]
    assert editor_command({"VISUAL": " ", "EDITOR": "vi"}) == ["vi"]
    monkeypatch.setattr(editor.shutil, "which", lambda name: name if name in ("nano", "vi") else None)
    assert editor_command({}) == ["nano"]
    monkeypatch.setattr(editor.shutil, "which", lambda name: None)
    with pytest.raises(BadInputError, match="there is no editor; set EDITOR"):
        editor_command({})
    with pytest.raises(BadInputError, match="which is no command"):
        editor_command({"EDITOR": "vi 'x"})


@pytest.mark.parametrize("way", ["ctrl+e", "/editor"])
def test_what_is_saved_comes_back(tmp_path, way):
    async def story():
        async with telling(tmp_path, environment=editing(tmp_path, APPEND)) as teller:
            teller.app.suspend = nullcontext
            typed = "" if way.startswith("/") else "foxes"
            await teller.type(typed)
            await teller.ask_for(way)
            await teller.until(lambda: teller.chat.prompt.text == f"{typed} and owls", "the editor's text")
            assert teller.chat.prompt.has_focus and not teller.chat.attention.is_paused
            await teller.press("enter")
            await teller.until(lambda: teller.contents[:1] == [f"{typed} and owls"])

    tell(story)


def test_an_editor_that_fails_leaves_the_prompt_and_what_it_saved(tmp_path):
    async def story():
        async with telling(tmp_path, environment=editing(tmp_path, FAIL)) as teller:
            teller.app.suspend = nullcontext
            await teller.type("foxes")
            await teller.press("ctrl+e")
            await teller.hears("ended with exit code 3; up brings back what was saved there")
            assert teller.chat.prompt.text == "foxes"
            await teller.press("up")
            assert teller.chat.prompt.text == "foxes and owls"
            await teller.press("down")
            assert teller.chat.prompt.text == "foxes"

    tell(story)


def test_an_editor_that_is_not_there_and_a_terminal_that_cannot_be_lent_are_told(tmp_path):
    async def story():
        async with telling(tmp_path, environment={"EDITOR": "/nowhere/ed"}) as teller:
            await teller.type("foxes")
            await teller.press("ctrl+e")
            await teller.hears("this terminal cannot be handed to an editor")
            teller.app.suspend = nullcontext
            await teller.press("ctrl+e")
            await teller.hears("ed could not be used (No such file or directory); the prompt is as it was")
            kept = Path(teller.said[-1].partition("is in ")[2].partition(";")[0])
            assert kept.read_text() == "foxes" and teller.chat.prompt.text == "foxes"

    tell(story)
