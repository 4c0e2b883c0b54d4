import copy
import json
import re
from importlib import resources

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from offload.errors import CheckpointError
from runtime.fit.config_shape import shape_of_config, text_part
from runtime.fit.models import find_shape, known_shapes
from tests.support.plan_fakes import LLAMA_3_8B_CONFIG as LLAMA_3_8B


def shape(**changes):
    return shape_of_config(LLAMA_3_8B | changes, name="x", where="config.json of x")


def test_a_config_gives_the_known_sizes():
    assert shape().num_parameters == find_shape("llama-3-8b").num_parameters
    assert shape().formats == find_shape("llama-3-8b").formats


def test_a_context_ends_where_longrope_changes_its_frequencies():
    rope = {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}
    long = {"max_position_embeddings": 131072}
    assert shape(**long).max_context_tokens == 131072
    assert shape(**long, rope_scaling=rope, original_max_position_embeddings=4096).max_context_tokens == 4096
    assert shape(**long, rope_parameters={**rope, "original_max_position_embeddings": 8192}).max_context_tokens == 8192
    assert (
        shape(**long, rope_scaling={"type": "yarn"}, original_max_position_embeddings=4096).max_context_tokens == 131072
    )


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
        {"encoder_config": {"hidden_size": 1}},
        {"is_encoder_decoder": True},
        {"layer_types": ["full_attention", "linear_attention"]},
        {"model_type": "qwen3_5_text", "layer_types": ["full_attention", "mamba"]},
    ],
)
def test_what_is_no_dense_decoder_is_refused(changes):
    with pytest.raises(CheckpointError, match=r"config\.json of x describes"):
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
        ({"quantization_config": {"quant_method": "hqq"}}, "quantized with 'hqq'"),
        ({"quantization_config": 3}, "quantized with 3"),
    ],
)
def test_nonsense_is_a_sentence(changes, words):
    with pytest.raises(CheckpointError) as caught:
        shape(**changes)
    assert words in str(caught.value)


TEXT = {key: value for key, value in LLAMA_3_8B.items() if key not in ("torch_dtype", "tie_word_embeddings")}


def composite(**changes):
    found = {"model_type": "some_vl", "text_config": TEXT, "vision_config": {"num_experts": 4, "hidden_size": 8}}
    return shape_of_config(found | changes, name="x", where="config.json of x")


def test_the_text_part_of_a_composite_model_counts():
    assert composite(torch_dtype="bfloat16").formats == shape().formats
    assert composite().num_parameters == shape().num_parameters


def test_the_whole_models_word_on_the_head_counts_before_its_parts():
    tied = TEXT | {"tie_word_embeddings": True}
    assert composite(text_config=tied).is_tied
    assert not composite(text_config=tied, tie_word_embeddings=False).is_tied
    assert composite(text_config=TEXT | {"model_type": "gemma3_text"}).is_tied


def test_a_text_part_that_is_none_leaves_the_whole():
    assert text_part({"text_config": [1], "hidden_size": 3})["hidden_size"] == 3


def test_experts_of_a_text_part_are_refused_with_the_command_that_serves():
    refused = r"a mixture of experts \(num_experts = 8\), .*--n-cpu-moe 32"
    with pytest.raises(CheckpointError, match=refused):
        shape(num_experts=8)
    with pytest.raises(CheckpointError, match=refused):
        composite(text_config=TEXT | {"num_experts": 8})


def test_a_quantized_composite_model_says_so_for_all_of_it():
    assert composite(quantization_config={"quant_method": "fp8"}).formats[0].name == "fp8"


def test_layers_without_a_window_may_have_heads_of_their_own():
    """Gemma 4 of 31B: 50 layers with windows, 10 without, whose keys are the values too."""
    of_layers = find_shape("gemma-4-31b").formats[0].layer_bytes
    vectors = 2 * (4 * 5376 + 2 * 256)
    windowed = 2 * (2 * 5376 * 8192 + 2 * 5376 * 4096 + 3 * 5376 * 21504) + vectors
    of_all = 2 * (2 * 5376 * 16384 + 5376 * 2048 + 3 * 5376 * 21504) + vectors
    assert [of_layers.count(-(-size // 4096) * 4096) for size in (windowed, of_all)] == [50, 10]
    assert of_layers[5] == of_layers[59] > of_layers[0]


def test_keys_and_values_are_counted_by_layer_where_heads_differ():
    found = find_shape("gemma-4-31b")
    assert found.cache_layer_bytes(2)[4:6] == (2 * 2 * 16 * 256, 2 * 2 * 4 * 512)
    assert found.cache_bytes_per_token(2) == sum(found.cache_layer_bytes(2))
    need = found.need(None, context_tokens=100, max_nodes=1, compute_item_bytes=2)
    assert need.cache_layer_bytes == found.cache_layer_bytes(2)
    assert found.row_layer_bytes("int8")[4] != found.row_layer_bytes("int8")[5]


def excerpts():
    file = resources.files("profiles").joinpath("builtin", "models.json")
    return json.loads(file.read_text(encoding="utf-8"))["models"]


def test_known_shapes_have_the_parameters_that_transformers_gives_their_excerpts():
    """Of six layers, one period of any pattern, built without memory: wherever a size had another name or meaning."""
    for one in excerpts():
        config = {key: value for key, value in one["config"].items() if key != "quantization_config"}
        text = config.get("text_config", config)
        text["num_hidden_layers"] = 6
        small = shape_of_config(config, name=one["name"], where="x")
        parsed = AutoConfig.for_model(**copy.deepcopy(config))
        of_class = AutoModelForCausalLM if text is config else AutoModelForImageTextToText
        with torch.device("meta"):
            model = of_class.from_config(parsed)
        parts = model.named_parameters()
        counted = sum(weight.numel() for name, weight in parts if not re.search("vision|visual|projector", name))
        assert small.num_parameters == pytest.approx(counted, rel=1e-6), one["name"]


def test_known_shapes_say_where_their_numbers_are_from():
    assert all(found.source and found.hub_name for found in known_shapes().values())
