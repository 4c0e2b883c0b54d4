from pathlib import Path

import pytest

from offload.errors import CheckpointError
from runtime.engine import model_folders
from runtime.engine.model_folders import locate_models, locate_models_in_sight, model_name
from runtime.engine_config import EngineConfig
from runtime.events import LoadProgress
from tests.support.generator_ends import drained


@pytest.mark.parametrize("draft", ["none", "substitute"])
def test_a_folder_is_itself_and_a_substitute_needs_none(tmp_path, draft):
    config = EngineConfig(target=str(tmp_path), draft=draft)
    assert drained(locate_models(config, cache_folder=tmp_path))[1] == (tmp_path, None)


def test_a_separate_draft_is_found_too(tmp_path):
    draft = tmp_path / "draft"
    draft.mkdir()
    said, folders = drained(locate_models(EngineConfig(target=str(tmp_path), draft=str(draft)), cache_folder=tmp_path))
    assert folders == (tmp_path, draft)
    assert len(said) == 2


def test_without_a_target_the_demo_model_is_obtained_in_the_cache(monkeypatch):
    def obtain(cache_folder):
        yield "fetching"
        return cache_folder / "demo"

    monkeypatch.setattr(model_folders, "obtain_demo_model", obtain)
    assert drained(locate_models(EngineConfig(), cache_folder=Path("/c"))) == (["fetching"], (Path("/c/demo"), None))


def test_a_name_that_is_no_folder_and_no_hub_name_is_refused(tmp_path):
    with pytest.raises(CheckpointError):
        drained(locate_models(EngineConfig(target="./not/a/folder"), cache_folder=tmp_path))


def test_downloads_are_shown_to_whoever_wants_to_see_them(monkeypatch, tmp_path):
    def watch(name):
        yield 5, 10
        folder = tmp_path / name
        folder.mkdir(parents=True)
        return folder

    monkeypatch.setattr(model_folders, "watch_download", watch)  # once for each: what is here is not asked for again
    config = EngineConfig(target="owner/large", draft="owner/small")
    said, folders = drained(locate_models_in_sight(config, cache_folder=tmp_path))
    assert [each for each in said if isinstance(each, LoadProgress)] == [
        LoadProgress("downloading owner/large", 5, 10),
        LoadProgress("downloading owner/small", 5, 10),
    ]
    assert folders == (tmp_path / "owner/large", tmp_path / "owner/small")


def test_folders_are_not_downloaded(tmp_path):
    config = EngineConfig(target=str(tmp_path), draft="substitute")
    said, folders = drained(locate_models_in_sight(config, cache_folder=tmp_path))
    assert all(isinstance(each, str) for each in said) and folders == (tmp_path, None)


def test_a_model_is_called_by_its_hub_name_or_its_folders(tmp_path, monkeypatch):
    assert model_name(Path("/x/hub/models--owner--a-b/snapshots/1234")) == "owner/a-b"
    assert model_name(Path("/x/models/llama")) == "llama"
    assert model_name(Path("/")) == "/"
    monkeypatch.chdir(tmp_path)
    assert model_name(Path()) == tmp_path.name
