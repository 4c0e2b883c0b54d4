"""`overstory run --ray`: the prompts of a file on the nodes of a Ray cluster, which is optional."""

from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from profiles.steps import finish
from runtime.config import EngineConfig
from runtime.prompts.headless import PromptItem, PromptResult
from runtime.prompts.prompt_file import BadLine, PromptRequest
from runtime.prompts.ray_cluster import open_cluster
from runtime.prompts.result_order import Results
from tui.environment import load_models, prepare_libraries
from tui.printing import LineProgress
from tui.report.run_report import RunReport
from tui.terminal_text import one_line

if TYPE_CHECKING:
    from runtime.engine.loading import OpenSession
    from runtime.prompts.ray_run import RayEvent


def answer_on_ray(
    address: str,
    config: EngineConfig,
    items: Sequence[PromptItem],
    results: Results,
    console: Console,
    *,
    report: RunReport | None = None,
) -> int:
    """Give every line its result on the cluster at `address`; return how many have an error.

    `report` is shown what comes, if there is one.

    Raises OptionError where Ray is not installed or the cluster is not there, and what ends a run: see `ray_run`.
    """
    num_errors = 0
    progress = NodesProgress(console, num_prompts=len(items))
    if report is not None:
        report.begin_on_nodes(address, config)
    with progress, closing(_events(address, config, items)) as events:
        for event in events:
            if report is not None:
                report.observe_on_nodes(event)
            if isinstance(event, PromptResult):
                progress.stop()  # the result may go to the same terminal
                results.append(event)
                progress.start()
                num_errors += event.error is not None
            progress.show(event)
    return num_errors


def _events(address: str, config: EngineConfig, items: Sequence[PromptItem]) -> Generator["RayEvent", None, None]:
    requests = [item for item in items if isinstance(item, PromptRequest)]
    with ExitStack() as stack:
        if requests:
            stack.enter_context(open_cluster(address))
        for item in items:
            if isinstance(item, BadLine):
                yield PromptResult(id=item.id, line_number=item.line_number, error=item.error)
        if requests:
            from runtime.prompts.ray_run import answer_on_nodes

            yield from answer_on_nodes(_with_whole_paths(config), requests, open_on_node)


def _with_whole_paths(config: EngineConfig) -> EngineConfig:
    """Return the config with paths that mean the same on a node, where a run has another working folder."""

    def whole(name: str) -> str:
        return str(Path(name).absolute()) if Path(name).exists() else name

    target = config.target and whole(config.target)
    return replace(config, target=target, draft=whole(config.draft) if config.draft_model else config.draft)


def open_on_node(config: EngineConfig, stack: ExitStack, requests: Sequence[PromptRequest]) -> "OpenSession":
    """Open a session on the node that this is called on, with what is known of the node in its own cache folder."""
    prepare_libraries()
    return finish(load_models(config, stack, requests=requests, is_early=True))


class NodesProgress(LineProgress):
    """Says on one line of a terminal how many prompts have a result and what the nodes do; a context manager."""

    def __init__(self, console: Console, *, num_prompts: int) -> None:
        super().__init__(
            console,
            SpinnerColumn(),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._prompts = self.add_task("", total=num_prompts)
        self._states: dict[str, str] = {}

    def show(self, event: "RayEvent") -> None:
        """Bring the line up to date with one event of the run; errors and what nodes have to say stay above it."""
        if isinstance(event, PromptResult):
            self.advance(self._prompts)
            if event.error is not None:
                self.console.print(Text(one_line(event.error)), style="red")
            return
        self._states[event.node_id] = event.state
        for sentence in event.sentences:
            self.console.print(Text(one_line(f"{event.name}: {sentence}")))
        counts = Counter(self._states.values())
        words = [f"{counts[state]} {state}" for state in ("answering", "loading", "lost") if counts[state]]
        self.update(self._prompts, description=f"nodes: {', '.join(words)}")
