"""Which models lie on this machine, told by names and sizes alone, and how the planner is asked about them."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from runtime.config import EngineConfig
from tui.chat.fit_estimates import FitEstimate
from tui.chat.models import LocalModelSource, list_local_models
from tui.chat.widgets.picker import ListedModel


def make_model(folder: Path, *, num_bytes: int = 10, shards: int = 1) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for index in range(shards):
        (folder / f"model-{index}.safetensors").write_bytes(b"x" * num_bytes)
    return folder


def make_snapshot(hub: Path, name: str, revision: str, *, num_bytes: int = 10, is_current: bool = True) -> Path:
    """As the hub's libraries lay it out: links into a folder of blobs."""
    repository = hub / f"models--{name.replace('/', '--')}"
    folder = repository / "snapshots" / revision
    for file_name, content in (("config.json", b"{}"), ("model.safetensors", b"x" * num_bytes)):
        blob = repository / "blobs" / f"{revision}-{file_name}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file_name).symlink_to(os.path.relpath(blob, folder))
    if is_current:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(revision)
    return folder


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    return tmp_path / "hub"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "own"


def names(models: tuple[ListedModel, ...]) -> list[str]:
    return [model.name for model in models]


def test_named_folders_come_first_and_the_caches_by_name(hub, own, tmp_path):
    make_snapshot(hub, "owner/Beta", "1234")
    make_model(own / "alpha")
    make_model(tmp_path / "mine" / "zeta")
    make_model(tmp_path / "mine" / "eta")
    make_model(tmp_path / "alone")
    named = [tmp_path / "alone", str(tmp_path / "mine")]
    found = list_local_models(hub_cache=hub, own_cache=own, named_folders=named)
    assert names(found) == ["alone", "eta", "zeta", "alpha", "owner/Beta"]


def test_sizes_are_those_of_the_files_behind_the_links(hub, own):
    folder = make_snapshot(hub, "owner/model", "1234", num_bytes=1000)
    make_model(own / "sharded", num_bytes=100, shards=3)
    assert list_local_models(hub_cache=hub, own_cache=own) == (
        ListedModel(str(folder), "owner/model", 1000),
        ListedModel(str(own / "sharded"), "sharded", 300),
    )


def test_of_several_snapshots_the_current_one_is_listed(hub, own):
    current = make_snapshot(hub, "owner/model", "aaaa")
    newer = make_snapshot(hub, "owner/model", "bbbb", is_current=False)
    os.utime(newer, (time.time() + 100, time.time() + 100))
    assert [model.target for model in list_local_models(hub_cache=hub, own_cache=own)] == [str(current)]
    (hub / "models--owner--model" / "refs" / "main").unlink()
    assert [model.target for model in list_local_models(hub_cache=hub, own_cache=own)] == [str(newer)]


def test_what_is_no_model_is_left_out(hub, own, tmp_path):
    (own / "no config").mkdir(parents=True)
    (own / "no config" / "model.safetensors").write_bytes(b"x")
    (own / "no weights").mkdir()
    (own / "no weights" / "config.json").write_text("{}")
    (own / "file").write_text("x")
    make_model(own / "Model.partial-host-123")
    unfinished = make_snapshot(hub, "owner/unfinished", "1234")
    (unfinished / "model.safetensors").resolve().unlink()
    (hub / "datasets--owner--texts" / "snapshots").mkdir(parents=True)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    named = [tmp_path / "missing", loop, "~nobody-by-that-name/models"]
    assert list_local_models(hub_cache=hub, own_cache=own, named_folders=named) == ()


def test_a_model_that_is_reached_twice_is_listed_once(own, hub):
    folder = make_model(own / "model")
    (own / "again").symlink_to(folder)
    found = list_local_models(hub_cache=hub, own_cache=own, named_folders=[folder])
    assert names(found) == ["model"]


def test_dozens_take_a_moment(hub, own):
    for index in range(60):
        make_snapshot(hub, f"owner/model-{index:02}", "1234")
    begun = time.process_time()
    assert len(list_local_models(hub_cache=hub, own_cache=own)) == 60
    assert time.process_time() - begun < 2  # 30 ms on an idle core, and the hub's library is imported once


class Planner:
    def __init__(self):
        self.asked = []

    async def ask(self, folders, config):
        self.asked.append((list(folders), config))
        for folder in folders:
            yield FitEstimate(str(folder), "streams", 0.5, "streams")


def source_of(tmp_path, recent=(), planner=None):
    return LocalModelSource(
        EngineConfig(tree="64x10"),
        recent,
        hub_cache=tmp_path / "hub",
        own_cache=tmp_path / "own",
        ask=(planner or Planner()).ask,
    )


def listed(source):
    return list(asyncio.run(source.models()))


def test_the_demo_model_is_offered_before_it_was_fetched(tmp_path):
    assert listed(source_of(tmp_path)) == [ListedModel("", "SmolLM2-135M-Instruct (demo, fetched once)")]


def test_the_demo_model_that_is_here_has_a_size(tmp_path):
    make_model(tmp_path / "own" / "SmolLM2-135M-Instruct")
    assert listed(source_of(tmp_path)) == [ListedModel("", "SmolLM2-135M-Instruct (demo)", 10)]


def test_a_model_of_the_hub_is_there_once_under_the_name_it_was_used_by(tmp_path):
    snapshot = make_snapshot(tmp_path / "hub", "owner/name", "1")
    rows = listed(source_of(tmp_path, ["owner/name"]))
    assert rows[0] == ListedModel("owner/name", "owner/name", 10, is_recent=True)
    assert len(rows) == 2  # and the demo model
    assert listed(source_of(tmp_path))[0] == ListedModel(str(snapshot), "owner/name", 10)


def test_a_recent_folder_keeps_its_spelling_and_one_that_is_gone_its_name(tmp_path, monkeypatch):
    make_model(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    rows = listed(source_of(tmp_path, ["./mine", "/gone", "~nobody-by-that-name/model"]))
    assert rows[0] == ListedModel("./mine", "mine", 10, is_recent=True)
    assert rows[1] == ListedModel("/gone", "/gone", None, is_recent=True)


def test_the_planner_is_asked_about_folders_and_answers_about_targets(tmp_path):
    demo = make_model(tmp_path / "own" / "SmolLM2-135M-Instruct")
    snapshot = make_snapshot(tmp_path / "hub", "owner/name", "1")
    planner = Planner()
    source = source_of(tmp_path, ["owner/name"], planner)

    async def story():
        rows = await source.models()
        targets = [row.target for row in rows if row.weight_bytes is not None]
        return [estimate.folder async for estimate in source.estimates(targets, draft="none")]

    assert asyncio.run(story()) == ["owner/name", ""]
    assert planner.asked == [([str(snapshot), str(demo)], EngineConfig(tree="64x10", draft="none"))]
