import json

import pytest
import torch

from offload.errors import CheckpointError
from runtime.engine.draft_choice import MAX_PADDING
from runtime.engine.need_of_files import layer_formats
from runtime.errors import OptionError
from runtime.fit import models
from runtime.fit.models import (
    find_model,
    find_shape,
    known_shapes,
    shape_of_folder,
    shape_on_hub,
    usual_draft,
)
from runtime.model.model_loader import ModelFiles
from tests.support.every_architecture import save_architecture
from tests.support.gguf_factory import gguf_model, write_gguf
from tests.support.model_factory import save_tiny_model
from tests.support.plan_fakes import LLAMA_3_8B_CONFIG as LLAMA_3_8B


@pytest.mark.parametrize(
    "family", ["llama", "qwen2", "mistral", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2", "gpt2"]
)
def test_sizes_are_those_of_the_files(family, tmp_path):
    """As the headers give them, up to norms and biases that no size tells of, and the whole pages they fill."""
    folder = save_tiny_model(family, tmp_path)
    found = shape_of_folder(folder)
    files = ModelFiles.open(folder)
    matrices = sum(tensor.shape[0] * tensor.shape[1] for tensor in files.layouts[0].tensors if len(tensor.shape) == 2)
    assert found.folder == folder
    assert found.num_layer_parameters == matrices
    assert found.num_layers == len(files.layouts)
    of_files = layer_formats(files.layouts)[0]
    assert found.formats[0].name == of_files.name
    assert abs(found.formats[0].total_bytes - of_files.total_bytes) <= 4096 * found.num_layers


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("falcon", {}),
        ("falcon", {"multi_query": False}),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
        ("gpt_bigcode", {}),
        ("gpt_bigcode", {"multi_query": False}),
        ("youtu", {}),
        ("qwen3_5", {}),
        ("qwen3_next", {"num_experts": 0}),
        ("olmo_hybrid", {}),
        ("minicpm3", {}),
    ],
)
def test_keys_and_values_are_those_of_a_session(family, changes, tmp_path):
    """All heads may share one key, or a latent may stand for all."""
    folder = save_architecture(family, tmp_path, **changes)
    files, found = ModelFiles.open(folder), shape_of_folder(folder)
    assert found.cache_bytes_per_token(4) == files.cache_bytes_per_token(torch.float32)
    assert found.row_layer_bytes("int8") == files.row_layer_bytes("int8")
    assert found.row_layer_bytes("exact") == files.row_layer_bytes("exact") == ()


def test_files_that_disagree_with_their_config_are_noted(tmp_path):
    folder = save_tiny_model("llama", tmp_path, hidden_size=128, head_dim=32, intermediate_size=512)
    assert shape_of_folder(folder).note is None
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 1024}))
    assert "figures may be off" in shape_of_folder(folder).note


def test_a_folder_may_hold_a_config_alone(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B))
    found = shape_of_folder(tmp_path)
    assert found.folder is None and found.note is None
    assert found.name == tmp_path.name


def test_only_the_config_is_fetched_from_the_hub(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B))
    asked = []

    def fetch(name):
        asked.append(name)
        return tmp_path / "config.json"

    monkeypatch.setattr(models, "_fetch_config", fetch)
    found = shape_on_hub("owner/name")
    assert asked == ["owner/name"]
    assert (found.name, found.folder) == ("owner/name", None)


def test_no_hub_is_a_sentence(monkeypatch):
    def fetch(name):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(models, "_fetch_config", fetch)
    with pytest.raises(CheckpointError) as caught:
        shape_on_hub("owner/name")
    assert "could not be fetched (ConnectionError); go online" in str(caught.value)


def test_a_folder_without_config_is_a_sentence(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        shape_of_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("Llama-3-70B", 70_553_706_496),
        ("Llama-3-8B", 8_030_261_248),
        ("Llama-3.2-3B", 3_212_749_824),
        ("Llama-3.2-1B", 1_235_814_400),
        ("Llama-2-70B", 68_976_648_192),
        ("Llama-2-7B", 6_738_415_616),
        ("Qwen2.5-72B", 72_706_203_648),
        ("Qwen2.5-32B", 32_763_876_352),
        ("Qwen2.5-14B", 14_770_033_664),
        ("Qwen2.5-7B", 7_615_616_512),
        ("Qwen2.5-3B", 3_085_938_688),
        ("Qwen2.5-1.5B", 1_543_714_304),
        ("Qwen2.5-0.5B", 494_032_768),
    ],
)
def test_a_shape_has_the_published_number_of_parameters(name, num_parameters):
    """From the safetensors metadata that the hub shows: a wrong size anywhere would change it."""
    shape = find_shape(name)
    assert shape is not None and shape.num_parameters == num_parameters


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("llama-3-8b", "Llama-3-8B"),
        ("LLAMA 3 8B", "Llama-3-8B"),
        ("meta-llama/Meta-Llama-3-70B-Instruct", "Llama-3-70B"),
        ("llama_3.1_70b_instruct", "Llama-3.1-70B"),
        ("meta-llama/Llama-2-70b-chat-hf", "Llama-2-70B"),
        ("Qwen/Qwen2.5-Coder-1.5B-Instruct", "Qwen2.5-1.5B"),
        ("qwen2.5:0.5b", "Qwen2.5-0.5B"),
        ("ollama:llama3.3:70b", "Llama-3.3-70B"),
        ("owner/Llama-3.3-70B-Instruct-GGUF/Llama-3.3-70B-Instruct-Q4_K_M", "Llama-3.3-70B"),
        ("Mistral-Small-3.2-24B-Instruct-2506-UD-IQ3_XXS-00001-of-00002.gguf", "Mistral-Small-3.2-24B"),
        ("google/gemma-4-31B-it", "Gemma-4-31B"),
    ],
)
def test_a_name_is_found_however_it_is_spelt(typed, name):
    found = find_shape(typed)
    assert found is not None and found.name == name


@pytest.mark.parametrize(
    "typed", ["", "llama", "unsloth/llama-3-70b-bnb-4bit", "Qwen2.5-72B-Instruct-AWQ", "llama-3-7b"]
)
def test_another_model_is_not_taken_for_a_known_one(typed):
    assert find_shape(typed) is None


def test_names_are_unique_in_every_spelling():
    assert all(find_shape(name.upper()) is shape for name, shape in known_shapes().items())


def test_a_draft_is_smaller_and_has_as_large_a_vocabulary():
    """And is of the same family, or nobody claims to have compared the two."""
    pairs = [(shape, usual_draft(shape.name)) for shape in known_shapes().values()]
    assert sum(draft is not None for _, draft in pairs) == 33
    for shape, draft in pairs:
        if draft is not None:
            assert draft.num_parameters < shape.num_parameters / 2
            assert abs(draft.vocab_size - shape.vocab_size) <= MAX_PADDING
            assert draft.name[:5] == shape.name[:5] or not shape.is_draft_compared


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lama-3-70b", "did you mean llama-3-70b"),
        ("quen2.5-72b", "did you mean qwen2.5-72b"),
        ("zzz\x1b[2J", "known are llama-3-70b, llama-3-8b"),
        ("x" * 5000, "is not known"),
        (" ", "the target is empty"),
    ],
)
def test_a_slip_gets_the_near_names_and_nonsense_gets_all(name, words):
    with pytest.raises(OptionError) as caught:
        find_model(name, what="the target")
    assert words in str(caught.value) and "\x1b" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_file_is_not_a_model(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        find_model(str(tmp_path / "model.safetensors"), what="the target")


@pytest.mark.parametrize("kind", ["llama", "gemma3", "qwen35"])
def test_sizes_of_a_gguf_file_are_those_of_its_header(kind, tmp_path):
    file = write_gguf(tmp_path / "m-Q4_0.gguf", gguf_model(kind), kind=kind, types=("Q8_0", *["Q4_0"] * 7))
    found, files = find_model(str(file), what="the target"), ModelFiles.open(file)
    assert found.folder == file and found.name == "m-Q4_0" and found.num_layers == len(files.layouts)
    assert found.formats[0].name == "Q4_0" and found.stored is not None
    assert found.stored.total_bytes - files.checkpoint.total_bytes <= 4096 * found.num_layers
    assert find_model(str(tmp_path), what="the target") == found
    assert (found.recurrence is not None) == (kind == "qwen35")


@pytest.mark.parametrize(("types", "expected"), [(("F16",), "float16"), (("BF16",), "bfloat16"), (("F32",), "float32")])
def test_a_gguf_file_that_is_not_quantized_is_what_its_numbers_are(types, expected, tmp_path):
    file = write_gguf(tmp_path / "m.gguf", gguf_model("llama"), kind="llama", types=types)
    found = shape_of_folder(file)
    assert found.stored is None and found.formats[0].name == expected
    assert abs(found.formats[0].total_bytes - layer_formats(ModelFiles.open(file).layouts)[0].total_bytes) <= 2**15


def test_a_gguf_file_of_the_hub_is_asked_about_once_it_is_in_the_cache(tmp_path, monkeypatch):
    file = write_gguf(tmp_path / "m.gguf", gguf_model("llama"), kind="llama")
    monkeypatch.setattr(models, "cached_model", lambda model: file)
    assert find_model("owner/name-GGUF:Q4_K_M", what="the target").folder == file

    def absent(_):
        raise OSError("not there")

    monkeypatch.setattr(models, "cached_model", absent)
    assert find_model("llama-3.3-70b:Q4_K_M", what="the target").formats[0].name == "Q4_K_M"
