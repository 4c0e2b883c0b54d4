from dataclasses import replace
from pathlib import Path

import pytest

from offload.errors import CheckpointError
from runtime.config import EngineConfig
from runtime.engine import model_folders
from runtime.engine.model_folders import locate_models, model_name
from runtime.events import LoadProgress
from tests.support.generator_ends import drained


@pytest.mark.parametrize("draft", ["none", "substitute"])
def test_a_folder_is_itself_and_a_substitute_needs_none(tmp_path, draft):
    config = EngineConfig(target=str(tmp_path), draft=draft)
    assert drained(locate_models(config, cache_folder=tmp_path)) == ([f"looking for the target {tmp_path}"], config)


def test_a_separate_draft_is_found_too_whatever_it_is_called(tmp_path, monkeypatch):
    (tmp_path / "none").mkdir()
    monkeypatch.chdir(tmp_path)
    said, config = drained(locate_models(EngineConfig(target=".", draft="./none"), cache_folder=tmp_path))
    assert (config.target, config.draft) == (str(tmp_path), str(tmp_path / "none"))
    assert said == ["looking for the target .", "looking for the draft ./none"]


def test_without_a_target_the_demo_model_is_obtained_in_the_cache(monkeypatch, tmp_path):
    def obtain(cache_folder):
        yield "fetching"
        return cache_folder / "demo"

    monkeypatch.setattr(model_folders, "obtain_demo_model", obtain)
    found = drained(locate_models(EngineConfig(), cache_folder=tmp_path))
    assert found == (["fetching"], EngineConfig(target=str(tmp_path / "demo")))


def test_a_name_that_is_no_folder_and_no_hub_name_is_refused(tmp_path):
    with pytest.raises(CheckpointError):
        drained(locate_models(EngineConfig(target="./not/a/folder"), cache_folder=tmp_path))


def test_downloads_say_how_far_they_are(monkeypatch, tmp_path):
    def watch(name):
        yield 5, 10
        return tmp_path / name

    monkeypatch.setattr(model_folders, "watch_download", watch)
    config = EngineConfig(target="owner/large", draft="owner/small", tree="8x4")
    said, located = drained(locate_models(config, cache_folder=tmp_path))
    assert said == [
        "looking for the target owner/large",
        LoadProgress("downloading owner/large", 5, 10),
        "looking for the draft owner/small",
        LoadProgress("downloading owner/small", 5, 10),
    ]
    assert located == replace(config, target=str(tmp_path / "owner/large"), draft=str(tmp_path / "owner/small"))


def test_a_model_is_called_by_its_hub_name_or_its_folders(tmp_path, monkeypatch):
    assert model_name(Path("/x/hub/models--owner--a-b/snapshots/1234")) == "owner/a-b"
    assert model_name(Path("/x/models/llama")) == "llama"
    assert model_name(Path("/")) == "/"
    monkeypatch.chdir(tmp_path)
    assert model_name(Path()) == tmp_path.name
