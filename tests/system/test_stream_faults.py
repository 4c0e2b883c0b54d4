"""What goes wrong in a whole session costs one answer and one sentence, hangs nothing, and leaves nothing behind.

The faults of single parts are in the parts' own tests; here each reaches `Session.generate` or `overstory run` through
everything in between.
"""

import io
import json
import os
from collections.abc import Callable
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from offload.copying.staged_engine import StagedCopyEngine
from offload.errors import LinkError
from runtime.engine import loading
from runtime.engine.loading import OpenSession
from runtime.events import LevelDrafted, Round
from tests.support.fault_injection import ASKED, Dies, Faults, end_of_file, kill_thread, needs_preadv, raise_io_error
from tests.support.session_factory import answer, open_tiny, request
from tui import cli

pytest_plugins = ("tests.support.fault_fixtures",)
pytestmark = pytest.mark.usefixtures("quick_collections", "nothing_is_left_behind")
WAYS: dict[str, dict[str, Any]] = {
    "host": {},
    "host, with a draft": {"draft": "substitute", "tree": "8x4"},
    "one link": {"link": "1GB/s", "host_memory_bytes": 0},
    "staged": {"link": "1GB/s", "disk_link": "1GB/s", "host_memory_bytes": 90_000},
}
OTHER = request("a dog, and some other words", max_new_tokens=12)


def fails(opened: OpenSession, match: str) -> None:
    """An answer that ends with one sentence, after which both caches are where they were committed."""
    with pytest.raises(LinkError, match=match) as caught:
        for _ in range(3):  # what was read ahead of the ring's end belongs to the next answer, or the one after it
            answer(opened, OTHER)
    assert "\n" not in str(caught.value)
    engine = opened.session.engine
    assert engine.target.cache.num_cached == engine.num_committed
    if engine.drafter is not None:
        assert engine.drafter.model.cache.num_cached == engine.drafter.num_committed
    assert opened.streamer.layers_in_slots == ()


@needs_preadv
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("fault", "match"),
    [
        (raise_io_error, r"Reading .*model.safetensors failed at byte \d+ \(Input/output error\); check the disk"),
        (end_of_file, r"model.safetensors ends at byte \d+, expected at least \d+; it was cut short"),
        (kill_thread, "shot"),
    ],
)
def test_a_fault_in_the_middle_of_a_pass_costs_one_answer(
    way: str, fault: Callable[[], int], match: str, folder: Path, expected: list[int], faults: Faults
) -> None:
    with open_tiny(folder, num_residents=1, **WAYS[way]) as opened:
        assert answer(opened, ASKED)[1] == expected
        for num_calls in (1, 4):
            faults.soon(num_calls, fault)
            fails(opened, match)
            assert not faults.at
            assert answer(opened, ASKED)[1] == expected


@pytest.mark.parametrize("way", ["host", "staged"])
def test_a_file_that_is_replaced_ends_every_answer_until_it_is_back(
    way: str, folder: Path, expected: list[int], tmp_path: Path
) -> None:
    path, kept, other = folder / "model.safetensors", tmp_path / "kept", tmp_path / "other"
    other.write_bytes(path.read_bytes())
    with open_tiny(folder, num_residents=1, **WAYS[way]) as opened:
        assert answer(opened, ASKED)[1] == expected
        os.link(path, kept)
        other.replace(path)  # in one step: what reads ahead of the next answer never sees the name gone
        for _ in range(2):
            fails(opened, "was replaced or changed while a model streams from it; restart")
        kept.replace(path)
        assert answer(opened, ASKED)[1] == expected


@pytest.mark.parametrize("way", ["host", "staged"])
def test_a_file_that_is_cut_short_is_noticed(way: str, folder: Path) -> None:
    path = folder / "model.safetensors"
    with open_tiny(folder, num_residents=1, **WAYS[way]) as opened:
        answer(opened, ASKED)
        os.truncate(path, path.stat().st_size // 2)
        for _ in range(2):
            fails(opened, "was replaced or changed|cut short")


@pytest.mark.parametrize("way", ["host", "staged"])
def test_a_disk_that_vanishes_and_comes_back(way: str, folder: Path, expected: list[int]) -> None:
    away = folder.with_name("unplugged")
    with open_tiny(folder, num_residents=1, **WAYS[way]) as opened:
        answer(opened, ASKED)
        folder.rename(away)
        for _ in range(2):
            fails(opened, "is gone, although a model streams from it; put it back")
        away.rename(folder)
        assert answer(opened, ASKED)[1] == expected


def test_the_thread_that_feeds_a_link_may_die(
    folder: Path, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_tiny(folder, num_residents=0, **WAYS["staged"]) as opened:
        link = opened.link
        assert isinstance(link, StagedCopyEngine)
        answer(opened, ASKED)

        def die() -> None:
            if not link._queue:  # a thread that dies while nobody waits is replaced, and no answer is lost
                return
            monkeypatch.delattr(link, "_send")
            raise Dies("shot")

        monkeypatch.setattr(link, "_send", die)
        fails(opened, "shot")
        assert answer(opened, ASKED)[1] == expected


@needs_preadv
def test_a_fault_before_any_event_and_after_many_leaves_what_was_accepted(
    folder: Path, expected: list[int], faults: Faults
) -> None:
    """What was yielded before the fault begins the right text, and the same prompt asked again is answered whole."""
    with open_tiny(folder, num_residents=0, draft="substitute", tree="4x3") as opened:
        for num_rounds in range(3):
            accepted: list[int] = []
            with pytest.raises(LinkError), closing(opened.session.generate(ASKED)) as events:
                for event in events:
                    if isinstance(event, Round):
                        accepted += event.token_ids
                    if isinstance(event, LevelDrafted) and len(accepted) >= num_rounds and not faults.at:
                        faults.soon(1, raise_io_error)
            assert accepted == expected[: len(accepted)]
            faults.at.clear()
        assert answer(opened, ASKED)[1] == expected


def run_command(prompts: Path, folder: Path, *options: str) -> tuple[int, list[dict[str, Any]], str]:
    out, err = io.StringIO(), io.StringIO()
    arguments = ["run", str(prompts), "--target", str(folder), "--raw", "--max-new-tokens", "8", "--quiet"]
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.execute([*arguments, "--device-memory", "min", "--draft", "none", "--io", "buffered", *options])
    return code, [json.loads(line) for line in out.getvalue().splitlines()], err.getvalue()


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("the cat and the dog\na dog\nthe end\n", encoding="utf-8")
    return path


@needs_preadv
@pytest.mark.parametrize(
    "options", [[], ["--emulate-link", "1GB/s", "--emulate-disk", "1GB/s", "--host-memory", "90KB"]]
)
def test_a_run_answers_the_prompts_after_a_fault(
    options: list[str], prompts: Path, folder: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One at a time: a pass of several that fails costs all of them their answers."""
    options = [*options, "--batch", "1"]
    code, whole, err = run_command(prompts, folder, *options)
    assert (code, err) == (0, "")
    begin = loading.Session._begin

    def fail_in_the_second(session: loading.Session, asked: Any, **place: Any) -> Any:
        if asked.prompt == "a dog":
            faults.soon(3, raise_io_error)
        return begin(session, asked, **place)

    monkeypatch.setattr(loading.Session, "_begin", fail_in_the_second)
    code, records, err = run_command(prompts, folder, *options)
    assert code == 1
    assert err == "overstory: error: 1 of 3 prompts have no answer; see `error` in their results\n"
    assert [record["text"] for record in records] == [whole[0]["text"], None, whole[2]["text"]]
    assert "Input/output error" in records[1]["error"] and "\n" not in records[1]["error"]


@needs_preadv
def test_a_fault_while_loading_is_one_line(prompts: Path, folder: Path, faults: Faults) -> None:
    faults.soon(0, raise_io_error)
    code, records, err = run_command(prompts, folder, "--device-memory", "1GB")
    assert (code, records) == (1, [])
    assert err.startswith("overstory: error: Reading ") and err.count("\n") == 1


@needs_preadv
def test_layers_that_cannot_be_read_cost_answers_and_a_fault_that_passes_costs_none(
    prompts: Path, folder: Path, faults: Faults
) -> None:
    """The session is there before its layers: the first pass that wants one asks the disk again."""
    _, whole, _ = run_command(prompts, folder, "--device-memory", "1GB")
    faults.soon(1, raise_io_error)
    code, records, err = run_command(prompts, folder, "--device-memory", "1GB")
    assert (code, err) == (0, "") and [record["text"] for record in records] == [record["text"] for record in whole]
    for num_reads in range(1, 500):
        faults.soon(num_reads, raise_io_error)
    code, records, err = run_command(prompts, folder, "--device-memory", "1GB")
    assert code == 1 and err.count("\n") == 1
    assert all(record["text"] is None and "Input/output error" in record["error"] for record in records)
