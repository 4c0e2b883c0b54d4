import json
from dataclasses import replace
from pathlib import Path

import pytest

from offload.errors import CheckpointError
from runtime.config import EngineConfig
from runtime.engine import model_folders
from runtime.engine.model_folders import (
    gguf_file_of,
    gguf_files_below,
    locate_models,
    model_name,
    models_of_others,
    weight_files,
)
from runtime.events import LoadProgress
from tests.support.generator_ends import drained
from tests.support.gguf_bytes import gguf_bytes


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
    def watch(name, *, variant=None):
        assert variant is None
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


def test_a_gguf_file_of_the_hub_is_asked_for_by_its_quantization(monkeypatch, tmp_path):
    def watch(name, *, variant):
        yield 5, 10
        return tmp_path / name / f"{variant}.gguf"

    monkeypatch.setattr(model_folders, "watch_download", watch)
    said, located = drained(locate_models(EngineConfig(target="owner/large:Q4_K_M"), cache_folder=tmp_path))
    assert said[1] == LoadProgress("downloading owner/large:Q4_K_M", 5, 10)
    assert located.target == str(tmp_path / "owner/large/Q4_K_M.gguf")


def test_what_ollama_keeps_beside_a_model_is_said_not_to_be_used(monkeypatch, tmp_path):
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    manifest = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "llama3.3" / "70b"
    blob = tmp_path / "blobs" / f"sha256-{'a' * 64}"
    for file in (manifest, blob):
        file.parent.mkdir(parents=True)
    blob.write_bytes(gguf_bytes())
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{'a' * 64}"}
    manifest.write_text(json.dumps({"layers": [layer]}))
    said, located = drained(locate_models(EngineConfig(target="ollama:llama3.3:70b"), cache_folder=tmp_path))
    assert located.target == str(blob) and "own template and parameters for it are not used" in str(said[1])
    assert model_name(blob) == "ollama:llama3.3:70b" and next(models_of_others()).file == blob


def test_a_gguf_file_is_called_by_its_own_name_wherever_it_lies(tmp_path):
    snapshot = tmp_path / "models--owner--name-GGUF" / "snapshots" / "abc"
    alone, part = tmp_path / "one-Q8_0.gguf", snapshot / "q4" / "m-Q4_K_M-00001-of-00002.gguf"
    for file in (alone, part, part.with_name("m-Q4_K_M-00002-of-00002.gguf")):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gguf_bytes())
    assert model_name(alone) == "one-Q8_0" and model_name(part) == "owner/name-GGUF/m-Q4_K_M"
    assert weight_files(part) == [part, part.with_name("m-Q4_K_M-00002-of-00002.gguf")]
    assert gguf_file_of(alone) == gguf_file_of(tmp_path) == alone and gguf_file_of(tmp_path / "absent") is None
    assert gguf_files_below(snapshot) == [part]


def test_the_weights_of_a_folder_are_its_safetensors(tmp_path):
    for name in ("b.safetensors", "a.safetensors", "config.json"):
        (tmp_path / name).touch()
    assert [file.name for file in weight_files(tmp_path)] == ["a.safetensors", "b.safetensors"]
