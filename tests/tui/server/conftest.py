"""Servers on tiny models for all tests that leave them as they are."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.json_models import save_json_folder
from tests.support.model_factory import save_tiny_model, save_tiny_tokenizer
from tests.support.served import Served, served, tiny_load
from tests.support.session_factory import save_tiny_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("served") / "target")


@pytest.fixture(scope="session")
def long_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose answers go on for thousands of passes."""
    path = tmp_path_factory.mktemp("served") / "long"
    save_tiny_model("llama", path, max_position_embeddings=8192)
    return save_tiny_tokenizer(path)


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Iterator[Served]:
    with served(tiny_load(folder)) as running:
        running.wait(lambda state: state.phase == "ready")
        yield running


@pytest.fixture(scope="module")
def json_writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model that can write JSON."""
    path = save_json_folder(tmp_path_factory.mktemp("served") / "json")
    with served(tiny_load(path)) as running:
        yield running
