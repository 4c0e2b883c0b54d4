"""Every causal language model of transformers: its own text, plain and through a streamed tree, or a sentence.

Goes by transformers' own list, so that a new architecture is tried as soon as it is there. What gives the text now may
not be refused later.
"""

import re

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from profiles.errors import BadInputError
from runtime.model.safe_build import refuse_unsupported
from tests.support.every_architecture import ARCHITECTURES, WINDOW, outcome, save_architecture, small_config

EQUAL = (
    *("apertus", "apertus1p5_text", "arcee", "biogpt", "bitnet", "codegen", "cohere", "cohere2", "cohere_compass_text"),
    *("ctrl", "cwm", "diffllama", "doge", "ernie4_5", "exaone", "exaone4", "falcon", "gemma", "gemma2", "gemma3"),
    *(
        "gemma3_text",
        "gemma4",
        "gemma4_text",
        "glm",
        "glm4",
        "gpt-sw3",
        "gpt2",
        "gpt_bigcode",
        "gpt_neox",
        "gpt_neox_japanese",
        "gptj",
    ),
    *("granite", "granite_swa", "helium", "hunyuan_v1_dense", "hyperclovax", "internlm3", "iquestcoder", "jais2"),
    *("lfm2", "llama", "minicpm3", "ministral", "ministral3", "mistral", "modernbert-decoder", "moshi", "nanochat"),
    *(
        "nemotron",
        "olmo",
        "olmo2",
        "olmo3",
        "olmo_hybrid",
        "opt",
        "persimmon",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_5",
    ),
    *("qwen3_5_text", "seed_oss", "smollm3", "stablelm", "starcoder2", "vaultgemma", "xglm", "youtu"),
)
ROPE = {"rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [1.0, 1.5, 2.0, 3.0]}
VARIANTS = {
    "falcon with grouped heads": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon with all heads": {"multi_query": False},
    "gpt_bigcode with all heads": {"multi_query": False},
    "opt narrow embeddings": {"word_embed_proj_dim": 16},
    "opt norms behind": {"do_layer_norm_before": False},
    "minicpm3 full queries": {"q_lora_rank": None},
    "gemma4_text one head_dim": {"per_layer_config": {}},
    "qwen3_moe without experts": {"num_local_experts": 0},
    "qwen3_next without experts": {"num_experts": 0},
    "mistral of two kinds": {"sliding_window": 2},
    "llama with yarn": {"rope_parameters": {**ROPE, "rope_type": "yarn"}},
    "llama with dynamic frequencies": {"rope_parameters": {**ROPE, "rope_type": "dynamic"}},
    "phi3 with longrope": {"rope_parameters": {**ROPE, "rope_type": "longrope", **FACTORS}},
}
FAST = frozenset(("opt", "doge", "youtu", "gpt_bigcode", "gemma4_text", "modernbert-decoder", "dory"))
SENTENCE = re.compile(r"refused: [^\n]{20,700}")


def cases(names):
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in names]


def tried(name, folder, **changes):
    try:
        config = small_config(name, **changes)
    except Exception:  # sizes of its own, or none at all: its usual ones must be enough to refuse it
        config = CONFIG_MAPPING[name]()
    try:
        refuse_unsupported(config, where="config.json")
    except BadInputError as error:
        return f"refused: {error}"
    return outcome(save_architecture(name, folder, **changes))


@pytest.mark.parametrize("name", cases(ARCHITECTURES))
def test_an_architecture_gives_transformers_text_or_is_refused(name, tmp_path):
    found = tried(name, tmp_path)
    print(name, found)  # the list that `pytest -rP` shows
    assert found == "equal" or (name not in EQUAL and SENTENCE.fullmatch(found)), found


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_so_does_each_of_its_variants(variant, tmp_path):
    assert tried(variant.split()[0], tmp_path, **VARIANTS[variant]) == "equal"


def test_nothing_that_gave_the_text_has_left_transformers():
    assert set(EQUAL) <= set(ARCHITECTURES)


@pytest.mark.parametrize("name", ["moshi", "llama"])
def test_a_window_that_only_transformers_cache_obeys_is_refused(name, tmp_path):
    """Its text would depend on whether the cache is used."""
    found = tried(name, tmp_path, sliding_window=WINDOW)
    assert "lets transformers' cache keep 8 tokens of layer 0, whose attention sees all; remove sliding_window" in found
