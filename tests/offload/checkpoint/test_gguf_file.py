"""Headers of GGUF files: what they say, and every way in which they may be wrong."""

import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from offload.checkpoint import gguf_file
from offload.checkpoint.gguf_file import part_files, read_gguf, row_bytes
from offload.errors import CheckpointError
from tests.support.gguf_bytes import ARRAY, BOOL, FLOAT32, INT32, STRING, UINT32, UINT64, gguf_bytes, key, tensor, text

ARCHITECTURE = key("general.architecture", STRING, "llama")
DATA = bytes(range(256)) * 2


def write(file: Path, *arguments: object, **settings: object) -> Path:
    file.write_bytes(gguf_bytes(*arguments, **settings))
    return file


def test_metadata_and_tensors_are_read_as_the_file_has_them(tmp_path: Path) -> None:
    keys = [
        ARCHITECTURE,
        key("a.count", UINT32, 7),
        key("a.large", UINT64, 2**40),
        key("a.less", INT32, -3),
        key("a.share", FLOAT32, 0.5),
        key("a.is", BOOL, True),
        key("a.words", ARRAY, (STRING, ["x", "", "ä"])),
        key("a.numbers", ARRAY, (INT32, [1, -2, 3])),
    ]
    tensors = [tensor("blk.0.a.weight", (8, 3), 0, 0), tensor("b.weight", (32, 2), 8, 96)]
    file = write(tmp_path / "m.gguf", keys, tensors, DATA)
    header = read_gguf(file)
    assert header.architecture == "llama" and header.count("a.count") == 7 and header.count("absent") is None
    assert header.metadata["a.large"] == 2**40 and header.metadata["a.less"] == -3
    assert header.metadata["a.share"] == 0.5 and header.metadata["a.is"] is True
    assert header.strings("a.words") == ["x", "", "ä"] and header.numbers("a.numbers") == [1, -2, 3]
    begin = len(file.read_bytes()) - len(DATA)
    first, second = header.tensors["blk.0.a.weight"], header.tensors["b.weight"]
    assert (first.dtype, first.shape, first.offset_bytes, first.num_bytes) == ("F32", (3, 8), begin, 96)
    assert (second.dtype, second.shape, second.offset_bytes, second.num_bytes) == ("Q8_0", (2, 32), begin + 96, 68)
    assert row_bytes("Q4_K", 512) == 288


def test_version_2_and_other_alignments_are_read(tmp_path: Path) -> None:
    keys = [ARCHITECTURE, key("general.alignment", UINT32, 64)]
    file = write(tmp_path / "m.gguf", keys, [tensor("a", (4,), 0, 64)], DATA, version=2, alignment=64)
    assert read_gguf(file).tensors["a"].offset_bytes == len(file.read_bytes()) - len(DATA) + 64


def test_long_lists_are_kept_only_where_they_are_asked_for(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(2000)]
    file = write(tmp_path / "m.gguf", [ARCHITECTURE, key("t", ARRAY, (STRING, words))])
    other = write(tmp_path / "o.gguf", [ARCHITECTURE, key("t", ARRAY, (STRING, [*words[:-1], "other"]))])
    short, whole = read_gguf(file).metadata["t"], read_gguf(file, keeps_lists=True)
    assert short.count == 2000 and short.raw is None
    assert whole.strings("t") == words and whole.metadata["t"].sha256 == short.sha256
    assert read_gguf(other).metadata["t"].sha256 != short.sha256


def test_a_vocabulary_of_250000_strings_is_read_quickly(tmp_path: Path) -> None:
    """It takes a fifth of a second; a reader that makes an object of every byte takes a minute."""
    words = [b"token%d" % number for number in range(250_000)]
    file = write(tmp_path / "m.gguf", [ARCHITECTURE, key("t", ARRAY, (STRING, words))])
    begun = time.process_time()
    assert read_gguf(file).metadata["t"].count == 250_000
    assert time.process_time() - begun < 5


def test_importing_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, offload.checkpoint.gguf_file; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def damaged_strings(length: int) -> bytes:
    """An array of one string that claims to be so long."""
    return text("t") + struct.pack("<IIQQ", ARRAY, STRING, 1, length)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "does not begin with GGUF"),
        (b"GGUF", "does not begin with GGUF"),
        (b"PK\3\4" + bytes(100), "does not begin with GGUF"),
        (gguf_bytes([ARCHITECTURE], version=1), "is of GGUF version 1"),
        (gguf_bytes([ARCHITECTURE], version=3 << 24), "written for big-endian machines"),
        (gguf_bytes([ARCHITECTURE], num_keys=2**63), "claims 9223372036854775808 metadata keys"),
        (gguf_bytes([ARCHITECTURE], num_tensors=2**60), "claims 1152921504606846976 tensors"),
        (gguf_bytes([ARCHITECTURE, ARCHITECTURE]), "stands twice"),
        (gguf_bytes([text("") + struct.pack("<II", UINT32, 1)]), "a metadata key has 0 bytes"),
        (gguf_bytes([text(b"\xff\xfe") + struct.pack("<II", UINT32, 1)]), "a metadata key is no UTF-8"),
        (gguf_bytes([struct.pack("<Q", 2**63) + bytes(20)]), "a metadata key claims 9223372036854775808 bytes"),
        (gguf_bytes([text("k") + struct.pack("<IQ", 13, 0)]), "has the type 13"),
        (gguf_bytes([key("k", FLOAT32, float("nan"))]), "not finite"),
        (gguf_bytes([text("k") + struct.pack("<IQ", STRING, 2**40)]), "claims 1099511627776 bytes"),
        (gguf_bytes([key("k", ARRAY, (ARRAY, [(UINT32, [1])]))]), "is a list of type 9"),
        (gguf_bytes([text("k") + struct.pack("<IIQ", ARRAY, UINT32, 2**62)]), "claims 4611686018427387904 items"),
        (gguf_bytes([text("k") + struct.pack("<IIQ", ARRAY, STRING, 2**61)]), "claims 2305843009213693952 items"),
        (gguf_bytes([damaged_strings(2**63)]), "ends behind the end of the file"),
        (gguf_bytes([key("general.alignment", UINT32, 24)]), "general.alignment is 24"),
        (gguf_bytes([key("general.alignment", UINT32, 0)]), "general.alignment is 0"),
        (gguf_bytes([key("general.alignment", STRING, "32")]), "general.alignment is '32'"),
        (gguf_bytes([ARCHITECTURE], [tensor("a" * 501, (4,), 0, 0)], DATA), "a tensor's name has 501 bytes"),
        (gguf_bytes([ARCHITECTURE], [tensor("a", (), 0, 0)], DATA), "has 0 dimensions"),
        (gguf_bytes([ARCHITECTURE], [tensor("a", (1,) * 5, 0, 0)], DATA), "has 5 dimensions"),
        (gguf_bytes([ARCHITECTURE], [tensor("a", (4,), 5, 0)], DATA), "as ggml type 5"),
        (gguf_bytes([ARCHITECTURE], [tensor("a", (0, 4), 0, 0)], DATA), "has the sizes"),
        (gguf_bytes([ARCHITECTURE], [tensor("a", (2**40, 2**40), 0, 0)], DATA), "has the sizes"),
        (gguf_bytes([ARCHITECTURE], [tensor("a", (33, 2), 8, 0)], DATA), "Q8_0 takes multiples of 32"),
        (gguf_bytes([ARCHITECTURE], [tensor("a", (4,), 0, 4)], DATA), "no multiple of 32"),
        (gguf_bytes([ARCHITECTURE], [tensor("a", (4,), 0, 2**62)], DATA), "is truncated"),
        (gguf_bytes([ARCHITECTURE], [tensor("a", (4096,), 0, 0)], DATA), "is truncated"),
        (gguf_bytes([ARCHITECTURE], [tensor("a", (4,), 0, 0)] * 2, DATA), "stands twice"),
        (gguf_bytes([ARCHITECTURE], [tensor("a", (16,), 0, 0), tensor("b", (4,), 0, 32)], DATA), "overlap"),
    ],
)
def test_each_fault_is_one_sentence(tmp_path: Path, content: bytes, expected: str) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_gguf(file)
    assert expected in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_a_header_cut_anywhere_is_refused(tmp_path: Path) -> None:
    content = gguf_bytes([ARCHITECTURE, key("t", ARRAY, (STRING, ["a", "b"]))], [tensor("a", (4,), 0, 0)], DATA[:16])
    file = tmp_path / "m.gguf"
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_gguf(file)


def test_a_header_without_end_is_not_read_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "MAX_HEADER_BYTES", 2**21)
    file = write(tmp_path / "m.gguf", [ARCHITECTURE, key("t", STRING, "x" * 2**22)])
    with pytest.raises(CheckpointError, match="a header of more than"):
        read_gguf(file)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("general.architecture", 3, "expected a string"), ("n", -1, "expected a whole number")],
)
def test_a_value_of_the_wrong_kind_is_named(tmp_path: Path, name: str, value: int, expected: str) -> None:
    header = read_gguf(write(tmp_path / "m.gguf", [key(name, INT32, value)]))
    with pytest.raises(CheckpointError, match=expected):
        _ = header.architecture if name == "general.architecture" else header.count(name)
    with pytest.raises(CheckpointError, match="expected a list of strings"):
        header.strings("absent")
    with pytest.raises(CheckpointError, match="expected a list of numbers"):
        header.numbers(name)


def split(folder: Path, number: int, num_parts: int, names: list[str], **changes: int) -> Path:
    settings = {"no": number - 1, "count": num_parts, "tensors.count": 3, **changes}
    keys = [ARCHITECTURE, *(key(f"split.{name}", INT32, value) for name, value in settings.items())]
    tensors = [tensor(name, (8,), 0, 32 * index) for index, name in enumerate(names)]
    return write(folder / f"m-{number:05}-of-{num_parts:05}.gguf", keys, tensors, DATA[: 32 * len(names)])


def test_parts_are_one_model_whichever_is_named(tmp_path: Path) -> None:
    first, second = split(tmp_path, 1, 2, ["a", "b"]), split(tmp_path, 2, 2, ["c"])
    assert part_files(second) == (first, second) and part_files(tmp_path / "m.gguf") == (tmp_path / "m.gguf",)
    header = read_gguf(second)
    assert header.file == first and {name: found.file for name, found in header.tensors.items()} == {
        "a": first,
        "b": first,
        "c": second,
    }


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([(1, ["a", "b"], {})], "is missing, one of 2 parts"),
        ([(1, ["a", "b"], {}), (2, ["b"], {})], "which another part holds too"),
        ([(1, ["a", "b"], {}), (2, ["c"], {"no": 0})], "is part 0 by its metadata, counted from 0; expected 1"),
        ([(1, ["a"], {}), (2, ["c"], {})], "hold 2 tensors; expected 3"),
        ([(1, ["a", "b"], {"count": 3}), (2, ["c"], {})], "is one of 3 parts by its metadata and one of 2 by its name"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    tmp_path: Path, parts: list[tuple[int, list[str], dict[str, int]]], expected: str
) -> None:
    for number, names, changes in parts:
        split(tmp_path, number, 2, names, **changes)
    with pytest.raises(CheckpointError, match=expected):
        read_gguf(tmp_path / "m-00001-of-00002.gguf")


@pytest.mark.parametrize("name", ["m-00003-of-00002.gguf", "m-00000-of-00002.gguf", "m-00001-of-99999.gguf"])
def test_a_part_that_cannot_be_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="named as a part that cannot be"):
        read_gguf(write(tmp_path / name, [ARCHITECTURE]))


def test_a_part_renamed_to_stand_alone_is_refused(tmp_path: Path) -> None:
    file = split(tmp_path, 1, 2, ["a"]).rename(tmp_path / "alone.gguf")
    with pytest.raises(CheckpointError, match="expected parts that keep the names"):
        read_gguf(file)
