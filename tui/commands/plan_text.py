"""A plan as text for people, at most 80 columns wide: the answer first, then what it is made of and rests on."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from offload.units import format_bytes
from tui.terminal_text import one_line

if TYPE_CHECKING:
    from runtime.fit.plan_report import PlanOption, PlanReport, Refusal

_WIDTH = 80
_BOUNDS = {
    "link": "the link to the device",
    "disk": "the disk",
    "compute": "the target's computation",
    "draft": "drafting",
}


def print_plan(report: "PlanReport", out: Console) -> None:
    """Write the plan."""
    out.width = min(out.width, _WIDTH)
    question = report.question
    kind = "greedy" if question.request.temperature == 0 else f"temperature {question.request.temperature:g}"
    title = f"{question.target.name} on {report.machine.name}, draft {question.draft_name}, "
    out.print(Text(one_line(f"{title}{question.context_tokens} tokens of context, {kind}"), "bold"))
    for sentence in report.verdicts:
        out.print(Text(one_line(sentence), "yellow"))
    out.print()
    _print_rows(out, _plan_rows(report))
    if report.others:
        out.print(Text("\nother formats", "bold"))
        _print_rows(out, ((one.format_name, _other_text(one)) for one in report.others))
    if report.what_ifs:
        out.print(Text("\nwhat more would bring", "bold"))
        _print_rows(out, _change_rows(report))
    out.print(Text("\nwhat this rests on", "bold"))
    _print_rows(out, ((what, f"{basis}: {words}") for what, basis, words in report.basis_lines))
    for note in report.notes:
        out.print(Text(one_line(f"note: {note}"), "dim"))


def _plan_rows(report: "PlanReport") -> Iterator[tuple[str, str]]:
    main, placed = report.main, report.main.placement
    tree, second = main.tree, main.ranking.second
    yield "speed", f"{_rate(main.seconds_per_token)}; bound by {_BOUNDS[main.bound]}"
    yield "settings", _settings(report)
    yield "tree", _tree_text(main)
    parts = ", ".join(
        f"{name.replace('_', ' ')} {_seconds(value)}" for name, value in main.part_seconds.items() if value
    )
    yield "round", f"{_seconds(tree.round_seconds)}: {parts} (they overlap)"
    yield "layers", f"{main.format_name}: {_tiers(main)}"
    if main.streams:
        ring = f"{format_bytes(placed.streamed_bytes)} move in every pass, through {main.num_slots} slots"
        yield "ring", f"{ring} ({format_bytes(placed.ring_bytes)})"
    yield "device", f"{format_bytes(placed.device_bytes)} of {format_bytes(placed.device_budget_bytes)}"
    if report.question.tree_shape is not None:
        best = main.ranking.best
        yield "best tree", f"{best.num_nodes} x {best.num_levels}: {_rate(best.seconds_per_token)}"
    elif tree.is_dynamic:
        best = main.ranking.best
        yield "best static", f"{best.num_nodes} x {best.num_levels}: {_rate(best.seconds_per_token)}"
    elif second is not None:
        more = second.seconds_per_token / main.seconds_per_token - 1
        size = "no tree" if second.num_nodes == 1 else f"{second.num_nodes} x {second.num_levels}"
        yield "second best", f"{size}: {_rate(second.seconds_per_token)} ({100 * more:+.1f} %)"
    if main.draft_held is not None:
        yield "plain", _plain_text(report)


def _change_rows(report: "PlanReport") -> Iterator[tuple[str, str]]:
    for change in report.what_ifs:
        saved = report.main.seconds_per_token - change.seconds_per_token
        sign, size = ("-", saved) if saved > 0 else ("+", -saved)
        brought = f"{-100 * change.saved_share:+.1f} % ({sign}{_seconds(size)})" if change.saved_share else "no change"
        yield change.change, f"{_seconds(change.seconds_per_token)}/token, {brought}"


def _settings(report: "PlanReport") -> str:
    """What to say to `run`; it fits its own tree, so one is given only where the user named it."""
    main, question = report.main, report.question
    draft = question.draft_name
    if question.draft is not None:
        is_typed = question.request.draft != "auto"
        draft = question.request.draft if is_typed else question.draft.source.removeprefix("config.json of ")
    words = [f"--draft {draft}"]
    if main.draft_held is not None:
        words.append(f"--draft-format {main.draft_held}")
    if question.request.tree != "auto":
        words.append(f"--tree {question.request.tree}")
    return " ".join([*words, f"--context {question.context_tokens}"])


def _tree_text(option: "PlanOption") -> str:
    tree = option.tree
    if tree.num_nodes == 1:
        return "none: one token per pass"
    kind = ", shaped by context" if tree.is_dynamic else ""
    size = f"{tree.num_nodes} nodes x {tree.num_levels} levels{kind}"
    return f"{size}, {tree.expected_tokens:.2f} tokens expected per pass"


def _tiers(option: "PlanOption") -> str:
    placed = option.placement
    tiers = (
        (placed.num_resident_layers, placed.resident_bytes, "on the device"),
        (placed.num_host_layers, placed.host_bytes, "in pinned host memory"),
        (placed.num_disk_layers, placed.disk_bytes, "on disk"),
    )
    return ", ".join(f"{number} {where} ({format_bytes(size)})" for number, size, where in tiers if number)


def _plain_text(report: "PlanReport") -> str:
    from runtime.fit.plan_report import Refusal

    plain = report.plain
    if isinstance(plain, Refusal):
        return plain.sentence
    ratio = plain.seconds_per_token / report.main.seconds_per_token
    resident = f"{plain.placement.num_resident_layers} layers on the device"
    return f"{_rate(plain.seconds_per_token)}, {ratio:.3g} times the time, with {resident}"


def _other_text(option: "PlanOption | Refusal") -> str:
    from runtime.fit.plan_report import Refusal

    if isinstance(option, Refusal):
        return f"does not run: {option.sentence}"
    tree = option.tree
    shape = "no tree" if tree.num_nodes == 1 else f"{tree.num_nodes} x {tree.num_levels}"
    streamed = f"{format_bytes(option.placement.streamed_bytes)} a pass" if option.streams else "fits whole"
    return f"{_rate(option.seconds_per_token)}, {streamed}, {shape}, bound by {_BOUNDS[option.bound]}"


def _print_rows(out: Console, rows: Iterator[tuple[str, str]]) -> None:
    table = Table.grid(padding=(0, 2), expand=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(Text(f"  {label}"), Text(one_line(text)))
    out.print(table)


def _rate(seconds_per_token: float) -> str:
    return f"{_seconds(seconds_per_token)}/token ({1 / seconds_per_token:.3g} tokens/s)"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 0.01 else f"{1000 * seconds:.3g} ms"
