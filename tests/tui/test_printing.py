import io
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from offload.errors import LinkError
from runtime.config import EngineConfig
from runtime.events import LoadProgress
from runtime.prompts.headless import PromptResult, PromptStarted, one_by_one, run_prompts
from runtime.prompts.prompt_file import BadLine, Message, PromptRequest
from tests.support.answer_fakes import PLACEMENT, STATISTICS, echo, statistics
from tests.support.session_factory import save_tiny_folder
from tui.printing import (
    RunProgress,
    TimeLeft,
    announce,
    cost_line,
    measurement_tables,
    open_session_in_sight,
    placement_lines,
    progress_console,
    settle_draft_in_sight,
    show_load,
)


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=100, highlight=False)


def test_the_placement_shows_every_byte_and_its_sum():
    lines = placement_lines(PLACEMENT, baseline_bytes=7_000_000)
    assert lines[0] == "device memory: 2.50 MB of 3.00 MB"
    assert [line.split(maxsplit=2)[2] for line in lines[1:4]] == [
        "embeddings",
        "ring of layer slots",
        "resident layers (2)",
    ]
    assert "1.00 MB (0 layers from host memory, 2 from disk)" in lines[4]
    assert "7.00 MB" in lines[5]


def test_the_costs_are_those_of_the_speed_law():
    assert cost_line(STATISTICS) == "0.5 s/token   2.00 tokens/pass   4.00 MB streamed   link 80 % busy"


def test_costs_that_are_unknown_are_a_dash():
    costs = statistics(rounds=0, decode_seconds=0.0, decode_tokens=0)
    assert cost_line(costs) == "- s/token   - tokens/pass   4.00 MB streamed"


def test_measurements_are_written_for_people():
    console = terminal()
    record = {
        "ratio": 0.9512,
        "bytes_per_second": 2.5e9,
        "seconds_per_pass": 1.25,
        "peak_bytes": 4_000_000,
        "num_layers": 28,
        "nothing": None,
        "sizes": [1, 2],
        "turns": [{"bytes_read": 3_000_000, "steps": [7]}, {"bytes_read": 5_000_000, "steps": [8]}],
        "parts": {"link_seconds": 0.625, 3: 0.5, "rounds": [{"num_nodes": 61}]},
    }
    console.print(*measurement_tables(record, title="streaming"))
    shown = console.file.getvalue()
    for expected in ("0.951", "2.50 GB/s", "1.25", "4.00 MB", "28", "-", "3.00 MB", "5.00 MB", "0.625 s", "61"):
        assert expected in shown
    assert [title for title in ("streaming", "turns", "parts", "rounds") if title not in shown] == []
    assert "sizes" not in shown and "steps" not in shown


def test_progress_is_silent_when_nobody_watches():
    """stderr of a test is no terminal."""
    assert progress_console(is_quiet=False).quiet
    assert progress_console(is_quiet=True).quiet


def test_progress_names_the_prompt_and_shows_errors():
    console = terminal()
    request = PromptRequest(id="first\x1b[31m", messages=(Message("user", "hello"),))
    with RunProgress(console, num_prompts=2) as progress:
        for event in run_prompts(one_by_one(echo), [request, BadLine(2, "2", "line 2 is [bold]bad\x1b[2J")]):
            progress.show(event)
    shown = console.file.getvalue()
    assert "line 2 is [bold]bad" in shown
    assert "first: " in shown and "0/2" in shown
    assert "\x1b[2J" not in shown


def test_progress_says_how_much_has_been_read_of_a_model_that_answers_already():
    console = terminal()
    late = [LoadProgress("layers", 300, 1000), None]
    with RunProgress(console, num_prompts=1, late=lambda: late[0]) as progress:
        for event in run_prompts(one_by_one(echo), [PromptRequest(id="first", prompt="hello")]):
            progress.show(event)
            progress.refresh()
            late[0] = late[-1]
    shown = console.file.getvalue()
    assert "first: prefill, 30% of the model loaded" in shown
    assert "per pass, " not in shown


def started(number):
    return PromptStarted(PromptRequest(id=f"{number}", prompt="hello", line_number=number), number)


def answered(number):
    return PromptResult(id=f"{number}", line_number=number)


def test_the_time_left_is_that_of_the_prompts_so_far():
    now = [100.0]
    left = TimeLeft(5, clock=lambda: now[0])
    now[0] = 160.0  # the model was loading
    left.observe(answered(1))  # a bad line: nothing was answered
    assert left.seconds is None
    left.observe(started(2))
    now[0] = 170.0
    left.observe(started(3))
    assert left.seconds is None
    now[0] = 180.0
    left.observe(answered(3))
    assert left.seconds == 60.0  # three, of 20 s each
    now[0] = 190.0
    assert left.seconds == 50.0
    left.observe(answered(2))
    assert left.seconds == 30.0  # two, of 15 s each: they were answered side by side
    now[0] = 1000.0
    assert left.seconds == 0.0


def test_progress_says_the_time_left_once_a_prompt_has_been_answered():
    console = terminal()
    requests = [PromptRequest(id=f"{n}", prompt="hello", line_number=n) for n in (1, 2)]
    with RunProgress(console, num_prompts=2) as progress:
        for event in run_prompts(one_by_one(echo), requests):
            if isinstance(event, PromptResult) and event.id == "1":
                assert " left" not in console.file.getvalue()
            progress.show(event)
            progress.refresh()
    assert "about 0:00:00 left" in console.file.getvalue()


def test_progress_on_a_quiet_console_writes_nothing():
    console = Console(file=io.StringIO(), quiet=True)
    with RunProgress(console, num_prompts=1) as progress:
        for event in run_prompts(one_by_one(echo), [PromptRequest(id="1", prompt="hello"), BadLine(2, "2", "bad")]):
            progress.show(event)
    assert console.file.getvalue() == ""


def test_a_load_is_shown_in_bytes_and_returns_what_it_loaded() -> None:
    def load() -> Generator[LoadProgress, None, str]:
        yield LoadProgress("draft", 0, 4_000_000)
        yield LoadProgress("layers", 3_000_000, 4_000_000)
        return "session"

    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    assert show_load(load(), console) == "session"
    assert "3.0/4.0 MB" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "loading layers" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_load_that_fails_lets_its_error_through() -> None:
    def load() -> Generator[LoadProgress, None, str]:
        yield LoadProgress("draft", 0, 4)
        raise LinkError("the disk is gone")

    with pytest.raises(LinkError, match="the disk is gone"):
        show_load(load(), Console(file=io.StringIO(), quiet=True))


def test_each_step_is_announced_and_the_result_returned() -> None:
    def steps() -> Generator[str, None, int]:
        yield "looking"
        yield "found"
        return 7

    console = Console(file=io.StringIO(), width=100)
    assert announce(steps(), console) == 7
    assert console.file.getvalue() == "looking\nfound\n"  # type: ignore[attr-defined]


def test_a_session_opens_with_its_placement_and_what_was_decided(tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "target")
    console = Console(file=io.StringIO(), width=200)
    config = EngineConfig(target=str(folder), draft="none", context_tokens=64, device="cpu")
    with open_session_in_sight(config, [], console) as opened:
        assert opened.session.engine.context_tokens == 64
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "device memory:" in shown
    assert opened.plan.advice.sentence in shown


def test_a_draft_that_nobody_named_is_settled_and_said(tmp_path):
    """What has no meaning without a draft takes one even where everything stays in memory."""
    folder = save_tiny_folder(tmp_path / "target")
    console = terminal()
    config = EngineConfig(target=str(folder), draft="auto", context_tokens=64)
    assert settle_draft_in_sight(config, [], console) == replace(config, draft="substitute")
    assert "here the model's own substitute drafts" in " ".join(console.file.getvalue().split())


def test_a_draft_that_was_named_is_left_as_it_is(tmp_path):
    folder = save_tiny_folder(tmp_path / "target")
    for draft in ("substitute", "none", str(folder)):
        config = EngineConfig(target=str(folder), draft=draft, device_memory_bytes=1)  # in which nothing fits
        assert settle_draft_in_sight(config, [], terminal()) == config
