"""Fixtures of the tests of faults in whole sessions; a file of them names this one as its plugin."""

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fault_injection import ASKED, Faults, what_is_open
from tests.support.session_factory import answer, open_tiny, save_tiny_folder


@pytest.fixture(scope="module")
def quick_collections() -> Iterator[None]:
    """Opening a session collects garbage, and the libraries' own objects take that 0.3 s each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def nothing_is_left_behind() -> Iterator[None]:
    before = what_is_open()
    yield
    gc.collect()
    assert what_is_open() == before


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model") / "target", seed=37)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(whole, tmp_path / "target"))


@pytest.fixture(scope="session")
def expected(whole: Path) -> list[int]:
    with open_tiny(whole) as opened:
        return answer(opened, ASKED)[1]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(monkeypatch)
