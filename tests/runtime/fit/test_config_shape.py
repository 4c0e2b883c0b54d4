import json

import pytest

from offload.errors import CheckpointError, UnsupportedArchitectureError
from runtime.fit.config_shape import shape_of_config, shape_of_folder, shape_on_hub
from runtime.fit.file_need import layer_formats
from runtime.fit.known_shapes import find_shape
from runtime.model.model_loader import ModelFiles
from tests.support.model_factory import save_tiny_model

LLAMA_3_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}


def shape(**changes):
    return shape_of_config(LLAMA_3_8B | changes, name="x", where="config.json of x")


def test_a_config_gives_the_known_sizes():
    assert shape().num_parameters == find_shape("llama-3-8b").num_parameters
    assert shape().formats == find_shape("llama-3-8b").formats


@pytest.mark.parametrize(
    "family", ["llama", "qwen2", "mistral", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2", "gpt2"]
)
def test_sizes_are_those_of_the_files(family, tmp_path):
    """As the headers give them, up to norms and biases that no size tells of, and the whole pages they fill."""
    folder = save_tiny_model(family, tmp_path)
    found = shape_of_folder(folder)
    files = ModelFiles.open(folder)
    matrices = sum(
        tensor.shape[0] * tensor.shape[1] for tensor in files.slabs.layouts[0].tensors if len(tensor.shape) == 2
    )
    assert found.folder == folder
    assert found.shape.num_layer_parameters == matrices
    assert found.shape.num_layers == len(files.slabs.layouts)
    of_files = layer_formats(files.slabs.layouts)[0]
    assert found.shape.formats[0].name == of_files.name
    assert abs(found.shape.formats[0].total_bytes - of_files.total_bytes) <= 4096 * found.shape.num_layers


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
    assert found.shape.name == tmp_path.name


def test_old_names_and_missing_ones_have_their_meaning():
    old = {"model_type": "gpt2", "n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 100, "n_positions": 512}
    found = shape_of_config(old, name="x", where="config.json of x")
    assert (found.hidden_size, found.inner_size, found.head_dim, found.num_kv_heads) == (64, 256, 16, 4)
    assert (found.is_tied, found.is_gated, found.max_context_tokens) == (True, False, 512)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (None, ["bfloat16", "int8", "nf4"]),
        ({"load_in_4bit": True}, ["nf4"]),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, ["int8"]),
    ],
)
def test_a_published_quantization_is_the_format(settings, names):
    assert [one.name for one in shape(quantization_config=settings).formats] == names


def test_half_and_single_precision_have_their_names():
    assert shape(torch_dtype="float16").formats[0].name == "float16"
    assert shape(torch_dtype=None, dtype="float32").formats[0].name == "float32"


@pytest.mark.parametrize(
    "changes",
    [
        {"num_local_experts": 8},
        {"vision_config": {"hidden_size": 1}},
        {"is_encoder_decoder": True},
        {"layer_types": ["full_attention", "linear_attention"]},
    ],
)
def test_what_is_no_dense_decoder_is_refused(changes):
    with pytest.raises(UnsupportedArchitectureError, match=r"config\.json of x describes"):
        shape(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": None}, "has no hidden_size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers = -1"),
        ({"vocab_size": True}, "vocab_size = True"),
        ({"intermediate_size": 1e9}, "intermediate_size"),
        ({"head_dim": 1 << 40}, "head_dim"),
        ({"torch_dtype": "float8"}, "dtype 'float8'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized with 'awq'"),
        ({"quantization_config": 3}, "quantized with 3"),
    ],
)
def test_nonsense_is_a_sentence(changes, words):
    with pytest.raises(CheckpointError) as caught:
        shape(**changes)
    assert words in str(caught.value)


def test_only_the_config_is_fetched_from_the_hub(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B))
    asked = []

    def fetch(name):
        asked.append(name)
        return tmp_path / "config.json"

    found = shape_on_hub("owner/name", fetch=fetch)
    assert asked == ["owner/name"]
    assert (found.shape.name, found.folder) == ("owner/name", None)


def test_no_hub_is_a_sentence():
    def fetch(name):
        raise ConnectionError("no\nroute")

    with pytest.raises(CheckpointError) as caught:
        shape_on_hub("owner/name", fetch=fetch)
    assert "could not be fetched (ConnectionError); go online" in str(caught.value)


def test_a_folder_without_config_is_a_sentence(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        shape_of_folder(tmp_path)
