from pathlib import Path

import pytest

from offload.errors import CheckpointError
from runtime import model_folders
from runtime.engine_config import EngineConfig
from runtime.model_folders import locate_models


def finish(steps):
    said = []
    while True:
        try:
            said.append(next(steps))
        except StopIteration as end:
            return said, end.value


@pytest.mark.parametrize("draft", ["none", "substitute"])
def test_a_folder_is_itself_and_a_substitute_needs_none(tmp_path, draft):
    config = EngineConfig(target=str(tmp_path), draft=draft)
    assert finish(locate_models(config, cache_folder=tmp_path))[1] == (tmp_path, None)


def test_a_separate_draft_is_found_too(tmp_path):
    draft = tmp_path / "draft"
    draft.mkdir()
    said, folders = finish(locate_models(EngineConfig(target=str(tmp_path), draft=str(draft)), cache_folder=tmp_path))
    assert folders == (tmp_path, draft)
    assert len(said) == 2


def test_without_a_target_the_demo_model_is_obtained_in_the_cache(monkeypatch):
    def obtain(cache_folder):
        yield "fetching"
        return cache_folder / "demo"

    monkeypatch.setattr(model_folders, "obtain_demo_model", obtain)
    assert finish(locate_models(EngineConfig(), cache_folder=Path("/c"))) == (["fetching"], (Path("/c/demo"), None))


def test_a_name_that_is_no_folder_and_no_hub_name_is_refused(tmp_path):
    with pytest.raises(CheckpointError):
        finish(locate_models(EngineConfig(target="./not/a/folder"), cache_folder=tmp_path))
