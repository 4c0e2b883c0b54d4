"""The index of a model folder: what is read, and the sentence for everything that is wrong with one."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from offload.checkpoint.checkpoint import MAX_HEADER_BYTES, Checkpoint, is_hub_name
from offload.checkpoint.tensor_entry import TensorEntry
from offload.errors import CheckpointError
from tests.support.model_factory import save_tiny_model, write_safetensors

HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}
DATA = bytes(range(32))


@pytest.fixture
def folder(tmp_path):
    """A sound folder with two tensors, "a" and "b"."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    write_safetensors(tmp_path / "model.safetensors", HEADER, DATA)
    return tmp_path


def refusal(path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    return message


def write_index(folder, weight_map, *, metadata=None):
    (folder / "model.safetensors").unlink(missing_ok=True)
    index = {"metadata": metadata or {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def changed(**fields):
    return {**HEADER, "a": {**HEADER["a"], **fields}}


def test_a_single_file_is_indexed_with_absolute_offsets(folder):
    checkpoint = Checkpoint.open(folder)
    file = folder / "model.safetensors"
    start = 8 + len(json.dumps(HEADER))
    assert checkpoint.tensors == {
        "a": TensorEntry("a", "F32", (2, 3), file, start, 24),
        "b": TensorEntry("b", "BF16", (4,), file, start + 24, 8),
    }
    assert checkpoint.total_bytes == 32
    assert checkpoint.config == {"model_type": "llama"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("max_shard_size", [None, "20KB"])
def test_the_bytes_at_an_entry_are_those_that_safetensors_reads(tmp_path, dtype, max_shard_size):
    checkpoint = Checkpoint.open(save_tiny_model("llama", tmp_path, dtype=dtype, max_shard_size=max_shard_size))
    assert (len({entry.file for entry in checkpoint.tensors.values()}) > 1) == (max_shard_size is not None)
    for name, entry in checkpoint.tensors.items():
        with safe_open(entry.file, framework="pt") as opened:
            expected = opened.get_tensor(name)
        raw = entry.file.read_bytes()[entry.offset_bytes : entry.offset_bytes + entry.num_bytes]
        assert torch.equal(torch.frombuffer(bytearray(raw), dtype=dtype).reshape(entry.shape), expected)


def test_importing_needs_neither_torch_nor_transformers():
    code = "import offload.checkpoint.checkpoint, sys; sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_shard_may_be_a_link_into_the_hubs_cache(folder):
    """The hub keeps files under blobs/ and links to them."""
    repository = folder / "models--owner--name"
    snapshot, blobs = repository / "snapshots" / "main", repository / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    (folder / "model.safetensors").rename(blobs / "0123abc")
    (snapshot / "model-00001.safetensors").symlink_to("../../blobs/0123abc")
    (snapshot / "config.json").write_text("{}")
    write_index(snapshot, {"a": "model-00001.safetensors"})
    assert set(Checkpoint.open(snapshot).tensors) == {"a"}


def test_a_header_may_be_padded_and_tensors_may_be_empty(folder):
    header = {**HEADER, "empty": {"dtype": "F16", "shape": [0, 7], "data_offsets": [24, 24]}}
    write_safetensors(folder / "model.safetensors", json.dumps(header).encode() + b" " * 5, DATA)
    assert Checkpoint.open(folder).tensors["empty"].num_bytes == 0


def test_missing_pieces_are_named(tmp_path, folder):
    assert "not a folder" in refusal(tmp_path / "absent")
    assert "is not a GGUF file" in refusal(folder / "config.json")
    (folder / "model.safetensors").unlink()
    assert "expected model.safetensors or model.safetensors.index.json" in refusal(folder)
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth", "x.pt"]
)
def test_pickle_weights_are_never_opened(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    message = refusal(folder)
    assert name in message and "convert them to safetensors" in message


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"quantization_config": {"quant_method": "hqq", "bits": 4}}, "quantized with 'hqq'"),
        ({"quantization_config": {"quant_method": "quark", "load_in_4bit": True}}, "quantized with 'quark'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 3}}, "bits = 3; expected 4 or 8"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "(compression_config in config.json)"),
        ({"compression_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "compression_config"),
        ({"quantization_config": {"bits": 4}}, "quantized with None"),
        ({"quantization_config": {"quant_method": ["bitsandbytes"]}}, "quantized with ['bitsandbytes']"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "without saying which format"),
        ({"quantization_config": {"load_in_4bit": True, "load_in_8bit": True}}, "without saying which format"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": 1}}, "without saying which format"),
        ({"quantization_config": "nf4"}, "expected an object"),
        ({"quantization_config": {"quant_method": "overstory-packed"}}, "packed as version None; expected 2"),
        ({"quantization_config": {"quant_method": "overstory-packed", "version": True}}, "packed as version True"),
        (
            {"quantization_config": {"quant_method": "overstory-packed", "version": 1}},
            "packed as version 1; expected 2",
        ),
        ({"compression_config": {"quant_method": "overstory-packed", "version": 2}}, "compression_config"),
    ],
)
def test_other_quantizations_are_refused_by_name(folder, settings, expected):
    (folder / "config.json").write_text(json.dumps(settings))
    assert expected in refusal(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"load_in_4bit": True},
    ],
)
def test_bitsandbytes_folders_are_opened(folder, settings):
    assert not Checkpoint.open(folder).is_quantized
    (folder / "config.json").write_text(json.dumps({"quantization_config": settings}))
    assert Checkpoint.open(folder).is_quantized and Checkpoint.open(folder).published is None


def test_codes_of_published_formats_are_listed_by_their_matrix(folder):
    header = {
        f"a.{name}": {"dtype": "I32", "shape": [1], "data_offsets": [4 * index, 4 * index + 4]}
        for index, name in enumerate(("qweight", "qzeros"))
    }
    write_safetensors(folder / "model.safetensors", header, bytes(8))
    assert Checkpoint.open(folder).tensors.keys() == {"a.qweight", "a.qzeros"}
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "awq"}}))
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.published is not None and checkpoint.total_bytes == 8
    assert {name: entry.name for name, entry in checkpoint.tensors.items()} == {
        "a.weight": "a.qweight",
        "a.qzeros": "a.qzeros",
    }


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"", "not valid JSON"),
        (b"[]", "expected a JSON object"),
        (b'{"a": 1', "not valid JSON"),
        (b'{"a": \xff}', "not valid JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1e999}', "finite"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": {}, "a": {}}', "stands twice"),
        (changed(dtype="F32", dtypo=1, shape=[2, 2]), "24 bytes by its data_offsets and 16"),
        (changed(dtype="F17"), "dtype 'F17'"),
        (changed(dtype=["F32"]), "dtype"),
        (changed(shape=[2, -3]), "shape"),
        (changed(shape=[True, 6]), "shape"),
        (changed(shape="23"), "shape"),
        (changed(shape=[1] * 65), "shape"),
        (changed(shape=[10**40, 1]), "shape"),
        (changed(data_offsets=[24, 0]), "data_offsets"),
        (changed(data_offsets=[0]), "data_offsets"),
        (changed(data_offsets=[0, 24.0]), "data_offsets"),
        (changed(data_offsets=[-24, 0]), "data_offsets"),
        (changed(data_offsets=[8, 32]), "overlap"),
        (changed(data_offsets=[32, 56]), "truncated"),
        (changed(data_offsets=[2**62, 2**62 + 24]), "truncated"),
        ({**HEADER, "a": None}, "described by None"),
        ({**HEADER, "n" * 501: HEADER["a"]}, "501 characters"),
        ({**HEADER, "new\nline\x1b[2J": 1}, r"'new\nline\x1b[2J'"),
    ],
)
def test_a_damaged_header_is_refused_in_one_sentence(folder, header, expected):
    write_safetensors(folder / "model.safetensors", header, DATA)
    assert expected in refusal(folder)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "has 0 bytes"),
        (b"\x01\x02\x03", "has 3 bytes"),
        ((1000).to_bytes(8, "little") + b"{}", "claims 1000 bytes"),
        ((2**64 - 1).to_bytes(8, "little") + b"{}", "claims 18446744073709551615 bytes"),
    ],
)
def test_a_header_longer_than_its_file_is_refused_before_reading_it(folder, content, expected):
    (folder / "model.safetensors").write_bytes(content)
    assert expected in refusal(folder)


def test_a_header_that_fits_its_file_is_still_bounded(folder):
    """A sparse file of any size costs nothing to make, so the file's size alone bounds no allocation."""
    with (folder / "model.safetensors").open("wb") as file:
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER_BYTES + 9)
    assert f"expected at most {MAX_HEADER_BYTES}" in refusal(folder)


def test_a_truncated_file_is_refused(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "is truncated: the tensor 'b' ends at byte" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_folders_and_pipes_in_place_of_files_are_refused(folder, name):
    """Opening a pipe would wait for ever."""
    (folder / name).unlink()
    (folder / name).mkdir()
    assert "not a regular file" in refusal(folder)
    if hasattr(os, "mkfifo"):
        (folder / name).rmdir()
        os.mkfifo(folder / name)
        assert "not a regular file" in refusal(folder)


@pytest.mark.parametrize(
    "shard",
    ["/etc/passwd.safetensors", "../x.safetensors", "a/../../x.safetensors", "..\\x.safetensors", "C:x.safetensors"],
)
def test_a_shard_named_outside_the_folder_is_refused(folder, shard):
    write_index(folder, {"a": shard})
    assert "expected a file inside the model folder" in refusal(folder)


@pytest.mark.parametrize(
    "shard", ["x\0.safetensors", "\ud800.safetensors", "x\n.safetensors", "x" * 244 + ".safetensors"]
)
def test_a_shard_name_that_no_honest_file_has_is_refused(folder, shard):
    write_index(folder, {"a": shard})
    assert "expected a file inside the model folder" in refusal(folder)


@pytest.mark.parametrize(
    ("weight_map", "expected"),
    [
        ({}, "no usable weight_map"),
        ([], "no usable weight_map"),
        (None, "no usable weight_map"),
        ({"a": 1}, "expected a file name"),
        ({"a": "pytorch_model.bin"}, "expected a .safetensors file"),
        ({"a": "absent.safetensors"}, "is missing"),
        ({"a": "shard.safetensors", "c": "shard.safetensors"}, "which does not hold it"),
    ],
)
def test_a_wrong_shard_index_is_refused(folder, weight_map, expected):
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    write_index(folder, weight_map)
    assert expected in refusal(folder)


def test_expected_tensors_are_checked_by_name_shape_and_dtype(folder):
    checkpoint = Checkpoint.open(folder)
    checkpoint.check({"a": (2, 3), "b": (4,)})
    checkpoint.check({"model.a": (2, 3)}, stored_names={"model.a": "a"})
    with pytest.raises(CheckpointError, match="lacks the tensor 'head'"):
        checkpoint.check({"a": (2, 3), "head": (9,)})
    with pytest.raises(CheckpointError, match=re.escape("has shape [2, 3], but config.json calls for [3, 2]")):
        checkpoint.check({"a": (3, 2)})
    write_safetensors(folder / "model.safetensors", changed(dtype="I32"), DATA)
    with pytest.raises(CheckpointError, match="stored as I32; expected one of BF16, F16, F32"):
        Checkpoint.open(folder).check({"a": (2, 3)})


def test_a_hub_name_is_an_owner_and_a_name():
    assert is_hub_name("Owner/Some-Model.v2")
    assert not any(map(is_hub_name, ("name", "a/b/c", "./name", "owner/na me", "owner/name:Q4_K_M", "")))
