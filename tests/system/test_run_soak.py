"""A prompt file that is answered through every disturbance: no result is lost, doubled or wrong."""

import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from tests.support.batch_files import chat_line, write_lines
from tests.support.disturbed_commands import ECHOING, REAL, DisturbedCommand, on_a_disk_that_hangs
from tests.support.session_factory import save_tiny_folder

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs signals, and small pipes")]
if sys.platform == "linux":
    import fcntl
    import termios

NUM_PROMPTS, NUM_DISTURBANCES = 400, 32
NUM_KILLED, NUM_CHOICES, NUM_REAL_KILLED = 8, 3, 4


class Story:
    """One output file, and what happens to it; an answer takes a hundredth of a second."""

    def __init__(self, root: Path) -> None:
        self.prompts = root / "prompts.jsonl"
        lines = [{"id": f"no. {n}", "prompt": f"the cat and {n} dogs"} for n in range(NUM_PROMPTS)]
        self.prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
        self.folder = root / "results"
        self.folder.mkdir()
        self.output = self.folder / "results.jsonl"
        self.random = random.Random(3)

    def begin(self, *options: object) -> DisturbedCommand:
        arguments = ("run", self.prompts, "--target", self.folder.parent, "--output", self.output)
        return DisturbedCommand(ECHOING, *arguments, *options)

    def go_on(self) -> DisturbedCommand:
        """Begin, and wait for a few results more."""
        wanted = self.num_results() + self.random.randint(1, 4)
        command = self.begin("--resume")
        command.wait_until(lambda: self.num_results() >= wanted)
        return command

    def num_results(self) -> int:
        return self.output.read_bytes().count(b"\n") if self.output.exists() else 0


def killed(story: Story) -> None:
    with story.go_on() as command:
        command.send("SIGKILL")
        assert command.end() == -9
    with story.output.open("ab") as torn:
        torn.write(b'{"id": "no. 399", "te'[: story.random.randint(0, 20)])  # as where the power went, too


def asked_to_end(story: Story) -> None:
    names, exit_code = story.random.choice(((["SIGTERM"], 143), (["SIGINT"] * 20, 130), (["SIGHUP"] * 2, 129)))
    with story.go_on() as command:
        command.send(*names)
        assert command.end() == exit_code
        assert command.errors().count("\n") == 1


def joined_by_others(story: Story) -> None:
    with story.go_on() as command:
        command.send("SIGSTOP")  # so that it is still there, however slowly the others begin
        with story.begin() as second, story.begin("--resume") as third:
            assert (second.end(), third.end()) == (2, 2)
            for errors in (second.errors(), third.errors()):
                assert "is being written by another run (process " in errors
        command.send("SIGCONT", "SIGTERM")
        assert command.end() == 143


def bereft_of_its_file(story: Story) -> None:
    output = story.output
    interferences: dict[str, Callable[[], object]] = {
        "removed": output.unlink,
        "moved": lambda: output.rename(output.with_name("elsewhere")),
        "folder removed": lambda: shutil.rmtree(story.folder),
        "emptied": lambda: os.truncate(output, 0),
        "cut": lambda: os.truncate(output, output.stat().st_size - 20),
        "overwritten": lambda: output.write_bytes(b"x" * output.stat().st_size * 2),
    }
    name = story.random.choice(list(interferences))
    with story.go_on() as command:
        interferences[name]()
        command.send("SIGTERM")
        assert command.end() == 143
        is_kept_beside = "all results are in" in command.errors()
    if is_kept_beside:
        (kept,) = story.folder.glob("results.jsonl.kept*")
        kept.replace(output)
    else:
        assert name == "cut"  # of a line that was still on its way to the disk when the signal came


def answers(output: Path) -> dict[str, str]:
    results = list(map(json.loads, output.read_text().splitlines()))
    return {result["id"]: result["text"] for result in results}


def test_nothing_is_lost_doubled_or_wrong(tmp_path: Path) -> None:
    story = Story(tmp_path)
    disturbances = [killed, asked_to_end, joined_by_others, bereft_of_its_file] * (NUM_DISTURBANCES // 4)
    story.random.shuffle(disturbances)
    for disturb in disturbances:
        before = story.num_results()
        disturb(story)
        assert before <= story.num_results() < NUM_PROMPTS
    with story.begin("--resume") as command:
        assert command.end() == 0
    assert story.num_results() == NUM_PROMPTS
    assert answers(story.output) == {f"no. {n}": f"THE CAT AND {n} DOGS" for n in range(NUM_PROMPTS)}


def test_a_batch_that_is_killed_again_and_again_has_every_line_once_and_in_order(tmp_path: Path) -> None:
    """A line of it has several choices, which are there together or not at all."""
    story = Story(tmp_path)
    lines = (chat_line(f"no. {n}", f"the cat and {n} dogs", n=NUM_CHOICES, seed=n) for n in range(NUM_PROMPTS))
    write_lines(story.prompts, *lines)
    for _ in range(NUM_KILLED):
        with story.begin("--resume", "--in-order") as command:
            wanted = story.num_results() + story.random.randint(0, 20)
            command.wait_until(lambda wanted=wanted: story.num_results() >= wanted)
            time.sleep(story.random.random() * 0.03)
            command.send("SIGKILL")
            assert command.end() == -9
    before = story.num_results()
    assert 0 < before < NUM_PROMPTS
    with story.begin("--resume", "--in-order") as command:
        assert command.end() == 0
    results = list(map(json.loads, story.output.read_text().splitlines()))
    assert [result["custom_id"] for result in results] == [f"no. {n}" for n in range(NUM_PROMPTS)]
    for number, result in enumerate(results):
        choices = result["response"]["body"]["choices"]
        assert [choice["message"]["content"] for choice in choices] == [f"THE CAT AND {number} DOGS"] * NUM_CHOICES


def test_texts_that_share_passes_are_the_same_however_often_the_engine_is_killed(tmp_path: Path) -> None:
    story, output, num_prompts = Story(tmp_path), tmp_path / "results.jsonl", 12 * NUM_REAL_KILLED
    lines = (
        {"id": str(n), "prompt": f"the cat and {n} dogs", "seed": n, "temperature": n % 2} for n in range(num_prompts)
    )
    story.prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    target = save_tiny_folder(tmp_path / "target", seed=37)
    arguments: tuple[object, ...] = ("run", story.prompts, "--target", target, "--draft", target, "--tree", "7x3")
    arguments += ("--device-memory", "min", "--emulate-link", "1MB/s", "--max-new-tokens", "12", "--batch", "4")
    with DisturbedCommand(REAL, *arguments, "--output", tmp_path / "undisturbed.jsonl") as command:
        assert command.end() == 0
    for number in range(NUM_REAL_KILLED):
        with DisturbedCommand(REAL, *arguments, "--output", output, "--resume") as command:
            wanted = number * 8 + story.random.randint(0, 8)
            command.wait_until(lambda wanted=wanted: output.exists() and output.read_bytes().count(b"\n") >= wanted)
            time.sleep(story.random.random() * 0.2)
            command.send("SIGKILL")
            assert command.end() == -9
    assert 0 < output.read_bytes().count(b"\n") < num_prompts
    with DisturbedCommand(REAL, *arguments, "--output", output, "--resume") as command:
        assert command.end() == 0
    assert answers(output) == answers(tmp_path / "undisturbed.jsonl")
    assert output.read_bytes().count(b"\n") == num_prompts


def test_on_a_disk_that_hangs_the_streaming_engine_ends_in_order_and_goes_on(tmp_path: Path) -> None:
    story, flag, output = Story(tmp_path), tmp_path / "hangs.flag", tmp_path / "results.jsonl"
    story.prompts.write_text("".join(story.prompts.read_text().splitlines(keepends=True)[:20]))
    target = save_tiny_folder(tmp_path / "target", seed=37)
    arguments: tuple[object, ...] = ("run", story.prompts, "--target", target, "--max-new-tokens", "8")
    arguments += ("--device-memory", "min", "--host-memory", "0", "--emulate-link", "1GB/s", "--emulate-disk", "10MB/s")
    with DisturbedCommand(REAL, *arguments, "--output", tmp_path / "undisturbed.jsonl") as command:
        assert command.end() == 0
    for name, exit_code in (("SIGINT", 130), ("SIGTERM", 143)):
        wanted = output.read_bytes().count(b"\n") + 2 if output.exists() else 2
        with DisturbedCommand(on_a_disk_that_hangs(flag), *arguments, "--output", output, "--resume") as command:
            command.wait_until(lambda wanted=wanted: output.exists() and output.read_bytes().count(b"\n") >= wanted)
            flag.touch()
            command.wait_until(flag.with_suffix(".met").exists)
            command.send(name)
            assert command.end() == exit_code
        flag.unlink()
        flag.with_suffix(".met").unlink()
    with DisturbedCommand(REAL, *arguments, "--output", output, "--resume") as command:
        assert command.end() == 0
    assert answers(output) == answers(tmp_path / "undisturbed.jsonl")
    assert output.read_bytes().count(b"\n") == 20


def test_a_reader_that_has_stopped_holds_up_no_end(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"id": "x" * 5000, "prompt": "the cat"}) + "\n")
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as pipe:
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)  # more than that is written in pieces
        with os.fdopen(writing, "wb") as stdout:
            command = DisturbedCommand(ECHOING, "run", prompts, "--target", tmp_path, stdout=stdout)
        with command:
            command.wait_until(lambda: num_waiting(pipe) == 4096)
            command.send("SIGTERM", "SIGTERM")
            assert command.end() == 143
            assert "terminated; what was written is kept" in command.errors()
        assert pipe.read().startswith(b'{"id": "' + b"x" * 4000)


def num_waiting(pipe: IO[bytes]) -> int:
    """Bytes that nobody has read yet."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
