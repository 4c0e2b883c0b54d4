"""`overstory plan`: will a model run on a machine, with which settings, how fast, and what would make it faster.

Only asks and shows: text or one JSON document on stdout, progress on stderr. No weights are needed, and torch is
imported only where this machine has to be measured.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tui.commands.plan_plot import draw_curves, write_plot
from tui.commands.plan_text import print_plan
from tui.commands.plot_file import check_plot_path
from tui.environment import cache_folder
from tui.options import Quiet
from tui.printing import progress_console
from tui.session_opening import announce

if TYPE_CHECKING:
    from runtime.fit.plan_question import MachineRequest, PlanRequest
    from runtime.fit.plan_report import PlanReport

_WHAT, _WHERE, _HOW = "Models", "Machine", "Answer"


def plan(
    *,
    target: Annotated[
        str,
        typer.Option(help="A known model (llama-3-70b, qwen2.5-32b ...), a folder or hub name.", rich_help_panel=_WHAT),
    ] = "llama-3-70b",
    draft: Annotated[
        str,
        typer.Option(
            help="auto (the usual small model of a known one, else substitute), substitute, none, or as --target.",
            rich_help_panel=_WHAT,
        ),
    ] = "auto",
    weight_format: Annotated[
        str,
        typer.Option(
            "--format", help="Of the target's layers: auto is as published; int8, nf4.", rich_help_panel=_WHAT
        ),
    ] = "auto",
    draft_format: Annotated[
        str, typer.Option(help="How the draft is held: stored, int8, nf4, or auto: the fastest.", rich_help_panel=_WHAT)
    ] = "auto",
    context: Annotated[
        int | None,
        typer.Option(help="Most tokens of prompt and answer.", show_default="4096", rich_help_panel=_WHAT),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", rich_help_panel=_WHAT)] = 0.0,
    tree: Annotated[
        str, typer.Option(help="auto, or nodes x levels of a tree to be priced, as in 768x18.", rich_help_panel=_WHAT)
    ] = "auto",
    machine: Annotated[
        str | None,
        typer.Option(
            help="A built-in machine: l40, rtx-4090, rtx-4060-ti-16gb ...",
            show_default="this one",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Of this machine: auto, cpu, or TYPE[:INDEX] as in cuda:0.", rich_help_panel=_WHERE)
    ] = "auto",
    device_memory: Annotated[
        str | None,
        typer.Option(
            help="Budget of the device, as in 8GB, or min: no layer stays.", show_default="all", rich_help_panel=_WHERE
        ),
    ] = None,
    host_memory: Annotated[
        str | None,
        typer.Option(
            help="Budget of host memory for layers, as in 64GB.",
            show_default="what is free; enough, where nobody knows",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(help="Rate to the device, as in 25GB/s.", show_default="the machine's", rich_help_panel=_WHERE),
    ] = None,
    disk: Annotated[
        str | None,
        typer.Option(help="Rate of the disk, as in 3.5GB/s.", show_default="the machine's", rich_help_panel=_WHERE),
    ] = None,
    search: Annotated[
        str, typer.Option(help="best-first, or dp: the paper's dynamic program.", rich_help_panel=_HOW)
    ] = "best-first",
    cost: Annotated[
        str, typer.Option(help="pipeline, or paper: the paper's own cost model.", rich_help_panel=_HOW)
    ] = "pipeline",
    explain: Annotated[
        bool, typer.Option("--explain", help="Draw seconds per token over tree size and depth.", rich_help_panel=_HOW)
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the same into FILE.png or FILE.svg.", show_default="none", rich_help_panel=_HOW),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of text.", rich_help_panel=_HOW)
    ] = False,
    quiet: Quiet = False,
) -> int:
    """Say whether a model runs on a machine, with which settings and how fast; no weights are needed."""
    from runtime.fit.plan_question import MachineRequest, PlanRequest

    if plot is not None:
        check_plot_path(plot)
    request = PlanRequest(
        target=target,
        draft=draft,
        format=weight_format,
        draft_format=draft_format,
        context_tokens=context,
        temperature=temperature,
        tree=tree,
        search=search,
        cost=cost,
    )
    where = MachineRequest(
        name=machine, device=device, device_memory=device_memory, host_memory=host_memory, link=link, disk=disk
    )
    report = _plan(request, where, progress_console(is_quiet=quiet))
    out = Console(file=sys.stderr if as_json else sys.stdout, highlight=False, emoji=False)
    if as_json:
        sys.stdout.write(json.dumps(report.to_record()) + "\n")
    else:
        print_plan(report, out)
    if explain:
        draw_curves(report, out)
    if plot is not None:
        write_plot(report, plot)
    return 0


def _plan(request: "PlanRequest", where: "MachineRequest", console: Console) -> "PlanReport":
    from runtime.fit.plan_maker import make_plan
    from runtime.fit.plan_question import find_machine, resolve_question
    from runtime.planner.known_pairs import stored_pairs

    question = resolve_question(request)
    finding = find_machine(where, cache_folder=cache_folder(), model_folder=question.target_folder)
    machine = announce(finding, console)
    pairs, problems = stored_pairs(question, machine.identity, cache_folder=cache_folder())
    return make_plan(replace(question, notes=(*question.notes, *problems)), machine, pairs)
