"""Writes the prompt in the person's own editor: the terminal is its own meanwhile, and answers go on being saved."""

import asyncio
import os
import shlex
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from textual.app import App, SuspendNotSupported

from profiles.errors import BadInputError
from profiles.files import read_regular_file
from tui.chat.display import ChatDisplay
from tui.terminal_text import one_line

MAX_BYTES = 1 << 22
_USUAL = ("sensible-editor", "nano", "vim", "vi")
"""Where neither variable is set: the first that is here."""


def editor_command(environment: Mapping[str, str]) -> list[str]:
    """Return the editor and its options. Raises BadInputError where there is none."""
    wanted = environment.get("VISUAL", "").strip() or environment.get("EDITOR", "").strip()
    try:
        command = shlex.split(wanted)
    except ValueError as error:
        raise BadInputError(f"VISUAL or EDITOR is {one_line(wanted)!r}, which is no command ({error})") from error
    command = command or [name for name in _USUAL if shutil.which(name)][:1]
    if not command:
        raise BadInputError("there is no editor; set EDITOR to one, such as nano, and start the chat again")
    return command


async def edit_prompt(chat: ChatDisplay) -> None:
    """Let the prompt be written in the editor; what is saved takes its place, unless the editor fails."""
    prompt = chat.prompt
    with chat.telling():
        command = editor_command(chat.services.environment)
        folder = Path(tempfile.mkdtemp(prefix="overstory-"))
        path = folder / "prompt.md"
        path.write_text(prompt.text, encoding="utf-8", errors="replace", newline="")
        name, before = one_line(Path(command[0]).name), path.read_bytes()
        try:
            exit_code = await _run(chat, [*command, str(path)])
            after = read_regular_file(path, max_bytes=MAX_BYTES)
        except SuspendNotSupported as error:
            raise BadInputError("this terminal cannot be handed to an editor") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise BadInputError(
                f"{name} could not be used ({one_line(str(reason))}); the prompt is as it was, and what was saved is "
                f"in {one_line(str(path))}; set EDITOR to another editor"
            ) from error
        shutil.rmtree(folder, ignore_errors=True)
        text = after.decode("utf-8", "replace").replace("\r\n", "\n").removesuffix("\n")
        if exit_code == 0 and after != before:
            prompt.put(text)
        elif exit_code and after != before:
            prompt.keep_aside(text)
            chat.say(f"{name} ended with exit code {exit_code}; up brings back what was saved there", is_warning=True)
        elif exit_code:
            chat.say(f"{name} ended with exit code {exit_code}; the prompt is as it was", is_warning=True)
    prompt.focus()


async def _run(chat: ChatDisplay, command: list[str]) -> int:
    """Run it in the terminal, and draw nothing meanwhile."""
    app, attention = chat.screen.app, chat.attention
    attention.is_paused = True
    try:
        with app.batch_update(), app.suspend(), _ignoring_interrupts():
            process = await asyncio.create_subprocess_exec(*command, env={**os.environ, **chat.services.environment})
            return await process.wait()
    finally:
        attention.is_paused = False
        _repaint(app)


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Leave Ctrl+C to the editor, which is in the same group of processes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: None)  # ignored, it would be so in the editor too
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _repaint(app: App[object]) -> None:
    app.refresh(layout=True)
    app.screen.refresh(layout=True)
