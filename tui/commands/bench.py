"""The commands `overstory bench ...`: each measures this machine with a real model and ends with one JSON line.

That line goes to stdout; progress, and tables of its figures, go to stderr. Without --draft those that draft take what
`run` takes where layers stream, also where none does.
"""

import json
import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from runtime.config import EngineConfig, SamplingParams
from runtime.errors import OptionError
from runtime.prompts.prompt_file import PromptRequest, read_requests, read_text
from tui.commands.plot_file import check_plot_path, save_figure
from tui.environment import cache_folder, packaged_prompts
from tui.options import BatchDraftingConfig, ComparingConfig, DraftingConfig, PlainConfig, Quiet, with_option_groups
from tui.printing import (
    announce,
    locate_in_sight,
    measurement_tables,
    open_session_in_sight,
    print_grid,
    progress_console,
    settle_draft_in_sight,
)
from tui.terminal_text import one_line

bench_app = typer.Typer(help="Measure this machine with a real model.", no_args_is_help=True)
Prompts = Annotated[
    str | None,
    typer.Argument(metavar="[PROMPTS]", help="A .txt or .jsonl prompt file.", show_default="those that come with it"),
]


@bench_app.command()
@with_option_groups
def stream(config: PlainConfig, *, quiet: Quiet = False) -> None:
    """Bytes per second of whole passes beside the raw link, measured in one run; ends with one JSON line.

    Without --device-memory no layer stays resident, so that the whole model crosses the link in every pass.
    """
    console = progress_console(is_quiet=quiet)
    config = _with_defaults(config, context_tokens=32, device_memory_bytes=0)  # more context is never touched
    with open_session_in_sight(config, [], console) as opened:
        from runtime.bench.rounds import run_stream

        _show(run_stream(opened), console)


@bench_app.command("round")
@with_option_groups
def round_(
    config: DraftingConfig,
    *,
    rounds: Annotated[int, typer.Option(help="Measured rounds.", min=1)] = 12,
    temperature: Annotated[float, typer.Option(help="Of draft and target; 0 is greedy.", min=0)] = 0.0,
    verification: Annotated[str, typer.Option(help="How sampled tokens are verified, as for `run`.")] = "auto",
    quiet: Quiet = False,
) -> None:
    """Whole rounds beside what the pipeline recurrence gives for their parts, measured apart; ends with one JSON line.

    Without --tree a tree of 64 nodes and 10 levels is verified in every round.
    """
    config = _with_defaults(config, context_tokens=512)
    if config.tree in ("auto", "static") and not config.is_plain:
        config = replace(config, tree="64x10")
    if config.tree_kind == "dynamic":
        raise OptionError(
            f"--tree is {config.tree!r}; all rounds need the same one here: give nodes x levels as in 64x10"
        )
    console = progress_console(is_quiet=quiet)
    config = settle_draft_in_sight(config, [], console)
    with open_session_in_sight(config, [], console) as opened:
        from runtime.bench.rounds import run_rounds

        params = SamplingParams(temperature=temperature, verification=verification)
        _show(run_rounds(opened, num_rounds=rounds, params=params), console)


@bench_app.command()
@with_option_groups
def validate(
    config: DraftingConfig,
    *,
    prompts: Prompts = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Other prompts, which the acceptance comes from if this pair has no profile.",
            show_default="those that come with it",
        ),
    ] = None,
    link: Annotated[
        list[str] | None,
        typer.Option(
            help="A link to validate on: `real`, or a speed to emulate; may be given again.",
            show_default="real, 0.5GB/s and 2GB/s",
        ),
    ] = None,
    turns: Annotated[int, typer.Option(help="Rounds of each tree on each link.", min=1)] = 3,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of each answer that yields are counted on.", min=2)] = 96,
    quiet: Quiet = False,
) -> None:
    """Predicted against measured: tokens per pass, seconds per round on three links, the choice; ends with JSON.

    Without --device-memory no layer stays resident.
    """
    config = _drafting(config, "leaves nothing to validate")
    if config.link is not None or config.tree != "auto":
        raise OptionError("--emulate-link and --tree are what this command goes through; give --link instead")
    config = _with_defaults(config, context_tokens=512, device_memory_bytes=0)
    params = SamplingParams(max_new_tokens=max_new_tokens)
    requests = _requests(prompts, "validation.jsonl", params)
    others = _requests(calibration, "calibration.jsonl", params)
    console = progress_console(is_quiet=quiet)
    config = settle_draft_in_sight(config, requests, console)
    from runtime.bench.validation import run_validation

    steps = run_validation(
        config,
        requests,
        calibration_requests=others,
        links=[None if name == "real" else name for name in link or ("real", "0.5GB/s", "2GB/s")],
        cache_folder=cache_folder(),
        num_turns=turns,
    )
    _show(steps, console)


@bench_app.command()
@with_option_groups
def trees(
    config: DraftingConfig,
    *,
    prompts: Prompts = None,
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
) -> None:
    """Tokens per pass of static and dynamic trees at equal size, counted; ends with one JSON line.

    The target writes each text once, greedily or with its seed's noise; rounds are then played along it with the draft
    alone, which emit exactly what rounds with the target would.
    """
    config = _with_defaults(_drafting(config, "grows no tree"), context_tokens=1024)
    if config.tree != "auto":
        raise OptionError("--tree is what this command compares; give --nodes and --levels instead")
    sizes, temperatures = nodes or [64, 128, 512], temperature or [0.0, 0.6, 1.0]
    if min(sizes) < levels:
        raise OptionError(f"--nodes {min(sizes)} is less than the {levels} --levels; give fewer levels, or more nodes")
    config = replace(config, tree=f"dynamic:{max(sizes)}x{levels}")  # the session keeps room for it
    requests = _requests(prompts, "validation.jsonl", SamplingParams(max_new_tokens=max_new_tokens))
    console = progress_console(is_quiet=quiet)
    config = settle_draft_in_sight(config, requests, console)
    with open_session_in_sight(config, requests, console) as opened:
        from runtime.bench.trees import run_trees

        _show(run_trees(opened, requests, temperatures=temperatures, sizes=sizes, num_levels=levels), console)


@bench_app.command()
@with_option_groups
def ratio(
    config: DraftingConfig,
    *,
    prompts: Prompts = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of each answer.", min=2)] = 128,
    steps_per_pass: Annotated[
        float, typer.Option(help="Draft steps that a pass over the emulated link takes.", min=1)
    ] = 220,
    temperature: Annotated[
        list[float] | None, typer.Option(help="May be given again.", show_default="0 and 0.6")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Speedup over plain streaming on a link where a pass costs 220 draft steps; ends with one JSON line.

    Without --device-memory no layer stays resident. The paper had 9.5 at temperature 0 and 9.3 at 0.6.
    """
    config = _drafting(config, "leaves nothing to compare")
    if config.link is not None:
        raise OptionError("--emulate-link is what this command chooses; give --steps-per-pass instead")
    config = _with_defaults(config, device_memory_bytes=0)
    requests = _requests(prompts, "demo.jsonl", SamplingParams(max_new_tokens=max_new_tokens))
    console = progress_console(is_quiet=quiet)
    config = settle_draft_in_sight(config, requests, console)
    from runtime.bench.ratio import run_ratio

    temperatures = temperature or [0.0, 0.6]
    _show(run_ratio(config, requests, temperatures=temperatures, steps_per_pass=steps_per_pass), console)


@bench_app.command()
@with_option_groups
def headless(
    config: BatchDraftingConfig,
    *,
    prompts: Prompts = None,
    count: Annotated[
        list[int] | None, typer.Option(help="Prompts answered together; may be given again.", show_default="16 and 64")
    ] = None,
    alone: Annotated[int, typer.Option(help="Prompts answered one at a time.", min=1)] = 2,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of each answer.", min=2)] = 32,
    plain_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens of each answer without trees, where fewer are enough.", min=2, show_default="as with trees"
        ),
    ] = None,
    steps_per_pass: Annotated[
        float | None,
        typer.Option(
            help="Stream over a link on which a pass takes so many draft steps.", show_default="the link there is"
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Many prompts at a time beside one at a time, with trees and without; ends with one JSON line."""
    config = _drafting(config, "leaves nothing to compare")
    if config.link is not None and steps_per_pass is not None:
        raise OptionError("--emulate-link and --steps-per-pass both name a link; give one of them")
    counts = count or [16, 64]
    if min(counts) < 1:
        raise OptionError(f"--count is {min(counts)}; it must be 1 or more")
    config = _with_defaults(config, device_memory_bytes=0)
    params = SamplingParams(max_new_tokens=max_new_tokens)
    requests = _requests(prompts, "validation.jsonl", params)
    if prompts is None:
        requests += _requests(None, "calibration.jsonl", params)
    console = progress_console(is_quiet=quiet)
    config = settle_draft_in_sight(config, requests[: max(counts)], console)
    from runtime.bench.headless import run_headless

    report = run_headless(
        config, requests, counts=counts, num_alone=alone, plain_tokens=plain_tokens, steps_per_pass=steps_per_pass
    )
    _show(report, console)


@bench_app.command()
@with_option_groups
def choice(
    config: DraftingConfig,
    *,
    prompts: Prompts = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of each answer.", min=2)] = 50,
    temperature: Annotated[float, typer.Option(help="Of draft and target; 0 is greedy.", min=0)] = 0.0,
    turns: Annotated[int, typer.Option(help="Sessions of each choice.", min=1)] = 2,
    quiet: Quiet = False,
) -> None:
    """The default beside no draft, a chain and five trees, each in sessions of its own; ends with one JSON line.

    The fixed choices draft with what `run` takes where layers stream, also where none does.
    """
    config = _drafting(config, "leaves nothing to choose")
    if config.tree != "auto":
        raise OptionError("--tree is what this command goes through; leave it out")
    requests = _requests(prompts, "demo.jsonl", SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature))
    console = progress_console(is_quiet=quiet)
    config = locate_in_sight(config, console)
    drafted = settle_draft_in_sight(config, requests, console)
    from runtime.bench.choice import run_choice

    _show(run_choice(config, requests, draft=drafted.draft, num_turns=turns), console)


@bench_app.command()
@with_option_groups
def robustness(
    config: DraftingConfig,
    *,
    prompts: Prompts = None,
    positions: Annotated[int, typer.Option(help="Tokens to look at with each setting.", min=2)] = 128,
    tree_nodes: Annotated[int, typer.Option(help="Nodes of every scheme's best tree.", min=2, max=1024)] = 64,
    seed: Annotated[int, typer.Option(help="Of the texts and of the children.", min=0)] = 0,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw into a .png or .svg file.", show_default="none")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Rejection after 1 to 16 children, and tokens per pass that follow, by scheme; ends with one JSON line.

    Over temperatures 0 to 2 and top-p 0.8, 0.9 and 1, on texts that the target writes with each of them. Tokens per
    pass are predicted from the acceptance measured here, for each scheme's own best tree.
    """
    config = _drafting(config, "leaves nothing to verify")
    config = _with_defaults(config, context_tokens=4096)  # 85 texts side by side of 32 tokens, and their prompts
    if plot is not None:
        check_plot_path(plot)
    requests = _requests(prompts, "calibration.jsonl", SamplingParams())
    console = progress_console(is_quiet=quiet)
    config = settle_draft_in_sight(config, [], console)
    with open_session_in_sight(config, [], console) as opened:
        from runtime.bench.robustness import run_robustness

        steps = run_robustness(opened, requests, num_positions=positions, tree_nodes=tree_nodes, seed=seed)
        report = _show(steps, console)
    if plot is not None:
        draw_robustness(report, plot)


@bench_app.command()
@with_option_groups
def perplexity(
    config: PlainConfig,
    *,
    text: Annotated[
        Path | None, typer.Option(help="The text to predict, UTF-8.", show_default="one that comes with it")
    ] = None,
    beside_transformers: Annotated[
        bool, typer.Option("--beside-transformers", help="Also load the model whole with transformers, and compare.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Perplexity of a fixed text through streamed passes; ends with one JSON line."""
    path = packaged_prompts("perplexity.txt") if text is None else text
    content = read_text(path, f"the text {path}")
    console = progress_console(is_quiet=quiet)
    config = locate_in_sight(config, console)
    from runtime.bench.perplexity import run_perplexity

    _show(run_perplexity(config, content, source=str(path), is_compared=beside_transformers), console)


@bench_app.command()
@with_option_groups
def prefix(
    config: DraftingConfig,
    *,
    text: Annotated[
        Path | None,
        typer.Option(help="What the prompt is made of, UTF-8.", show_default="one that comes with it, again and again"),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Of the prompt.", min=2)] = 8000,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of each answer.", min=2)] = 16,
    quiet: Quiet = False,
) -> None:
    """Time to the first token of a conversation reopened after a restart, with the prefix cache and without.

    Ends with one JSON line. Without --device-memory no layer stays resident. What is written goes to a temporary folder
    (TMPDIR) and is read from the disk, not from memory.
    """
    path = packaged_prompts("perplexity.txt") if text is None else text
    content = read_text(path, f"the text {path}")
    config = _with_defaults(config, context_tokens=tokens + 2 * max_new_tokens + 64, device_memory_bytes=0)
    console = progress_console(is_quiet=quiet)
    config = locate_in_sight(config, console) if config.is_plain else settle_draft_in_sight(config, [], console)
    from runtime.bench.prefix import run_prefix

    _show(run_prefix(config, content, num_tokens=tokens, max_new_tokens=max_new_tokens), console)


@bench_app.command()
@with_option_groups
def hybrid(
    config: PlainConfig,
    *,
    nodes: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Of a tree; may be given again.", show_default="64, 256 and 512"),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Of the text that the trees stand on.", min=1)] = 1024,
    turns: Annotated[int, typer.Option(help="Passes over each tree.", min=1)] = 5,
    quiet: Quiet = False,
) -> None:
    """Recurrent layers beside attention layers of one hybrid model, in passes over trees; ends with one JSON line.

    Without --target two random layers of Qwen3.5-27B's sizes are measured, 1.5 GB in a temporary folder (TMPDIR). A
    layer's time includes its MLP, the mixer's does not: that is attention, or the recurrence that stands in its place.
    """
    counts = nodes or [64, 256, 512]
    config = _with_defaults(config, context_tokens=tokens + max(counts) + 64)
    console = progress_console(is_quiet=quiet)
    from runtime.bench.hybrid import run_hybrid, write_random_layers
    from runtime.fit.models import find_model

    told = {"target": config.target}
    with ExitStack() as stack:
        if config.target is None:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="overstory-hybrid-")))
            shape = find_model("qwen3.5-27b", what="the model")
            told = {"target": f"random layers of {shape.name}'s sizes"}
            write_random_layers(folder, shape, max_positions=config.context_tokens or 0)
            config = replace(config, target=str(folder))
        opened = stack.enter_context(open_session_in_sight(config, [], console))
        _show(run_hybrid(opened, node_counts=counts, text_tokens=tokens, num_turns=turns), console, told)


@bench_app.command()
@with_option_groups
def peers(
    config: ComparingConfig,
    *,
    peer_target: Annotated[Path, typer.Option(metavar="FILE", help="The target as the peer reads it, a GGUF file.")],
    peer_draft: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Its draft, a GGUF file.", show_default="none, so that it only runs plain"),
    ] = None,
    peer: Annotated[str, typer.Option(help="llama.cpp's server: a program on the PATH, or a path.")] = "llama-server",
    peer_drafted: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            max=64,
            help="Most tokens that the peer drafts at a time, 0 without draft; may be given again.",
            show_default="0, 4, 8 and 16",
        ),
    ] = None,
    peer_argument: Annotated[
        list[str] | None,
        typer.Option(help="One more argument for the peer, as in --no-mmap; may be given again.", show_default="none"),
    ] = None,
    prompts: Prompts = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of each answer.", min=2)] = 48,
    prompts_per_turn: Annotated[int, typer.Option(help="Prompts that an engine answers before the next.", min=1)] = 2,
    quiet: Quiet = False,
) -> int:
    """This engine beside llama.cpp, plain and with its draft: seconds per token, to the first one, bytes read.

    The same prompts, to the token, answered greedily and in turn, each engine alone in a process of its own; ends with
    one JSON line. Exit code 1 if llama.cpp is not there, or failed with a setting. Worth most where memory is short:
    run it under a cap on memory that page cache counts in (systemd-run -p MemoryMax=...), or all files stay in memory.
    """
    from runtime.bench.peers.comparison import run_peers
    from runtime.bench.peers.llama_server import LlamaServer, PeerBuild
    from runtime.bench.peers.own_engine import OwnEngine
    from runtime.engine.model_folders import weight_files

    build = PeerBuild.find(peer)
    counts = peer_drafted or ([0] if peer_draft is None else [0, 4, 8, 16])
    if peer_draft is None and any(counts):
        raise OptionError("--peer-drafted needs a draft for the peer; add --peer-draft FILE, or leave only 0")
    files = [path.absolute() for path in (peer_target, peer_draft) if path is not None]
    for path in files:
        if not path.is_file():
            raise OptionError(f"{path} is no file; give a GGUF file, as llama.cpp's convert_hf_to_gguf.py writes it")
    requests = _requests(prompts, "demo.jsonl", SamplingParams())
    console = progress_console(is_quiet=quiet)
    config = locate_in_sight(config, console)
    arguments = peer_argument or ()
    servers = [
        LlamaServer(build, files[0], files[-1], num_drafted=count, max_new_tokens=max_new_tokens, arguments=arguments)
        for count in counts
    ]
    own = OwnEngine(config, max_new_tokens=max_new_tokens, state_folder=cache_folder())
    folders = [Path(folder) for folder in (config.target, config.draft_model) if folder is not None]
    weights = [path for folder in folders for path in weight_files(folder)]
    steps = run_peers(own, servers, requests, prompts_per_turn=prompts_per_turn, files=[*files, *weights])
    told = {"target": config.target, "peer": build.program, "peer_version": build.version}
    return 1 if _show(steps, console, told)["num_failed"] else 0


@bench_app.command()
@with_option_groups
def card(
    *,
    device: Annotated[str, typer.Option(help="auto, or TYPE[:INDEX] as in cuda:0.")] = "auto",
    probe: Annotated[
        list[str] | None, typer.Option(help="One probe by name; may be given again.", show_default="all of them")
    ] = None,
    small: Annotated[
        bool, typer.Option("--small", help="Toy sizes: whether the probes run, and nothing about the card.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the random weights and prompts.", min=0)] = 0,
    quiet: Quiet = False,
) -> int:
    """What only an accelerator can tell, in about ten minutes: one page, and one JSON line to attach to a report.

    Every probe runs in a process of its own, so that one that fails, hangs or crashes costs only its own answer. Exit
    code 1 if any did. Takes up to 10 GB of disk for temporary files (in TMPDIR) and as much host memory.
    """
    from runtime.fit.startup import check_startup

    check_startup(None, is_measuring=True)
    from runtime.bench.card.examination import run_card

    console = progress_console(is_quiet=quiet)
    steps = run_card(device, names=probe or (), is_small=small, seed=seed)
    record = announce(steps, console)
    print_grid(_card_rows(record), console)
    sys.stdout.write(json.dumps(record) + "\n")
    return 1 if record["num_failed"] else 0


def _card_rows(record: Mapping[str, Any]) -> Iterator[tuple[Text, Text, Text]]:
    """Yield the page: each probe, how long it took, and what it says."""
    for report in record["probes"]:
        sentences = report["says"] or [f"failed: {report['failure']}"]
        for index, sentence in enumerate(sentences):
            name, seconds = ("", "") if index else (report["name"], f"{report['seconds']:.0f} s")
            yield Text(name, "bold"), Text(seconds), Text(one_line(sentence), "red" if report["failure"] else "")


def draw_robustness(report: Mapping[str, Any], path: Path) -> None:
    """Draw rejection over children for each temperature at top-p 1, and tokens per pass over temperatures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.0, 10.0), layout="constrained")
    settings = [setting for setting in report["settings"] if setting["top_p"] == 1]
    panels = figure.subplots(3, 3).ravel()
    for axes, setting in zip(panels, settings, strict=False):
        for scheme in setting["schemes"]:
            counts = range(1, len(scheme["rejection"]) + 1)
            axes.loglog(counts, [max(rate, 1e-4) for rate in scheme["rejection"]], label=scheme["scheme"])
        axes.set(title=f"temperature {setting['temperature']:g}", xlabel="children", ylabel="rejection rate")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(visible=True, which="both", alpha=0.3)
    last = panels[-1]
    for index, scheme in enumerate(settings[0]["schemes"]):
        tokens = [setting["schemes"][index]["tokens_per_pass"] for setting in settings]
        last.plot([setting["temperature"] for setting in settings], tokens, "o-", label=scheme["scheme"])
    last.set(
        title=f"best trees of {report['tree_nodes']} nodes", xlabel="temperature", ylabel="tokens per pass, predicted"
    )
    last.grid(visible=True, alpha=0.3)
    last.legend()
    save_figure(figure, path)


def _show(
    steps: Generator[str, None, dict[str, Any]], console: Console, told: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Run a benchmark in sight of the user, show the figures that it ends with, and write them as a JSON line.

    `told`: what is known without measuring, which comes first.
    """
    record = {**(told or {}), **announce(steps, console)}
    console.print(*measurement_tables(record, title="measured"))
    sys.stdout.write(json.dumps(record) + "\n")
    return record


def _requests(prompts: str | None, packaged: str, params: SamplingParams) -> list[PromptRequest]:
    """Return a person's prompts, or the packaged ones, whose own lengths of answers do not count here."""
    if prompts is not None:
        return read_requests(prompts, params)
    requests = read_requests(packaged_prompts(packaged), params)
    length = params.max_new_tokens
    return [replace(request, params=replace(request.params, max_new_tokens=length)) for request in requests]


def _drafting(config: EngineConfig, without: str) -> EngineConfig:
    """Return the config; raise OptionError if it names no draft, without which the benchmark has no meaning."""
    if config.is_plain:
        raise OptionError(f"--draft none {without}; leave it out, or name a draft")
    return config


def _with_defaults(config: EngineConfig, **values: Any) -> EngineConfig:
    """Return the config with these values where none was given."""
    return replace(config, **{name: value for name, value in values.items() if getattr(config, name) is None})
