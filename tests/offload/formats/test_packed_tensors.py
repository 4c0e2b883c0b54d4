import json

import pytest
import torch

from offload.formats.packed import PackedFormat
from offload.formats.packed_tensors import ESCAPE_MULTIPLE, STATE_SUFFIX, pack_to_tensors, sha256_of, unpack_tensors

SHAPE = (97, 128)


def trained() -> torch.Tensor:
    matrix = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)).mul_(0.02).to(torch.bfloat16)
    matrix[5, 7], matrix[50, 1], matrix[96, 127] = 1e30, float("nan"), -1e-30
    return matrix


def found_in(parts: dict[str, torch.Tensor]) -> tuple[PackedFormat, str]:
    state = json.loads(bytes(parts[STATE_SUFFIX].tolist()))
    ends = torch.tensor(state["escape_counts"]).cumsum(0).numpy()
    return PackedFormat(tuple(state["shape"]), state["base"], ends), state["sha256"]


def test_a_matrix_comes_back_bit_for_bit() -> None:
    matrix = trained()
    parts = pack_to_tensors(matrix)
    assert parts.keys() == {"", ".escapes", ".escape_values", STATE_SUFFIX}
    found, sha256 = found_in(parts)
    assert torch.equal(unpack_tensors(found, parts, sha256=sha256).view(torch.int16), matrix.view(torch.int16))
    assert sha256 == sha256_of(matrix)


def test_every_tensor_but_the_state_is_a_multiple_of_16_bytes() -> None:
    """So that a layer crosses a link in one piece."""
    parts = pack_to_tensors(trained())
    found, _ = found_in(parts)
    assert len(parts[".escapes"]) % ESCAPE_MULTIPLE == 0 and len(parts[".escapes"]) > found.escape_ends[-1] > 2
    assert all(part.nbytes % 16 == 0 for suffix, part in parts.items() if suffix != STATE_SUFFIX)


@pytest.mark.parametrize("suffix", ["", ".escapes", ".escape_values"])
def test_what_was_changed_is_noticed(suffix: str) -> None:
    parts = pack_to_tensors(trained())
    found, sha256 = found_in(parts)
    parts[suffix] = parts[suffix].clone()
    parts[suffix].view(torch.uint8).view(-1)[0] ^= 1
    with pytest.raises(ValueError, match="its bytes are not those that were packed"):
        unpack_tensors(found, parts, sha256=sha256)


def test_a_matrix_that_packs_badly_stays_as_it_is() -> None:
    matrix = torch.randint(-(2**15), 2**15, SHAPE, dtype=torch.int16).view(torch.bfloat16)
    parts = pack_to_tensors(matrix)
    assert parts.keys() == {""} and parts[""] is matrix
