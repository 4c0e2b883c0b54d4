"""Text of composite checkpoints: what the whole image-text model of transformers writes, given text alone.

Folders are saved by transformers, under the names and with the settings that published ones have.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from offload.checkpoint.checkpoint import Checkpoint
from offload.errors import CheckpointError
from runtime.errors import OptionError
from runtime.model.architecture import open_decoder
from runtime.model.model_loader import ModelFiles
from runtime.model.streamed_model import PassInput
from runtime.model.text_tower import FAMILIES
from tests.support.every_architecture import outcome, save_architecture
from tests.support.model_factory import build_tokenizer, edit_config
from tests.support.reference_models import own_logits
from tests.support.session_factory import answer, open_tiny, request

NUM_CONTEXT, NUM_NODES = 12, 10
PUBLISHED = {
    "exaone4_5": ("model.language_model.layers.0.", "model.visual."),
    "gemma3": ("language_model.model.layers.0.", "vision_tower."),
    "gemma4": ("model.language_model.layers.0.", "model.vision_tower."),
    "mistral3": ("language_model.model.layers.0.", "vision_tower."),
    "muse_glimmer": ("model.language_model.layers.0.", "model.vision_tower."),
    "qwen2_5_vl": ("model.layers.0.", "visual."),
    "qwen2_vl": ("model.layers.0.", "visual."),
    "qwen3_5": ("model.language_model.layers.0.", "model.visual."),
    "qwen3_vl": ("model.language_model.layers.0.", "model.visual."),
}
"""How the names of the first layer and of the tower begin."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    return {family: save_architecture(family, root / family) for family in sorted(FAMILIES)}


def names_of(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def tree_logits(model, ids, parents):
    """The logits (N, V) of a tree of tokens behind a context, as one streamed pass gives them, and its paths."""
    paths = []
    for node, parent in enumerate(parents):
        paths.append([*(paths[parent] if parent >= 0 else []), node])
    context = np.arange(NUM_CONTEXT)
    positions = np.array([NUM_CONTEXT + len(path) - 1 for path in paths])
    sight = np.zeros((len(parents), NUM_CONTEXT + len(parents)), dtype=np.bool_)
    sight[:, :NUM_CONTEXT] = True
    for node, path in enumerate(paths):
        sight[node, [NUM_CONTEXT + other for other in path]] = True
    model.cache.truncate(0)
    chain = PassInput(np.array(ids[:NUM_CONTEXT]), context, context, np.tri(NUM_CONTEXT, dtype=np.bool_))
    first = model.logits(model.run_pass(chain))
    nodes = PassInput(np.array(ids[NUM_CONTEXT:]), positions, np.concatenate([context, positions]), sight)
    return first, model.logits(model.run_pass(nodes)), paths


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_streamed_logits_of_random_trees_are_transformers_own(folders, family):
    """Of the whole image-text model given text alone, in float32; windows are shorter than the context."""
    source = np.random.default_rng(3)
    with open_tiny(folders[family], num_residents=1) as opened:
        model = opened.session.engine.target
        for _ in range(3):
            parents = [int(source.integers(-1, node)) if node else -1 for node in range(NUM_NODES)]
            ids = source.integers(7, 90, NUM_CONTEXT + NUM_NODES).tolist()
            chain, found, paths = tree_logits(model, ids, parents)
            torch.testing.assert_close(chain, own_logits(folders[family], ids[:NUM_CONTEXT]), atol=1e-5, rtol=1e-5)
            for node, path in enumerate(paths):
                text = ids[:NUM_CONTEXT] + [ids[NUM_CONTEXT + other] for other in path]
                expected = own_logits(folders[family], text)[-1]
                torch.testing.assert_close(found[node], expected, atol=1e-5, rtol=1e-5)
        model.cache.truncate(0)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_whole_answers_are_those_of_generate(folders, family):
    assert outcome(folders[family]) == "equal"


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_only_text_is_counted_and_the_towers_need_not_be_there(folders, family, tmp_path):
    layer, tower = PUBLISHED[family]
    names = names_of(folders[family])
    assert any(name.startswith(layer) for name in names) and any(name.startswith(tower) for name in names)
    parts = open_decoder(Checkpoint.open(folders[family]), dtype=torch.float32)
    read = [*(entry for layer in parts.layer_tensors for entry in layer.values()), *parts.other_tensors.values()]
    kept = {entry.name for entry in read}
    assert kept < names and not any(name.startswith(tower) for name in kept)
    tensors = load_file(folders[family] / "model.safetensors")
    folder = shutil.copytree(folders[family], tmp_path / "model")
    save_file({name: tensors[name] for name in kept}, folder / "model.safetensors", {"format": "pt"})
    files = ModelFiles.open(folders[family])
    assert sum(files.payload_bytes) + files.other_layout.payload_bytes == sum(entry.num_bytes for entry in read)
    with open_tiny(folders[family]) as whole, open_tiny(folder) as alone:
        assert answer(alone, request())[1] == answer(whole, request())[1]


@pytest.mark.parametrize("family", ["gemma3", "mistral3"])
def test_names_as_transformers_has_them_today_are_found_too(folders, family, tmp_path):
    folder = shutil.copytree(folders[family], tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    today = {
        name.replace("language_model.model.", "model.language_model.").replace(
            "language_model.lm_head.", "lm_head."
        ): at
        for name, at in tensors.items()
    }
    save_file(today, folder / "model.safetensors", {"format": "pt"})
    with open_tiny(folders[family]) as published, open_tiny(folder) as renamed:
        assert answer(renamed, request())[1] == answer(published, request())[1]


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_a_flat_configuration_as_published_is_read(folders, family, tmp_path):
    """The sizes of the text part stand beside `vision_config` there."""
    folder = shutil.copytree(folders[family], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    (folder / "config.json").write_text(json.dumps({**text, **config}))
    with open_tiny(folders[family]) as nested, open_tiny(folder) as flat:
        assert answer(flat, request())[1] == answer(nested, request())[1]


def refusal(folder):
    with pytest.raises(CheckpointError) as caught:
        ModelFiles.open(folder)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 700
    return message


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_missing_tensors_of_the_text_part_are_named(folders, family, tmp_path):
    """The tower has more layers than the text part, so that none of its names may be counted."""
    folder = shutil.copytree(folders[family], tmp_path / "model")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    layer = PUBLISHED[family][0].replace("0.", "1.")
    lost = next(name for name in tensors if name.startswith(layer) and name.endswith("up_proj.weight"))
    save_file({name: at for name, at in tensors.items() if name != lost}, file, {"format": "pt"})
    assert "lacks the tensor 'model.language_model.layers.1.mlp.up_proj.weight'" in refusal(folder)
    save_file({name: at for name, at in tensors.items() if not name.startswith(layer)}, file, {"format": "pt"})
    assert "decoder layers, but the files hold tensors of" in refusal(folder)
    file.write_bytes(file.read_bytes()[:-400])
    assert "model.safetensors is truncated" in refusal(folder)


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [
        ("gemma4", {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2}, "mixture of experts"),
        ("gemma4", {"num_kv_shared_layers": 2}, "layers share keys and values"),
        ("gemma4", {"use_bidirectional_attention": "all"}, "bidirectional"),
        ("gemma3", {"use_bidirectional_attention": True}, "bidirectional"),
        ("mistral3", {"model_type": "mixtral", "num_local_experts": 4}, "mixture of experts"),
        ("mistral3", {"model_type": "mamba", "num_hidden_layers": 3}, "config.json"),
        ("mistral3", {"model_type": "bert"}, "no single list of decoder layers"),
        ("mistral3", {"model_type": "gemma3", "vision_config": {"hidden_size": 3}}, "a composite model"),
        ("exaone4_5", {"num_hidden_layers": 10**9}, "expected at most"),
        ("exaone4_5", {"vocab_size": 10**12}, "cannot be built"),
        ("muse_glimmer", {"layer_types": ["linear_attention"] * 3}, "linear_attention"),
        ("muse_glimmer", {"hidden_size": 64}, "config.json"),
    ],
)
def test_a_text_part_that_cannot_be_run_is_refused(folders, family, changes, expected, tmp_path):
    folder = shutil.copytree(folders[family], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    edit_config(folder, text_config=config["text_config"] | changes)
    assert expected in refusal(folder)


@pytest.mark.parametrize("value", [None, 3, "x", [], {}, {"model_type": 3}, {"model_type": "llama"}, [{}]])
@pytest.mark.parametrize("part", ["text_config", "vision_config"])
@pytest.mark.parametrize("family", ["gemma3", "mistral3", "qwen2_5_vl"])
def test_a_part_of_the_wrong_kind_is_refused_or_another_model(folders, family, part, value, tmp_path):
    """Nothing but the text part matters: a tower of another kind may pass."""
    folder = shutil.copytree(folders[family], tmp_path / "model")
    edit_config(folder, **{part: value})
    try:
        ModelFiles.open(folder)
    except CheckpointError as error:
        assert str(error).isprintable() and len(str(error)) < 700
    else:
        assert part == "vision_config"


def test_a_composite_model_of_an_unknown_kind_is_refused(tmp_path):
    """What its whole does with text nobody has compared: paligemma sees a prompt in both directions."""
    save_architecture("gemma3", tmp_path)
    edit_config(tmp_path, model_type="paligemma")
    assert "kind whose text part cannot be run alone" in refusal(tmp_path)


@pytest.mark.parametrize("family", ["gemma3", "qwen3_vl"])
def test_a_prompt_with_an_images_token_costs_its_own_answer(family, tmp_path):
    folder = save_architecture(family, tmp_path)
    edit_config(folder, image_token_id=build_tokenizer().convert_tokens_to_ids("z"))
    with open_tiny(folder) as opened:
        with pytest.raises(
            OptionError, match=r"the token 'z', id \d+, in whose place the model wants an image.*; leave"
        ):
            list(opened.session.generate(request("see z here")))
        assert answer(opened, request())[1]
