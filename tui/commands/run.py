"""`overstory run` answers a prompt file; `overstory compare` answers one twice, plain streaming against a tree.

A comparison's answers appear as they are written, and end with two lines that compare the costs. Greedy texts must be
identical, and sampled ones where the seed alone decides them (`Finished.is_text_fixed`); other samples are
independent draws.
"""

import json
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, TextIO

import typer

from runtime.config import EngineConfig, SamplingParams, options_of
from runtime.errors import OptionError
from runtime.events import Event, GenerationStatistics, TextDelta
from runtime.prompts.headless import (
    GenerateAll,
    HeadlessEvent,
    PromptEvent,
    PromptItem,
    PromptResult,
    PromptStarted,
    in_parts,
    one_by_one,
    pending_items,
    run_prompts,
)
from runtime.prompts.openai_batch import read_prompts_or_batch
from runtime.prompts.prompt_file import PromptRequest
from runtime.prompts.result_file import ResultFile, ResultStream, finished_ids
from runtime.prompts.result_format import ResultFormat
from runtime.prompts.result_order import InputOrder, first_lines
from tui.commands.dry_run import show_dry_run
from tui.commands.on_ray import answer_on_ray
from tui.environment import packaged_prompts
from tui.options import BatchConfig, ComparingConfig, Quiet, TurnOptions, typed_fields, with_option_groups
from tui.printing import RunProgress, cost_line, locate_in_sight, open_session_in_sight, progress_console
from tui.report.run_report import RunReport, check_report_path
from tui.terminal_text import one_line, strip_terminal_escapes

if TYPE_CHECKING:
    from rich.console import Console

    from runtime.engine.loading import OpenSession
    from runtime.model.generation_config import GenerationConfig


@with_option_groups
def run(
    prompts: Annotated[
        str,
        typer.Argument(
            metavar="PROMPTS",
            help="A .txt or .jsonl prompt file, the latter also in OpenAI's batch format, or - for standard input.",
        ),
    ],
    command_line: typer.Context,
    config: BatchConfig,
    params: SamplingParams,
    turns: TurnOptions,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Append results to this file.", show_default="stdout")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Skip ids that --output already answers.")] = False,
    in_order: Annotated[
        bool,
        typer.Option(
            "--in-order",
            help="Write to --output in the order of the prompts; results that wait for an earlier one are lost if the "
            "run ends.",
        ),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Answer the first N lines that have no answer yet.", show_default="all of them"
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS|local",
            help="Answer on all nodes of the Ray cluster at HOST:PORT, a whole engine on each; "
            "local is a cluster of this machine alone.",
            show_default="this process",
        ),
    ] = None,
    report_file: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE.html|FILE.md",
            help="At the end write a page about the run: speed, guesses kept, link, slow and failed prompts.",
            show_default="none",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Answer nothing: say what is wrong with lines, and predict tokens, passes and time without loading.",
        ),
    ] = False,
    quiet: Quiet = False,
) -> int:
    """Answer a prompt file; results are JSON lines.

    They are in the order of the prompts, but in --output as they finish. What a model thinks and which tools it calls
    stand beside its text. A file in OpenAI's batch format, with
    lines for /v1/chat/completions or /v1/completions, is answered in that format, and sampled at temperature 1
    unless a line, --temperature or the model's own settings say otherwise.

    What you leave out of temperature, top-p, top-k, min-p, repetition penalty, stop texts and length is as the
    model's own generation settings say, as in transformers' generate(); --generation plain takes the defaults
    shown here.
    """
    check_resumable(output, is_resumed=resume)
    if dry_run and report_file is not None:
        raise OptionError("--report is written at the end of a run; leave out --report or --dry-run")
    if dry_run and ray is not None:
        raise OptionError("--dry-run predicts a run of this machine alone; leave out --ray or --dry-run")
    if report_file is not None:
        check_report_path(report_file, output)
    unchosen = options_of(SamplingParams).keys() - typed_fields(command_line, SamplingParams)
    items, result_format = read_prompts_or_batch(
        prompts, params, system=turns.system, is_raw=turns.raw, unchosen=unchosen
    )
    items = in_parts(items)
    console = progress_console(is_quiet=quiet)
    if dry_run:
        done = () if output is None else finished_ids(output, result_format, is_resumed=resume)
        pending = pending_items(items, done)
        show_dry_run(config, first_lines(pending, limit), console, num_done=len(items) - len(pending))
        return 0
    num_errors = 0
    with ExitStack() as stack:
        results = open_results(stack, output, result_format, is_resumed=resume)
        pending = pending_items(items, results.finished_ids)
        num_done, items = len(items) - len(pending), first_lines(pending, limit)
        written = InputOrder(results, items) if in_order or output is None else results
        report = None
        if report_file is not None:
            report = RunReport.of(report_file, prompts, num_prompts=len(items), num_done=num_done)
            report.note_settings(
                *((group, typed_fields(command_line, type(group))) for group in (config, params, turns))
            )
            stack.enter_context(report)
        if ray is not None:
            num_errors = answer_on_ray(ray, config, items, written, console, report=report)
        else:
            if report is not None:
                config = report.predict(config, items, console)
            opened = stack.enter_context(_opened(config, items, console, is_quiet=quiet, is_early=True))
            if report is not None and opened is not None:
                report.describe(opened)
            late = (lambda: None) if opened is None else (lambda: opened.load_progress)
            progress = stack.enter_context(RunProgress(console, num_prompts=len(items), late=late))
            for event in run_prompts(_generate_all(opened), items):
                progress.show(event)
                if report is not None:
                    report.observe(event)
                if isinstance(event, PromptResult):
                    written.append(event)
                    num_errors += event.error is not None
    return max(_report_errors(num_errors, len(items)), int(results.kept_in is not None))


def check_resumable(output: Path | None, *, is_resumed: bool) -> None:
    """Raise OptionError where a command is to go on with a file that it was not given."""
    if is_resumed and output is None:
        raise OptionError("--resume needs the file to go on with; add --output FILE")


def open_results(
    stack: ExitStack, output: Path | None, result_format: ResultFormat, *, is_resumed: bool
) -> ResultFile | ResultStream:
    """Return where a command's results go, standard output unless it was given a file; closed with `stack`.

    Raises OptionError as `ResultFile` does.
    """
    if output is None:
        return ResultStream(sys.stdout, result_format)
    results = ResultFile(output, is_resumed=is_resumed, result_format=result_format)
    stack.callback(_tell_where_kept, results, output)
    return stack.enter_context(results)


def _tell_where_kept(results: ResultFile, output: Path) -> None:
    if results.kept_in is not None:
        sys.stderr.write(
            f"overstory: error: {output} was moved, removed or changed by another program during the run; all results "
            f"are in {results.kept_in}; move it to where they should be, and add --resume to go on with it\n"
        )


@with_option_groups
def compare(
    command_line: typer.Context,
    config: ComparingConfig,
    params: SamplingParams,
    turns: TurnOptions,
    *,
    prompts: Annotated[
        str | None,
        typer.Argument(
            metavar="[PROMPTS]", help="A .txt or .jsonl prompt file.", show_default="four that come with it"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON line on stdout.")] = False,
    quiet: Quiet = False,
) -> int:
    """Answer each prompt twice, plain streaming and tree, on the same link and budget, and compare.

    Unless you name a draft, it is the one that `run` takes where layers stream, also where none does.

    Without the model's own generation settings, so that figures of two models mean the same; --generation auto takes
    them.
    """
    if config.is_plain:
        raise OptionError("--draft none leaves nothing to compare; leave it out, or name a draft")
    path = packaged_prompts("demo.jsonl") if prompts is None else prompts
    unchosen = options_of(SamplingParams).keys() - typed_fields(command_line, SamplingParams)
    items, _ = read_prompts_or_batch(path, params, system=turns.system, is_raw=turns.raw, unchosen=unchosen)
    console = progress_console(is_quiet=quiet)
    out = sys.stderr if as_json else sys.stdout
    if any(isinstance(item, PromptRequest) for item in items):
        config = _with_fixed_choices(config, items, console)
    out.write("\n== plain ==\n")
    plain = _show_all(replace(config, draft="none"), items, console, out)
    out.write("\n== tree ==\n")
    comparison = Comparison.of(plain, _show_all(config, items, console, out, earlier=plain))
    out.write("\n" + "\n".join(comparison.lines()) + "\n")
    if as_json:
        sys.stdout.write(json.dumps(comparison.to_record()) + "\n")
    return _report_errors(comparison.num_errors, len(items))


def _show_all(
    config: EngineConfig,
    items: Sequence[PromptItem],
    console: "Console",
    out: TextIO,
    *,
    earlier: Sequence[PromptResult] = (),
) -> list[PromptResult]:
    """Answer every line in a session of its own, whose memory is free again when this returns."""
    with _opened(config, items, console, is_quiet=console.quiet or bool(earlier)) as opened:
        return show_answers(run_prompts(_generate_all(opened), items), out, num_prompts=len(items), earlier=earlier)


def _with_fixed_choices(config: EngineConfig, items: Sequence[PromptItem], console: "Console") -> EngineConfig:
    """Return the config with the draft and the device budget that it would get now, the same for both sessions.

    Raises BadInputError where no draft can be had.
    """
    config = locate_in_sight(config, console)
    from runtime.engine.load_plan import LoadPlan

    requests = [item for item in items if isinstance(item, PromptRequest)]
    plan = LoadPlan.build(config, requests=requests, needs_draft=True)
    if plan.draft_note is not None:
        console.print(plan.draft_note, markup=False)
    return replace(config, draft=plan.config.draft, device_memory_bytes=plan.placement.device_budget_bytes)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The lines that were answered both under plain streaming and with a tree."""

    plain_total: GenerationStatistics
    """What they cost under plain streaming."""
    tree_total: GenerationStatistics
    num_answered: int
    num_fixed: int
    """Of them, those whose two texts must be the same."""
    num_identical: int
    """Of these, those whose texts are the same, to the last character."""
    num_errors: int
    """Lines that one of the two did not answer."""

    @classmethod
    def of(cls, plain: Sequence[PromptResult], tree: Sequence[PromptResult]) -> Self:
        """Compare one result per line, in order, with those of the same lines."""
        pairs = [(before.finished, after.finished) for before, after in zip(plain, tree, strict=True)]
        answered = [(before, after) for before, after in pairs if before is not None and after is not None]
        fixed = [(before, after) for before, after in answered if after.is_text_fixed]
        return cls(
            plain_total=GenerationStatistics.total(before.statistics for before, _ in answered),
            tree_total=GenerationStatistics.total(after.statistics for _, after in answered),
            num_answered=len(answered),
            num_fixed=len(fixed),
            num_identical=sum(before.text == after.text for before, after in fixed),
            num_errors=len(pairs) - len(answered),
        )

    @property
    def speedup(self) -> float | None:
        plain_seconds, tree_seconds = self.plain_total.seconds_per_token, self.tree_total.seconds_per_token
        return plain_seconds / tree_seconds if plain_seconds and tree_seconds else None

    def lines(self) -> tuple[str, str]:
        """The comparison for people: one line for plain streaming, one for the tree."""
        faster = "" if self.speedup is None else f"{self.speedup:.2f}x as fast, "
        num_free = self.num_answered - self.num_fixed
        identical = (
            f"{self.num_identical} of {self.num_fixed} texts identical" if self.num_fixed or not num_free else ""
        )
        anew = f"{num_free} texts sampled anew" if num_free else ""
        verdict = faster + ", ".join(filter(None, (identical, anew)))
        return f"plain  {cost_line(self.plain_total)}", f"tree   {cost_line(self.tree_total)}   {verdict}"

    def to_record(self) -> dict[str, Any]:
        return {
            "plain": _costs(self.plain_total),
            "tree": _costs(self.tree_total),
            "speedup": self.speedup,
            "num_answered": self.num_answered,
            "num_fixed": self.num_fixed,
            "num_identical": self.num_identical,
            "num_errors": self.num_errors,
        }


def show_answers(
    events: Iterable[HeadlessEvent], out: TextIO, *, num_prompts: int, earlier: Sequence[PromptResult] = ()
) -> list[PromptResult]:
    """Print prompts and answers while they come; says of each whether its text is that of `earlier`, if given."""
    results: list[PromptResult] = []
    for event in events:
        if isinstance(event, PromptStarted):
            out.write(f"\n[{event.position}/{num_prompts}] {_question(event.request)}\n")
        elif isinstance(event, PromptEvent) and isinstance(event.event, TextDelta):
            out.write(strip_terminal_escapes(event.event.text))
        elif isinstance(event, PromptResult):
            results.append(event)
            out.write(f"\n{_closing_line(event, earlier[len(results) - 1 :])}\n")
        out.flush()
    return results


def _question(request: PromptRequest) -> str:
    text = request.prompt if request.messages is None else request.messages[-1].content
    return f"{one_line(request.id)}: {one_line(text or '')}"


def _closing_line(result: PromptResult, earlier: Sequence[PromptResult]) -> str:
    answer = result.finished
    if answer is None:
        return f"  error: {one_line(result.error or '')}"
    verdict = ""
    if earlier and (before := earlier[0].finished) is not None:
        verdict = "   identical" if before.text == answer.text else "   DIFFERS from plain streaming"
        if not answer.is_text_fixed:
            verdict = f"   another sample ({answer.verification})"
    return f"  ({cost_line(answer.statistics)}{verdict})"


def _costs(statistics: GenerationStatistics) -> dict[str, Any]:
    ratios = {
        "seconds_per_token": statistics.seconds_per_token,
        "tokens_per_round": statistics.tokens_per_round,
        "link_utilization": statistics.link_utilization,
    }
    return ratios | asdict(statistics)


@contextmanager
def _opened(
    config: EngineConfig, items: Sequence[PromptItem], console: "Console", *, is_quiet: bool, is_early: bool = False
) -> Iterator["OpenSession | None"]:
    """A session; where no line needs an answer, no model is opened. `is_early`: answers while it loads."""
    requests = [item for item in items if isinstance(item, PromptRequest)]
    if requests:
        with open_session_in_sight(config, requests, console, is_early=is_early) as opened:
            if not is_quiet:
                _tell_own_settings(opened.session.generation, requests)
                if not opened.session.can_think and any(each.params.thinking_budget is not None for each in requests):
                    sys.stderr.write("overstory: the model marks no thinking, so --think changes nothing\n")
            yield opened
    else:
        yield None


def _generate_all(opened: "OpenSession | None") -> GenerateAll:
    return one_by_one(_never_asked) if opened is None else opened.session.generate_all


def _tell_own_settings(generation: "GenerationConfig", requests: Iterable[PromptRequest]) -> None:
    """Say once what of the answers is as the model's author wants it."""
    from runtime.model.generation_config import describe_own_settings

    own: dict[str, float] = {}
    for params, unchosen in dict.fromkeys((request.params, request.unchosen) for request in requests):
        with suppress(OptionError):  # which the answer's result will say
            own |= generation.choices(params, unchosen, num_prompt_tokens=0).own
    if own:
        settings = describe_own_settings(own)
        sys.stderr.write(
            f"overstory: the model's own generation settings: {settings}; --generation plain leaves them out\n"
        )


def _never_asked(request: PromptRequest) -> Generator[Event, None, None]:
    raise AssertionError(f"no session was opened for line {request.line_number}")


def _report_errors(num_errors: int, num_lines: int) -> int:
    if num_errors:
        sentence = f"error: {num_errors} of {num_lines} prompts have no answer; see `error` in their results"
        sys.stderr.write(f"overstory: {sentence}\n")
        return 1
    return 0
