"""`overstory bench robustness`: how verification schemes bear hot and cold sampling, on a real pair.

Shows a table and draws a file; does not know how anything is measured.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from runtime.errors import OptionError
from runtime.prompts.prompt_file import read_requests
from runtime.sampling_params import SamplingParams
from tui.command_options import DraftOptions, EngineOptions, Quiet, with_option_groups
from tui.commands.plot_file import check_plot_path, save_figure
from tui.environment import packaged_prompts
from tui.report import progress_console
from tui.session_opening import open_session_in_sight

if TYPE_CHECKING:
    from runtime.bench.robustness_benchmark import RobustnessReport, SchemeRobustness, SettingRobustness

CONTEXT_TOKENS = 4096
"""Context where none is given: 85 texts side by side of 32 tokens, and their prompts."""
_SHOWN_CHILDREN = (1, 2, 4, 8, 16)
_INCHES = (12.0, 10.0)


@with_option_groups
def robustness(
    engine: EngineOptions,
    drafting: DraftOptions,
    *,
    prompts: Annotated[
        str | None,
        typer.Argument(
            metavar="[PROMPTS]", help="A .txt or .jsonl prompt file.", show_default="those that come with it"
        ),
    ] = None,
    positions: Annotated[int, typer.Option(help="Tokens to look at with each setting.", min=2)] = 128,
    tree_nodes: Annotated[int, typer.Option(help="Nodes of every scheme's best tree.", min=2, max=1024)] = 64,
    seed: Annotated[int, typer.Option(help="Of the texts and of the children.", min=0)] = 0,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw into a .png or .svg file.", show_default="none")
    ] = None,
    quiet: Quiet = False,
) -> int:
    """Rejection after 1 to 16 children, and tokens per pass that follow, by scheme; ends with one JSON line.

    Over temperatures 0 to 2 and top-p 0.8, 0.9 and 1, on texts that the target writes with each of them. Tokens per
    pass are predicted from the acceptance measured here, for each scheme's own best tree.
    """
    config = engine.to_config(drafting)
    if config.is_plain:
        raise OptionError("--draft none leaves nothing to verify; leave it out, or name a draft")
    if plot is not None:
        check_plot_path(plot)
    requests = read_requests(packaged_prompts("calibration.jsonl") if prompts is None else prompts, SamplingParams())
    if config.context_tokens is None:
        config = replace(config, context_tokens=CONTEXT_TOKENS)
    console = progress_console(is_quiet=quiet)
    with open_session_in_sight(config, [], console) as opened:
        from runtime.bench.robustness_benchmark import RobustnessReport, run_robustness_benchmark

        steps = run_robustness_benchmark(opened, requests, num_positions=positions, tree_nodes=tree_nodes, seed=seed)
        for step in steps:
            if isinstance(step, str):
                console.print(step, markup=False)
            elif isinstance(step, RobustnessReport):
                console.print(robustness_table(step))
                if plot is not None:
                    draw(step, plot)
                sys.stdout.write(json.dumps(step.to_record()) + "\n")
    return 0


def robustness_table(report: "RobustnessReport") -> Table:
    """A line for each setting and scheme: rejection after some numbers of children, and tokens per pass."""
    title = f"rejection rate after so many children, and tokens per pass of {report.tree_nodes} nodes (predicted)"
    table = Table(title=title)
    table.add_column("T")
    table.add_column("top-p")
    table.add_column("scheme")
    for count in (*_SHOWN_CHILDREN, "tokens"):
        table.add_column(str(count), justify="right")
    for setting in report.settings:
        for scheme in _told_apart(setting):
            name = "all" if setting.temperature == 0 else scheme.scheme
            rates = [
                f"{scheme.rejection[count - 1]:.3f}" for count in _SHOWN_CHILDREN if count <= len(scheme.rejection)
            ]
            rates += ["-"] * (len(_SHOWN_CHILDREN) - len(rates))
            heat, top_p = f"{setting.temperature:g}", f"{setting.top_p:g}"
            table.add_row(heat, top_p, name, *rates, f"{scheme.tokens_per_pass:.2f}")
    return table


def draw(report: "RobustnessReport", path: Path) -> None:
    """Rejection over children for each temperature at top-p 1, and tokens per pass over temperatures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, layout="constrained")
    settings = [setting for setting in report.settings if setting.top_p == 1]
    panels = figure.subplots(3, 3).ravel()
    for axes, setting in zip(panels, settings, strict=False):
        for scheme in setting.schemes:
            counts = range(1, len(scheme.rejection) + 1)
            axes.loglog(counts, [max(rate, 1e-4) for rate in scheme.rejection], label=scheme.scheme)
        axes.set(title=f"temperature {setting.temperature:g}", xlabel="children", ylabel="rejection rate")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(visible=True, which="both", alpha=0.3)
    last = panels[-1]
    for index, scheme in enumerate(settings[0].schemes):
        tokens = [setting.schemes[index].tokens_per_pass for setting in settings]
        last.plot([setting.temperature for setting in settings], tokens, "o-", label=scheme.scheme)
    last.set(
        title=f"best trees of {report.tree_nodes} nodes", xlabel="temperature", ylabel="tokens per pass, predicted"
    )
    last.grid(visible=True, alpha=0.3)
    last.legend()
    save_figure(figure, path)


def _told_apart(setting: "SettingRobustness") -> Sequence["SchemeRobustness"]:
    return setting.schemes[:1] if setting.temperature == 0 else setting.schemes
