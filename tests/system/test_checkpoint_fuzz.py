"""Damaged checkpoints, thousands with `--fuzz 1`: each works or is refused in a sentence, quickly, in little memory."""

import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from offload.checkpoint.gguf_file import read_gguf
from profiles.errors import BadInputError
from runtime.model.model_loader import ModelFiles
from tests.support.damage import ODD_VALUES, damage_bytes, damage_value, peak_bytes, to_json
from tests.support.every_architecture import save_architecture
from tests.support.gguf_factory import gguf_model, write_gguf
from tests.support.model_factory import save_tiny_model
from tests.support.packed_factory import save_packed_folder
from tests.support.published_factory import save_published_folder
from tests.support.quantized_factory import save_quantized_folder

MAX_CASE_SECONDS = 10.0
MAX_GROWTH_BYTES = 2**30
EXTRA_SETTINGS: tuple[dict[str, Any], ...] = (
    {"vision_config": {"a": 1}},
    {"text_config": {"model_type": "llama", "num_hidden_layers": 10**9}},
    {"text_config": {"text_config": {"text_config": {}}}},
    {"num_experts": 8},
    {"is_encoder_decoder": True},
    {"auto_map": {"AutoConfig": "x.Y"}},
    {"auto_map": 3},
    {"layer_types": ["full_attention"]},
    {"layer_types": ["linear_attention"] * 2},
    {"layer_types": ["sliding_attention", "full_attention"]},
    {"layer_types": 3},
    {"rope_scaling": {"rope_type": "yarn", "factor": 1e30}},
    {"rope_scaling": {"type": "longrope"}},
    {"rope_scaling": {"rope_type": "dynamic", "factor": 0}},
    {"rope_scaling": []},
    {"partial_rotary_factor": -3},
    {"num_labels": 10**8},
    {"id2label": {"x": 1}},
    {"torch_dtype": "float99"},
    {"dtype": "no.such"},
    {"attn_implementation": "owner/kernel"},
    {"_attn_implementation": "flash_attention_2"},
    {"quantization_config": {}},
    {"quantization_config": {"load_in_4bit": True}},
    {"quantization_config": {"load_in_8bit": True, "quant_method": "bitsandbytes", "llm_int8_skip_modules": 3}},
    {"per_layer_config": {"0": {"hidden_size": 10**9}}},
    {"sliding_window": -5},
    {"head_dim": 10**7},
    {"architectures": "LlamaForCausalLM"},
    {"architectures": [["x"]]},
    {"model_type": "gpt2"},
    {"model_type": "mixtral"},
    {"model_type": "mamba"},
    {"model_type": "t5"},
    {"model_type": "bloom"},
    {"model_type": "qwen3"},
    {"model_type": "gemma4"},
    {"configuration_files": ["config.9.json"]},
    {"transformers_version": 3},
)


def split_file(raw: bytes) -> tuple[bytes, bytes]:
    header_bytes = int.from_bytes(raw[:8], "little")
    return raw[8 : 8 + header_bytes], raw[8 + header_bytes :]


def header_cases(folder: Path, source: random.Random, num_cases: int) -> Iterator[tuple[Path, bytes]]:
    """The header's bytes, its length field, and single values of its JSON."""
    file = source.choice(sorted(folder.glob("*.safetensors")))
    header, data = split_file(file.read_bytes())
    for index in range(num_cases):
        if index % 3 == 0:
            damaged, length = damage_bytes(header, source), None
        elif index % 3 == 1:
            damaged, length = to_json(damage_value(json.loads(header), source)), None
        else:
            damaged = header
            length = source.choice((0, 1, len(header) - 1, len(header) + 1, 10**8, 2**63, source.getrandbits(64)))
        stored_length = (len(damaged) if length is None else length).to_bytes(8, "little")
        yield file, (stored_length + damaged + data)[: source.choice((None, None, None, 8, 300, -1))]


def json_cases(file: Path, source: random.Random, num_cases: int) -> Iterator[tuple[Path, bytes]]:
    raw = file.read_bytes()
    for index in range(num_cases):
        yield file, damage_bytes(raw, source) if index % 4 == 0 else to_json(damage_value(json.loads(raw), source))


def setting_cases(file: Path) -> Iterator[tuple[Path, bytes]]:
    """Every setting with every odd value, and settings that ought to be absent."""
    config = json.loads(file.read_bytes())
    for key in config:
        for value in ODD_VALUES:
            yield file, to_json({**config, key: value})
    for extra in EXTRA_SETTINGS:
        yield file, to_json({**config, **extra})


def state_cases(file: Path, source: random.Random, num_cases: int) -> Iterator[tuple[Path, bytes]]:
    """The states of quantized and packed matrices: bytes, single values of their JSON, what they are stored as."""
    tensors = load_file(file)
    names = sorted(name for name in tensors if ".quant_state." in name or name.endswith(".packed"))
    for index in range(num_cases):
        name = source.choice(names)
        raw = bytes(tensors[name].tolist())
        damaged = damage_bytes(raw, source) if index % 3 == 0 else to_json(damage_value(json.loads(raw), source))
        packed = torch.tensor(list(damaged), dtype=torch.uint8)
        if index % 10 == 9:
            packed = source.choice((packed.to(torch.float32), packed[:0], packed.repeat(300), packed.view(1, -1)))
        yield file, save({**tensors, name: packed})


def gguf_cases(file: Path, source: random.Random, num_cases: int) -> Iterator[tuple[Path, bytes]]:
    """A GGUF file's header: its bytes, and numbers of 4 and 8 bytes anywhere in it."""
    raw = file.read_bytes()
    data = min(entry.offset_bytes for entry in read_gguf(file).tensors.values())
    for index in range(num_cases):
        damaged = bytearray(raw)
        if index % 2:
            width = source.choice((4, 8))
            odd = (0, 1, 7, 255, 2**16, 2**31, 2**32 - 1, 2**63, source.getrandbits(8 * width))
            position = source.randrange(4, data - width)
            damaged[position : position + width] = (source.choice(odd) % 2 ** (8 * width)).to_bytes(width, "little")
            yield file, bytes(damaged)
        else:
            yield file, (damage_bytes(raw[:data], source) + raw[data:])[: source.choice((None, None, None, 300, -1))]


def outcome(folder: Path) -> str:
    """How the whole way from the folder or GGUF file to its laid-out layers ends."""
    try:
        ModelFiles.open(folder)
    except BadInputError as error:
        message = str(error)
        assert message.isprintable() and len(message) < 1000, message
        return type(error).__name__
    return "works"


def run_cases(cases: Iterator[tuple[Path, bytes]]) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    start_bytes = peak_bytes()
    for file, damaged in cases:
        sound = file.read_bytes()
        file.write_bytes(damaged)
        start = time.perf_counter()
        try:
            outcomes[outcome(file if file.suffix == ".gguf" else file.parent)] += 1
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} for {file.name}: {damaged[:2000]!r}") from error
        finally:
            file.write_bytes(sound)
        assert time.perf_counter() - start < MAX_CASE_SECONDS, damaged[:2000]
    assert peak_bytes() - start_bytes < MAX_GROWTH_BYTES
    return outcomes


Check = Callable[..., None]


@pytest.fixture
def check(pytestconfig: pytest.Config) -> Check:
    """Try one in `--fuzz` of the cases; of all of them, some work and some are refused."""
    stride = pytestconfig.getoption("fuzz")

    def check(cases: Iterator[tuple[Path, bytes]], *, at_least: int) -> None:
        outcomes = run_cases(itertools.islice(cases, 0, None, stride))
        assert outcomes.total() >= at_least // stride
        assert outcomes["CheckpointError"], outcomes
        assert outcomes["works"] or stride > 1, outcomes

    return check


def test_damaged_headers(check: Check, tmp_path):
    folder = save_tiny_model("llama", tmp_path, num_hidden_layers=2)
    check(header_cases(folder, random.Random(1), 900), at_least=900)


def test_damaged_headers_of_shards(check: Check, tmp_path):
    folder = save_tiny_model("qwen2", tmp_path, num_hidden_layers=2, max_shard_size="20KB")
    check(header_cases(folder, random.Random(2), 300), at_least=300)


def test_damaged_indexes(check: Check, tmp_path):
    folder = save_tiny_model("gemma3", tmp_path, num_hidden_layers=2, max_shard_size="20KB")
    check(json_cases(folder / "model.safetensors.index.json", random.Random(3), 400), at_least=400)


@pytest.mark.parametrize("kind", ["llama", "gemma3", "mistral", "qwen2"])
def test_damaged_configs(check: Check, tmp_path, kind):
    folder = save_tiny_model(kind, tmp_path, num_hidden_layers=2)
    check(json_cases(folder / "config.json", random.Random(4), 150), at_least=150)


@pytest.mark.parametrize("family", ["gemma3", "gemma4", "mistral3", "muse_glimmer", "qwen2_5_vl", "qwen3_vl"])
def test_damaged_configs_of_image_text_models(check: Check, tmp_path, family):
    folder = save_architecture(family, tmp_path)
    check(json_cases(folder / "config.json", random.Random(11), 150), at_least=150)


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_every_setting_of_a_part_with_every_odd_value(check: Check, tmp_path, part):
    """Nothing of an image-text model's towers is built, whatever is said of them."""
    file = save_architecture("gemma3", tmp_path) / "config.json"
    config = json.loads(file.read_bytes())

    def cases() -> Iterator[tuple[Path, bytes]]:
        for key, value in itertools.product(config[part], ODD_VALUES):
            yield file, to_json({**config, part: {**config[part], key: value}})
        for extra in EXTRA_SETTINGS:
            yield file, to_json({**config, part: {**config[part], **extra}})

    check(cases(), at_least=300)


def test_every_setting_with_every_odd_value(check: Check, tmp_path):
    folder = save_tiny_model("llama", tmp_path, num_hidden_layers=2)
    check(setting_cases(folder / "config.json"), at_least=900)


QUANTIZED_SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48}


@pytest.mark.parametrize("name", ["nf4 nested", "int8"])
def test_damaged_headers_of_quantized_folders(check: Check, tmp_path, name):
    folder = save_quantized_folder(tmp_path, name, sizes=QUANTIZED_SIZES)
    check(header_cases(folder, random.Random(5), 300), at_least=300)


def test_damaged_configs_of_quantized_folders(check: Check, tmp_path):
    folder = save_quantized_folder(tmp_path, "nf4", sizes=QUANTIZED_SIZES)
    check(json_cases(folder / "config.json", random.Random(6), 200), at_least=200)


def test_every_quantization_setting_with_every_odd_value(check: Check, tmp_path):
    folder = save_quantized_folder(tmp_path, "nf4", sizes=QUANTIZED_SIZES)
    file = folder / "config.json"
    config = json.loads(file.read_bytes())
    settings = config["quantization_config"]

    def cases() -> Iterator[tuple[Path, bytes]]:
        for key in settings:
            for value in ODD_VALUES:
                yield file, to_json({**config, "quantization_config": {**settings, key: value}})

    check(cases(), at_least=300)


@pytest.mark.parametrize("name", ["nf4 nested", "fp4"])
def test_damaged_quant_states(check: Check, tmp_path, name):
    folder = save_quantized_folder(tmp_path, name, sizes=QUANTIZED_SIZES)
    check(state_cases(folder / "model.safetensors", random.Random(7), 300), at_least=300)


PUBLISHED_KINDS = ("fp8 blocks", "compressed fp8 blocks", "w4a16 zeros", "nvfp4", "mxfp4 blocks", "awq", "gptq order")
PUBLISHED_SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64}


@pytest.mark.parametrize("kind", PUBLISHED_KINDS)
def test_damaged_headers_of_published_folders(check: Check, tmp_path, kind):
    folder, _ = save_published_folder(tmp_path, kind, sizes=PUBLISHED_SIZES)
    check(header_cases(folder, random.Random(11), 150), at_least=150)


@pytest.mark.parametrize("kind", PUBLISHED_KINDS)
def test_published_settings_with_every_odd_value(check: Check, tmp_path, kind):
    folder, _ = save_published_folder(tmp_path, kind, sizes=PUBLISHED_SIZES)
    file = folder / "config.json"
    config = json.loads(file.read_bytes())
    settings = config["quantization_config"]

    def cases() -> Iterator[tuple[Path, bytes]]:
        source = random.Random(12)
        for key in (*settings, "bits", "group_size", "dynamic", "sparsity_config", "transform_config"):
            for value in ODD_VALUES:
                yield file, to_json({**config, "quantization_config": {**settings, key: value}})
        for _ in range(100):
            yield file, to_json({**config, "quantization_config": damage_value(settings, source)})

    check(cases(), at_least=250)


PACKED_SIZES = {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 192}


def test_damaged_headers_of_packed_folders(check: Check, tmp_path):
    _, folder = save_packed_folder(tmp_path, sizes=PACKED_SIZES)
    check(header_cases(folder, random.Random(8), 300), at_least=300)


def test_damaged_states_of_packed_matrices(check: Check, tmp_path):
    _, folder = save_packed_folder(tmp_path, sizes=PACKED_SIZES)
    check(state_cases(sorted(folder.glob("*.safetensors"))[0], random.Random(9), 300), at_least=300)


def test_damaged_configs_of_packed_folders(check: Check, tmp_path):
    _, folder = save_packed_folder(tmp_path, sizes=PACKED_SIZES)
    check(json_cases(folder / "config.json", random.Random(10), 200), at_least=200)


@pytest.mark.parametrize("kind", ["llama", "gemma3", "phi3"])
def test_damaged_headers_of_gguf_files(check: Check, tmp_path, kind):
    """Factors of frequencies among them, which are read."""
    factors = {"rope_freqs.weight": np.ones(4, np.float32)} if kind == "llama" else {}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    file = write_gguf(tmp_path / "m.gguf", gguf_model(kind, **sizes), kind=kind, types=("Q8_0",), extra=factors)
    check(gguf_cases(file, random.Random(11), 400), at_least=400)
