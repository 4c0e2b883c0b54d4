"""The few shapes that draft passes are recorded in."""

from itertools import product

import numpy as np

from runtime.model.pass_shapes import (
    RECORDED_WIDTH,
    bucket_of,
    key_bucket,
    mask_row_elements,
    most_ranked,
    num_key_buckets,
    widest_level,
)
from runtime.speculation.tree_search import best_first


def test_buckets_of_keys_waste_little() -> None:
    """At 4,200 tokens of text powers of two would attend to 8,192 keys."""
    buckets = [key_bucket(count, 9000) for count in (1, 256, 257, 2000, 2048, 2049, 4200, 8193, 9000)]
    assert buckets == [256, 256, 512, 2048, 2048, 3072, 5120, 9000, 9000]
    assert key_bucket(40, 96) == 96


def test_buckets_are_counted_as_texts_reach_them() -> None:
    for capacity in (1, 96, 256, 257, 2047, 2048, 2049, 5152, 9000):
        reached = {key_bucket(num_keys, capacity) for num_keys in range(1, capacity + 1)}
        assert num_key_buckets(capacity) == len(reached), capacity


def test_widths_are_powers_of_two() -> None:
    assert [bucket_of(count, 1) for count in (1, 2, 3, 4, 5, 255, 256)] == [1, 2, 4, 4, 8, 256, 256]
    assert bucket_of(3, 256) == 256
    assert bucket_of(257, 256) == 512
    assert bucket_of(RECORDED_WIDTH, 1) == RECORDED_WIDTH


def test_rows_of_logits_at_once_do_not_grow_with_the_largest_trees() -> None:
    """256 rows of 152,000 tokens would take 467 MB, for trees of 1,024 nodes."""
    assert [most_ranked(count) for count in (2, 32, 41, 256, 1024, 4096)] == [8, 8, 10, 64, 64, 64]


def test_rows_of_a_mask_are_padded_to_what_kernels_take() -> None:
    assert [mask_row_elements(num_keys) for num_keys in (1, 16, 17, 5152)] == [16, 16, 32, 5152]


def test_no_tree_is_wider_than_its_widest_level_and_one_is_as_wide() -> None:
    """Of nodes that a draft runs: those with children."""
    for num_nodes, num_levels, rate in product((2, 3, 16, 65), (2, 3, 9), (0.03, 0.3)):
        search = best_first(rate ** np.arange(1, 33) if rate == 0.3 else [rate] * 32, num_nodes, num_levels)
        topology = search.topology(len(search.depths))
        assert np.bincount(topology.depths[topology.num_children > 0]).max() <= widest_level(num_nodes)
    flat = best_first([0.03] * 32, 65, 3).topology(65)
    assert np.bincount(flat.depths[flat.num_children > 0]).max() == widest_level(65) == 32
