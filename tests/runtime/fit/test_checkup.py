import huggingface_hub
import pytest
import torch

from offload.errors import CheckpointError
from runtime.engine.load_plan import LoadPlan
from runtime.engine_config import EngineConfig
from runtime.fit import checkup
from runtime.fit.checkup import check_up, find_folder, question_of_files, question_of_shapes
from tests.support.doctor_fakes import FakeProbes, finished
from tests.support.model_factory import save_tiny_model, save_tiny_tokenizer

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    return save_tiny_tokenizer(save_tiny_model("llama", tmp_path / "model"))


@pytest.fixture
def made(monkeypatch):
    """The real machine replaced by a fake; every construction is noted."""
    made = []

    def make(device, cache_folder, *, model_folder):
        made.append((device, cache_folder, model_folder))
        return FakeProbes()

    monkeypatch.setattr(checkup, "MachineProbes", make)
    return made


def test_the_large_model_is_always_asked_about(made, tmp_path):
    report, _ = finished(check_up(EngineConfig(), cache_folder=tmp_path))
    assert [(model.name, model.draft) for model in report.models] == [("Llama-3-70B", "Llama-3-8B in int8 rows")]
    assert made[0][1:] == (tmp_path, None)


def test_the_users_model_comes_second_and_its_files_measure_the_disk(made, folder, tmp_path):
    report, _ = finished(check_up(EngineConfig(target=str(folder), draft="none"), cache_folder=tmp_path))
    assert [model.name for model in report.models] == ["Llama-3-70B", str(folder)]
    assert made[0][2] == folder


def test_a_model_that_cannot_be_used_stops_before_anything_is_measured(made, tmp_path):
    with pytest.raises(CheckpointError, match="model folder not found"):
        finished(check_up(EngineConfig(target="./nowhere"), cache_folder=tmp_path))
    assert made == []


@pytest.mark.parametrize("draft", ["none", "substitute", "separate"])
def test_the_question_is_what_a_session_would_hold(folder, draft):
    config = EngineConfig(target=str(folder), draft=str(folder) if draft == "separate" else draft)
    question = question_of_files(CPU, config, folder, folder if draft == "separate" else None)
    planned = LoadPlan.build(config).placement
    assert question.need.fixed_bytes == planned.fixed_bytes


def test_a_model_that_is_not_here_needs_room_for_its_files():
    need = question_of_shapes(CPU).need
    assert need.file_bytes == 2 * 70_553_706_496
    assert need.cache_bytes_per_token == 2 * 80 * 8 * 128 * 4
    assert question_of_shapes(torch.device("meta")).need.cache_bytes_per_token == 2 * 80 * 8 * 128 * 2


def test_a_hub_name_is_looked_up_in_the_cache_only(folder, monkeypatch):
    def cached(name, *, local_files_only):
        assert local_files_only
        if name == "owner/here":
            return str(folder)
        raise huggingface_hub.errors.LocalEntryNotFoundError("x")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    assert find_folder("owner/here") == find_folder(str(folder)) == folder
    with pytest.raises(CheckpointError, match="'owner/absent' is not on this machine, and doctor downloads nothing"):
        find_folder("owner/absent")
