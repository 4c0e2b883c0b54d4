from typing import Any, Literal

import pytest
import torch

from offload.formats.microscaled import MicroscaledFormat
from tests.support.published_weights import mxfp4, nvfp4

SHAPE = (72, 96)


def parts_of(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {"weight_blocks": "", "weight_packed": "", "weight": "", "weight_scales": ".scales"}
    names |= {"weight_scale": ".scales", "weight_global_scale": ".global_scale", "weight_scale_2": ".global_scale"}
    return {names[name]: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("made", "options", "group_size", "global_scale"),
    [
        (mxfp4, {}, 32, None),
        (mxfp4, {"is_blocks": True}, 32, None),
        (nvfp4, {}, 16, "divides"),
        (nvfp4, {"is_modelopt": True}, 16, "multiplies"),
    ],
)
def test_values_equal_their_unpacking_number_by_number(
    made: Any, options: dict[str, Any], group_size: int, global_scale: Literal["divides", "multiplies"] | None
) -> None:
    tensors, expected = made(SHAPE, torch.Generator().manual_seed(1), **options)
    found, parts = MicroscaledFormat(SHAPE, "x", group_size, global_scale), parts_of(tensors)
    assert parts.keys() == set(found.part_suffixes)
    for start, stop in ((0, 72), (32, 64), (64, 72)):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            out = torch.empty(stop - start, SHAPE[1], dtype=dtype)
            found.widen(parts, start, stop, out)
            assert torch.equal(out, expected[start:stop].to(dtype))


def test_vectors_written_down() -> None:
    """Codes 0 to 15, low nibble first, times 2 ** (129 - 127), and times 0.5 (e4m3 0x30) / 4."""
    codes = torch.tensor([[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE] * 2], dtype=torch.uint8)
    numbers = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
    out = torch.empty(1, 32)
    exponents = torch.tensor([[129]], dtype=torch.uint8)
    MicroscaledFormat((1, 32), "mxfp4", 32).widen({"": codes, ".scales": exponents}, 0, 1, out)
    assert out.tolist() == [[4 * number for number in numbers * 2]]
    scales = torch.tensor([[0x30, 0x30]], dtype=torch.uint8).view(torch.float8_e4m3fn)
    parts = {"": codes, ".scales": scales, ".global_scale": torch.tensor([4.0])}
    MicroscaledFormat((1, 32), "nvfp4", 16, "divides").widen(parts, 0, 1, out)
    assert out.tolist() == [[number / 8 for number in numbers * 2]]
