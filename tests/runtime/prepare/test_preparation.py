"""The prepared folder is what transformers would save, within its bounds of memory and disk."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from offload.checkpoint.checkpoint import Checkpoint
from offload.errors import CheckpointError
from profiles.errors import BadInputError
from runtime.errors import OptionError
from runtime.events import LoadProgress
from runtime.model.model_loader import ModelFiles
from runtime.prepare.preparation import prepare_model, read_elements, unpack_model
from runtime.prepare.shards import JOURNAL_NAME
from tests.support.every_architecture import save_architecture
from tests.support.model_factory import save_tiny_model, tiny_config
from tests.support.paths import ROOT
from tests.support.small_preparations import SOURCES, WIDE, Asked, contents, finish, interrupt, request, save_source

FORMATS = [("int8", False), ("nf4", False), ("nf4", True)]


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return tensors


def own_quantization(source: Path, weight_format: str, is_double: bool):
    """The source, quantized by transformers itself while it loads."""
    dtype = getattr(torch, json.loads((source / "config.json").read_text())["dtype"])
    settings = BitsAndBytesConfig(load_in_8bit=True)
    if weight_format == "nf4":
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=is_double,
            bnb_4bit_compute_dtype=dtype,
        )
    if "opt" in source.name:
        settings.llm_int8_skip_modules = ["lm_head", "model.decoder.project_in", "model.decoder.project_out"]
    return AutoModelForCausalLM.from_pretrained(source, quantization_config=settings)


@pytest.mark.parametrize(("weight_format", "is_double"), FORMATS)
@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_the_folder_is_what_transformers_saves_and_computes(tmp_path, name, weight_format, is_double) -> None:
    """The oracle: transformers quantizes the original on load, and saves it; same logits, same tensors to the bit."""
    source = save_source(tmp_path / name.split(",")[0], name)
    _, prepared = finish(request(source, tmp_path / "prepared", weight_format, is_double))
    reference = own_quantization(source, weight_format, is_double)
    reference.save_pretrained(tmp_path / "reference")
    loaded, report = AutoModelForCausalLM.from_pretrained(prepared.folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        assert torch.equal(loaded(ids).logits, reference(ids).logits)
    found, expected = tensors_of(prepared.folder), tensors_of(tmp_path / "reference")
    assert found.keys() == expected.keys()
    for tensor_name, tensor in expected.items():
        assert found[tensor_name].dtype == tensor.dtype, tensor_name
        assert torch.equal(found[tensor_name], tensor), tensor_name
    configs = [json.loads((folder / "config.json").read_text()) for folder in (prepared.folder, tmp_path / "reference")]
    skipped = [config["quantization_config"].pop("llm_int8_skip_modules") for config in configs]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]
    assert (skipped[0] is None) == (skipped[1] is None)


def test_a_source_stored_wider_than_its_config_says_is_rounded_as_transformers_does(tmp_path: Path) -> None:
    source = save_tiny_model("llama", tmp_path / "model", **WIDE)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    _, prepared = finish(request(source, tmp_path / "prepared"))
    loaded = AutoModelForCausalLM.from_pretrained(prepared.folder)
    reference = own_quantization(source, "nf4", False)
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        assert torch.equal(loaded(ids).logits, reference(ids).logits)


def test_a_source_that_names_no_type_is_loaded_in_that_of_its_weights(tmp_path: Path) -> None:
    source = save_tiny_model("llama", tmp_path / "model", dtype=torch.bfloat16, **WIDE)
    config = json.loads((source / "config.json").read_text())
    del config["dtype"]
    (source / "config.json").write_text(json.dumps(config))
    _, prepared = finish(request(source, tmp_path / "prepared"))
    assert AutoModelForCausalLM.from_pretrained(prepared.folder).dtype == torch.bfloat16


def test_tokenizer_and_small_files_come_along(tmp_path: Path) -> None:
    source = save_source(tmp_path / "model")
    _, prepared = finish(request(source, tmp_path / "prepared"))
    tokenizer = AutoTokenizer.from_pretrained(prepared.folder)
    assert tokenizer.chat_template and tokenizer("the cat")["input_ids"]
    before, after = contents(source), contents(prepared.folder)
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja"):
        assert after[name] == before[name]
    assert set(after) - set(before) == {"model.safetensors.index.json"} | {
        f"model-{number:05}-of-00006.safetensors" for number in range(1, 7)
    }
    index = json.loads(after["model.safetensors.index.json"])
    assert index["metadata"]["total_size"] == prepared.num_bytes
    assert set(index["weight_map"]) == set(tensors_of(prepared.folder))


@pytest.mark.parametrize("name", ["llama, bf16", "qwen2 with biases, tied, fp16, shards"])
def test_progress_adds_up(tmp_path: Path, name: str) -> None:
    source = save_source(tmp_path / "model", name)
    progress, prepared = finish(request(source, tmp_path / "prepared"))
    done = [event.num_done_bytes for event in progress]
    assert done == sorted(done)
    assert done[-1] == progress[-1].num_bytes == prepared.source_bytes
    assert prepared.source_bytes == sum(t.numel() * t.element_size() for t in tensors_of(source).values())
    names = [*(f"layer {number}" for number in range(1, 5)), "embeddings and head"]
    assert list(dict.fromkeys(event.what for event in progress)) == [f"{name} of 4 layers" for name in names]
    assert prepared.num_matrices == 28


def test_a_source_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    source = save_source(tmp_path / "model")
    steps = request(source, tmp_path / "prepared")()
    with pytest.raises(CheckpointError, match="changed while it was read; delete"):
        for event in steps:
            if isinstance(event, LoadProgress):
                os.utime(source / "model.safetensors")
    assert not (tmp_path / "prepared").exists()
    assert json.loads((tmp_path / "prepared.partial" / JOURNAL_NAME).read_bytes())["shards"] == {}


def test_elements_are_those_of_the_file(tmp_path: Path) -> None:
    folder = save_tiny_model("llama", tmp_path / "model", dtype=torch.bfloat16, max_shard_size="40KB")
    checkpoint = Checkpoint.open(folder)
    expected = tensors_of(folder)
    assert len({entry.file for entry in checkpoint.tensors.values()}) > 1
    for name, entry in checkpoint.tensors.items():
        flat = expected[name].view(-1)
        assert torch.equal(read_elements(entry, 3, 11), flat[3:11])
        assert torch.equal(read_elements(entry, 0, flat.numel()), flat)


def test_a_file_that_is_cut_off_or_gone_is_a_sentence(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(save_tiny_model("llama", tmp_path / "model"))
    last = max(checkpoint.tensors.values(), key=lambda entry: entry.offset_bytes)
    with last.file.open("r+b") as file:
        file.truncate(last.offset_bytes + last.num_bytes - 1)
    with pytest.raises(CheckpointError, match="ends early"):
        read_elements(last, 0, math.prod(last.shape))
    last.file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_elements(last, 0, 1)


def test_a_value_that_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    source = save_source(tmp_path / "model")
    with (source / "model.safetensors").open("r+b") as file, safe_open(source / "model.safetensors", "pt") as opened:
        header_bytes = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(header_bytes))["model.layers.1.mlp.up_proj.weight"]
        assert opened.get_tensor("model.layers.1.mlp.up_proj.weight").dtype == torch.bfloat16
        file.seek(8 + header_bytes + entry["data_offsets"][0])
        file.write(b"\xc0\x7f")  # a NaN in bfloat16
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight in .* a value that is not finite"):
        finish(request(source, tmp_path / "prepared"))


def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    source = save_source(tmp_path / "model")
    before = contents(tmp_path)
    with pytest.raises(OptionError, match="must be one of int8, nf4, packed"):
        finish(request(source, tmp_path / "x", "fp8"))
    with pytest.raises(OptionError, match="leave it out for int8"):
        finish(request(source, tmp_path / "x", "int8", True))
    with pytest.raises(OptionError, match="the model is empty"):
        finish(request("", tmp_path / "x"))
    for inside in (source, source / "prepared", tmp_path / "other" / ".." / "model" / "x"):
        with pytest.raises(OptionError, match="lies inside the model folder"):
            finish(request(source, inside))
    with pytest.raises(BadInputError, match="exists and is not empty; choose another output"):
        finish(request(source, tmp_path))
    with pytest.raises(CheckpointError, match="model folder not found"):
        finish(request("./nowhere", tmp_path / "x"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10**9, 0, 50_000))
    with pytest.raises(BadInputError, match=r"needs up to .* and .* has 50.0 KB free; make room"):
        finish(request(source, tmp_path / "deep" / "x"))
    assert contents(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_the_free_space_asked_for_is_what_is_needed(tmp_path: Path, monkeypatch) -> None:
    """Enough, but not so much more that a disk with room for the folder would be refused."""
    source = save_source(tmp_path / "model")
    asked_for = []
    usage = namedtuple("usage", "total used free")

    def disk_usage(place):
        return usage(10**9, 0, asked_for[-1])

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    _, free = finish_with(asked_for, request(source, tmp_path / "prepared"))
    size = sum(len(raw) for raw in contents(tmp_path / "prepared").values())
    assert size <= free <= size + 400_000


def finish_with(asked_for: list[int], asked: Asked) -> tuple[SimpleNamespace, int]:
    """Prepare on the smallest disk, in steps of 50 KB, that is not refused."""
    asked_for.append(0)
    while True:
        try:
            return finish(asked)[1], asked_for[-1]
        except BadInputError:
            asked_for.append(asked_for[-1] + 50_000)


def test_closing_it_leaves_the_number_of_threads_alone(tmp_path: Path) -> None:
    source = save_source(tmp_path / "model")
    torch.set_num_threads(2)
    try:
        interrupt(request(source, tmp_path / "prepared"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


PEAK = """
import gc, json, sys
from pathlib import Path
from offload.free_memory import resident_memory_bytes
from profiles.steps import finish
from runtime.prepare.preparation import prepare_model

small, large, folder = map(Path, sys.argv[1:])
def prepare(source, output, weight_format):
    return finish(prepare_model(str(source), folder / output, weight_format=weight_format))
for weight_format in ("nf4", "int8"):
    prepare(small, f"small-{weight_format}", weight_format)
gc.collect()
before = resident_memory_bytes()
prepared = [prepare(large, f"large-{weight_format}", weight_format) for weight_format in ("nf4", "int8")]
print(json.dumps([before, [(each["peak_bytes"], each["source_bytes"]) for each in prepared]]))
"""


@pytest.mark.slow
def test_memory_stays_within_two_layers_and_the_embeddings(tmp_path: Path) -> None:
    """The resident size of a process that prepares a model 9 layers deep, over what it held after a tiny one."""
    small = save_tiny_model("llama", tmp_path / "small", dtype=torch.bfloat16, **WIDE)
    size = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 9, "num_key_value_heads": 4}
    size |= {"vocab_size": 20_000, "tie_word_embeddings": False}  # embeddings and head together would be too much
    model = AutoModelForCausalLM.from_config(tiny_config("llama", **size), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "large")
    layer_bytes = sum(weight.nbytes for weight in model.model.layers[0].parameters())
    embedding_bytes = model.model.embed_tokens.weight.nbytes
    command = [sys.executable, "-c", PEAK, str(small), str(tmp_path / "large"), str(tmp_path)]
    finished = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=250)
    before, prepared = json.loads(finished.stdout)
    for peak_bytes, source_bytes in prepared:
        assert source_bytes > 3 * (2 * layer_bytes + embedding_bytes)
        assert 0 < peak_bytes - before <= 2 * layer_bytes + embedding_bytes


def test_what_cannot_be_run_is_not_prepared(tmp_path: Path) -> None:
    """Its layers run several times; the copy would have been refused only after it was written."""
    folder = save_architecture("dory", tmp_path / "model")
    with pytest.raises(CheckpointError, match="layers that do not run once each, in order"):
        finish(request(folder, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def as_stored(folder: Path) -> dict[str, tuple[torch.dtype, bytes]]:
    tensors = tensors_of(folder)
    return {
        name: (tensor.dtype, tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        for name, tensor in tensors.items()
    }


def unpack(folder: Path, output: Path) -> Asked:
    return partial(unpack_model, str(folder), output)


@pytest.mark.parametrize("name", SOURCES)
def test_an_unpacked_folder_has_the_tensors_and_the_small_files_of_the_original(tmp_path: Path, name: str) -> None:
    """Also where nothing packs: of fp16, of fp32, and of matrices that are stored turned."""
    source = save_source(tmp_path / "model", name)
    _, packed = finish(request(source, tmp_path / "packed", "packed"))
    _, unpacked = finish(unpack(packed.folder, tmp_path / "unpacked"))
    assert as_stored(unpacked.folder) == as_stored(source)
    assert json.loads((unpacked.folder / "config.json").read_text()) == json.loads((source / "config.json").read_text())
    before, after = contents(source), contents(unpacked.folder)
    small = {name for name in before if name != "config.json" and not name.endswith((".safetensors", ".index.json"))}
    assert small and all(after[name] == before[name] for name in small)
    is_packed = name == "llama, bf16"
    assert (packed.num_matrices, unpacked.num_matrices > 0) == (28 if is_packed else 0, is_packed)
    assert (packed.num_bytes < packed.source_bytes) == is_packed
    ids = torch.arange(3, 40)[None]
    loaded, report = AutoModelForCausalLM.from_pretrained(unpacked.folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.inference_mode():
        assert torch.equal(loaded(ids).logits, AutoModelForCausalLM.from_pretrained(source)(ids).logits)


def test_what_the_model_does_not_use_is_packed_along(tmp_path: Path) -> None:
    """Under the name and in the type that it has, also of a model whose names lack their prefix."""
    source = save_source(tmp_path / "model")
    tensors = {name.removeprefix("model."): tensor for name, tensor in tensors_of(source).items()}
    tensors |= {"odd.mask": torch.tensor([[True, False]]), "odd.count": torch.tensor(2**40)}
    save_file(tensors, source / "model.safetensors")
    _, packed = finish(request(source, tmp_path / "packed", "packed"))
    assert packed.num_matrices == 28 and "layers.0.mlp.up_proj.weight.packed" in tensors_of(packed.folder)
    _, unpacked = finish(unpack(packed.folder, tmp_path / "unpacked"))
    assert as_stored(unpacked.folder) == as_stored(source)


def test_a_damaged_matrix_is_one_sentence_and_nothing_is_published(tmp_path: Path) -> None:
    source = save_source(tmp_path / "model")
    _, packed = finish(request(source, tmp_path / "packed", "packed"))
    entry = Checkpoint.open(packed.folder).tensors["model.layers.2.mlp.up_proj.weight"]
    with entry.file.open("r+b") as file:
        file.seek(entry.offset_bytes + 100)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.up_proj\.weight' in .* is damaged: its bytes are not"):
        finish(unpack(packed.folder, tmp_path / "unpacked"))
    assert not (tmp_path / "unpacked").exists()


def test_only_what_is_packed_is_unpacked_and_only_what_is_not_is_packed(tmp_path: Path) -> None:
    source = save_source(tmp_path / "model")
    _, packed = finish(request(source, tmp_path / "packed", "packed"))
    with pytest.raises(CheckpointError, match="is not packed; give a folder that prepare --format packed wrote"):
        finish(unpack(source, tmp_path / "x"))
    for weight_format in ("packed", "nf4"):
        with pytest.raises(CheckpointError, match="is packed; restore its original with overstory unpack first"):
            finish(request(packed.folder, tmp_path / "x", weight_format))
    assert not (tmp_path / "x").exists()


def test_a_name_that_packed_matrices_need_is_refused(tmp_path: Path) -> None:
    source = save_source(tmp_path / "model")
    save_file(tensors_of(source) | {"x.packed": torch.zeros(2)}, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"the tensor 'x\.packed', a name that packed matrices need"):
        finish(request(source, tmp_path / "x", "packed"))


def test_an_interrupted_unpacking_goes_on(tmp_path: Path) -> None:
    source = save_source(tmp_path / "model")
    _, packed = finish(request(source, tmp_path / "packed", "packed"))
    asked = unpack(packed.folder, tmp_path / "unpacked")
    interrupt(asked)
    _, unpacked = finish(asked)
    assert unpacked.num_kept_shards == 2
    assert as_stored(unpacked.folder) == as_stored(source)


@pytest.mark.parametrize(("weight_format", "keeps_all"), [("packed", True), ("int8", False), ("nf4", False)])
def test_of_a_composite_model_a_quantized_copy_holds_the_text_part_and_a_packed_one_everything(
    weight_format: str, keeps_all: bool, tmp_path: Path
) -> None:
    source = save_architecture("gemma3", tmp_path / "source")
    told = list(prepare_model(str(source), tmp_path / "copy", weight_format=weight_format))
    sentences = [one for one in told if isinstance(one, str) and "left out" in one]
    assert len(sentences) == (0 if keeps_all else 1)
    names = set(tensors_of(tmp_path / "copy"))
    assert any("vision" in name for name in names) == keeps_all
    files = ModelFiles.open(tmp_path / "copy")
    assert files.is_quantized != keeps_all
    if keeps_all:
        assert names == set(tensors_of(source))
