import numpy as np
import torch

from runtime.model.tree_mask import attention_masks


def allowed(mask: torch.Tensor) -> list[list[bool]]:
    return (mask[0, 0] == 0).tolist()


def masks_of(visible: list[list[int]], queries: list[int], keys: list[int], windows: list[int | None]) -> dict:
    return attention_masks(
        np.array(visible, dtype=np.bool_),
        query_positions=np.array(queries),
        key_positions=np.array(keys),
        windows=windows,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def test_a_full_mask_is_the_visibility() -> None:
    (mask,) = masks_of([[1, 1, 0], [1, 0, 1]], [1, 1], [0, 1, 1], [None]).values()
    assert allowed(mask) == [[True, True, False], [True, False, True]]
    assert mask.shape == (1, 1, 2, 3)
    assert mask.min() == torch.finfo(torch.float32).min


def test_a_window_counts_the_query_itself_and_goes_by_position_not_by_slot() -> None:
    """Siblings share a position: the slot distance of the second one is larger than its distance in the text."""
    masks = masks_of([[1, 1, 1, 1, 0], [1, 1, 1, 0, 1]], [3, 3], [0, 1, 2, 3, 3], [2, None])
    assert allowed(masks[2]) == [[False, False, True, True, False], [False, False, True, False, True]]
    assert allowed(masks[None]) == [[True, True, True, True, False], [True, True, True, False, True]]


def test_each_distinct_window_has_one_mask() -> None:
    assert set(masks_of([[1]], [0], [0], [4, None, 4, 8])) == {4, None, 8}
