import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from model_factory import save_tiny_model, save_tiny_tokenizer, tiny_config
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from offload import partial_folder, safetensors_writer
from offload.errors import BadInputError, CheckpointError, WriteError
from offload.partial_folder import JOURNAL_NAME
from runtime.errors import OptionError
from runtime.preparation import PreparationProgress, PreparationRequest, PreparedModel, prepare_model

ROOT = Path(__file__).parent.parent
FORMATS = [("int8", False), ("nf4", False), ("nf4", True)]
WIDE = {"hidden_size": 64, "intermediate_size": 128}
SOURCES = {
    "llama, bf16": ("llama", {"dtype": torch.bfloat16, **WIDE}),
    "qwen2 with biases, tied, fp16, shards": (
        "qwen2",
        {"dtype": torch.float16, "tie_word_embeddings": True, "max_shard_size": "60KB", **WIDE},
    ),
    "gemma3, tied, fp32": ("gemma3", {**WIDE, "num_hidden_layers": 3}),
    "gpt2, turned matrices": ("gpt2", {"hidden_size": 64}),
    "opt, projected embeddings": (
        "opt",
        {"hidden_size": 64, "ffn_dim": 128, "word_embed_proj_dim": 32, "dropout": 0.0},
    ),
}


def save_source(folder: Path, name: str = "llama, bf16") -> Path:
    kind, settings = SOURCES[name]
    return save_tiny_tokenizer(save_tiny_model(kind, folder, seed=5, **settings))


def request(source: Path, output: Path, weight_format: str = "nf4", is_double: bool = False) -> PreparationRequest:
    return PreparationRequest(model=str(source), output=output, format=weight_format, is_double=is_double)


def finish(asked: PreparationRequest) -> tuple[list[PreparationProgress], PreparedModel]:
    *events, prepared = prepare_model(asked)
    assert isinstance(prepared, PreparedModel)
    return [event for event in events if isinstance(event, PreparationProgress)], prepared


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return tensors


def own_quantisation(source: Path, weight_format: str, is_double: bool):
    """The source, quantised by transformers itself while it loads."""
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
    """The oracle: transformers quantises the original on load, and saves it; same logits, same tensors to the bit."""
    source = save_source(tmp_path / name.split(",")[0], name)
    _, prepared = finish(request(source, tmp_path / "prepared", weight_format, is_double))
    reference = own_quantisation(source, weight_format, is_double)
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
    reference = own_quantisation(source, "nf4", False)
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
        f"model-{number:05}-of-00005.safetensors" for number in range(1, 6)
    }
    index = json.loads(after["model.safetensors.index.json"])
    assert index["metadata"]["total_size"] == prepared.num_bytes
    assert set(index["weight_map"]) == set(tensors_of(prepared.folder))


@pytest.mark.parametrize("name", ["llama, bf16", "qwen2 with biases, tied, fp16, shards"])
def test_progress_adds_up(tmp_path: Path, name: str) -> None:
    source = save_source(tmp_path / "model", name)
    progress, prepared = finish(request(source, tmp_path / "prepared"))
    done = [event.done_bytes for event in progress]
    assert done == sorted(done)
    assert done[-1] == progress[-1].total_bytes == prepared.source_bytes
    assert prepared.source_bytes == sum(t.numel() * t.element_size() for t in tensors_of(source).values())
    assert list(dict.fromkeys(event.layer_index for event in progress)) == [0, 1, 2, 3, None]
    assert not any(event.is_kept for event in progress)
    assert prepared.num_quantized == 28


def end_at(limit: int, asked: PreparationRequest) -> bool:
    """Prepare in a child that dies, as if by kill -9, before its `limit`-th flush or rename; whether it got that far.

    Every flush and every rename of a file, a folder or the journal is such a moment.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    num_moments = 0

    def dying(action):
        def act(*args):
            nonlocal num_moments
            num_moments += 1
            if num_moments == limit:
                os._exit(9)
            return action(*args)

        return act

    try:
        os.fsync, os.replace, os.rename = dying(os.fsync), dying(os.replace), dying(os.rename)
        Path.unlink, Path.replace, Path.rename = dying(Path.unlink), dying(Path.replace), dying(Path.rename)
        finish(asked)
    finally:
        os._exit(0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="dies in a child process")
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    source = save_tiny_model("llama", tmp_path / "model", num_hidden_layers=2, dtype=torch.bfloat16, **WIDE)
    _, whole = finish(request(source, tmp_path / "whole", "nf4", True))
    expected = contents(whole.folder)
    num_kept, limit = [], 0
    while True:
        limit += 1
        asked = request(source, tmp_path / f"killed-{limit}", "nf4", True)
        was_killed = end_at(limit, asked)
        if not was_killed:
            break
        assert not asked.output.exists() or (asked.output / JOURNAL_NAME).exists()
        progress, prepared = finish(asked)
        num_kept.append(prepared.num_kept_shards)
        assert contents(prepared.folder) == expected
        assert not progress or progress[-1].done_bytes == prepared.source_bytes
        assert not list(tmp_path.glob(f"killed-{limit}.partial"))
    assert limit > 30
    assert num_kept == sorted(num_kept)
    assert set(num_kept) == {0, 1, 2, 3}


KILLED = """
import sys
from pathlib import Path
from runtime.preparation import PreparationProgress, PreparationRequest, prepare_model
asked = PreparationRequest(model=sys.argv[1], output=Path(sys.argv[2]), format="int8")
for event in prepare_model(asked):
    if isinstance(event, PreparationProgress) and event.layer_index == 2:
        print("at layer 2", flush=True)
        sys.stdin.read()
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL")
@pytest.mark.slow
def test_a_real_kill_keeps_what_is_finished(tmp_path: Path) -> None:
    source = save_source(tmp_path / "model")
    command = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "prepared")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"at layer 2\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    progress, prepared = finish(request(source, tmp_path / "prepared", "int8"))
    assert prepared.num_kept_shards == 2
    assert [event.layer_index for event in progress if event.is_kept] == [0, 1]
    _, fresh = finish(request(source, tmp_path / "fresh", "int8"))
    assert contents(prepared.folder) == contents(fresh.folder)


def interrupt(asked: PreparationRequest, *, at_layer: int = 2) -> None:
    """Close the generator at that layer, as Ctrl-C does."""
    steps = prepare_model(asked)
    for event in steps:
        if isinstance(event, PreparationProgress) and event.layer_index == at_layer:
            break
    steps.close()


def test_other_options_or_a_changed_source_are_refused_on_resuming(tmp_path: Path) -> None:
    source = save_source(tmp_path / "model")
    interrupt(request(source, tmp_path / "prepared"))
    before = contents(tmp_path / "prepared.partial")
    with pytest.raises(BadInputError, match=r"begun with another format \(nf4 then, int8 now\)"):
        finish(request(source, tmp_path / "prepared", "int8"))
    with pytest.raises(BadInputError, match=r"begun with another double quantisation \(False then, True now\)"):
        finish(request(source, tmp_path / "prepared", "nf4", True))
    os.utime(source / "model.safetensors")
    with pytest.raises(BadInputError, match="begun with another state of the model's files; delete it"):
        finish(request(source, tmp_path / "prepared"))
    shutil.copytree(source, tmp_path / "copy")
    with pytest.raises(BadInputError, match="begun with another model folder"):
        finish(request(tmp_path / "copy", tmp_path / "prepared"))
    assert contents(tmp_path / "prepared.partial") == before


def test_a_shard_that_was_damaged_meanwhile_is_made_again(tmp_path: Path) -> None:
    source = save_source(tmp_path / "model")
    asked = request(source, tmp_path / "prepared")
    interrupt(asked)
    shard = tmp_path / "prepared.partial" / "model-00001-of-00005.safetensors"
    raw = shard.read_bytes()
    shard.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    progress, prepared = finish(asked)
    assert (prepared.folder / shard.name).read_bytes() == raw
    assert prepared.num_kept_shards == 1
    assert progress[-1].done_bytes == progress[-1].total_bytes


def test_a_source_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    source = save_source(tmp_path / "model")
    steps = prepare_model(request(source, tmp_path / "prepared"))
    with pytest.raises(CheckpointError, match="changed while it was read; delete"):
        for event in steps:
            if isinstance(event, PreparationProgress):
                os.utime(source / "model.safetensors")
    assert not (tmp_path / "prepared").exists()


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


class FullDisk:
    """Files on a disk that takes `room` bytes in all."""

    def __init__(self, room: int) -> None:
        self.room = room

    def create_file(self, file: Path):
        disk, opened = self, file.open("wb")

        class Limited:
            def write(self, piece):
                disk.room -= len(piece)
                if disk.room < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return opened.write(piece)

            def __getattr__(self, name):
                return getattr(opened, name)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                opened.close()

        return Limited()


def test_a_disk_that_fills_up_keeps_what_is_finished(tmp_path: Path, monkeypatch) -> None:
    """At every size of the disk: one sentence, and with room again the same bytes as without the interruption."""
    source = save_source(tmp_path / "model")
    _, fresh = finish(request(source, tmp_path / "fresh"))
    expected, asked = contents(fresh.folder), request(source, tmp_path / "prepared")
    num_failures = 0
    for room in range(1000, 10**6, 45_000):
        disk = FullDisk(room)
        with monkeypatch.context() as patch:
            patch.setattr(safetensors_writer, "create_file", disk.create_file)
            patch.setattr(partial_folder, "create_file", disk.create_file)
            try:
                finish(asked)
            except WriteError as error:
                num_failures += 1
                assert "No space left on device; make room and run the same command again to go on" in str(error)
                assert not (tmp_path / "prepared").exists()
                assert not list((tmp_path / "prepared.partial").glob("*.tmp"))
            else:
                break
    assert num_failures >= 3
    assert contents(tmp_path / "prepared") == expected


def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    source = save_source(tmp_path / "model")
    before = contents(tmp_path)
    with pytest.raises(OptionError, match="must be one of int8, nf4"):
        request(source, tmp_path / "x", "fp8")
    with pytest.raises(OptionError, match="leave it out for int8"):
        request(source, tmp_path / "x", "int8", True)
    with pytest.raises(OptionError, match="the model is empty"):
        request("", tmp_path / "x")
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


def finish_with(asked_for: list[int], asked: PreparationRequest) -> tuple[PreparedModel, int]:
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
from offload.memory_budget import process_memory
from runtime.preparation import PreparationRequest, prepare_model

small, large, folder = map(Path, sys.argv[1:])
def prepare(source, output, weight_format):
    *_, prepared = prepare_model(PreparationRequest(model=str(source), output=folder / output, format=weight_format))
    return prepared
for weight_format in ("nf4", "int8"):
    prepare(small, f"small-{weight_format}", weight_format)
gc.collect()
before = process_memory().resident_bytes
prepared = [prepare(large, f"large-{weight_format}", weight_format) for weight_format in ("nf4", "int8")]
print(json.dumps([before, [(each.peak_bytes, each.source_bytes) for each in prepared]]))
"""


@pytest.mark.slow
def test_memory_stays_within_two_layers_and_the_embeddings(tmp_path: Path) -> None:
    """The resident size of a process that prepares a model 9 layers deep, over what it held after a tiny one."""
    small = save_tiny_model("llama", tmp_path / "small", dtype=torch.bfloat16, **WIDE)
    size = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 9, "num_key_value_heads": 4}
    model = AutoModelForCausalLM.from_config(tiny_config("llama", **size), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "large")
    layer_bytes = sum(weight.nbytes for weight in model.model.layers[0].parameters())
    embedding_bytes = model.model.embed_tokens.weight.nbytes
    command = [sys.executable, "-c", PEAK, str(small), str(tmp_path / "large"), str(tmp_path)]
    finished = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=250)
    before, prepared = json.loads(finished.stdout)
    for peak_bytes, source_bytes in prepared:
        assert source_bytes > 4 * (2 * layer_bytes + embedding_bytes)
        assert 0 < peak_bytes - before <= 2 * layer_bytes + embedding_bytes
