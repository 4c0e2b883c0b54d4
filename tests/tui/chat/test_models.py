"""Which models lie on this machine, told by names and sizes alone."""

import json
import os
import time
from pathlib import Path

import pytest

from profiles.errors import BadInputError
from tests.support.gguf_bytes import gguf_bytes
from tui.chat.models import ListedModel, find_models, has_chat_template, is_path, models_below, refuse_no_model

TEMPLATE = b'{"chat_template": "{{ messages }}"}'


def make_model(folder: Path, *, num_bytes: int = 10, shards: int = 1) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_bytes(TEMPLATE)
    for index in range(shards):
        (folder / f"model-{index}.safetensors").write_bytes(b"x" * num_bytes)
    return folder


def make_snapshot(hub: Path, name: str, revision: str, *, num_bytes: int = 10, is_current: bool = True) -> Path:
    """As the hub's libraries lay it out: links into a folder of blobs."""
    repository = hub / f"models--{name.replace('/', '--')}"
    folder = repository / "snapshots" / revision
    files = {"config.json": b"{}", "tokenizer_config.json": TEMPLATE, "model.safetensors": b"x" * num_bytes}
    for file_name, content in files.items():
        blob = repository / "blobs" / f"{revision}-{file_name}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file_name).symlink_to(os.path.relpath(blob, folder))
    if is_current:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(revision)
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """So that the models of other programs on this machine stay out of it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    return tmp_path


def make_gguf(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gguf_bytes())
    return file


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    return tmp_path / "hub"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "own"


def listed(tmp_path: Path, *recent: str) -> list[ListedModel]:
    return list(find_models(recent, own_cache=tmp_path / "own", hub_cache=tmp_path / "hub"))


DEMO = ListedModel("", "SmolLM2-135M-Instruct (demo, 93 MB to download)")


def test_recent_models_come_first_and_the_caches_by_name(hub, own, tmp_path):
    make_snapshot(hub, "owner/Beta", "1234")
    make_model(own / "alpha")
    alone = str(make_model(tmp_path / "alone"))
    found = listed(tmp_path, "owner/gone", alone, "owner/gone")
    assert [model.name for model in found] == ["owner/gone", "alone", "alpha", "owner/Beta", DEMO.name]
    assert [model.is_recent for model in found] == [True, True, False, False, False]


def test_sizes_are_those_of_the_files_behind_the_links(hub, own, tmp_path):
    snapshot = str(make_snapshot(hub, "owner/model", "1234", num_bytes=1000))
    sharded = str(make_model(own / "sharded", num_bytes=100, shards=3))
    assert listed(tmp_path) == [
        ListedModel(snapshot, "owner/model", snapshot, 1000),
        ListedModel(sharded, "sharded", sharded, 300),
        DEMO,
    ]


def test_of_several_snapshots_the_current_one_is_listed(hub, tmp_path):
    current = make_snapshot(hub, "owner/model", "aaaa")
    newer = make_snapshot(hub, "owner/model", "bbbb", is_current=False)
    os.utime(newer, (time.time() + 100, time.time() + 100))
    assert [model.target for model in listed(tmp_path)] == [str(current), ""]
    (hub / "models--owner--model" / "refs" / "main").unlink()
    assert [model.target for model in listed(tmp_path)] == [str(newer), ""]


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
    assert listed(tmp_path) == [DEMO]


def test_a_recent_target_that_is_nothing_now_keeps_its_name(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    targets = [str(tmp_path / "missing"), str(loop), "~nobody-by-that-name/models", "owner/gone"]
    assert listed(tmp_path, *targets) == [*(ListedModel(each, each, is_recent=True) for each in targets), DEMO]


def test_a_model_that_is_reached_twice_is_listed_once(own, tmp_path):
    folder = make_model(own / "model")
    (own / "again").symlink_to(folder)
    (tmp_path / "link").symlink_to(folder)
    assert [model.target for model in listed(tmp_path, str(tmp_path / "link"))] == [str(tmp_path / "link"), ""]


def test_dozens_take_a_moment(hub, tmp_path):
    for index in range(60):
        make_snapshot(hub, f"owner/model-{index:02}", "1234")
    begun = time.process_time()
    assert len(listed(tmp_path)) == 61
    assert time.process_time() - begun < 2  # 30 ms on an idle core, and the hub's library is imported once


def test_the_demo_model_that_is_here_has_a_size(own, tmp_path):
    demo = str(make_model(own / "SmolLM2-135M-Instruct"))
    assert listed(tmp_path) == [ListedModel("", "SmolLM2-135M-Instruct (demo)", demo, 10)]
    assert listed(tmp_path, "") == [ListedModel("", "SmolLM2-135M-Instruct (demo)", demo, 10, is_recent=True)]


def test_a_model_of_the_hub_is_there_once_under_the_name_it_was_used_by(hub, tmp_path):
    snapshot = str(make_snapshot(hub, "owner/name", "1"))
    used = ListedModel("owner/name", "owner/name", snapshot, 10, is_recent=True)
    assert listed(tmp_path, "owner/name") == [used, DEMO]
    assert listed(tmp_path)[0] == ListedModel(snapshot, "owner/name", snapshot, 10)


def test_a_recent_folder_keeps_its_spelling(tmp_path, monkeypatch):
    make_model(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert listed(tmp_path, "./mine")[0] == ListedModel("./mine", "mine", "mine", 10, is_recent=True)


@pytest.mark.parametrize(
    ("files", "is_chat"),
    [
        ({}, False),
        ({"tokenizer_config.json": "{}"}, False),
        ({"tokenizer_config.json": '{"chat_template": ""}'}, False),
        ({"tokenizer_config.json": '{"chat_template": "{{ x }}"}'}, True),
        ({"tokenizer_config.json": "{}", "chat_template.jinja": "{{ x }}"}, True),
        ({"tokenizer_config.json": "no json"}, True),
        ({"tokenizer_config.json": "[" * 100_000}, True),
    ],
)
def test_a_model_without_chat_template_is_known_before_it_is_loaded(tmp_path, files, is_chat):
    """Half a GB was once loaded for that. What cannot be told is left to the load."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert has_chat_template(tmp_path) is is_chat


def test_a_folder_that_is_typed_lists_its_models(tmp_path):
    for name in ("alpha", "alps", "beta"):
        make_model(tmp_path / "models" / name)
    (tmp_path / "models" / "empty").mkdir()
    folder = f"{tmp_path}/models"
    assert [Path(model.target).name for model in models_below(folder)] == ["alpha", "alps", "beta"]
    assert [Path(model.target).name for model in models_below(f"{folder}/")] == ["alpha", "alps", "beta"]
    assert [Path(model.target).name for model in models_below(f"{folder}/al")] == ["alpha", "alps"]
    assert [model.name for model in models_below(f"{folder}/beta")] == ["beta"]
    assert models_below("~nobody-of-that-name/x") == models_below("owner/name") == models_below("") == ()


def test_a_path_is_told_from_a_name_of_the_hub():
    paths = ("/m", "~/m", "./m", "../m", "a/b/c", "a/")
    assert [each for each in (*paths, "owner/name", "name", "") if is_path(each)] == list(paths)


def test_gguf_files_of_the_hub_of_ollama_and_of_lm_studio_are_listed(hub, own, tmp_path):
    snapshot = hub / "models--owner--name-GGUF" / "snapshots" / "abc"
    first = make_gguf(snapshot / "m-Q4_K_M.gguf")
    make_gguf(own / "beside.gguf")
    make_gguf(tmp_path / ".lmstudio" / "models" / "owner" / "small-GGUF" / "small-Q8_0.gguf")
    blob = make_gguf(tmp_path / "ollama" / "blobs" / f"sha256-{'a' * 64}")
    manifest = tmp_path / "ollama" / "manifests" / "registry.ollama.ai" / "library" / "llama3.3" / "70b"
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{'a' * 64}"}
    manifest.write_text(json.dumps({"layers": [layer]}))
    found = {model.target: model for model in listed(tmp_path)}
    assert set(found) == {
        str(first),
        str(own / "beside.gguf"),
        "lmstudio:owner/small-GGUF",
        "ollama:llama3.3:70b",
        "",
    }
    assert found[str(first)].name == "owner/name-GGUF/m-Q4_K_M"
    listing = found["ollama:llama3.3:70b"]
    assert (listing.folder, listing.weight_bytes) == (str(blob), len(gguf_bytes()))
    recent, *_ = listed(tmp_path, "ollama:llama3.3:70b")
    assert recent.is_recent and recent.folder == str(blob) and len(listed(tmp_path, "ollama:llama3.3:70b")) == 5


def test_a_gguf_file_that_is_typed_is_a_model_and_another_file_is_none(tmp_path):
    file = make_gguf(tmp_path / "typed" / "model-Q4_K_M.gguf")
    assert [model.folder for model in models_below(str(file)[:-6])] == [str(file)]
    assert [model.folder for model in models_below(str(file.parent))] == [str(file)]
    refuse_no_model(str(file))
    refuse_no_model(str(file.parent))
    refuse_no_model("ollama:llama3.3:70b")
    (tmp_path / "other.gguf").write_bytes(b"PK")
    with pytest.raises(BadInputError, match="is no GGUF file"):
        refuse_no_model(str(tmp_path / "other.gguf"))
