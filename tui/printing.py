"""What people read while models load and prompts are answered: steps, where memory goes, progress, measurements.

Turns values into text; the only state is the progress line. Everything here goes to stderr: stdout is for results.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from offload.units import format_bytes
from profiles.steps import finish, relabel
from runtime.config import EngineConfig
from runtime.events import Event, GenerationStatistics, LoadProgress, PrefillProgress, Round
from runtime.prompts.headless import HeadlessEvent, PromptEvent, PromptResult, PromptStarted
from runtime.prompts.prompt_file import PromptRequest
from tui.environment import cache_folder, load_models
from tui.terminal_text import one_line

if TYPE_CHECKING:
    from runtime.engine.loading import OpenSession
    from runtime.fit.place import Placement

_Returned = TypeVar("_Returned")


def progress_console(*, is_quiet: bool) -> Console:
    """Return a console on stderr that says nothing when asked to be quiet or when nobody watches a terminal."""
    console = Console(stderr=True, highlight=False, emoji=False)
    console.quiet = is_quiet or not console.is_terminal
    return console


@contextmanager
def open_session_in_sight(
    config: EngineConfig, requests: Sequence[PromptRequest], console: Console, *, is_early: bool = False
) -> Iterator["OpenSession"]:
    """Find the models, load them in sight of the user, and say what the session holds.

    `is_early`: go on once a first pass may begin, while layers are still being read.
    """
    with ExitStack() as stack:
        opened = show_load(load_models(config, stack, requests=requests, is_early=is_early), console)
        held = placement_lines(opened.placement, baseline_bytes=opened.plan.baseline_bytes)
        told = (*held, opened.plan.advice.sentence, *opened.notes)
        for line in told:
            console.print(line, markup=False)
        yield opened
        for line in opened.notes:  # what pinning came to is known once all layers have been read
            if line not in told:
                console.print(line, markup=False)


def locate_in_sight(config: EngineConfig, console: Console) -> EngineConfig:
    """Return the config with its models' folders, downloaded in sight of the user where they are missing."""
    from runtime.engine.model_folders import locate_models
    from runtime.fit.startup import check_startup

    found = show_load(locate_models(config, cache_folder=cache_folder()), console)
    check_startup(Path(str(found.target)))
    return found


def settle_draft_in_sight(config: EngineConfig, requests: Sequence[PromptRequest], console: Console) -> EngineConfig:
    """Return the config with its models' folders, and `auto` replaced by a draft, for what has no meaning without one.

    It is the one that a session takes where layers stream. Raises BadInputError where none can be had.
    """
    config = locate_in_sight(config, console)
    if config.draft != "auto":
        return config
    from runtime.engine.load_plan import LoadPlan

    plan = LoadPlan.build(config, requests=requests, needs_draft=True)
    if plan.draft_note is not None:
        console.print(plan.draft_note, markup=False)
    return replace(config, draft=plan.config.draft)


def announce(steps: Generator[str, None, _Returned], console: Console) -> _Returned:
    """Print each step of a long preparation and return what it ends with."""
    return finish(steps, lambda step: console.print(one_line(step), markup=False))


def placement_lines(placement: "Placement", *, baseline_bytes: int) -> list[str]:
    """Return where every planned byte is, one purpose a line, and what crosses the link in every pass.

    `baseline_bytes`: what the process held before any of it.
    """
    budget = format_bytes(placement.device_budget_bytes)
    lines = [f"device memory: {format_bytes(placement.device_bytes)} of {budget}"]
    lines += [f"  {format_bytes(num_bytes):>8}  {label}" for label, num_bytes in placement.entries().items()]
    lines.append(
        f"streamed in every pass: {format_bytes(placement.streamed_bytes)} "
        f"({placement.num_host_layers} layers from host memory, {placement.num_disk_layers} from disk)"
    )
    if placement.stage_bytes:
        lines.append(f"host stages on the way from disk: {format_bytes(placement.stage_bytes)}")
    if placement.table_bytes:
        lines.append(f"input embeddings in host memory, gathered there: {format_bytes(placement.table_bytes)}")
    lines.append(f"before any of this the process held {format_bytes(baseline_bytes)}")
    return lines


def cost_line(statistics: GenerationStatistics) -> str:
    """Return the costs of an answer, or of several, that the speed law is about."""
    parts = [
        f"{_figures(statistics.seconds_per_token)} s/token",
        f"{_figures(statistics.tokens_per_round)} tokens/pass",
        f"{format_bytes(statistics.bytes_streamed)} streamed",
    ]
    if statistics.link_utilization is not None:
        parts.append(f"link {100 * statistics.link_utilization:.0f} % busy")
    return "   ".join(parts)


def print_grid(rows: Iterable[Sequence[Text]], out: Console) -> None:
    """Print rows in columns without lines, of which only the last one folds."""
    first, *others = rows
    table = Table.grid(padding=(0, 2))
    for _ in first[1:]:
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in (first, *others):
        table.add_row(*row)
    out.print(table)


def measurement_tables(measured: Mapping[Any, Any], *, title: str) -> Iterator[Table]:
    """Yield a record for people: its single values in two columns, then what it holds of records, by name.

    A list of records is a table with a row for each of them. Bytes and seconds are written for people.
    """
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    for name, cell in _single_cells(measured).items():
        table.add_row(Text(name), Text(cell))
    yield table
    for name, value in measured.items():
        if isinstance(value, dict):
            yield from measurement_tables(value, title=_in_words(name))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            rows = list(map(_single_cells, value))
            table = Table(title=_in_words(name), title_justify="left")
            for heading in rows[0]:
                table.add_column(heading, justify="right")
            for row in rows:
                table.add_row(*map(Text, row.values()))
            yield table


def show_load(
    loading: Generator[str | LoadProgress, None, _Returned], console: Console, *, doing: str = "loading"
) -> _Returned:
    """Run a load to its end, its sentences above a bar of bytes, rate and time left; return what it returns."""
    return finish(load_in_sight(loading, console, doing=doing))


def load_in_sight(
    loading: Generator[str | LoadProgress, None, _Returned], console: Console, *, doing: str = "loading"
) -> Generator[str | LoadProgress, None, _Returned]:
    """Show the steps of a load as `show_load` does, and yield them."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=console.quiet) as bar:
        task = bar.add_task("", total=None, visible=False)

        def show(step: str | LoadProgress) -> str | LoadProgress:
            if isinstance(step, str):
                bar.update(task, visible=False)
                console.print(one_line(step), markup=False)
            else:
                what = step.what if step.what.startswith("downloading ") else f"{doing} {step.what}"
                done, total = step.num_done_bytes, step.num_bytes
                bar.update(task, description=what, completed=done, total=total, visible=True)
            return step

        shown: Generator[str | LoadProgress, None, _Returned] = relabel(loading, show)
        return (yield from shown)


class _WordsAndLoad(ProgressColumn):
    """A task's words, and how much has been read of a model whose first pass waits for the rest."""

    def __init__(self, late: Callable[[], LoadProgress | None]) -> None:
        super().__init__()
        self._late = late

    def render(self, task: Task) -> Text:
        late = self._late()
        loading = "" if late is None else f", {late.num_done_bytes / max(1, late.num_bytes):.0%} of the model loaded"
        return Text(task.description + loading)


class TimeLeft:
    """How long the other prompts of a run will take, if they take as long as those that were answered.

    Prompts may be answered side by side. Loading does not count, nor do lines that cannot be answered.
    """

    def __init__(self, num_prompts: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._num_left = num_prompts
        self._clock = clock
        self._begun: float | None = None
        self._started: set[tuple[int, str]] = set()
        self._num_answered = 0
        self._latest = 0.0

    def observe(self, event: HeadlessEvent) -> None:
        """Take note of one event of `run_prompts`."""
        if isinstance(event, PromptStarted):
            self._started.add((event.request.line_number, event.request.id))
            self._begun = self._clock() if self._begun is None else self._begun
        elif isinstance(event, PromptResult):
            self._num_left -= 1
            if (event.line_number, event.id) in self._started:
                self._started.remove((event.line_number, event.id))
                self._num_answered += 1
                self._latest = self._clock()

    @property
    def seconds(self) -> float | None:
        """Return the time left from now on; None until a prompt has been answered."""
        if self._begun is None or not self._num_answered:
            return None
        expected = self._num_left * (self._latest - self._begun) / self._num_answered
        return max(0.0, expected - (self._clock() - self._latest))


class _TimeLeftColumn(ProgressColumn):
    """The time left of a run, in words."""

    def __init__(self, time_left: TimeLeft) -> None:
        super().__init__()
        self._time_left = time_left

    def render(self, task: Task) -> Text:
        seconds = self._time_left.seconds
        return Text("" if seconds is None else f"about {timedelta(seconds=round(seconds))} left", style="cyan")


class LineProgress(Progress):
    """Says on one line of a terminal how far a command is; a context manager, at whose end the line is gone."""

    def __init__(self, console: Console, *columns: ProgressColumn) -> None:
        super().__init__(
            *columns,
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=console.quiet,
        )


class RunProgress(LineProgress):
    """Says on one line of a terminal which prompt is being answered and how it goes; a context manager.

    The line is gone whenever a prompt has ended, so that its result can be written to the same terminal.
    """

    def __init__(
        self, console: Console, *, num_prompts: int, late: Callable[[], LoadProgress | None] = lambda: None
    ) -> None:
        """`late` says how far the load is of a session that answers already; None once it has ended."""
        self._time_left = TimeLeft(num_prompts)
        super().__init__(
            console,
            SpinnerColumn(),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            _WordsAndLoad(late),
            TimeElapsedColumn(),
            _TimeLeftColumn(self._time_left),
        )
        self._prompts = self.add_task("", total=num_prompts)
        self._live: dict[str, tuple[int, int]] = {}
        """Tokens and rounds of each answer under way."""

    def show(self, event: HeadlessEvent) -> None:
        """Bring the line up to date with one event of `run_prompts`."""
        if self.console.quiet:
            return
        self._time_left.observe(event)
        if isinstance(event, PromptStarted):
            self._live[event.request.id] = (0, 0)
            self._say(event.request.id, "prefill")
            self.start()
        elif isinstance(event, PromptEvent):
            self._show_event(event.request.id, event.event)
        else:
            self._live.pop(event.id, None)
            self.advance(self._prompts)
            self.stop()
            if event.error is not None:
                self.console.print(Text(one_line(event.error)), style="red")

    def _show_event(self, name: str, event: Event) -> None:
        self.start()
        if isinstance(event, PrefillProgress):
            self._say(name, f"prefill {event.num_done_tokens}/{event.num_prompt_tokens}")
        elif isinstance(event, Round):
            num_tokens, num_rounds = self._live.get(name, (0, 0))
            self._live[name] = num_tokens + event.num_emitted, num_rounds + 1
            if len(self._live) == 1:
                num_tokens, num_rounds = self._live[name]
                self._say(name, f"{num_tokens} tokens, {num_tokens / num_rounds:.2f} per pass")
            else:
                per_pass = sum(tokens / rounds for tokens, rounds in self._live.values() if rounds)
                num_tokens = sum(tokens for tokens, _ in self._live.values())
                self._say(f"{len(self._live)} prompts together", f"{num_tokens} tokens, {per_pass:.1f} per pass")

    def _say(self, name: str, words: str) -> None:
        self.update(self._prompts, description=f"{one_line(name)}: {words}")


def _figures(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1 else f"{value:.2f}"


def _in_words(name: object) -> str:
    return one_line(str(name).replace("_", " "))


def _single_cells(measured: Mapping[Any, Any]) -> dict[str, str]:
    singles = {name: value for name, value in measured.items() if not isinstance(value, list | tuple | dict)}
    return {_in_words(name): _cell(str(name), value) for name, value in singles.items()}


def _cell(name: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-" if value is None else one_line(str(value))
    if name.endswith("bytes_per_second"):
        return f"{format_bytes(value)}/s"
    if name.endswith("_bytes") or name.startswith("bytes_"):
        return format_bytes(value)
    if name.endswith("_seconds"):
        return f"{_figures(float(value))} s"
    return str(value) if isinstance(value, int) else _figures(value)
