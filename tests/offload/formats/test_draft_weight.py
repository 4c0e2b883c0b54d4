import pytest
import torch
import torch.nn.functional as F

from offload.formats import draft_weight
from offload.formats.draft_weight import draft_converter, fastest_format, held_bytes
from offload.formats.four_bit import FourBitWeight
from offload.formats.ggml_blocks import GgmlFormat
from offload.formats.int8 import Int8RowsWeight, PackedInt8Weight
from offload.formats.packed import PackedWeight, pack_matrix
from offload.formats.weight_format import DenseWeight, StoredWeight, UpcastScratch

CPU = torch.device("cpu")
MATRIX = torch.randn(64, 128, generator=torch.Generator().manual_seed(1)).bfloat16()


@pytest.fixture(params=[True, False], ids=["packed", "rows"])
def is_packed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(draft_weight, "measure_is_packed_faster", lambda compute: request.param)
    return bool(request.param)


def stored_weights() -> dict[str, StoredWeight]:
    return {
        "dense": DenseWeight(MATRIX.clone()),
        "packed": pack_matrix(MATRIX),
        "int8": Int8RowsWeight.quantize(MATRIX),
        "nf4": FourBitWeight.quantize(MATRIX),
    }


@pytest.mark.parametrize(
    ("stored", "held", "expected"),
    [
        ("dense", "int8", Int8RowsWeight),
        ("dense", "nf4", FourBitWeight),
        ("dense", "stored", DenseWeight),
        ("packed", "int8", Int8RowsWeight),
        ("packed", "nf4", FourBitWeight),
        ("packed", "stored", DenseWeight),
        ("int8", "stored", Int8RowsWeight),
        ("int8", "nf4", Int8RowsWeight),
        ("nf4", "int8", FourBitWeight),
    ],
)
def test_a_matrix_is_held_as_asked_unless_it_is_quantized_already(
    stored: str, held: draft_weight.HeldFormat, expected: type, is_packed: bool
) -> None:
    """And in memory of its own: the slot that it came from is overwritten."""
    weight = stored_weights()[stored]
    convert = draft_converter(held, torch.float32, CPU)
    converted = convert(weight)
    assert type(converted) is (PackedInt8Weight if is_packed and expected is Int8RowsWeight else expected)
    inputs, scratch = torch.randn(3, 128), UpcastScratch(torch.float32, CPU)
    before = converted.linear(inputs, None, scratch)
    assert (before - F.linear(inputs, MATRIX.float())).norm() < 0.15 * before.norm()
    for part in vars_of(weight):
        part.zero_()
    assert torch.equal(converted.linear(inputs, None, scratch), before)


def vars_of(weight: StoredWeight) -> list[torch.Tensor]:
    if isinstance(weight, DenseWeight):
        return [weight.matrix]
    if isinstance(weight, PackedWeight):
        return [weight.words, weight.escapes, weight.escape_values]
    if isinstance(weight, Int8RowsWeight):
        return [weight.rows, weight.absmax]
    assert isinstance(weight, FourBitWeight)
    return list(weight.parts.values())


def num_bytes(weight: StoredWeight) -> int:
    return sum(part.numel() * part.element_size() for part in vars_of(weight))


def test_held_bytes_are_what_the_weights_take(is_packed: bool) -> None:
    int8 = draft_converter("int8", torch.float32, CPU)(DenseWeight(MATRIX))
    assert held_bytes((64, 128), "int8") == 64 * 140
    if isinstance(int8, Int8RowsWeight):
        assert num_bytes(int8) <= held_bytes((64, 128), "int8")
    assert held_bytes((64, 128), "nf4") == num_bytes(FourBitWeight.quantize(MATRIX))
    assert held_bytes((7, 66), "nf4") == num_bytes(FourBitWeight.quantize(MATRIX[:7, :66]))


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ((1.0, 2.0, 3.0), "int8"),
        ((1.0, 0.9, 0.85), "int8"),
        ((1.0, 0.9, 0.5), "stored"),
        ((1.0, 0.7, 0.75), "nf4"),
    ],
)
def test_another_format_than_int8_must_win_clearly(
    seconds: tuple[float, float, float], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    timings = iter(seconds)
    draft_converter("int8", torch.float32, CPU)  # this measures too
    monkeypatch.setattr(draft_weight, "draft_seconds", lambda *_: next(timings))
    assert fastest_format.__wrapped__(torch.float32, CPU) == expected


@pytest.mark.parametrize(("is_fused", "expected"), [(True, "nf4"), (False, "stored")])
def test_an_accelerator_s_format_is_the_one_of_the_fewest_bytes_and_nothing_is_launched(
    is_fused: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eager products of 1024 x 1024 are as long as their launches there, which made `stored` win always."""
    monkeypatch.setattr(draft_weight, "has_kernel", lambda operator, kind: is_fused)
    monkeypatch.setattr(draft_weight, "draft_seconds", lambda *_: pytest.fail("a product was timed"))
    assert fastest_format.__wrapped__(torch.bfloat16, torch.device("cuda:0")) == expected


def test_the_fastest_format_is_measured_once() -> None:
    first = fastest_format(torch.float32, CPU)
    assert first in {"int8", "nf4", "stored"}
    assert fastest_format(torch.float32, CPU) == first
    assert fastest_format.cache_info().hits


def test_a_matrix_that_is_widened_is_never_there_in_float32_as_a_whole(
    is_packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head of a 0.5B draft among GGUF files took 544 MB for a moment, and the system ended the program."""
    kind = GgmlFormat((64, 128), "Q8_0")
    blocks = torch.randint(0, 256, (64, kind.row_bytes), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    blocks.view(64, -1, 34)[:, :, 1] = 0x2C  # scales of ordinary size
    stored = kind.bind({"": blocks})
    monkeypatch.setattr("offload.formats.int8.CHUNK_ELEMENTS", 8 * 128)
    widened = list[tuple[int, int]]()
    real = GgmlFormat.widen

    def watched(self, parts, start, stop, out):  # type: ignore[no-untyped-def]
        widened.append((start, stop))
        real(self, parts, start, stop, out)

    monkeypatch.setattr(GgmlFormat, "widen", watched)
    held = draft_converter("int8", torch.float32, CPU)(stored)
    assert widened == [(start, start + 8) for start in range(0, 64, 8)]
    inputs = torch.randn(3, 128)
    expected = Int8RowsWeight.quantize(stored.widen(torch.float32), is_fast=True)
    expected = PackedInt8Weight.pack(expected) if is_packed else expected
    scratch = UpcastScratch(torch.float32, CPU)
    assert torch.equal(held.linear(inputs, None, scratch), expected.linear(inputs, None, scratch))
