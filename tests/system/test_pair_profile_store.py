"""A pair's file is found by names and believed only if content, formats, device, driver and dtype are the same."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from profiles.errors import ProfileError, StaleProfileError
from profiles.pair_profile import ModelIdentity, PairProfile
from profiles.profile_store import (
    MAX_FILE_BYTES,
    load_pair_profile,
    pair_profile_path,
    save_profile,
)
from profiles.records import to_record
from tests.support.profile_factory import DEVICE, PAIR


def load_pair(folder: Path, pair: PairProfile = PAIR) -> PairProfile | None:
    return load_pair_profile(
        folder, device=pair.device, target=pair.target, draft=pair.draft, compute_dtype=pair.compute_dtype
    )


def path_of(folder: Path, pair: PairProfile = PAIR) -> Path:
    return pair_profile_path(folder, device=pair.device, target=pair.target, draft=pair.draft)


def test_a_pair_that_was_saved_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "as needed"
    assert load_pair(folder) is None
    path = save_profile(folder, PAIR)
    assert path == path_of(folder)
    assert load_pair(folder) == PAIR
    (name,) = [file.name for file in folder.iterdir()]
    assert name.startswith("pair-big-bfloat16-small-int8-cuda-geforce-rtx-4060-ti-") and name.endswith(".json")


def test_saving_a_pair_again_replaces(tmp_path: Path) -> None:
    save_profile(tmp_path, PAIR)
    newer = replace(PAIR, target=replace(PAIR.target, content_digest="cc" * 16), copy_slowdown=0.5)
    save_profile(tmp_path, newer)
    assert load_pair(tmp_path, newer) == newer
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"device": replace(DEVICE, driver_version="561.00")},
            "the driver was '560.94' and is '561.00' now",
        ),
        (
            {"target": replace(PAIR.target, content_digest="cc" * 16)},
            f"the content of the target was '{'aa' * 16}' and is '{'cc' * 16}' now",
        ),
        (
            {"draft": replace(PAIR.draft, content_digest="bb" * 15 + "bc")},
            f"the content of the draft was '{'bb' * 16}' and is '{'bb' * 15}bc' now",
        ),
        ({"compute_dtype": "float32"}, "the compute dtype was 'bfloat16' and is 'float32' now"),
        (
            {"device": replace(DEVICE, driver_version=""), "compute_dtype": "float32"},
            "the driver was '560.94' and is '' now, and the compute dtype was 'bfloat16' and is 'float32' now",
        ),
    ],
)
def test_what_has_changed_since_is_named_with_the_next_step(
    tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    path = save_profile(tmp_path, PAIR)
    content = path.read_bytes()
    with pytest.raises(StaleProfileError) as caught:
        load_pair(tmp_path, replace(PAIR, **changes))  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"{path} no longer describes this pair: {sentence}; `overstory calibrate` measures it again"
    )
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"device": replace(DEVICE, name="GeForce RTX 3090")}, "the device was 'GeForce RTX 4060 Ti (cuda)' and is"),
        ({"device": replace(DEVICE, device_type="cpu")}, "the device was 'GeForce RTX 4060 Ti (cuda)' and is"),
        (
            {"target": replace(PAIR.target, held="nf4")},
            "the weight format of the target was 'bfloat16' and is 'nf4' now",
        ),
        ({"draft": replace(PAIR.draft, held="nf4")}, "the weight format of the draft was 'int8' and is 'nf4' now"),
    ],
)
def test_a_file_under_another_name_is_not_believed(tmp_path: Path, changes: dict[str, object], what: str) -> None:
    """Formats and devices have files of their own; one that was copied or edited is refused all the same."""
    wanted = replace(PAIR, **changes)  # type: ignore[arg-type]
    path = save_profile(tmp_path, PAIR)
    assert load_pair(tmp_path, wanted) is None
    path.rename(path_of(tmp_path, wanted))
    with pytest.raises(StaleProfileError) as caught:
        load_pair(tmp_path, wanted)
    assert what in str(caught.value)


def test_a_model_that_was_only_renamed_in_the_file_is_the_same(tmp_path: Path) -> None:
    renamed = replace(PAIR, target=replace(PAIR.target, name="large"))
    save_profile(tmp_path, PAIR).rename(path_of(tmp_path, renamed))
    assert load_pair(tmp_path, renamed) == PAIR


@pytest.mark.parametrize("name", ["../../elsewhere", "a/b\\c:d*?", "显卡", "x" * 1000, "\x00", "a\ud800"])
def test_no_name_of_a_model_leads_out_of_the_folder_or_to_another_models_file(tmp_path: Path, name: str) -> None:
    first = replace(PAIR, target=ModelIdentity(name, "aa", "int8"))
    second = replace(PAIR, target=ModelIdentity(name + "!", "aa", "int8"))
    path = path_of(tmp_path, first)
    assert path.parent == tmp_path and len(path.name) < 200 and path != path_of(tmp_path, second)


def damaged_pair(**changes: object) -> bytes:
    return json.dumps({**to_record(PAIR), **changes}).encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON"),
        (damaged_pair()[:-1], "not valid JSON"),
        (b"[1]", "does not hold a JSON object"),
        (b'{"schema_version": 1, "schema_version": 1}', "stands twice"),
        (damaged_pair(schema_version=4), "schema_version is 4; this program reads version 3"),
        (
            damaged_pair(walk_costs=[{"num_nodes": 1, "seconds": -1}]),
            "walk_costs[0].seconds is -1; expected",
        ),
        (damaged_pair(copy_slowdown=float("nan")), "not a finite number"),
        (damaged_pair(acceptance=[{"temperature": 0}]), "acceptance[0].by_rank is missing"),
        (b" " * (MAX_FILE_BYTES + 1), "more than 4194304 bytes"),
    ],
)
def test_a_damaged_pair_is_one_sentence_with_the_file_and_the_next_step(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = path_of(tmp_path)
    path.write_bytes(content)
    with pytest.raises(ProfileError) as caught:
        load_pair(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{path} is not a usable profile of this pair: ") and reason in message
    assert message.endswith("; `overstory calibrate` measures it again") and "\n" not in message
    assert path.read_bytes() == content


def test_every_shortened_file_is_refused(tmp_path: Path) -> None:
    """Power was lost, or a disk was full: each of a file's beginnings."""
    path = save_profile(tmp_path, PAIR)
    content = path.read_bytes().rstrip()
    for num_bytes in range(0, len(content), 7):
        path.write_bytes(content[:num_bytes])
        with pytest.raises(ProfileError, match="not valid JSON"):
            load_pair(tmp_path)


def test_a_failure_while_saving_a_pair_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_profile(tmp_path, PAIR)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(ProfileError, match=r"cannot be written \(No space left on device\); make room"):
        save_profile(tmp_path, replace(PAIR, copy_slowdown=0.5))
    monkeypatch.undo()
    assert load_pair(tmp_path) == PAIR
    assert len(list(tmp_path.iterdir())) == 1
