"""What lies on this machine, told by names and sizes alone."""

import os
import time
from pathlib import Path

import pytest

from tui.chat.local_models import LocalModel, hub_cache_folder, list_local_models, model_name


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


def names(models: tuple[LocalModel, ...]) -> list[str]:
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
        LocalModel("owner/model", folder, 1000),
        LocalModel("sharded", own / "sharded", 300),
    )


def test_of_several_snapshots_the_current_one_is_listed(hub, own):
    current = make_snapshot(hub, "owner/model", "aaaa")
    newer = make_snapshot(hub, "owner/model", "bbbb", is_current=False)
    os.utime(newer, (time.time() + 100, time.time() + 100))
    assert [model.folder for model in list_local_models(hub_cache=hub, own_cache=own)] == [current]
    (hub / "models--owner--model" / "refs" / "main").unlink()
    assert [model.folder for model in list_local_models(hub_cache=hub, own_cache=own)] == [newer]


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
    begun = time.perf_counter()
    assert len(list_local_models(hub_cache=hub, own_cache=own)) == 60
    assert time.perf_counter() - begun < 0.5  # 10 ms on two idle cores


def test_a_name_is_the_hubs_or_the_folders(tmp_path):
    assert model_name(Path("/x/hub/models--owner--a-b/snapshots/1234")) == "owner/a-b"
    assert model_name(Path("/x/models/llama")) == "llama"
    assert model_name(Path("/")) == "/"


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
    ],
)
def test_the_hubs_own_variables_say_where_its_cache_is(environment, folder):
    assert hub_cache_folder(environment) == Path(folder)


def test_without_variables_the_cache_is_in_the_home():
    assert hub_cache_folder({}) == Path.home() / ".cache" / "huggingface" / "hub"
