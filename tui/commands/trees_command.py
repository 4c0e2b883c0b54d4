"""`overstory bench trees`: tokens per pass of static and dynamic trees at equal size, on a real pair."""

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from runtime.errors import OptionError
from runtime.prompts.prompt_file import read_requests
from runtime.sampling_params import SamplingParams
from tui.command_options import DraftOptions, EngineOptions, Quiet, ValidationPrompts, with_option_groups
from tui.environment import packaged_prompts
from tui.report import progress_console
from tui.session_opening import open_session_in_sight

if TYPE_CHECKING:
    from runtime.bench.tree_benchmark import CountedTree, TreeReport

CONTEXT_TOKENS = 1024
"""Context where none is given: prompt and answer."""
DEFAULT_SIZES, DEFAULT_TEMPERATURES = (64, 128, 512), (0.0, 0.6, 1.0)


@with_option_groups
def trees(
    engine: EngineOptions,
    drafting: DraftOptions,
    *,
    prompts: ValidationPrompts = None,
    nodes: Annotated[
        list[int] | None,
        typer.Option(help="Nodes of a tree, root counted; may be given again.", show_default="64, 128, 512"),
    ] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(help="May be given again.", show_default="0, 0.6 and 1")
    ] = None,
    levels: Annotated[int, typer.Option(help="Most levels of a tree, root counted.", min=2, max=64)] = 25,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of each text.", min=2)] = 96,
    quiet: Quiet = False,
) -> int:
    """Tokens per pass of static and dynamic trees at equal size, counted; ends with one JSON line.

    The target writes each text once, greedily or with its seed's noise; rounds are then played along it with the draft
    alone, which emit exactly what rounds with the target would.
    """
    config = engine.to_config(drafting)
    if config.is_plain:
        raise OptionError("--draft none grows no tree; leave it out, or name a draft")
    if config.tree != "auto":
        raise OptionError("--tree is what this command compares; give --nodes and --levels instead")
    sizes, temperatures = tuple(nodes or DEFAULT_SIZES), tuple(temperature or DEFAULT_TEMPERATURES)
    if min(sizes) < levels:
        raise OptionError(f"--nodes {min(sizes)} is less than the {levels} --levels; give fewer levels, or more nodes")
    room = f"dynamic:{max(sizes)}x{levels}"  # the session keeps room for it
    config = replace(config, tree=room, context_tokens=config.context_tokens or CONTEXT_TOKENS)
    params = SamplingParams(max_new_tokens=max_new_tokens)
    requests = read_requests(packaged_prompts("validation.jsonl") if prompts is None else prompts, params)
    console = progress_console(is_quiet=quiet)
    with open_session_in_sight(config, requests, console) as opened:
        from runtime.bench.tree_benchmark import CountedTree, TreeReport, run_tree_benchmark

        steps = run_tree_benchmark(opened, requests, temperatures=temperatures, sizes=sizes, num_levels=levels)
        for step in steps:
            if isinstance(step, TreeReport):
                console.print(tree_table(step))
                sys.stdout.write(json.dumps(step.to_record()) + "\n")
            else:
                console.print(tree_line(step) if isinstance(step, CountedTree) else step, markup=False)
    return 0


def tree_line(tree: "CountedTree") -> str:
    """One kind of tree for people."""
    return (
        f"temperature {tree.temperature:g}: {tree.kind} tree of {tree.num_nodes} nodes: {tree.tokens_per_pass:.2f} "
        f"(±{tree.standard_error:.2f}) tokens per pass over {tree.num_rounds} rounds, {tree.draft_steps:.1f} draft "
        f"steps in {tree.draft_seconds:.2f} s"
    )


def tree_table(report: "TreeReport") -> Table:
    """A line for each temperature and size: both kinds, and what context gains."""
    table = Table(title=f"tokens per pass on {report.num_texts} texts (draft steps)")
    for name in ("T", "nodes", "static", "dynamic", "gain"):
        table.add_column(name, justify="right")
    by_place = {(tree.temperature, tree.num_nodes, tree.kind): tree for tree in report.trees}
    for temperature, num_nodes, gain in report.gains():
        cells = [
            f"{tree.tokens_per_pass:.2f} ±{tree.standard_error:.2f} ({tree.draft_steps:.0f})"
            for tree in (by_place[temperature, num_nodes, kind] for kind in ("static", "dynamic"))
        ]
        table.add_row(f"{temperature:g}", str(num_nodes), *cells, f"{gain:.2f}x")
    return table
