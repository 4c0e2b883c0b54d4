"""What the page of a run says: what ran and how, what was planned, and what came of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from offload.units import format_bytes
from runtime.prompts.run_record import Bin, RunRecord
from tui.report.page import Chart, Facts, Page, Section, Table
from tui.terminal_text import clock_text, counted, seconds_text

if TYPE_CHECKING:
    from runtime.engine.forecast import Forecast

_NUM_MARKS = 4
WITHOUT_ROUNDS = (
    "Passes, acceptance and the link are seen on the nodes alone, which send results: the tokens of an answer count "
    "where it ends."
)


@dataclass(slots=True)
class AboutRun:
    """What is known of a run beside its events; filled in as it becomes known."""

    prompts: str
    """Name of the prompt file."""
    num_prompts: int
    """Lines to answer."""
    num_done: int
    """Lines that were answered before."""
    begun: datetime
    settings: Sequence[tuple[str, str]] = ()
    """What was chosen on the command line."""
    models: Sequence[tuple[str, str]] = ()
    machine: Sequence[tuple[str, str]] = ()
    layers: Sequence[str] = ()
    """Where the bytes lie, and what does not go as planned, in sentences."""
    tree: str = ""
    """Of the last rounds."""
    forecast: "Forecast | None" = None
    no_forecast: str = ""
    """Why there is none."""
    is_on_nodes: bool = False
    """Whether other processes answered, which send no events of passes."""
    nodes: dict[str, str] = field(default_factory=dict)
    """What each node did last."""
    ended: str = ""
    """How the run ended, if not with its last prompt."""


def page_of(about: AboutRun, record: RunRecord) -> Page:
    """Return the page of a run, as far as it got."""
    parts = (
        Section("What ran", (Facts([*about.models, *about.machine, *about.settings]),)),
        Section("What came of it", tuple(_outcome(about, record))),
        Section("Speed over time", tuple(_speed(about, record))),
        Section("Guesses kept", tuple(_acceptance(about, record))),
        Section("The link", tuple(_link(about, record))),
        Section("Prediction beside measurement", tuple(_prediction(about, record))),
        Section("Where the bytes lay", tuple(about.layers)),
        Section("Slowest prompts", tuple(_slowest(record))),
        Section("Prompts without an answer", tuple(_failed(record))),
    )
    sections = tuple(section for section in parts if section.parts)
    return Page(f"Run over {about.prompts}", _summary(about, record), sections)


def _summary(about: AboutRun, record: RunRecord) -> str:
    begun = about.begun.strftime("%Y-%m-%d %H:%M")
    how = f"ended early: {about.ended}" if about.ended else "complete"
    text = f"{begun}, {clock_text(record.seconds)} (hours:minutes:seconds), {how}. "
    text += f"{record.num_answered:,} of {counted(about.num_prompts, 'prompt')} answered"
    text += f", {record.num_failed:,} failed" if record.num_failed else ""
    return f"{text}; {about.num_done:,} answered before." if about.num_done else f"{text}."


def _outcome(about: AboutRun, record: RunRecord) -> Iterator[Facts]:
    total = record.total
    rows = [
        ("answers", ", ".join(f"{number:,} ended by {why}" for why, number in sorted(record.finish_reasons.items()))),
        ("tokens", f"{total.prompt_tokens:,} of prompts, {total.new_tokens:,} of answers"),
    ]
    if record.seconds and total.new_tokens:
        rows.append(("speed", f"{tokens_of(record) / record.seconds:.3g} tokens/s of all prompts together"))
    if record.num_passes:
        rows.append(
            (
                "passes",
                f"{record.num_passes:,}, {record.num_rounds / record.num_passes:.3g} prompts in each; "
                f"{record.num_tokens / record.num_passes:.3g} tokens and "
                f"{duration_text(record.round_seconds / record.num_passes)} a pass",
            )
        )
        nodes = f"{record.num_nodes / record.num_rounds:.3g} nodes a prompt"
        num_added = record.num_grafted / record.num_rounds
        looked_up = f", {num_added:.3g} of them looked up or forced" if num_added else ""
        last = f"; the last were {about.tree}" if about.tree else ""
        rows.append(("trees", f"{nodes}{looked_up}{last}"))
        share = record.draft_seconds / record.round_seconds if record.round_seconds else 0.0
        rows.append(("drafting", f"{100 * share:.0f} % of the time of rounds"))
    if record.num_loading:
        rows.append(("loading", f"{record.num_loading:,} passes waited for layers that were still being read"))
    yield Facts([row for row in rows if row[1]])
    if about.nodes:
        yield Facts([(f"node {name}", state) for name, state in about.nodes.items()])


def _speed(about: AboutRun, record: RunRecord) -> Iterator[Chart | str]:
    if about.is_on_nodes:
        yield WITHOUT_ROUNDS
    spans = [(_tokens_in(each, record), seconds) for each, seconds in _spans(record)]
    if not any(number for number, _ in spans):
        yield "No token was written."
        return
    yield Chart(
        "Tokens of all prompts together", [number / seconds for number, seconds in spans], _marks(record), "tokens/s"
    )


def _spans(record: RunRecord) -> list[tuple[Bin, float]]:
    """Return each bin with its length, which for the last one is as far as it got."""
    width, bins = record.bin_seconds, record.bins
    return [
        (each, max(min(width, record.seconds - place * width), width / 10) if place == len(bins) - 1 else width)
        for place, each in enumerate(bins)
    ]


def _tokens_in(each: Bin, record: RunRecord) -> int:
    return each.num_tokens if record.num_rounds else each.num_answer_tokens


def _marks(record: RunRecord) -> list[tuple[float, str]]:
    number = len(record.bins)
    shown = min(_NUM_MARKS, number)
    places = [number * index / shown for index in range(shown + 1)]
    return [(place, clock_text(place * record.bin_seconds)) for place in places]


def _acceptance(about: AboutRun, record: RunRecord) -> Iterator[Chart | Table | str]:
    if not record.depths:
        if record.num_rounds:
            yield "Nothing was drafted: each pass brings one token."
        return
    shares = [each.num_accepted / each.num_tried for each in record.depths]
    places = {0, len(shares) // 2, len(shares) - 1}
    marks = [(place + 0.5, f"depth {place + 1}") for place in sorted(places)]
    yield Chart(
        "Share of rounds in which a guess was kept, by depth", shares, marks, "of those that had one", 1.0, False
    )
    rows = [
        (
            str(depth),
            f"{each.num_tried:,}",
            f"{each.num_accepted:,}",
            f"{100 * each.num_accepted / each.num_tried:.0f} %",
        )
        for depth, each in enumerate(record.depths, start=1)
    ]
    yield Table(("depth", "rounds with guesses", "kept", "share"), rows)


def _link(about: AboutRun, record: RunRecord) -> Iterator[Facts | Chart | str]:
    num_bytes = max(record.link_bytes, record.total.bytes_streamed)
    if not num_bytes:
        if record.num_rounds:
            yield "Nothing crossed a link: all layers stayed in memory."
        return
    rows = [("bytes", f"{format_bytes(num_bytes)}, {format_bytes(num_bytes / max(1, tokens_of(record)))} a token")]
    if record.num_passes:
        rows.append(("a pass", format_bytes(record.link_bytes / record.num_passes)))
    if record.link_seconds:
        rate = format_bytes(record.link_bytes / record.link_seconds)
        rows.append(("busy", f"{100 * min(1.0, record.link_seconds / record.seconds):.0f} % of the time, at {rate}/s"))
    yield Facts(rows)
    if record.link_seconds and len(record.bins) > 1:
        shares = [min(1.0, each.link_seconds / seconds) for each, seconds in _spans(record)]
        yield Chart("Busy link, by when a pass ended", shares, _marks(record), "share of the time", 1.0, False)


def _prediction(about: AboutRun, record: RunRecord) -> Iterator[Table | str]:
    forecast = about.forecast
    if forecast is None or forecast.report is None or forecast.schedule is None:
        reason = about.no_forecast if forecast is None else forecast.problem
        if reason:
            yield f"Nothing was predicted: {reason}."
        return
    tree, schedule, number = forecast.report.main.tree, forecast.schedule, forecast.num_together
    passes = max(1, record.num_passes)
    measured = record.num_passes > 0
    rows = (
        ("seconds a pass", tree.round_seconds, record.round_seconds / passes),
        ("tokens a pass", tree.expected_tokens * number, record.num_tokens / passes),
        ("tokens/s", forecast.report.all_tokens_per_second, tokens_of(record) / max(record.seconds, 1e-9)),
    )
    table = [(name, f"{expected:.3g}", f"{found:.3g}" if measured else "-") for name, expected, found in rows]
    table.append(("passes", f"at most {schedule.num_passes:,}", f"{record.num_passes:,}"))
    table.append(("answer tokens", f"at most {forecast.most_new_tokens:,}", f"{record.total.new_tokens:,}"))
    table.append(("time", f"at most {clock_text(schedule.seconds)}", clock_text(record.seconds)))
    yield Table(("", "predicted", "measured"), table)
    yield (
        f"Seconds and tokens a pass are predicted for {counted(number, 'prompt')} that write together; measured are "
        "the means of the whole run, its beginning and its end with fewer of them included."
    )
    for what, basis, words in forecast.report.basis_lines:
        yield f"{what[:1].upper()}{what[1:]}, {basis}: {words}."


def _slowest(record: RunRecord) -> Iterator[Table]:
    if record.slowest:
        rows = [
            (
                each.id,
                str(each.line_number),
                f"{each.prompt_tokens:,}",
                f"{each.new_tokens:,}",
                duration_text(each.seconds),
            )
            for each in sorted(record.slowest, reverse=True)
        ]
        yield Table(("prompt", "line", "prompt tokens", "answer tokens", "time"), rows)


def _failed(record: RunRecord) -> Iterator[Table | str]:
    if record.failed:
        rows = [(item_id, str(line_number), why) for item_id, line_number, why in record.failed]
        yield Table(("prompt", "line", "why"), rows, num_words=3)
    if record.num_failed > len(record.failed):
        yield f"And {record.num_failed - len(record.failed):,} more."


def tokens_of(record: RunRecord) -> int:
    """Return the tokens that were written, of answers under way too, as far as that is known."""
    return record.num_tokens or record.total.new_tokens


def duration_text(seconds: float) -> str:
    """Return `1.2 s`, or hours, minutes and seconds for a minute or more."""
    return seconds_text(seconds) if seconds < 60 else clock_text(seconds)
