"""What the model picker is given: folders here, recent names, and the planner's answers under the same names."""

import asyncio

from tui.chat.fit_estimates import FitEstimate
from tui.chat.model_source import LocalModelSource
from tui.chat.widgets.model_list import ListedModel


def make_model(folder, *, num_bytes=10):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x" * num_bytes)
    return folder


class Planner:
    def __init__(self):
        self.asked = []

    async def ask(self, folders, config):
        self.asked.append((list(folders), dict(config)))
        for folder in folders:
            yield FitEstimate(str(folder), "streams", 0.5, "streams")


def source_of(tmp_path, recent=(), planner=None):
    return LocalModelSource(
        {"tree": "64x10"},
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
    snapshot = make_model(tmp_path / "hub" / "models--owner--name" / "snapshots" / "1")
    rows = listed(source_of(tmp_path, ["owner/name"]))
    assert rows[0] == ListedModel("owner/name", "owner/name", 10, is_recent=True)
    assert len(rows) == 2  # and the demo model
    assert listed(source_of(tmp_path))[0] == ListedModel(str(snapshot), "owner/name", 10)


def test_a_recent_folder_keeps_its_spelling_and_one_that_is_gone_its_name(tmp_path, monkeypatch):
    make_model(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    rows = listed(source_of(tmp_path, ["./mine", "/gone"]))
    assert rows[0] == ListedModel("./mine", "mine", 10, is_recent=True)
    assert rows[1] == ListedModel("/gone", "/gone", None, is_recent=True)


def test_the_planner_is_asked_about_folders_and_answers_about_targets(tmp_path):
    demo = make_model(tmp_path / "own" / "SmolLM2-135M-Instruct")
    snapshot = make_model(tmp_path / "hub" / "models--owner--name" / "snapshots" / "1")
    planner = Planner()
    source = source_of(tmp_path, ["owner/name"], planner)

    async def story():
        rows = await source.models()
        targets = [row.target for row in rows if row.weight_bytes is not None]
        return [estimate.folder async for estimate in source.estimates(targets, draft="none")]

    assert asyncio.run(story()) == ["owner/name", ""]
    assert planner.asked == [([str(snapshot), str(demo)], {"tree": "64x10", "draft": "none"})]
