"""Values that nobody means in config.json: each model opens as if they were not there, or is refused in a sentence."""

import json
import math

import pytest

from offload.errors import CheckpointError
from runtime.model.model_loader import ModelFiles
from tests.support.model_factory import save_tiny_model
from tests.support.session_factory import answer, open_tiny, request, save_tiny_folder

FAMILIES = ("llama", "gemma3", "gpt2")
RETURNS_MORE = (
    {"output_hidden_states": True},
    {"output_attentions": True, "return_dict": False},
    {"return_dict": False, "use_cache": False},
    {"use_cache": False, "output_hidden_states": 7, "output_router_logits": True},
)
"""What changes only the things that a forward returns beside its result."""
ODD_ROPES = (
    *({}, [], [2.0], 2, "linear", {"factor": 2.0}, {"rope_type": None}, {"rope_type": 3}, {"rope_type": []}),
    *({"rope_type": "ntk"}, {"rope_type": "linear"}, {"rope_type": "dynamic"}, {"rope_type": "yarn"}),
    *({"rope_type": "linear", "factor": factor} for factor in (0, -3.0, "8", None, 1e300, [2.0], {})),
    *({"rope_type": "dynamic", "factor": factor} for factor in (0, -2.0, "x", 1e30)),
    *({"rope_type": "yarn", "factor": factor} for factor in (0.0, -4.0, "4")),
    *({"rope_type": "yarn", "factor": 4.0, name: "x"} for name in ("beta_fast", "attention_factor", "mscale")),
    *({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": size} for size in (0, -5, "128")),
    {"rope_type": "longrope"},
    *({"rope_type": "longrope", "short_factor": one, "long_factor": [1.0] * 4} for one in ("x", [None] * 4, [1.0] * 3)),
    *({"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": one} for one in (3, ["a"] * 4, [1.0] * 3)),
    {"rope_type": "llama3", "factor": 8.0},
    {"rope_type": "llama3", "factor": 0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    *({"rope_type": "default", "rope_theta": theta} for theta in (0, -5.0, "1e4", 10**400, None, [])),
    *({"rope_type": "default", "partial_rotary_factor": share} for share in (0, -1, 3, "x")),
    {"full_attention": {"rope_type": "default", "rope_theta": 1e4}},
)
ODD = (
    *({"rope_parameters": rope} for rope in ODD_ROPES),
    *({"rope_scaling": rope} for rope in ODD_ROPES[:20]),
    *({"head_dim": size} for size in ("8", -8, 0, 1, 7, 8.0, 10**9, 2**63, [], {}, True)),
    *({"hidden_size": size} for size in ("32", -32, 0, 33, 10**30, None)),
    *({"num_attention_heads": size} for size in ("4", -4, 0, 3, 10**15)),
    *({"vocab_size": size} for size in ("96", -96, 0, 95, 10**12)),
    *({"sliding_window": size} for size in ("8", -8, 0, 1, 0.5, [], 10**30)),
    *({"layer_types": types} for types in (3, "sliding_attention", ["sliding_attention"], [None] * 2, [["x"]] * 2)),
    *({"attention_chunk_size": size} for size in (0, -1, 4, "4", [])),
    *({"max_window_layers": 1e300}, {"num_kv_shared_layers": "x"}, {"is_causal": "no"}, {"rms_norm_eps": "x"}),
    *({"torch_dtype": dtype} for dtype in ("float99", "no.such", 3, [], {"a": "float32"}, "complex64")),
    *({"dtype": dtype} for dtype in ("float99", "torch.nn", 3, [], "int8")),
    *({"per_layer_config": odd} for odd in (3, {"0": {"head_dim": 4}}, {"0": {"sliding_window": 4}}, {"9": {}})),
    *({"tie_word_embeddings": "x"}, {"hidden_act": 3}, {"eos_token_id": 10**30}, {"bos_token_id": {}}),
)


def write(folder, sound, changes):
    (folder / "config.json").write_text(json.dumps({**sound, **changes}))


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_an_odd_value_opens_or_is_refused_in_a_sentence(family, step, tmp_path):
    """The fast tier gives each family another third of the values."""
    values = ODD[FAMILIES.index(family) % step :: step]
    folder = save_tiny_model(family, tmp_path, num_hidden_layers=2)
    sound = json.loads((folder / "config.json").read_text())
    num_refused = 0
    for changes in values:
        write(folder, sound, changes)
        try:
            files = ModelFiles.open(folder)
        except CheckpointError as error:
            sentence = str(error)
            assert sentence.isprintable() and len(sentence) < 700 and "config.json" in sentence, (changes, sentence)
            num_refused += 1
        except Exception as error:
            raise AssertionError(f"{changes}: {type(error).__name__}: {error}") from error
        else:
            assert files.cache_bytes_per_token(files.stored_dtype) > 0
    assert len(values) // 4 < num_refused < len(values)
    write(folder, sound, {})
    assert len(ModelFiles.open(folder).layouts) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_forward_returns_beside_its_result_changes_nothing(family, tmp_path):
    folder = save_tiny_folder(tmp_path, family)
    sound = json.loads((folder / "config.json").read_text())
    texts = []
    for changes in ({}, *RETURNS_MORE):
        write(folder, sound, changes)
        with open_tiny(folder) as opened:
            texts.append(answer(opened, request(max_new_tokens=8))[1])
    assert texts == [texts[0]] * len(texts)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "rotary frequencies that are no finite"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "rotary frequencies that are no finite"),
        ({"head_dim": "8"}, "head_dim"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps"),
        ({"dtype": "float99"}, "float99"),
        ({"rms_norm_eps": math.nan}, "not valid JSON"),
    ],
)
def test_the_sentence_names_what_is_wrong(changes, words, tmp_path):
    folder = save_tiny_model("llama", tmp_path, num_hidden_layers=2)
    write(folder, json.loads((folder / "config.json").read_text()), changes)
    with pytest.raises(CheckpointError, match=words):
        ModelFiles.open(folder)


def test_transformers_logs_nothing_beside_the_sentence(tmp_path, capfd):
    """It used to log the whole configuration for a setting that cannot be set."""
    folder = save_tiny_model("llama", tmp_path, num_hidden_layers=2)
    write(folder, json.loads((folder / "config.json").read_text()), {"use_return_dict": False})
    capfd.readouterr()
    with pytest.raises(CheckpointError, match="use_return_dict"):
        ModelFiles.open(folder)
    assert capfd.readouterr().err == ""
