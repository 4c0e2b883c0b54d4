"""The command line: the one place that reads arguments, prints and sets exit codes.

stdout is for results, stderr for progress. Whatever goes wrong ends in one line on stderr: 2 for input that cannot be
used, 1 for a failure while running, 130 for Ctrl-C. torch is imported only when a model is opened.
"""

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, NoReturn, TextIO

import typer

from profiles.errors import OverstoryError
from runtime.engine_config import EngineConfig
from runtime.errors import OptionError
from runtime.events import Event
from runtime.prompts.headless import PromptEnded, PromptItem, PromptResult, pending_items, run_prompts
from runtime.prompts.prompt_file import PromptRequest, read_prompts
from runtime.prompts.result_file import ResultFile, ResultStream
from tui.command_options import AnswerOptions, DraftOptions, EngineOptions, Quiet, ResultOptions, with_option_groups
from tui.commands.bench import bench_app
from tui.commands.calibrate import calibrate
from tui.commands.chat import chat
from tui.commands.comparison import Comparison, show_answers
from tui.commands.doctor_command import doctor
from tui.commands.plan_command import plan
from tui.commands.prepare import prepare
from tui.environment import cache_folder, packaged_prompts, quieten_libraries
from tui.report import RunProgress, progress_console, show_load
from tui.session_opening import open_session_in_sight
from tui.terminal_text import one_line

if TYPE_CHECKING:
    from rich.console import Console


app = typer.Typer(
    name="overstory",
    help="Run a language model that does not fit the device: streamed layers, a tree of drafts, exact text.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(bench_app, name="bench")
app.command()(chat)
app.command()(calibrate)
app.command()(doctor)
app.command()(prepare)
app.command()(plan)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        try:
            version = metadata.version("overstory")
        except metadata.PackageNotFoundError:
            version = "(not installed)"
        sys.stdout.write(f"overstory {version}\n")
        raise typer.Exit


@app.callback()
def overstory(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Run a language model that does not fit the device: streamed layers, a tree of drafts, exact text."""


@app.command()
@with_option_groups
def run(
    prompts: Annotated[
        str, typer.Argument(metavar="PROMPTS", help="A .txt or .jsonl prompt file, or - for standard input.")
    ],
    engine: EngineOptions,
    drafting: DraftOptions,
    answers: AnswerOptions,
    destination: ResultOptions,
) -> int:
    """Answer a prompt file; results are JSON lines, in order."""
    items = read_prompts(prompts, answers.to_params(), system=answers.system, is_raw=answers.raw)
    config = answers.applied_to(engine.to_config(drafting))
    console = progress_console(is_quiet=destination.quiet)
    num_errors = 0
    with ExitStack() as stack:
        results: ResultFile | ResultStream = ResultStream(sys.stdout)
        if destination.output is not None:
            results = stack.enter_context(ResultFile(destination.output, is_resumed=destination.resume))
        items = pending_items(items, results.finished_ids)
        generate = stack.enter_context(_answering(config, items, console))
        progress = stack.enter_context(RunProgress(console, num_prompts=len(items)))
        for event in run_prompts(generate, items):
            progress.show(event)
            if isinstance(event, PromptEnded):
                results.append(event.result)
                num_errors += event.result.error is not None
    return _report_errors(num_errors, len(items))


@app.command()
@with_option_groups
def compare(
    engine: EngineOptions,
    drafting: DraftOptions,
    answers: AnswerOptions,
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
    """Answer each prompt twice, plain streaming and tree, on the same link and budget, and compare."""
    config = answers.applied_to(engine.to_config(drafting))
    if config.is_plain:
        raise OptionError("--draft none leaves nothing to compare; leave it out, or name a draft")
    path = packaged_prompts("demo.jsonl") if prompts is None else prompts
    items = read_prompts(path, answers.to_params(), system=answers.system, is_raw=answers.raw)
    console = progress_console(is_quiet=quiet)
    out = sys.stderr if as_json else sys.stdout
    if any(isinstance(item, PromptRequest) for item in items):
        config = _with_fixed_budget(config, items, console)
    out.write("\n== plain ==\n")
    plain = _show_all(replace(config, draft="none"), items, console, out)
    out.write("\n== tree ==\n")
    comparison = Comparison(plain=plain, tree=_show_all(config, items, console, out, earlier=plain))
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
    with _answering(config, items, console) as generate:
        return show_answers(run_prompts(generate, items), out, num_prompts=len(items), earlier=earlier)


def _with_fixed_budget(config: EngineConfig, items: Sequence[PromptItem], console: "Console") -> EngineConfig:
    """The same choices with the device budget that they would get now, so that two sessions get the same one."""
    from runtime.engine.model_folders import locate_models

    config = show_load(locate_models(config, cache_folder=cache_folder()), console)
    from runtime.engine.load_plan import LoadPlan

    requests = [item for item in items if isinstance(item, PromptRequest)]
    placement = LoadPlan.build(config, requests=requests).placement
    return replace(config, device_memory_bytes=placement.device_budget_bytes)


def execute(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; every error that leaves a command ends here."""
    try:
        returned = app(args=arguments, prog_name="overstory", standalone_mode=False)
        sys.stdout.flush()
        if returned == 130:
            return _fail("interrupted; what was written is kept", 130)
        return returned if isinstance(returned, int) else 0
    except OverstoryError as error:
        return _fail(f"error: {error}", error.exit_code)
    except BrokenPipeError:
        return _reader_is_gone()
    except SystemExit as request:  # typer turns a closed pipe into this
        return request.code if isinstance(request.code, int) else 1
    except KeyboardInterrupt:
        return _fail("interrupted; what was written is kept", 130)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error: click's own class or typer's copy of it
            sentence = error.format_message().rstrip(".")  # empty where no command was given: the help is printed
            return _fail(f"error: {sentence}; see overstory --help", 2) if sentence else 2
        return _fail(
            f"error: unexpected {type(error).__name__}: {error}; run again with OVERSTORY_DEBUG=1 for the traceback", 1
        )


def main() -> NoReturn:
    """The console command."""
    for standard_stream in (sys.stdout, sys.stderr):
        if hasattr(standard_stream, "reconfigure"):  # Windows would otherwise use a code page that lacks most letters
            standard_stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    quieten_libraries()
    exit_code = execute()
    gc.freeze()  # the system takes all memory back at once; looking for cycles first would cost a second
    sys.exit(exit_code)


@contextmanager
def _answering(
    config: EngineConfig, items: Sequence[PromptItem], console: "Console"
) -> Iterator[Callable[[PromptRequest], Generator[Event, None, None]]]:
    """A session's generate; where no line needs an answer, no model is opened."""
    requests = [item for item in items if isinstance(item, PromptRequest)]
    if not requests:
        yield _never_asked
        return
    with open_session_in_sight(config, requests, console) as opened:
        yield opened.session.generate


def _never_asked(request: PromptRequest) -> Generator[Event, None, None]:
    raise AssertionError(f"no session was opened for line {request.line_number}")


def _report_errors(num_errors: int, num_lines: int) -> int:
    if num_errors:
        return _fail(f"error: {num_errors} of {num_lines} prompts have no answer; see `error` in their results", 1)
    return 0


def _fail(sentence: str, exit_code: int) -> int:
    if os.environ.get("OVERSTORY_DEBUG") == "1" and sys.exc_info()[0] is not None:
        traceback.print_exc()
    sys.stderr.write(f"overstory: {one_line(sentence)}\n")
    return exit_code


def _reader_is_gone() -> int:
    """Whoever read stdout has left: end quietly, and give the interpreter somewhere to flush what is left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
