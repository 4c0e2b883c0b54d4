"""`overstory doctor`: what this machine can do, what would stop a 70B model here, and what to do about it.

Only asks and shows. Exit code 0 where every model asked about runs in some format, however slowly; 1 where one does
not; 2 for a --target or --draft that cannot be used. torch is imported when the command runs.
"""

import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from offload.units import format_bytes
from runtime.engine_config import EngineConfig
from tui.command_options import Quiet
from tui.environment import cache_folder
from tui.report import progress_console
from tui.session_opening import announce
from tui.terminal_text import one_line

if TYPE_CHECKING:
    from runtime.fit.doctor import (
        CacheSpace,
        DeviceFacts,
        DiskRate,
        DoctorReport,
        FormatOutlook,
        HostMemory,
        LinkRates,
        ModelOutlook,
        Outcome,
    )

_WIDTH = 80
_VERDICTS = {"fits": "green", "slow": "yellow", "no": "red"}


def doctor(
    target: Annotated[
        str | None, typer.Option(help="A model folder or cached hub name to ask about.", show_default="none")
    ] = None,
    draft: Annotated[
        str, typer.Option(help="What would draft for it: substitute, none, or a folder or cached hub name.")
    ] = "substitute",
    device: Annotated[str, typer.Option(help="auto, cpu, or TYPE[:INDEX] as in cuda:0.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
    quiet: Quiet = False,
) -> int:
    """Say what this machine can do, what would stop a 70B model here, and what to do about it."""
    report = _examine(EngineConfig(target=target, draft=draft, device=device), progress_console(is_quiet=quiet))
    if as_json:
        sys.stdout.write(json.dumps(report.to_record()) + "\n")
    else:
        print_report(report, Console(file=sys.stdout, highlight=False, emoji=False))
    return 0 if report.can_run else 1


def _examine(config: EngineConfig, console: Console) -> "DoctorReport":
    from runtime.fit.checkup import check_up

    return announce(check_up(config, cache_folder=cache_folder()), console)


def print_report(report: "DoctorReport", out: Console) -> None:
    """Write the report for a person, at most 80 columns wide."""
    out.width = min(out.width, _WIDTH)
    facts = Table.grid(padding=(0, 2), expand=False)
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for label, text, is_problem in _facts(report):
        facts.add_row(Text(label, style="bold"), Text(one_line(text), style="red" if is_problem else ""))
    out.print(facts)
    is_cpu = report.memory.value is not None and report.memory.value.machine.is_cpu
    for model in report.models:
        out.print()
        _print_model(model, out, is_cpu=is_cpu)
    if not report.models:
        out.print()
        out.print(Text("Without the memory above, nothing can be said about models.", style="red"))


def _print_model(model: "ModelOutlook", out: Console, *, is_cpu: bool) -> None:
    out.print(Text(one_line(f"{model.name}, {model.context_tokens} tokens of context, draft: {model.draft}"), "bold"))
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for outlook in model.formats:
        verdict = "fits" if outlook.fit.runs_well else "slow" if outlook.fit.can_run else "no"
        lines = _outlook_lines(outlook, device="in memory" if is_cpu else "on the device")
        table.add_row(Text(f"  {outlook.format_name}"), Text(verdict, _VERDICTS[verdict]), Text(lines[0]))
        for line in lines[1:]:
            table.add_row("", "", Text(line))
    out.print(table)
    changes = [change for outlook in model.formats for change in outlook.fit.changes]
    if any(change.kind in ("format", "combined") for change in changes):
        out.print(Text("  int8, nf4: overstory prepare MODEL --format int8|nf4 --output DIR", "dim"))


def _outlook_lines(outlook: "FormatOutlook", *, device: str) -> list[str]:
    """What fits or what to do, then where the layers would lie and what a pass would cost."""
    fit, placement = outlook.fit, outlook.fit.placement
    sentence = fit.sentence.removeprefix("fits: ")  # the verdict beside it says so
    if not fit.can_run or placement.streamed_bytes == 0:
        return [sentence]
    places = (f"stay {device}", "wait in host memory", "are read from disk")
    numbers = (placement.num_resident_layers, placement.num_host_layers, placement.num_disk_layers)
    counted = [f"{number} {place}" for number, place in zip(numbers, places, strict=True) if number]
    cost = f"a pass moves {format_bytes(placement.streamed_bytes)}"
    if outlook.seconds_per_pass is None:
        cost += "; how fast was not measured"
    else:
        cost += f" in {_seconds(outlook.seconds_per_pass)} or more"
    return [sentence, cost if fit.runs_well else f"layers: {', '.join(counted)}; {cost}"]


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _facts(report: "DoctorReport") -> Iterator[tuple[str, str, bool]]:
    """(label, text, whether it is a problem), a line each."""
    rows: list[tuple[str, Outcome[Any], Callable[[Any], list[str]]]] = [
        ("system", report.system, lambda text: [text]),
        ("device", report.devices, lambda found: [_device_text(facts) for facts in found]),
        ("driver", report.driver, lambda text: [text]),
        ("memory", report.memory, _memory_texts),
        ("pinned memory", report.pinning, lambda text: [text]),
        ("link", report.link, _link_texts),
        ("disk", report.disk, _disk_texts),
        ("caches", report.caches, lambda found: [_cache_text(space) for space in found]),
        ("versions", report.versions, lambda found: [", ".join(f"{name} {text}" for name, text in found.items())]),
    ]
    for label, outcome, texts in rows:
        if outcome.problem is not None:
            yield label, f"not found out: {outcome.problem}", True
            continue
        for index, text in enumerate(texts(outcome.value)):
            yield label if index == 0 else "", text, False


def _device_text(facts: "DeviceFacts") -> str:
    text = f"{facts.address}: {facts.name}"
    if facts.total_bytes is None or facts.free_bytes is None:
        return text
    return f"{text}, {format_bytes(facts.free_bytes)} free of {format_bytes(facts.total_bytes)}"


def _memory_texts(memory: "HostMemory") -> list[str]:
    machine = memory.machine
    lines = [f"{format_bytes(machine.host_free_bytes)} usable of {format_bytes(machine.host_total_bytes)}"]
    if memory.group_left_bytes is not None:
        lines.append(f"a memory control group leaves {format_bytes(memory.group_left_bytes)}")
    return lines


def _link_texts(link: "LinkRates") -> list[str]:
    rates = (
        ("memory to memory", link.memory_bytes_per_second),
        ("from pinned host memory", link.pinned_bytes_per_second),
        ("from pageable host memory", link.pageable_bytes_per_second),
    )
    lines = [f"{format_bytes(rate)}/s {name}" for name, rate in rates if rate is not None]
    return lines if link.problem is None else [*lines, f"pinned memory was not measured: {link.problem}"]


def _disk_texts(disk: "DiskRate") -> list[str]:
    way = "past the page cache" if disk.is_direct else "through the page cache, so perhaps the speed of memory"
    return [f"{format_bytes(disk.bytes_per_second)}/s {way}, in {disk.where}"]


def _cache_text(space: "CacheSpace") -> str:
    free = "an unknown amount" if space.free_bytes is None else format_bytes(space.free_bytes)
    return f"{free} free for {space.purpose} in {space.folder}"
