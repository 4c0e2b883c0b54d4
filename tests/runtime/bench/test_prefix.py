"""A conversation that is reopened: read, its first tokens take fewer passes, and its text is the same."""

import json
from functools import partial
from pathlib import Path

import pytest

from profiles.steps import finish
from runtime.bench.prefix import drop_cached, run_prefix
from runtime.config import EngineConfig
from runtime.engine import loading
from runtime.engine.kept_prefixes import KeptPrefixes
from runtime.engine.prefix_block import BlockForm
from runtime.errors import OptionError
from tests.support.session_factory import save_tiny_folder

TEXT = "the cat and the dog and a bird in the garden of the house. "


def test_a_reopened_conversation_computes_only_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pays(self: KeptPrefixes, form: BlockForm, num_text: int, num_held: int, last: int, seconds: object) -> bool:
        return last * form.num_tokens > num_held  # a model so small computes faster than any disk reads

    monkeypatch.setattr(loading, "KeptPrefixes", partial(KeptPrefixes, block_tokens=16))
    monkeypatch.setattr(KeptPrefixes, "_pays", pays)
    folder = save_tiny_folder(tmp_path / "target", seed=37)
    config = EngineConfig(
        target=str(folder), draft="none", context_tokens=500, device_memory_bytes=0, link="10GB/s", ring_slots=2
    )
    said = list[str]()
    record = finish(run_prefix(config, TEXT, num_tokens=350, max_new_tokens=4), said.append)
    assert json.loads(json.dumps(record)) == record
    assert len(said) == 3
    assert record["is_same_text"]
    assert record["without"]["num_computed_tokens"] == record["num_prompt_tokens"]
    assert record["with"]["num_computed_tokens"] < 16 + record["num_prompt_tokens"] - 350
    assert record["with"]["num_passes"] == 1
    assert record["kept_bytes"] > 0 and record["read_bytes_per_second"] > 0
    assert record["speedup"] > 0


def test_a_prompt_that_the_context_does_not_hold_is_refused(tmp_path: Path) -> None:
    config = EngineConfig(target=str(save_tiny_folder(tmp_path / "target")), draft="none", context_tokens=64)
    with pytest.raises(OptionError, match="give a larger --context, or fewer --tokens"):
        finish(run_prefix(config, TEXT, num_tokens=100))


def test_bytes_are_counted_and_files_stay(tmp_path: Path) -> None:
    (tmp_path / "a.block").write_bytes(b"12345")
    (tmp_path / "b.other").write_bytes(b"1")
    assert drop_cached(tmp_path) == 5
    assert (tmp_path / "a.block").read_bytes() == b"12345"
