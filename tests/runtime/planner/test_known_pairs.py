"""Model digests by content alone, and the profiles that `plan` finds by them."""

import json
import os
import random
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from offload.checkpoint.checkpoint import Checkpoint
from offload.errors import CheckpointError
from profiles.machine_profile import DeviceIdentity
from profiles.profile_store import save_profile
from runtime.fit.machine import Basis
from runtime.fit.plan import make_plan
from runtime.fit.plan_question import resolve_question
from runtime.fit.request import PlanRequest
from runtime.planner.known_pairs import (
    PAGE_BYTES,
    STRIDE_BYTES,
    model_digest,
    model_identity,
    sample_offsets,
    stored_pairs,
)
from runtime.speculation.acceptance import acceptance_of
from tests.support.model_factory import save_tiny_model, write_safetensors
from tests.support.plan_fakes import planned, processor
from tests.support.profile_factory import DEVICE, PAIR

CPU = DeviceIdentity("cpu", "cpu", "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model in several shards."""
    folder = save_tiny_model("llama", tmp_path / "model", max_shard_size=40_000)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def test_a_copy_elsewhere_and_later_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    before = model_digest(folder)
    assert re.fullmatch("[0-9a-f]{64}", before)
    copy = tmp_path / "other" / "name"
    shutil.copytree(folder, copy)
    for file in copy.iterdir():
        os.utime(file, (1, 1))
    assert model_digest(copy) == before
    (copy / "README.md").write_text("what else lies there is no part of the model")
    assert model_digest(copy) == before


def test_a_way_to_the_folder_does_not_count(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (tmp_path / "link").symlink_to(folder)
    digests = {model_digest(path) for path in (folder, Path(), folder / ".." / "model", tmp_path / "link")}
    assert len(digests) == 1


def test_the_order_and_spacing_of_the_configuration_do_not_count(folder: Path) -> None:
    before = model_digest(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(dict(reversed(config.items())), indent=7))
    assert model_digest(folder) == before


def change_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 1.0}))


def swap_shards(folder: Path) -> None:
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    swapped = {first.name: second.name, second.name: first.name}
    parsed = json.loads(index.read_text())
    parsed["weight_map"] = {name: swapped.get(shard, shard) for name, shard in parsed["weight_map"].items()}
    index.write_text(json.dumps(parsed))
    first.rename(folder / "aside")
    second.rename(first)
    (folder / "aside").rename(second)


def lengthen_a_file(folder: Path) -> None:
    with sorted(folder.glob("*.safetensors"))[0].open("ab") as file:
        file.write(b"\0")


@pytest.mark.parametrize("change", [change_config, swap_shards, lengthen_a_file])
def test_what_is_not_weights_counts_too(folder: Path, change: Callable[[Path], None]) -> None:
    before = model_digest(folder)
    change(folder)
    assert model_digest(folder) != before


def test_a_fine_tune_of_any_single_tensor_is_another_model(folder: Path) -> None:
    """As one of a LoRA that was merged into a few matrices: all of a tensor's weights move a little, nothing else."""
    digests = {model_digest(folder)}
    tensors = Checkpoint.open(folder).tensors.values()
    for entry in tensors:
        with entry.file.open("r+b") as file:
            file.seek(entry.offset_bytes)
            moved = bytes(byte ^ 1 for byte in file.read(entry.num_bytes))
            file.seek(entry.offset_bytes)
            file.write(moved)
        digests.add(model_digest(folder))
    assert len(digests) == 1 + len(tensors)


def test_other_names_shapes_and_types_over_the_same_bytes_are_other_models(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    tensor = {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}
    headers = [
        {"a": tensor},
        {"b": tensor},
        {"a": {**tensor, "shape": [3, 2]}},
        {"a": {**tensor, "dtype": "BF16"}},
        {"a": {**tensor, "data_offsets": [2, 14]}},
    ]
    digests = set()
    for header in headers:
        write_safetensors(tmp_path / "model.safetensors", header, bytes(14))
        digests.add(model_digest(tmp_path))
    assert len(digests) == len(headers)


def test_the_pages_of_a_tensor_lie_evenly_and_inside_it() -> None:
    generator = random.Random(3)
    sizes = [0, 1, PAGE_BYTES, STRIDE_BYTES, STRIDE_BYTES + 1, *(generator.randrange(1 << 36) for _ in range(200))]
    for num_bytes in sizes:
        offsets = sample_offsets(num_bytes)
        assert len(offsets) == -(-num_bytes // STRIDE_BYTES)
        assert all(0 <= offset <= max(0, num_bytes - PAGE_BYTES) for offset in offsets)
        ends = [0, *offsets, num_bytes]
        assert all(0 <= later - earlier <= STRIDE_BYTES for earlier, later in pairwise(ends))


@pytest.mark.skipif(os.name == "nt", reason="files have no holes there unless asked for")
def test_a_large_folder_takes_no_longer_than_its_pages(tmp_path: Path) -> None:
    """140 GB in 30 files with holes instead of weights: nothing that reads them through would end in time."""
    (tmp_path / "config.json").write_text("{}")
    num_bytes = 140 * 10**9 // 30 // 24
    weight_map = {}
    for shard in range(30):
        name = f"model-{shard:05}-of-00030.safetensors"
        tensors = {
            f"{shard}.{i}": {"dtype": "U8", "shape": [num_bytes], "data_offsets": [i * num_bytes, (i + 1) * num_bytes]}
            for i in range(24)
        }
        write_safetensors(tmp_path / name, tensors)
        os.truncate(tmp_path / name, (tmp_path / name).stat().st_size + 24 * num_bytes)
        weight_map |= dict.fromkeys(tensors, name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    started = time.perf_counter()
    model_digest(tmp_path)
    assert time.perf_counter() - started < 10  # 0.1 s; sixteen seconds would be reading at 9 GB/s


def test_a_folder_that_is_no_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a folder"):
        model_digest(tmp_path / "nowhere")
    shard = sorted(folder.glob("*.safetensors"))[0]
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="truncated"):
        model_digest(folder)


def test_a_disk_that_fails_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that opens for its header and is gone for its weights."""
    checkpoint = Checkpoint.open(folder)
    monkeypatch.setattr(Checkpoint, "open", lambda _: checkpoint)
    (gone := sorted(folder.glob("*.safetensors"))[1]).unlink()
    with pytest.raises(CheckpointError, match=re.escape(f"{gone} cannot be read: ")) as caught:
        model_digest(folder)
    assert "\n" not in str(caught.value)


def test_an_identity_has_the_folders_name_and_the_given_format(folder: Path) -> None:
    identity = model_identity(folder, "int8")
    assert (identity.name, identity.held, identity.content_digest) == ("model", "int8", model_digest(folder))
    link = folder.with_name("link")
    link.symlink_to(folder)
    assert model_identity(link, "int8") == identity


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    target = save_tiny_model("llama", tmp_path_factory.mktemp("big"), dtype=torch.bfloat16)
    return target, save_tiny_model("llama", tmp_path_factory.mktemp("small"), dtype=torch.bfloat16, num_hidden_layers=1)


def question(folders, **fields):
    target, draft = folders
    return resolve_question(PlanRequest(**{"target": str(target), "draft": str(draft)} | fields))


def keep(cache_folder, target, draft, *, held, draft_held, device=DEVICE, dtype="bfloat16"):
    identities = {"target": model_identity(target, held), "draft": model_identity(draft, draft_held)}
    profile = replace(PAIR, device=device, compute_dtype=dtype, **identities)
    save_profile(cache_folder, profile)
    return profile


def test_profiles_are_found_by_how_the_draft_is_held(folders, tmp_path):
    as_int8 = keep(tmp_path, *folders, held="bfloat16", draft_held="int8")
    as_stored = keep(tmp_path, *folders, held="bfloat16", draft_held="bfloat16")
    found, problems = stored_pairs(question(folders), DEVICE, cache_folder=tmp_path)
    assert (found, problems) == ({"int8": as_int8, "stored": as_stored}, ())
    found, _ = stored_pairs(question(folders, draft_format="int8"), DEVICE, cache_folder=tmp_path)
    assert found == {"int8": as_int8}


def test_a_substitute_has_its_targets_content(folders, tmp_path):
    profile = keep(tmp_path, folders[0], folders[0], held="bfloat16", draft_held="nf4", device=CPU, dtype="float32")
    found, _ = stored_pairs(question(folders, draft="substitute"), CPU, cache_folder=tmp_path)
    assert found == {"nf4": profile}


def test_a_profile_that_no_longer_holds_is_told(folders, tmp_path):
    keep(tmp_path, *folders, held="bfloat16", draft_held="int8", dtype="float16")
    found, problems = stored_pairs(question(folders), DEVICE, cache_folder=tmp_path)
    assert found == {} and "the compute dtype was" in problems[0] and len(problems) == 1


def test_another_machine_and_models_that_are_not_here_have_none(folders, tmp_path):
    keep(tmp_path, *folders, held="bfloat16", draft_held="int8")
    assert stored_pairs(question(folders), None, cache_folder=tmp_path) == ({}, ())
    assert stored_pairs(question(folders, draft="llama-3.2-1b"), DEVICE, cache_folder=tmp_path) == ({}, ())
    assert stored_pairs(question(folders), DEVICE, cache_folder=tmp_path / "nowhere") == ({}, ())


def test_a_measured_pair_is_what_the_plan_rests_on(folders, tmp_path):
    profile = keep(tmp_path, *folders, held="bfloat16", draft_held="int8", device=CPU, dtype="float32")
    asked = question(folders, temperature=0.9, context_tokens=256, draft_format="int8")
    report = make_plan(asked, processor(identity=CPU), {"int8": profile})
    main = report.main
    assert (main.draft_held, main.measured_at) == ("int8", profile.measured_at)
    assert main.costs.draft_step_seconds.seconds == (0.01, 0.02)
    assert main.costs.pass_seconds(1) == pytest.approx(0.1)
    rests_on = {what: (basis, words) for what, basis, words in report.basis_lines}
    assert rests_on["computing"][0] == rests_on["acceptance"][0] == Basis.MEASURED
    assert "at temperature 1, 200 positions" in rests_on["acceptance"][1]
    best = acceptance_of(profile, 0.9)[0][0]
    chain = main.ranking.of_shape(2, 2)
    assert chain.expected_tokens == pytest.approx(1 + best)
    assert report.plain.measured_at == profile.measured_at  # a plain pass was measured too
    assert all(getattr(other, "measured_at", None) is None for other in report.others.values())
    assert not any("launching kernels" in note for note in report.notes)


def test_the_dynamic_program_takes_the_measured_vector(folders):
    asked = question(folders, search="dp", context_tokens=256)
    report = make_plan(asked, processor(identity=CPU), {"int8": PAIR})
    assert report.main.tree.expected_tokens >= 1


def test_without_a_profile_nothing_changes():
    assert planned().main.measured_at is None
