"""Finds models and opens a session in sight of the user: each step is announced, and the load has a bar.

Imports torch only when a model is opened.
"""

import gc
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeVar

from profiles.steps import finish
from runtime.config import EngineConfig
from runtime.events import LoadProgress
from runtime.prompts.prompt_file import PromptRequest
from tui.environment import cache_folder
from tui.printing import placement_lines, show_load
from tui.terminal_text import one_line

if TYPE_CHECKING:
    from rich.console import Console

    from runtime.engine.loading import OpenSession

_Returned = TypeVar("_Returned")


@contextmanager
def open_session_in_sight(
    config: EngineConfig, requests: Sequence[PromptRequest], console: "Console"
) -> Iterator["OpenSession"]:
    """Find the models, load them in sight of the user, and say what the session holds."""
    with ExitStack() as stack:
        opened = show_load(load_models(config, stack, requests=requests), console)
        held = placement_lines(opened.placement, baseline_bytes=opened.plan.baseline_bytes)
        for line in (*held, opened.plan.fit.sentence, *opened.notes):
            console.print(line, markup=False)
        yield opened


def load_models(
    config: EngineConfig, stack: ExitStack, *, requests: Sequence[PromptRequest] = ()
) -> Generator[str | LoadProgress, None, "OpenSession"]:
    """Find the models that `config` names and load them; what was opened is closed with `stack`."""
    from runtime.engine.model_folders import locate_models

    config = yield from locate_models(config, cache_folder=cache_folder())
    yield f"opening {config.target}"
    with uncollected("runtime.engine.loading"):
        from runtime.engine.loading import load_session
    return (yield from load_session(config, stack, requests=requests, state_folder=cache_folder()))


@contextmanager
def uncollected(module: str) -> Iterator[None]:
    """Import `module` and all that it needs in here: Python then looks for no cycles among it, now or later.

    torch and transformers make a million objects that live to the end, and every collection would go through them:
    half a second of four while they are imported, and as much at the end. Where it is imported already nothing changes:
    there may be models among the objects by then, which are cycles and must be found.
    """
    if module in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def announce(steps: Generator[str, None, _Returned], console: "Console") -> _Returned:
    """Print each step of a long preparation and return what it ends with."""
    return finish(steps, lambda step: console.print(one_line(step), markup=False))
