"""Which models are accepted, and how their layers are found and matched with the files."""

import inspect

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DynamicCache

from offload.checkpoint.checkpoint import Checkpoint
from offload.errors import CheckpointError
from runtime.model.architecture import (
    build_empty_model,
    inspect_decoder,
    load_config,
    max_positions,
    open_decoder,
)
from runtime.model.attention import GROUPED_ATTENTION
from runtime.model.safe_build import cache_argument
from tests.support.model_factory import MAIN_KINDS, edit_config, random_model, save_tiny_model, tiny_config

HALF_SLIDING = {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"] * 2}
FAMILIES = {
    **{kind: {} for kind in MAIN_KINDS},
    "qwen2 sliding": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    "apertus": {},
    "arcee": {},
    "biogpt": {},
    "cohere": {},
    "cohere2": HALF_SLIDING,
    "ernie4_5": {},
    "exaone4": HALF_SLIDING,
    "falcon": {},
    "gemma": {"head_dim": 8},
    "gemma2": {},
    "glm4": {"head_dim": 8},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neox": {},
    "gptj": {"rotary_dim": 8},
    "granite": {},
    "helium": {"head_dim": 8},
    "ministral": {"head_dim": 8, **HALF_SLIDING},
    "nemotron": {},
    "olmo2": {},
    "olmo3": HALF_SLIDING,
    "opt": {},
    "phi": {},
    "phi3": {"sliding_window": 8},
    "seed_oss": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "xglm": {},
}
NUM_CONTEXT = 14
PARENTS = (-1, 0, 0, 1, 1, 2, 3)


def settings(family: str) -> tuple[str, dict]:
    return family.split()[0], FAMILIES[family]


def save_family(family, folder):
    kind, overrides = settings(family)
    return Checkpoint.open(save_tiny_model(kind, folder, **overrides))


def path_to(node):
    return [] if node < 0 else [*path_to(PARENTS[node]), node]


def additive(allowed):
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[None, None]


def masks(visible, query_positions, key_positions, windows):
    """What the layers' windows ask for: one mask, or one per kind where both kinds occur."""
    found = {
        "full_attention" if window is None else "sliding_attention": additive(
            visible if window is None else visible & (key_positions[None, :] > query_positions[:, None] - window)
        )
        for window in windows
    }
    return found if len(found) > 1 else next(iter(found.values()))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_an_accepted_family_computes_a_tree_as_if_each_path_were_alone(family, tmp_path):
    """The one property that speculation rests on, with the windows that inspect_decoder reports."""
    parts = open_decoder(save_family(family, tmp_path), dtype=torch.float32)
    kind, overrides = settings(family)
    model = random_model(tiny_config(kind, **overrides))
    num_nodes = len(PARENTS)
    ids = torch.randint(7, 90, (1, NUM_CONTEXT + num_nodes), generator=torch.Generator().manual_seed(0))
    context = torch.arange(NUM_CONTEXT)
    nodes = torch.tensor([NUM_CONTEXT + len(path_to(node)) - 1 for node in range(num_nodes)])
    visible = torch.zeros(num_nodes, NUM_CONTEXT + num_nodes, dtype=torch.bool)
    visible[:, :NUM_CONTEXT] = True
    for node in range(num_nodes):
        visible[node, [NUM_CONTEXT + ancestor for ancestor in path_to(node)]] = True
    cache = DynamicCache()
    causal = torch.ones(NUM_CONTEXT, NUM_CONTEXT, dtype=torch.bool).tril()
    for tokens, seen, positions, key_positions in (
        (ids[:, :NUM_CONTEXT], causal, context, context),
        (ids[:, NUM_CONTEXT:], visible, nodes, torch.cat([context, nodes])),
    ):
        tree_logits = model(
            input_ids=tokens,
            attention_mask=masks(seen, positions, key_positions, parts.layer_windows),
            position_ids=positions[None],
            **{cache_argument(inspect.signature(model.forward).parameters): cache},
            use_cache=True,
        ).logits[0]
    for node in range(num_nodes):
        alone = torch.cat([ids[:, :NUM_CONTEXT], ids[:, [NUM_CONTEXT + item for item in path_to(node)]]], dim=1)
        expected = model(input_ids=alone, use_cache=False).logits[0, -1]
        torch.testing.assert_close(tree_logits[node], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_filling_an_empty_model_from_its_entries_gives_transformers_own_logits(family, tmp_path):
    """Names, shapes, ties and real buffers are all right if nothing but the named bytes makes the model."""
    checkpoint = save_family(family, tmp_path)
    parts = open_decoder(checkpoint, dtype=torch.float32)
    stored = {
        parts.layers_name + f".{index}.{name}": entry
        for index, tensors in enumerate(parts.layer_tensors)
        for name, entry in tensors.items()
    } | dict(parts.other_tensors)
    state = {}
    for name, entry in stored.items():
        raw = entry.file.read_bytes()[entry.offset_bytes : entry.offset_bytes + entry.num_bytes]
        state[name] = torch.frombuffer(bytearray(raw), dtype=torch.float32).reshape(entry.shape)
    state |= {target: state[source] for target, source in parts.tied.items()}
    assert set(state) == set(parts.model.state_dict())
    parts.model.load_state_dict(state, assign=True)
    ids = torch.arange(7, 27)[None]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)(input_ids=ids).logits
        torch.testing.assert_close(parts.model(input_ids=ids).logits, expected, atol=1e-5, rtol=0)


def test_the_parts_of_a_tied_model_with_mixed_windows(tmp_path):
    parts = open_decoder(Checkpoint.open(save_tiny_model("gemma3", tmp_path)), dtype=torch.bfloat16)
    assert (parts.decoder_name, parts.layers_name, parts.num_layers) == ("model", "model.layers", 6)
    assert parts.layer_windows == (8, 8, None, 8, 8, None)
    assert parts.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert set(parts.other_tensors) == {"model.embed_tokens.weight", "model.norm.weight"}
    assert parts.layer_tensors[3]["mlp.up_proj.weight"].name == "model.layers.3.mlp.up_proj.weight"
    assert all(parameter.is_meta and parameter.dtype == torch.bfloat16 for parameter in parts.model.parameters())
    assert not any(buffer.is_meta for buffer in parts.model.buffers()) and not parts.model.training
    assert parts.model.config._attn_implementation == GROUPED_ATTENTION


@pytest.mark.parametrize(
    ("kind", "overrides", "expected"),
    [
        ("llama", {}, (None,) * 4),
        ("llama", {"sliding_window": 512}, (None,) * 4),
        ("llama", {"sliding_window": 512, "layer_types": ["sliding_attention"] * 4}, (None,) * 4),
        ("mistral", {}, (8,) * 4),
        ("mistral", {"sliding_window": None}, (None,) * 4),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": False}, (None,) * 4),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3}, (None, None, None, 8)),
        ("qwen3", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0}, (8,) * 4),
        ("phi3", {"sliding_window": 8}, (8,) * 4),
        ("gemma2", {}, (8, None, 8, None)),
    ],
)
def test_windows_are_those_of_the_models_own_masks(tmp_path, kind, overrides, expected):
    """A setting that an architecture ignores is ignored here too, if it hides no token of the longest context."""
    checkpoint = Checkpoint.open(save_tiny_model(kind, tmp_path, **overrides))
    assert open_decoder(checkpoint, dtype=torch.float32).layer_windows == expected


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("llama", {"sliding_window": 8}),
        ("llama", {"layer_types": ["sliding_attention"] * 4, "sliding_window": 511}),
        ("llama", {"attention_chunk_size": 8}),
        ("gpt2", {"sliding_window": 8}),
        ("mistral", {"sliding_window": None, "attention_chunk_size": 8}),
        ("mistral", {"sliding_window": 1}),
        ("qwen2", {"sliding_window": 1, "use_sliding_window": True, "max_window_layers": 3}),
        ("gemma3", {"sliding_window": 1}),
    ],
)
def test_windows_that_transformers_cache_has_and_its_masks_have_not_are_refused(tmp_path, kind, overrides):
    """Its greedy text is another one with the cache than without it."""
    save_tiny_model(kind, tmp_path, **overrides)
    with pytest.raises(CheckpointError, match=r"transformers' (own )?cache keep"):
        open_decoder(Checkpoint.open(tmp_path), dtype=torch.float32)


@torch.no_grad()
def test_a_window_of_w_is_the_token_and_the_w_minus_one_before_it():
    model = random_model(tiny_config("mistral", num_hidden_layers=1, sliding_window=4))
    ids = torch.arange(20, 30)[None]
    before = model(input_ids=ids).logits[0, 9]
    for position in range(9):
        changed = ids.clone()
        changed[0, position] += 30
        is_seen = not torch.equal(model(input_ids=changed).logits[0, 9], before)
        assert is_seen == (position > 9 - 4)


def test_a_base_models_names_are_matched_without_their_prefix(tmp_path):
    """GPT-2 is published like this."""
    save_tiny_model("gpt2", tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}, file)
    parts = open_decoder(Checkpoint.open(tmp_path), dtype=torch.float32)
    assert parts.other_tensors["transformer.wte.weight"].name == "wte.weight"
    assert parts.layer_tensors[1]["attn.c_attn.weight"].name == "h.1.attn.c_attn.weight"


def test_old_spellings_are_matched_as_transformers_matches_them(tmp_path):
    save_tiny_model("gpt_neox", tmp_path)
    parts = open_decoder(Checkpoint.open(tmp_path), dtype=torch.float32)
    assert parts.other_tensors["lm_head.weight"].name == "embed_out.weight"


def test_a_stored_head_wins_over_tying(tmp_path):
    """transformers does not tie what the file stores twice with different values."""
    save_tiny_model("llama", tmp_path)
    edit_config(tmp_path, tie_word_embeddings=True)
    parts = open_decoder(Checkpoint.open(tmp_path), dtype=torch.float32)
    assert parts.tied == {} and "lm_head.weight" in parts.other_tensors


def test_a_missing_embedding_is_tied_to_the_stored_head(tmp_path):
    save_tiny_model("llama", tmp_path)
    edit_config(tmp_path, tie_word_embeddings=True)
    file = tmp_path / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "embed_tokens" not in name}, file)
    parts = open_decoder(Checkpoint.open(tmp_path), dtype=torch.float32)
    assert parts.tied == {"model.embed_tokens.weight": "lm_head.weight"}


def test_the_three_steps_are_what_open_decoder_does(tmp_path):
    checkpoint = Checkpoint.open(save_tiny_model("qwen3", tmp_path))
    model = build_empty_model(load_config(checkpoint), dtype=torch.float16)
    parts = inspect_decoder(model, checkpoint)
    assert parts.model is model and parts.num_layers == 4
    assert parts.layers is model.get_submodule(parts.layers_name)
    whole = open_decoder(checkpoint, dtype=torch.float16)
    assert whole.model.dtype == model.dtype and str(whole.model) == str(model)
    for name in ("layers_name", "layer_windows", "layer_tensors", "other_tensors", "tied"):
        assert getattr(whole, name) == getattr(parts, name)


def test_max_positions_is_what_the_configuration_says():
    assert max_positions(tiny_config("llama", max_position_embeddings=123)) == 123
    assert max_positions(tiny_config("gpt2", n_positions=77, max_position_embeddings=77)) == 77
    assert max_positions(tiny_config("bloom", max_position_embeddings=None)) is None


LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 1.5, 2.0, 3.0], "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("llama", {"rope_parameters": {**LONGROPE, "original_max_position_embeddings": 16}}),
        ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16}),
        ("gemma3", {"rope_parameters": {"full_attention": {**LONGROPE, "original_max_position_embeddings": 16}}}),
    ],
)
def test_a_text_ends_where_longrope_would_change_the_keys_that_are_kept(kind, overrides):
    """A tree's text was another one than plain decoding's, and both were others than transformers'."""
    assert max_positions(tiny_config(kind, **overrides)) == 16


@pytest.mark.parametrize("rope_type", ["default", "yarn", "llama3", "dynamic", "linear"])
def test_other_scalings_use_all_positions(rope_type):
    rope = {"rope_type": rope_type, "factor": 2.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if rope_type == "llama3" else {}
    assert max_positions(tiny_config("llama", rope_parameters=rope)) == 512
