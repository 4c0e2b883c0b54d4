import re
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors

from offload.checkpoint import hub_download
from offload.checkpoint.hub_download import HuggingFaceHub, cached_model, free_disk_bytes, watch_download
from offload.checkpoint.model_places import HubModel
from offload.errors import CheckpointError
from profiles.steps import finish
from tests.support.generator_ends import drained

CACHE = Path("/cache/hub")


@dataclass
class FakeHub(HuggingFaceHub):
    """A hub with one model."""

    num_bytes: int = 100
    missing: int = 100
    listing_error: Exception | None = None
    names_error: Exception | None = None
    download_error: Exception | None = None
    downloaded: list[str] = field(default_factory=list)
    stored: list[int] = field(default_factory=lambda: [0])
    is_looked_at: threading.Event = field(default_factory=threading.Event)

    def sizes(self, name, files=None):
        if self.listing_error is not None:
            raise self.listing_error
        return self.num_bytes, self.missing

    def download(self, name, files=None):
        if self.download_error is not None:
            raise self.download_error
        self.downloaded += [name] if files is None else files
        return CACHE / name

    def file_names(self, name):
        if self.names_error is not None:
            raise self.names_error
        return ["README.md", "m-Q4_K_M.gguf", "q8/m-Q8_0-00001-of-00002.gguf", "q8/m-Q8_0-00002-of-00002.gguf"]

    def cache_folder(self):
        return CACHE

    def stored_bytes(self, name):
        if len(self.stored) == 1:
            self.is_looked_at.set()
        return self.stored[0] if len(self.stored) == 1 else self.stored.pop(0)


class SlowHub(FakeHub):
    """A hub whose download ends when its progress has been looked at."""

    def download(self, name, files=None):
        assert self.is_looked_at.wait(20)
        return super().download(name, files)


def download(hub, *, free, cache=CACHE, variant=None):
    with mock.patch.object(hub_download, "free_disk_bytes", lambda folder: free if folder == cache else None):
        return finish(watch_download("owner/name", variant=variant, hub=hub))


def test_a_model_that_fits_exactly_is_downloaded():
    hub = FakeHub()
    assert download(hub, free=100) == CACHE / "owner/name"
    assert hub.downloaded == ["owner/name"]


def test_a_disk_one_byte_too_small_is_refused_before_anything_is_written():
    hub = FakeHub(141 * 10**9, 141 * 10**9)
    with pytest.raises(CheckpointError) as caught:
        download(hub, free=87 * 10**9)
    assert str(caught.value) == (
        "the model owner/name could not be downloaded: it needs 141 GB more and 87.0 GB are free in /cache/hub; "
        "free some, or set HF_HOME to a folder on a larger disk"
    )
    assert hub.downloaded == []
    with pytest.raises(CheckpointError, match="needs 100 B more and 99 B are free"):
        download(FakeHub(), free=99)


def test_what_is_in_the_cache_already_needs_no_room():
    assert download(FakeHub(missing=10), free=10)
    with pytest.raises(CheckpointError, match="needs 11 B more"):
        download(FakeHub(missing=11), free=10)


@pytest.mark.parametrize("error", [ConnectionResetError("gone"), hub_errors.OfflineModeIsEnabled("x"), ValueError("x")])
def test_a_hub_that_does_not_tell_sizes_is_tried_all_the_same(error):
    """A complete copy may be in the cache."""
    hub = FakeHub(listing_error=error)
    assert download(hub, free=0) == CACHE / "owner/name"


def test_a_disk_that_does_not_say_what_is_free_is_tried_all_the_same():
    assert download(FakeHub(), free=None)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (hub_errors.LocalEntryNotFoundError("x"), "cannot be reached"),
        (hub_errors.OfflineModeIsEnabled("x"), "cannot be reached"),
        (hub_errors.HFValidationError("bad\nname"), r"HFValidationError: 'bad\\nname'"),
        (ConnectionResetError("gone"), "ConnectionResetError"),
    ],
)
def test_a_failed_download_is_one_sentence(error, expected):
    with pytest.raises(CheckpointError, match="the model owner/name could not be downloaded") as caught:
        download(FakeHub(listing_error=error, download_error=error), free=1000)
    assert re.search(expected, str(caught.value)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(hub_errors.GatedRepoError, "grants access on request"), (hub_errors.RepositoryNotFoundError, "no such model")],
)
def test_gated_and_unknown_models_are_told_apart(kind, expected):
    error = kind.__new__(kind)  # their constructors want a live response
    with pytest.raises(CheckpointError, match=expected):
        download(FakeHub(listing_error=error, download_error=error), free=1000)


def test_the_real_hub_counts_and_downloads_the_same_files(monkeypatch, tmp_path):
    """Only what a model needs: no pickle, no second format; and what the cache holds is known by the revision."""
    wanted = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.model"]
    wanted += ["merges.txt", "chat_template.jinja"]
    unwanted = ["pytorch_model.bin", "x.pt", "modeling_x.py", "model.gguf", "consolidated.safetensors"]
    unwanted += ["onnx/model.safetensors", "original/params.json"]
    asked = {}

    def model_info(self, name, *, files_metadata, timeout):
        assert files_metadata and timeout <= 10
        siblings = [SimpleNamespace(rfilename=file, size=len(file)) for file in [*wanted, *unwanted]]
        return SimpleNamespace(sha="f" * 40, siblings=siblings)

    def snapshot_download(name, *, allow_patterns, ignore_patterns):
        asked.update(allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        return str(tmp_path)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("f" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    blobs = tmp_path / "models--owner--name" / "blobs"
    blobs.mkdir()
    (blobs / "0a.incomplete").write_bytes(b"12345")
    (blobs / "0b.12ab.incomplete").write_bytes(b"begun anew by the next attempt")
    (blobs / "0c").write_bytes(b"whole")
    hub = HuggingFaceHub()
    missing = sum(map(len, wanted)) - len("config.json") - 5
    assert hub.sizes("owner/name") == (sum(map(len, wanted)), missing)
    assert hub.sizes("owner/other") == (sum(map(len, wanted)), sum(map(len, wanted)))
    assert hub.stored_bytes("owner/name") == 40 and hub.stored_bytes("owner/other") == 0
    assert hub.download("owner/name") == tmp_path
    assert list(huggingface_hub.utils.filter_repo_objects([*wanted, *unwanted], **asked)) == wanted
    assert download(None, free=missing, cache=tmp_path) == tmp_path
    with pytest.raises(CheckpointError, match=f"needs {missing} B more"):
        download(None, free=missing - 1, cache=tmp_path)


def watched(hub):
    return drained(watch_download("owner/name", hub=hub))


def test_a_download_can_be_watched(monkeypatch):
    """100 bytes, 30 of them here before; what another attempt left in the cache is no progress of this one."""
    monkeypatch.setattr(hub_download, "_LOOKING_SECONDS", 0.001)
    hub = SlowHub(missing=70, stored=[500, 500, 520, 900])
    shown, folder = watched(hub)
    assert folder == CACHE / "owner/name"
    assert shown[:3] == [(30, 100), (50, 100), (100, 100)] and set(shown[3:]) <= {(100, 100)}


def test_what_is_here_or_of_unknown_size_is_not_shown_as_progress():
    assert watched(FakeHub(missing=0)) == ([], CACHE / "owner/name")
    assert watched(FakeHub(listing_error=ValueError("x"))) == ([], CACHE / "owner/name")


def test_a_watched_download_fails_as_an_unwatched_one():
    with pytest.raises(CheckpointError, match=r"the model owner/name could not be downloaded: .*gone"):
        watched(FakeHub(download_error=ConnectionResetError("gone")))


def test_free_disk_is_that_of_the_nearest_folder_that_exists(tmp_path):
    free = free_disk_bytes(tmp_path / "not" / "yet")
    assert abs(free - shutil.disk_usage(tmp_path).free) < 10**9


@pytest.mark.parametrize(
    ("variant", "files"),
    [
        ("Q4_K_M", ["m-Q4_K_M.gguf"]),
        ("q8_0", ["q8/m-Q8_0-00001-of-00002.gguf", "q8/m-Q8_0-00002-of-00002.gguf"]),
    ],
)
def test_of_a_gguf_repository_one_quantization_is_downloaded(variant, files):
    hub = FakeHub()
    assert download(hub, free=100, variant=variant) == CACHE / "owner/name" / files[0]
    assert hub.downloaded == files


def test_a_quantization_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(CheckpointError) as caught:
        download(FakeHub(), free=100, variant="Q2_K")
    assert str(caught.value) == (
        "owner/name has no single GGUF file for 'Q2_K'; there are 'm-Q4_K_M', 'q8/m-Q8_0-00001-of-00002'"
    )


def test_a_hub_that_does_not_list_its_files_says_so():
    hub = FakeHub(names_error=OSError("no network"))
    with pytest.raises(CheckpointError, match="the model owner/name could not be downloaded: OSError: 'no network'"):
        download(hub, free=100, variant="Q4_K_M")


def test_only_the_files_asked_for_are_counted_and_fetched(monkeypatch):
    """Of a repository of twenty quantizations the rest would be hundreds of gigabytes."""
    files = [SimpleNamespace(rfilename=f"m-{name}.gguf", size=size) for name, size in (("Q4", 4), ("Q8", 8))]
    info = SimpleNamespace(siblings=files, sha="abc")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **patterns: asked.update(patterns) or "/f")
    hub = HuggingFaceHub()
    assert hub.sizes("owner/name", ["m-Q4.gguf"]) == (4, 4)
    assert hub.download("owner/name", ["m-Q4.gguf"]) == Path("/f") and asked == {"allow_patterns": ["m-Q4.gguf"]}


def test_without_the_hub_the_files_of_the_cache_are_chosen_from(monkeypatch, tmp_path):
    (tmp_path / "q4").mkdir()
    (tmp_path / "q4" / "m-Q4_K_M.gguf").touch()

    def unreachable(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    assert HuggingFaceHub().file_names("owner/name") == ["q4/m-Q4_K_M.gguf"]
    model = HubModel("owner/name", "Q4_K_M")
    assert cached_model(model) == tmp_path / "q4" / "m-Q4_K_M.gguf"
    assert cached_model(HubModel("owner/name")) == tmp_path
    with pytest.raises(FileNotFoundError):
        cached_model(HubModel("owner/name", "Q8_0"))
