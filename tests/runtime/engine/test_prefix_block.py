"""A block is what was written, bit for bit, or nothing."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engine.prefix_block import SUFFIX, BlockForm

PARTS = (("layer 0", 96), ("layer 1", 160), ("state", 4))
FORM = BlockForm.of({"digest": "a"}, num_tokens=4, parts=PARTS)
TOKENS = list(range(100, 112))


def content_of(form: BlockForm = FORM, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, form.num_bytes, dtype=np.uint8)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first block of the tokens."""
    folder = tmp_path_factory.mktemp("blocks")
    FORM.write(folder, FORM.names(TOKENS)[0], content_of())
    return folder


def test_what_was_written_is_read(written: Path) -> None:
    assert np.array_equal(FORM.read(written, FORM.names(TOKENS)[0]), content_of())
    (file,) = written.iterdir()  # no neighbour is left
    assert file.stat().st_size == FORM.file_bytes
    if os.name == "posix":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_large_blocks_are_read_in_pieces(tmp_path: Path) -> None:
    form = BlockForm.of({}, num_tokens=1, parts=[("layer 0", (9 << 20) + 3)])
    content = content_of(form)
    form.write(tmp_path, "a", content)
    assert np.array_equal(form.read(tmp_path, "a"), content)


def test_a_name_stands_for_all_tokens_up_to_its_blocks_end() -> None:
    names = FORM.names(TOKENS)
    assert len(set(names)) == 3
    assert FORM.names(TOKENS[:11]) == FORM.names(TOKENS[:8]) == names[:2]
    assert FORM.names(TOKENS[:3]) == []
    assert FORM.names(TOKENS, known=names[:2]) == names
    changed = FORM.names([0, *TOKENS[1:]])
    assert not set(changed) & set(names)  # though the tokens of the last two blocks are the same
    assert FORM.names([*TOKENS[:8], 0, *TOKENS[9:]])[:2] == names[:2]


def test_every_difference_of_the_model_makes_other_names() -> None:
    """What one model has computed is never another one's."""
    others = [
        BlockForm.of({"digest": "b"}, num_tokens=4, parts=PARTS),
        BlockForm.of({"digest": "a", "int8": [1]}, num_tokens=4, parts=PARTS),
        BlockForm.of({"digest": "a"}, num_tokens=4, parts=PARTS[:2]),
        BlockForm.of({"digest": "a"}, num_tokens=4, parts=(PARTS[1], PARTS[0], PARTS[2])),
        BlockForm.of({"digest": "a"}, num_tokens=2, parts=PARTS),
    ]
    assert len({FORM.identity, *(other.identity for other in others)}) == 6
    assert not {name for other in others for name in other.names(TOKENS)} & set(FORM.names(TOKENS))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_file_that_was_changed_or_cut_is_no_block(written: Path, data: st.DataObject) -> None:
    name = FORM.names(TOKENS)[0]
    whole = (written / f"{name}{SUFFIX}").read_bytes()
    if data.draw(st.booleans()):
        place, bits = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
        damaged = whole[:place] + bytes([whole[place] ^ bits]) + whole[place + 1 :]
    else:
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))] + data.draw(st.sampled_from([b"", b"\0" * 40]))
    folder = written / "damaged"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}{SUFFIX}").write_bytes(damaged)
    with pytest.raises(ValueError, match="it"):
        FORM.read(folder, name)


def test_a_block_of_other_tokens_under_this_name_is_no_block(tmp_path: Path) -> None:
    first, second, _ = FORM.names(TOKENS)
    FORM.write(tmp_path, first, content_of())
    (tmp_path / f"{first}{SUFFIX}").rename(tmp_path / f"{second}{SUFFIX}")
    with pytest.raises(ValueError, match="another model, text or version"):
        FORM.read(tmp_path, second)
    with pytest.raises(FileNotFoundError):
        FORM.read(tmp_path, first)


def test_neither_links_nor_pipes_are_followed(tmp_path: Path) -> None:
    """A pipe would be waited for for ever."""
    if os.name != "posix":
        return
    FORM.write(tmp_path, "a", content_of())
    (tmp_path / f"b{SUFFIX}").symlink_to(tmp_path / f"a{SUFFIX}")
    os.mkfifo(tmp_path / f"c{SUFFIX}")
    with pytest.raises(OSError, match="b"):
        FORM.read(tmp_path, "b")
    with pytest.raises(ValueError, match="not a file"):
        FORM.read(tmp_path, "c")


def test_a_disk_that_takes_nothing_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        FORM.write(tmp_path, "a", content_of())
    assert list(tmp_path.iterdir()) == []
