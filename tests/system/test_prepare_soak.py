"""A folder that is prepared through every disturbance has the bytes of one that nobody disturbed."""

import json
import os
from pathlib import Path

import pytest
import torch

from runtime.prepare.shards import JOURNAL_NAME
from tests.support.disturbed_commands import REAL, SHARD_BY_SHARD, DisturbedCommand
from tests.support.model_factory import save_tiny_model
from tests.support.small_preparations import WIDE, contents

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="sends signals")]


class Story:
    """One output folder, and what happens to it."""

    def __init__(self, root: Path) -> None:
        self.source = save_tiny_model("llama", root / "model", num_hidden_layers=30, dtype=torch.bfloat16, **WIDE)
        self.partial = root / "prepared.partial"

    def begin(self, program: str = SHARD_BY_SHARD, output: str = "prepared") -> DisturbedCommand:
        folder = self.source.with_name(output)
        return DisturbedCommand(program, "prepare", self.source, "--format", "nf4", "--output", folder)

    def go_on(self) -> DisturbedCommand:
        """Begin, and wait for a few shards more."""
        wanted = self.num_shards() + 2
        command = self.begin()
        command.wait_until(lambda: self.num_shards() >= wanted)
        return command

    def num_shards(self) -> int:
        journal = self.partial / JOURNAL_NAME
        return len(json.loads(journal.read_bytes())["shards"]) if journal.exists() else 0


def killed(story: Story) -> None:
    with story.go_on() as command:
        command.send("SIGKILL")
        assert command.end() == -9


def asked_to_end(story: Story) -> None:
    with story.go_on() as command:
        command.send(*["SIGTERM"] * 20)
        assert command.end() == 143
        assert command.errors() == "overstory: terminated; run the same command again to go on where it stopped\n"


def joined_by_another(story: Story) -> None:
    with story.go_on() as command:
        command.send("SIGSTOP")  # so that it is still there, however slowly the other begins
        with story.begin() as second:
            assert second.end() == 2
            assert "is at work on" in second.errors()
        command.send("SIGCONT", "SIGKILL")
        assert command.end() == -9


def bereft_of_its_folder(story: Story) -> None:
    elsewhere = story.partial.with_name("elsewhere")
    with story.go_on() as command:
        story.partial.rename(elsewhere)
        assert command.end() == 1
        assert "was moved or removed while it was written; move it back" in command.errors()
    assert not story.partial.exists() and not story.partial.with_suffix("").exists()
    elsewhere.rename(story.partial)


def test_the_bytes_are_those_of_a_folder_that_nobody_disturbed(tmp_path: Path) -> None:
    story = Story(tmp_path)
    with story.begin(REAL, "undisturbed") as command:
        assert command.end() == 0
    for disturb in (asked_to_end, bereft_of_its_folder, joined_by_another, killed):
        before = story.num_shards()
        disturb(story)
        assert before < story.num_shards() < 30
    with story.begin(REAL) as command:
        assert command.end() == 0
    assert contents(tmp_path / "prepared") == contents(tmp_path / "undisturbed")
    assert not story.partial.exists()
