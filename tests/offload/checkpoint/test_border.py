import json
import os
import socket
from pathlib import Path

import pytest

from offload.checkpoint.border import MAX_SETTINGS_BYTES, MAX_VOCABULARY_BYTES, check_border, is_inner_name
from offload.checkpoint.checkpoint import Checkpoint
from offload.errors import CheckpointError
from runtime.fit.models import shape_of_folder


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        check_border(folder)
    with pytest.raises(CheckpointError):  # both ways into a folder hold the border
        Checkpoint.open(folder)
    with pytest.raises(CheckpointError):
        shape_of_folder(folder)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("private")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["LICENSE", "tokenizer.json", "model.safetensors", "anything", "config.json"])
def test_a_link_that_leads_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    """`prepare` copied a private key that LICENSE led to into its output."""
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(os.path.relpath(folder.parent / "secret", folder))
    assert "leads out of the model folder" in refusal(folder)
    (folder / name).unlink()
    (folder / name).symlink_to(folder.parent / "secret")
    assert name in refusal(folder)


def test_so_is_one_below_a_linked_folder_or_behind_another_link(folder: Path) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "x.jinja").write_text("private")
    (folder / "additional_chat_templates").symlink_to(outside)
    assert "leads out" in refusal(folder)
    (folder / "additional_chat_templates").unlink()
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "x.jinja").symlink_to(outside / "x.jinja")
    assert "leads out" in refusal(folder)


def test_a_shard_below_a_linked_folder_is_refused_too(folder: Path) -> None:
    (folder.parent / "outside").mkdir()
    (folder / "inner").mkdir()
    (folder / "inner" / "deep").symlink_to(folder.parent / "outside")
    index = {"weight_map": {"a": "inner/deep/x.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="leads out of the model folder"):
        Checkpoint.open(folder)


def test_links_within_the_folder_and_a_folder_that_is_a_link_are_fine(folder: Path) -> None:
    (folder / "LICENSE").symlink_to("config.json")
    (folder.parent / "alias").symlink_to(folder)
    check_border(folder)
    check_border(folder.parent / "alias")


def test_the_hubs_cache_links_into_its_own_blobs_and_nowhere_else(folder: Path) -> None:
    repository = folder.parent / "cache" / "models--owner--name"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "abc").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    check_border(snapshot)
    (folder.parent / "elsewhere").symlink_to(folder.parent / "cache")
    check_border(folder.parent / "elsewhere" / "models--owner--name" / "snapshots" / "0123")
    other = folder.parent / "cache" / "models--owner--private" / "blobs"
    other.mkdir(parents=True)
    (other / "abc").write_text("private")
    (snapshot / "LICENSE").symlink_to("../../../models--owner--private/blobs/abc")
    assert "LICENSE" in refusal(snapshot)
    (snapshot / "LICENSE").unlink()
    (repository / "blobs" / "def").symlink_to(folder.parent / "secret")
    (snapshot / "LICENSE").symlink_to("../../blobs/def")
    assert "secret" in refusal(snapshot)


def test_blobs_that_are_a_link_themselves_are_not_the_caches_own(folder: Path) -> None:
    repository = folder.parent / "models--owner--name"
    (repository / "snapshots" / "0123").mkdir(parents=True)
    (repository / "blobs").symlink_to(folder.parent)
    (repository / "snapshots" / "0123" / "LICENSE").symlink_to("../../blobs/secret")
    (repository / "snapshots" / "0123" / "config.json").write_text("{}")
    assert "LICENSE" in refusal(repository / "snapshots" / "0123")


def test_links_that_go_round_in_a_circle_are_refused(folder: Path) -> None:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    assert "leads nowhere" in refusal(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "vocab.txt"])
def test_what_is_no_regular_file_is_refused_without_waiting_for_it(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(folder / name)
    assert "not a regular file" in refusal(folder)
    (folder / name).unlink()
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(name)  # not its path: such names are at most 108 characters long
        assert "not a regular file" in refusal(folder)


def test_small_files_are_weighed_before_they_are_read(folder: Path) -> None:
    limits = {"tokenizer_config.json": MAX_SETTINGS_BYTES, "chat_template.jinja": MAX_SETTINGS_BYTES}
    limits |= {"tokenizer.json": MAX_VOCABULARY_BYTES, "merges.txt": MAX_VOCABULARY_BYTES}
    for name, max_bytes in limits.items():
        (folder / name).touch()
        os.truncate(folder / name, max_bytes)
        check_border(folder)
        os.truncate(folder / name, 6 * 10**9)
        assert "has 6.00 GB; expected at most" in refusal(folder)
        (folder / name).unlink()


def test_other_configurations_are_not_followed(folder: Path) -> None:
    """transformers would read one of those names, which nothing has checked."""
    (folder / "config.json").write_text('{"configuration_files": ["config./../../x.json"]}')
    with pytest.raises(CheckpointError, match="configuration_files"):
        Checkpoint.open(folder)


def test_names_that_stay_in_the_folder() -> None:
    for name in ("vocab.json", "tokenizer.4.0.0.json", "a/b.txt", "..x", "x..json"):
        assert is_inner_name(name)
    for name in (
        "../x",
        "a/../../x",
        "/etc/passwd",
        "C:\\x",
        "C:x",
        "\\x",
        "..\\x",
        "a\\..\\x",
        "a\nb",
        "\0",
        "x" * 256,
    ):
        assert not is_inner_name(name)
