"""Gathers what the page of a run says while it runs, and writes the page at its end, however that comes.

The file is there complete or not at all. Where the run itself failed, its own error is the one that ends the command.
"""

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from profiles.errors import OverstoryError
from profiles.files import replace_content
from runtime.config import EngineConfig, options_of
from runtime.errors import OptionError
from runtime.prompts.headless import HeadlessEvent, PromptItem, PromptResult
from runtime.prompts.prompt_file import PromptRequest
from runtime.prompts.run_record import RunRecord
from tui.environment import cache_folder
from tui.printing import announce, locate_in_sight, placement_lines
from tui.report.content import AboutRun, page_of
from tui.report.html_page import to_html
from tui.report.markdown_page import to_markdown
from tui.terminal_text import one_line

if TYPE_CHECKING:
    from rich.console import Console

    from runtime.engine.loading import OpenSession
    from runtime.prompts.ray_run import RayEvent

_WRITERS = {".html": to_html, ".md": to_markdown}


def check_report_path(path: Path, output: Path | None) -> None:
    """Raise OptionError for a file that could not be written, or would overwrite the results: before anything runs."""
    name = f"--report {one_line(str(path))!r}"
    if path.suffix.lower() not in _WRITERS:
        raise OptionError(f"{name} must end in {' or '.join(_WRITERS)}")
    if output is not None and _is_same_file(path, output):
        raise OptionError(f"{name} is the file of --output, which holds the results; give it another name")
    folder = path.resolve().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OptionError(f"{name} cannot be written; give a file in an existing, writable folder")


def _is_same_file(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:  # one of them is not there yet
        return path.resolve() == other.resolve()


@dataclass(slots=True)
class RunReport:
    """A context manager around a run, whose events it is shown; writes the page where it ends."""

    path: Path
    about: AboutRun
    record: RunRecord = field(default_factory=RunRecord)
    _opened: "OpenSession | None" = None

    @classmethod
    def of(cls, path: Path, prompts: str, *, num_prompts: int, num_done: int) -> Self:
        """`num_prompts` are the lines to answer, beside which `num_done` are answered already."""
        name = "standard input" if prompts == "-" else Path(prompts).name
        return cls(path, AboutRun(name, num_prompts, num_done, datetime.now().astimezone()))

    def note_settings(self, *groups: tuple[Any, frozenset[str]]) -> None:
        """Keep what was typed: records of options, each with the names of those fields."""
        typed = (
            (option.typed_name.replace("_", "-"), _value_text(getattr(values, name)))
            for values, names in groups
            for name, option in options_of(type(values)).items()
            if name in names
        )
        self.about.settings = [(f"--{flag}", text) for flag, text in typed]

    def predict(self, config: EngineConfig, items: Sequence[PromptItem], console: "Console") -> EngineConfig:
        """Return the config with its models' folders, and keep what is predicted of the run; some seconds are measured.

        Raises BadInputError where the models cannot be found.
        """
        requests = [item for item in items if isinstance(item, PromptRequest)]
        if not requests:
            return config
        config = locate_in_sight(config, console)
        try:
            from runtime.engine.forecast import forecast_run

            forecasting = forecast_run(config, requests, cache_folder=cache_folder())
            self.about.forecast = announce(forecasting, console)
        except OverstoryError as error:  # the load says it again, if it is one of the load too
            self.about.no_forecast = str(error).removesuffix(".")
        return config

    def describe(self, opened: "OpenSession") -> None:
        """Keep what the session holds and on what machine."""
        from runtime.fit.probes import MachineProbes

        plan = opened.plan
        self._opened = opened
        draft = plan.draft_name if plan.config.is_plain else f"{plan.draft_name}, held in {plan.draft_held}"
        number = plan.need.num_texts
        self.about.models = [
            ("target", f"{plan.target_name}, {plan.target.stored_name}"),
            ("draft", draft),
            ("together", "one prompt a pass" if number == 1 else f"up to {number} prompts share a pass"),
            ("context", f"{plan.need.context_tokens:,} tokens"),
        ]
        probes = MachineProbes(plan.device, cache_folder())
        self.about.machine = [("machine", str(probes.devices()[0])), ("system", probes.system())]
        held = placement_lines(opened.placement, baseline_bytes=plan.baseline_bytes)
        self.about.layers = (*(" ".join(line.split()) for line in held), plan.advice.sentence, *opened.notes)

    def begin_on_nodes(self, address: str, config: EngineConfig) -> None:
        """Keep that the run is answered elsewhere, whose machines nothing is predicted of."""
        self.about.is_on_nodes = True
        self.about.no_forecast = "the nodes of a cluster are other machines"
        self.about.models = [("target", config.target or "the demo model"), ("draft", config.draft)]
        self.about.machine = [("machines", f"the Ray cluster {address}"), ("asked from", platform.node())]

    def observe_on_nodes(self, event: "RayEvent") -> None:
        """Take in a result, or what a node of a cluster does now."""
        if isinstance(event, PromptResult):
            self.record.observe(event)
        else:
            self.about.nodes[event.name] = "; ".join((event.state, *event.sentences))

    def observe(self, event: HeadlessEvent) -> None:
        """Take in an event of the run."""
        self.record.observe(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write the page. Raises OptionError if that fails and nothing else did, which else stays what is told."""
        if error is not None:
            told = one_line(str(error)) if isinstance(error, OverstoryError) else type(error).__name__
            self.about.ended = "interrupted" if isinstance(error, KeyboardInterrupt) else told
        if self._opened is not None:
            self.about.tree = self._opened.session.engine.planner.tree_name
            self._opened = None
        try:
            self.write()
        except OptionError as failure:
            if error is None:
                raise
            sys.stderr.write(f"overstory: {failure}\n")

    def write(self) -> None:
        """Write the page as far as the run got. Raises OptionError."""
        text = _WRITERS[self.path.suffix.lower()](page_of(self.about, self.record))
        try:
            replace_content(self.path, text.encode(), mode=0o644)
        except OSError as error:
            raise OptionError(
                f"--report {one_line(str(self.path))!r} cannot be written: {error.strerror or error}"
            ) from error


def _value_text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(repr, value))
    return str(value)
