"""Every spelling of a model, with folders that look as ollama and LM Studio leave them."""

import json
from pathlib import Path

import pytest

from offload.checkpoint.model_places import (
    HubModel,
    as_hub_model,
    choose_variant,
    find_local,
    find_place,
    first_parts,
    gguf_files,
    lm_studio_folders,
    lm_studio_models,
    ollama_folders,
    ollama_ignores,
    ollama_models,
    only_gguf,
    total_bytes,
)
from offload.errors import CheckpointError
from tests.support.gguf_bytes import gguf_bytes

DIGEST = "a" * 64


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    return tmp_path


def gguf(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gguf_bytes())
    return file


def ollama(models: Path, place: str = "registry.ollama.ai/library/llama3.3/70b", digest: str = DIGEST) -> Path:
    """A manifest and its blob, as ollama leaves them; return the blob."""
    manifest = models / "manifests" / place
    manifest.parent.mkdir(parents=True, exist_ok=True)
    layers = [
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": 3},
        {"mediaType": "application/vnd.ollama.image.template", "digest": f"sha256:{'b' * 64}", "size": 3},
    ]
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    return gguf(models / "blobs" / f"sha256-{digest}")


def test_an_existing_folder_is_found_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    gguf(folder / "m.gguf")
    assert find_place(str(folder)) == folder  # the folder's own weights come first
    monkeypatch.chdir(tmp_path)
    assert find_place("model") == Path("model")


@pytest.mark.parametrize(
    "name",
    [
        *("./absent", "/absent", "absent", "a/b/c", "owner/na me", "~/absent/x", "~nobody-here/x", "", "x\0y"),
        *("x" * 5000, "owner/name:", "owner/name:a/b", "owner/name:../x", "other:name"),
    ],
)
def test_what_looks_like_a_path_is_never_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="model folder not found"):
        find_place(name)


def test_hub_names_may_say_which_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_place("Owner/Some-Model.v2") == HubModel("Owner/Some-Model.v2")
    assert find_place("owner/name-GGUF:Q4_K_M") == as_hub_model("owner/name-GGUF:Q4_K_M")
    assert as_hub_model("owner/name-GGUF:Q4_K_M") == HubModel("owner/name-GGUF", "Q4_K_M")
    assert find_local("owner/name") is None and as_hub_model("name") is None


def test_a_gguf_file_and_the_folder_that_holds_it_alone_are_one_model(tmp_path: Path) -> None:
    file = gguf(tmp_path / "folder" / "model.gguf")
    gguf(tmp_path / "folder" / "mmproj-model.gguf")
    assert find_place(str(file)) == find_place(str(file.parent)) == only_gguf(file.parent) == file
    other = gguf(tmp_path / "folder" / "other-00001-of-00002.gguf")
    second = gguf(tmp_path / "folder" / "other-00002-of-00002.gguf")
    assert find_place(str(second)) == other and total_bytes(other) == 2 * len(gguf_bytes())
    assert gguf_files(file.parent) == [file, other]
    with pytest.raises(CheckpointError, match=r"holds 2 GGUF models \('model.gguf', 'other-00001-of-00002.gguf'\)"):
        find_place(str(file.parent))


def test_a_file_that_is_no_gguf_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="is a file, and no GGUF file; expected the model folder"):
        find_place(str(tmp_path / "model.gguf"))


NAMES = [
    *("model-Q4_K_M.gguf", "model-Q4_K_S.gguf", "model-Q8_0-00001-of-00002.gguf", "model-Q8_0-00002-of-00002.gguf"),
    *("BF16/model-BF16-00001-of-00003.gguf", "mmproj-model-f16.gguf", "model-UD-Q4_K_XL.gguf", "README.md"),
]


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("Q4_K_M", "model-Q4_K_M.gguf"),
        ("q8_0", "model-Q8_0-00001-of-00002.gguf"),
        ("bf16", "BF16/model-BF16-00001-of-00003.gguf"),
        ("UD-Q4_K_XL", "model-UD-Q4_K_XL.gguf"),
        ("Q4_K", None),
        ("f16", None),
        ("Q2_K", None),
    ],
)
def test_the_file_of_a_variant_is_the_one_whose_name_says_it(variant: str, expected: str | None) -> None:
    assert choose_variant(NAMES, variant) == expected
    assert choose_variant([*NAMES, "other-Q4_K_M.gguf"], "Q4_K_M") is None
    assert first_parts(NAMES)[0] == "BF16/model-BF16-00001-of-00003.gguf" and len(first_parts(NAMES)) == 5


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("ollama:llama3.3:70b", "registry.ollama.ai/library/llama3.3/70b"),
        ("ollama:llama3.3", "registry.ollama.ai/library/llama3.3/latest"),
        ("ollama:someone/model:q4", "registry.ollama.ai/someone/model/q4"),
        ("ollama:hf.co/owner/name-GGUF:Q4_K_M", "hf.co/owner/name-GGUF/Q4_K_M"),
    ],
)
def test_ollama_models_are_found_by_their_manifests(home: Path, name: str, place: str) -> None:
    blob = ollama(home / ".ollama" / "models", place)
    assert find_place(name) == blob
    (found,) = ollama_models()
    assert found.file == blob and found.num_bytes == len(gguf_bytes())
    assert find_place(found.spelling) == blob
    sentence = ollama_ignores(blob)
    assert sentence is not None and "own template and parameters for it are not used" in sentence
    assert ollama_ignores(home) is None


def test_ollama_may_be_told_another_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(home / "elsewhere"))
    assert ollama_folders() == [home / "elsewhere"]
    assert find_place("ollama:llama3.3:70b") if ollama(home / "elsewhere") else None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ollama:absent", "ollama has no 'absent'"),
        ("ollama:../../x", "is no name of an ollama model"),
        ("ollama:a/b/c/d", "is no name of an ollama model"),
        ("ollama:name:../x", "is no name of an ollama model"),
        ("ollama:", "is no name of an ollama model"),
        ("ollama:list", "names no single file of a model"),
        ("ollama:digest", "names no single file of a model"),
        ("ollama:broken", "is not valid JSON"),
        ("ollama:gone", "is missing, which"),
    ],
)
def test_what_ollama_cannot_give_is_one_sentence(home: Path, name: str, expected: str) -> None:
    models = home / ".ollama" / "models"
    library = models / "manifests" / "registry.ollama.ai" / "library"
    contents = {"list": "[]", "digest": "", "broken": "{", "gone": ""}
    for word, content in contents.items():
        (library / word).mkdir(parents=True)
        (library / word / "latest").write_text(content)
    (library / "list" / "latest").write_text('{"layers": 3}')
    ollama(models, "registry.ollama.ai/library/digest/latest", "../" + "a" * 61)
    ollama(models, "registry.ollama.ai/library/gone/latest").unlink()
    with pytest.raises(CheckpointError, match=expected):
        find_place(name)
    assert list(ollama_models()) == []


def test_lm_studio_models_are_found_in_both_of_its_folders(home: Path) -> None:
    assert lm_studio_folders() == [home / ".lmstudio" / "models", home / ".cache" / "lm-studio" / "models"]
    first = gguf(home / ".lmstudio" / "models" / "owner" / "one-GGUF" / "one-Q4_K_M.gguf")
    second = gguf(home / ".cache" / "lm-studio" / "models" / "owner" / "two-GGUF" / "two-Q4_K_M.gguf")
    third = gguf(second.with_name("two-Q8_0.gguf"))
    assert find_place("lmstudio:owner/one-GGUF") == first
    assert find_place("lmstudio:owner/two-GGUF/two-Q8_0.gguf") == third
    found = {model.spelling: model.file for model in lm_studio_models()}
    assert found == {
        "lmstudio:owner/one-GGUF": first,
        "lmstudio:owner/two-GGUF/two-Q4_K_M.gguf": second,
        "lmstudio:owner/two-GGUF/two-Q8_0.gguf": third,
    }
    assert all(find_place(spelling) == file for spelling, file in found.items())
    with pytest.raises(CheckpointError, match="holds 2 GGUF models"):
        find_place("lmstudio:owner/two-GGUF")


@pytest.mark.parametrize("name", ["lmstudio:owner", "lmstudio:../x", "lmstudio:a/b/c/d"])
def test_a_name_that_lm_studio_cannot_have_is_refused(home: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="is no name of an LM Studio model"):
        find_place(name)


def test_a_model_that_lm_studio_does_not_have_is_named(home: Path) -> None:
    with pytest.raises(CheckpointError, match="LM Studio has no GGUF model 'owner/absent'"):
        find_place("lmstudio:owner/absent")
