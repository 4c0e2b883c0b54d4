"""The settings of a GGUF file, beside those that transformers itself makes of the same file."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from transformers import AutoConfig
from transformers.integrations.gguf.gguf_config_mapping import get_gguf_config
from transformers.integrations.gguf.reader import read_gguf_metadata
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from offload.checkpoint import gguf_config
from offload.checkpoint.checkpoint import Checkpoint
from offload.checkpoint.gguf_config import config_of_gguf, end_token_ids, quantization_of_gguf, tensors_of_gguf
from offload.checkpoint.gguf_file import read_gguf
from offload.errors import CheckpointError
from tests.support.gguf_bytes import FLOAT32, STRING, UINT32, gguf_bytes, key, tensor
from tests.support.gguf_factory import KINDS, gguf_model, write_gguf

_NOT_SETTINGS = {"_model_name_or_path"}
_OURS = {"head_dim"}
"""What transformers' mapping of some architectures drops."""


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "qwen35"])
def test_the_settings_are_those_of_transformers_own_mapping(kind: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", gguf_model(kind), kind=kind)
    expected = load_gguf_checkpoint(file)["config"]
    found = dict(Checkpoint.open(file).config)
    assert expected.keys() - _NOT_SETTINGS - found.keys() == set()
    assert {name: found[name] for name in expected if name not in _NOT_SETTINGS} == {
        name: value for name, value in expected.items() if name not in _NOT_SETTINGS
    }
    assert found.keys() - expected.keys() <= _OURS


@pytest.mark.parametrize("num_guessing", [0, 1])
def test_a_hybrid_is_the_one_of_transformers_own_mapping(num_guessing: int, tmp_path: Path) -> None:
    """Heads that guess further tokens are counted among the blocks, and are none of the decoder's."""
    model = gguf_model("qwen35")
    extra = (
        {f"blk.3.nextn.{name}.weight": np.ones(4, np.float32) for name in ("enorm", "hnorm")} if num_guessing else {}
    )
    metadata = {"qwen35.nextn_predict_layers": num_guessing}
    file = write_gguf(
        tmp_path / "m.gguf", model, kind="qwen35", extra=extra, metadata=metadata, num_blocks=3 + num_guessing
    )
    expected = get_gguf_config(*read_gguf_metadata(str(file)))
    found = Checkpoint.open(file)
    assert set(found.config) == set(expected) - {"architectures"}
    settings = AutoConfig.for_model(**found.config).to_dict()
    assert settings == {**AutoConfig.for_model(**expected).to_dict(), "architectures": None}
    assert settings["num_hidden_layers"] == 3
    own = model.config.to_dict()
    assert {name: settings[name] for name in own if name.startswith("linear_") or name == "layer_types"} == {
        name: own[name] for name in own if name.startswith("linear_") or name == "layer_types"
    }
    assert not any(name.startswith("blk.3.") for name in found.tensors)
    assert found.tensors["blk.0.ssm_conv1d.weight"].shape == (2 * 2 * 8 + 6 * 16, 1, 4)


def test_every_other_file_keeps_its_tensors(tmp_path: Path) -> None:
    header = read_gguf(write_gguf(tmp_path / "m.gguf", gguf_model("qwen2"), kind="qwen2"))
    assert tensors_of_gguf(header) is header.tensors


HYBRID = {
    **{"attention.key_length": 8, "full_attention_interval": 4, "ssm.conv_kernel": 4, "ssm.state_size": 8},
    **{"ssm.group_count": 2, "ssm.time_step_rank": 6, "ssm.inner_size": 48},
}


def test_a_hybrid_that_says_nothing_of_its_rotations_has_the_usual_ones(tmp_path: Path) -> None:
    found = read(tmp_path, sizes("qwen35", **HYBRID))
    assert found["model_type"] == "qwen3_5_text" and found["linear_value_head_dim"] == 8
    assert found["rope_parameters"] == {
        "rope_type": "default",
        "mrope_section": [11, 11, 10],
        "mrope_interleaved": True,
    }
    yarn = [key("qwen35.rope.scaling.type", STRING, "yarn"), key("qwen35.rope.scaling.factor", FLOAT32, 4.0)]
    scaled = read(tmp_path, [*sizes("qwen35", **HYBRID), *yarn])
    assert scaled["rope_parameters"]["rope_type"] == "yarn" and "rope_scaling" not in scaled


def sizes(architecture: str, **more: int) -> list[bytes]:
    names = {"context_length": 64, "block_count": 2, "embedding_length": 32, "attention.head_count": 4, **more}
    found = [key("general.architecture", STRING, architecture)]
    return found + [key(f"{architecture}.{name}", UINT32, value) for name, value in names.items()]


def read(tmp_path: Path, keys: list[bytes]) -> dict[str, object]:
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(keys))
    return config_of_gguf(read_gguf(tmp_path / "m.gguf"))


def test_rope_scaling_is_taken_where_transformers_drops_it(tmp_path: Path) -> None:
    """The large models of Gemma 3 stretch their global layers eightfold: without, their positions are wrong."""
    scaling = [key("gemma3.rope.scaling.type", STRING, "linear"), key("gemma3.rope.scaling.factor", FLOAT32, 8.0)]
    found = read(tmp_path, [*sizes("gemma3"), *scaling])
    assert found["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    yarn = [
        key("qwen2.rope.scaling.type", STRING, "yarn"),
        key("qwen2.rope.scaling.factor", FLOAT32, 4.0),
        key("qwen2.rope.scaling.original_context_length", UINT32, 32768),
    ]
    expected = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert read(tmp_path, [*sizes("qwen2"), *yarn])["rope_scaling"] == expected
    assert "rope_scaling" not in read(tmp_path, [*sizes("qwen2"), key("qwen2.rope.scaling.type", STRING, "none")])


def test_the_largest_gemmas_scale_their_scores_by_the_model_over_its_heads(tmp_path: Path) -> None:
    wide = {"block_count": 62, "embedding_length": 5376, "attention.head_count": 32, "attention.key_length": 128}
    assert read(tmp_path, sizes("gemma3", **wide))["query_pre_attn_scalar"] == 168
    assert "query_pre_attn_scalar" not in read(tmp_path, sizes("gemma3", **{**wide, "block_count": 48}))


def test_a_phi_that_rotates_a_part_of_its_heads_says_how_large_a_part(tmp_path: Path) -> None:
    found = read(tmp_path, sizes("phi3", **{"attention.key_length": 128, "rope.dimension_count": 96}))
    assert found["partial_rotary_factor"] == 0.75
    assert "partial_rotary_factor" not in read(tmp_path, sizes("phi3", **{"rope.dimension_count": 8}))


def test_a_gemma4_ends_its_answers_as_its_publisher_says(tmp_path: Path) -> None:
    found = read(tmp_path, sizes("gemma4", **{"attention.key_length": 512}))
    assert found["model_type"] == "gemma4_text" and found["global_head_dim"] == 512
    assert found["eos_token_id"] == [1, 106, 50] == end_token_ids(read_gguf(tmp_path / "m.gguf"))


def test_every_token_that_ends_a_turn_ends_an_answer(tmp_path: Path) -> None:
    ends = {"eos": 9, "eot": 7, "eom": 8, "padding": 3}
    keys = [key(f"tokenizer.ggml.{name}_token_id", UINT32, value) for name, value in ends.items()]
    assert read(tmp_path, [*sizes("llama"), *keys])["pad_token_id"] == 3
    assert end_token_ids(read_gguf(tmp_path / "m.gguf")) == [7, 8, 9]


@pytest.mark.parametrize(("file_type", "expected"), [(15, "Q4_K_M"), (14, "Q4_K_S"), (7, "Q4_K"), (None, "Q4_K")])
def test_a_file_is_called_by_its_mix_of_types(tmp_path: Path, file_type: int | None, expected: str) -> None:
    keys = [] if file_type is None else [key("general.file_type", UINT32, file_type)]
    tensors = [tensor("a", (256, 4), 12, 0), tensor("b", (4,), 0, 576)]
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(keys, tensors, bytes(1024)))
    assert quantization_of_gguf(read_gguf(tmp_path / "m.gguf")) == expected


def test_the_numbers_of_mixes_are_those_of_ggufs_own_package() -> None:
    for number, name in gguf_config._MIXES.items():
        assert gguf.LlamaFileType(number).name.removeprefix("MOSTLY_") == name


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([], "lacks general.architecture"),
        (sizes("cohere2"), "holds the architecture 'cohere2', for which there is no mapping"),
        (sizes("qwen3moe"), "holds the architecture 'qwen3moe', for which there is no mapping"),
        (sizes("llama", expert_count=8), "holds a mixture of experts"),
        (sizes("qwen3next", expert_count=512), "holds a mixture of experts"),
        (sizes("qwen35moe", expert_count=256), "holds a mixture of experts"),
        (sizes("qwen3next"), "use the model's safetensors folder"),
        (sizes("qwen35"), "lacks qwen35.attention.key_length"),
        (sizes("qwen35", **{**HYBRID, "ssm.time_step_rank": 0}), "48 values in 0 heads and 2 heads of keys; expected"),
        (sizes("qwen35", **{**HYBRID, "ssm.group_count": 4}), "48 values in 6 heads and 4 heads of keys; expected"),
        (sizes("llama")[:-1], "lacks llama.attention.head_count"),
        ([*sizes("llama")[:-1], key("llama.attention.head_count", STRING, "4")], "expected a whole number"),
    ],
)
def test_what_cannot_be_mapped_is_one_sentence(tmp_path: Path, keys: list[bytes], expected: str) -> None:
    with pytest.raises(CheckpointError, match=expected):
        read(tmp_path, keys)
