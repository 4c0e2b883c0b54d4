"""The picker's models: recent ones first, then what lies in caches and beside recent folders, the demo model last."""

import asyncio

from tui.chat.chat_settings import ChatSettings
from tui.chat.fit_estimates import FitEstimate
from tui.chat.machine_models import DEMO, MachineModels
from tui.chat.remembered_settings import Overrides, RememberedSettings


def save_model(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"12345678")
    return str(folder)


def source(tmp_path, recent, *, config=None, asked=None):
    async def estimate(folders, config):
        if asked is not None:
            asked.append((folders, config))
        for folder in folders:
            yield FitEstimate(folder, "streams", 0.5, "streams")

    settings = RememberedSettings(ChatSettings(recent_targets=recent), overrides=Overrides(config=config or {}))
    return MachineModels(settings, own_cache=tmp_path / "own", hub_cache=lambda: tmp_path / "hub", estimate=estimate)


def test_recent_models_come_first_then_their_neighbours(tmp_path):
    used, beside = save_model(tmp_path / "models" / "used"), save_model(tmp_path / "models" / "beside")
    own = save_model(tmp_path / "own" / "fetched")
    models = asyncio.run(source(tmp_path, (used, "owner/name")).models())
    assert [model.target for model in models] == [used, "owner/name", beside, own, ""]
    assert [model.is_recent for model in models] == [True, True, False, False, False]
    assert (models[0].name, models[0].weight_bytes) == ("used", 8)
    assert models[-1] == DEMO


def test_estimates_are_asked_for_folders_only_and_with_the_draft(tmp_path):
    folder, asked = save_model(tmp_path / "models" / "used"), []
    models = source(tmp_path, (folder,), config={"link": "1GB/s"}, asked=asked)

    async def all_of(targets):
        return [estimate.folder async for estimate in models.estimates(targets, draft="none")]

    assert asyncio.run(all_of([folder, "owner/name", ""])) == [folder]
    ((folders, config),) = asked
    assert (folders, config["draft"], config["link"]) == ([folder], "none", "1GB/s")
    assert asyncio.run(all_of(["owner/name"])) == []
    assert len(asked) == 1
