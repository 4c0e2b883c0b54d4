import pytest
import torch

from offload.formats.stored_sizes import int8_token_bytes
from offload.travelling_rows import TravellingRows
from runtime.model.gated_delta import Paths
from runtime.model.recurrent_cache import LaneState, PiecePaths, RecurrentTensors
from runtime.model.tree_cache import CacheShape, TreeCache


def states(*values: int) -> torch.Tensor:
    """Keys of one head of width one whose values are the tokens' numbers: (1, 1, T, 1)."""
    return torch.tensor(values, dtype=torch.float32).view(1, 1, -1, 1)


def filled_cache(num_tokens: int = 6) -> TreeCache:
    cache = TreeCache(num_layers=2, capacity=8)
    for layer_index in range(2):
        cache.update(states(*range(num_tokens)), -states(*range(num_tokens)), layer_index)
    return cache


def cached_keys(cache: TreeCache, layer_index: int = 0) -> list[float]:
    return cache.layers[layer_index].keys[0, 0, : cache.num_cached, 0].tolist()


def test_update_appends_and_returns_everything_cached() -> None:
    cache = filled_cache(3)
    keys, values = cache.update(states(9), states(7), 0)
    assert keys.flatten().tolist() == [0, 1, 2, 9]
    assert values.flatten().tolist() == [0, -1, -2, 7]


def test_nothing_is_reallocated() -> None:
    cache = filled_cache(1)
    address = cache.layers[0].keys.data_ptr()
    for _ in range(5):
        cache.update(states(1), states(1), 0)
    assert cache.layers[0].keys.data_ptr() == address


def test_compact_keeps_the_chosen_slots_in_order_in_every_layer() -> None:
    cache = filled_cache(6)
    cache.compact(2, [2, 4, 5])
    assert cache.num_cached == 5
    assert cached_keys(cache, 0) == cached_keys(cache, 1) == [0, 1, 2, 4, 5]


def test_compacting_a_prefix_copies_nothing() -> None:
    cache = filled_cache(6)
    cache.layers[0].keys[0, 0, 4] = float("nan")
    cache.compact(2, [2, 3])
    assert cached_keys(cache) == [0, 1, 2, 3]


def test_truncate_forgets_and_later_tokens_take_the_place() -> None:
    cache = filled_cache(6)
    cache.truncate(2)
    keys, _ = cache.update(states(8), states(8), 0)
    assert keys.flatten().tolist() == [0, 1, 8]


def test_truncate_levels_layers_of_an_aborted_pass() -> None:
    """A pass that fails in layer 1 has appended to layer 0 only."""
    cache = filled_cache(2)
    cache.update(states(5), states(5), 0)
    cache.truncate(2)
    assert [layer.counts for layer in cache.layers] == [[2], [2]]


def test_more_tokens_than_slots_is_an_error_of_ours() -> None:
    cache = filled_cache(8)
    with pytest.raises(RuntimeError, match="8 slots"):
        cache.update(states(1), states(1), 0)


def test_the_first_pass_allocates_every_slot() -> None:
    assert not TreeCache(num_layers=2, capacity=8).is_allocated
    assert all(layer.keys.numel() == layer.values.numel() == 8 for layer in filled_cache().layers)


def random_states(shape: CacheShape, num_tokens: int, *, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [(1, heads, num_tokens, width) for heads, width in (shape.keys, shape.values)]
    return [torch.randn(size, generator=generator) for size in sizes]


MIXED = [
    CacheShape((2, 8), (2, 4)),
    CacheShape((1, 16), (1, 8)),
    CacheShape((2, 8), (2, 4)),
    CacheShape((4, 2), (4, 2)),
]


def mixed_caches(num_tokens: int) -> tuple[TreeCache, TreeCache]:
    """One whose layers are known to differ in what they keep, and one whose layers each show it."""
    caches = tuple(TreeCache(num_layers=4, capacity=8, shapes=shapes) for shapes in (MIXED, None))
    for index, shape in enumerate(MIXED):
        for cache in caches:
            keys, values = random_states(shape, num_tokens, seed=index)
            found = cache.update(keys, values, index)
            assert torch.equal(found[0], keys) and torch.equal(found[1], values)
    return caches[0], caches[1]


def test_layers_that_keep_different_things_share_one_allocation() -> None:
    cache, _ = mixed_caches(5)
    assert len({layer.keys.untyped_storage().data_ptr() for layer in cache.layers}) == 1
    assert all(layer.keys.data_ptr() % 16 == layer.values.data_ptr() % 16 == 0 for layer in cache.layers)


def test_compacting_layers_that_differ_is_what_each_would_do_alone() -> None:
    cache, apart = mixed_caches(7)
    for one in (cache, apart):
        one.compact(2, [3, 5, 6])
    for layer, alone, shape, seed in zip(cache.layers, apart.layers, MIXED, range(4), strict=True):
        kept = [0, 1, 3, 5, 6]
        for found, other, states in zip(
            (layer.keys, layer.values), (alone.keys, alone.values), random_states(shape, 7, seed=seed), strict=True
        ):
            assert torch.equal(found[:, :, :5], states[:, :, kept])
            assert torch.equal(other[:, :, :5], states[:, :, kept])


def test_compacting_takes_as_many_operations_for_many_layers_as_for_one() -> None:
    counts = []
    for num_layers in (1, 20):
        cache = TreeCache(num_layers=num_layers, capacity=8, shapes=[CacheShape((1, 1), (1, 1))] * num_layers)
        for index in range(num_layers):
            cache.update(states(*range(6)), states(*range(6)), index)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            cache.compact(2, [3, 5])
        counts.append([event.name for event in profile.events() if event.name.startswith("aten::")])
    assert counts[0] == counts[1]
    assert len(counts[0]) > 0


def test_the_text_so_far_is_contiguous_in_every_layer() -> None:
    cache = TreeCache(num_layers=2, capacity=8, shapes=[CacheShape((2, 4), (2, 4))] * 2)
    for index in range(2):
        cache.update(*random_states(CacheShape((2, 4), (2, 4)), 3, seed=0), index)
    assert [layer.keys.stride()[1:] for layer in cache.layers] == [(4, 16, 1)] * 2


def test_int8_rows_are_kept_as_they_were_made_and_widened_in_one_place() -> None:
    """Two layers travel in turn, as in a ring with one slot; after a tree only some of its tokens are kept."""
    shape = CacheShape((2, 8), (2, 4))
    size, capacity = int8_token_bytes(4, shape.width), 9
    travelling = TravellingRows({0: size, 1: size}, capacity=capacity)
    widened = torch.zeros(capacity * shape.width * 4, dtype=torch.uint8)
    cache = TreeCache(num_layers=2, capacity=capacity, shapes=[shape] * 2, travelling=travelling, widened=widened)

    def run_pass(num_tokens: int, *, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        seen = []
        for index in range(2):
            rows = travelling.of_layer(index)
            assert rows is not None
            slot = rows.clone()  # what has crossed the link
            cache.lend(index, slot, torch.float32)
            keys, values = cache.update(*random_states(shape, num_tokens, seed=seed + index), index)
            rows.copy_(slot)
            seen.append((keys.clone(), values.clone()))
        return seen

    before = run_pass(3, seed=0)
    tree = run_pass(5, seed=2)
    committed = [travelling.of_layer(index)[:3].clone() for index in range(2)]
    cache.compact(3, [4, 7])
    assert all(torch.equal(travelling.of_layer(index)[:3], committed[index]) for index in range(2))
    after = run_pass(1, seed=4)
    for first, second, third in zip(before, tree, after, strict=True):
        for one, two, three in zip(first, second, third, strict=True):
            assert torch.equal(two[:, :, :3], one)
            assert torch.equal(three[:, :, :5], two[:, :, [0, 1, 2, 4, 7]])
    assert cache.layers[0].keys.data_ptr() == cache.layers[1].keys.data_ptr() == widened.data_ptr()
    exact = random_states(shape, 3, seed=0)[0]
    assert not torch.equal(before[0][0], exact) and torch.allclose(before[0][0], exact, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_that_are_taken_come_back_bit_for_bit_in_another_cache_and_lane(dtype: torch.dtype) -> None:
    cache = TreeCache(num_layers=4, capacity=8, num_lanes=2, shapes=MIXED)
    other = TreeCache(num_layers=4, capacity=8, num_lanes=2, shapes=MIXED)
    for index, shape in enumerate(MIXED):
        cache.update(*(part.to(dtype) for part in random_states(shape, 6, seed=index)), index)
    row_bytes = cache.row_bytes(dtype)
    assert row_bytes == tuple(shape.width * dtype.itemsize for shape in MIXED)
    content = torch.empty(3 * sum(row_bytes), dtype=torch.uint8)
    other.allocate(torch.empty(0, dtype=dtype))
    other.allocate(torch.empty(0, dtype=dtype))  # nothing is left to do
    assert other.is_allocated
    for start in (0, 3):
        cache.take_rows(start, 3, content)
        other.put_rows(start, 3, content, lane=1)
        assert (other.num_cached_in(1), other.num_cached_in(0)) == (start + 3, 0)
    for layer, copy, shape in zip(cache.layers, other.layers, MIXED, strict=True):
        assert torch.equal(copy.keys[:, :, 8:14], layer.keys[:, :, :6])
        assert torch.equal(copy.values[:, :, 8:14], layer.values[:, :, :6])
        assert copy.keys.dtype == dtype and copy.keys.shape[1] == shape.keys[0]


def test_putting_rows_forgets_what_was_behind_them() -> None:
    cache = TreeCache(num_layers=1, capacity=8, shapes=[CacheShape((1, 1), (1, 1))])
    cache.update(states(*range(6)), states(*range(6)), 0)
    content = torch.empty(8, dtype=torch.uint8)
    cache.take_rows(4, 1, content)
    cache.put_rows(2, 1, content)
    assert cached_keys(cache) == [0, 1, 4]


def test_rows_that_travel_are_taken_from_host_memory() -> None:
    shapes = [CacheShape((1, 2), (1, 2))] * 2
    travelling = TravellingRows({1: 16}, capacity=4)
    cache = TreeCache(num_layers=2, capacity=4, shapes=shapes, travelling=travelling)
    assert cache.row_bytes(torch.float32) == (16, 16)
    assert TreeCache(num_layers=2, capacity=4).row_bytes(torch.float32) is None
    slot = torch.zeros(4, 16, dtype=torch.uint8)
    cache.lend(1, slot, torch.float32)
    content = torch.arange(32, dtype=torch.uint8)
    cache.allocate(torch.empty(0))
    cache.put_rows(0, 1, content)
    rows = travelling.of_layer(1)
    assert rows is not None and rows[0].tolist() == list(range(16, 32))
    taken = torch.empty(32, dtype=torch.uint8)
    cache.take_rows(0, 1, taken)
    assert taken.tolist() == content.tolist()


def hybrid_cache(*, base: int, num_rows: int, num_lanes: int = 1) -> TreeCache:
    """A layer of slots and one with a state, which hold the same tokens of the first lane."""
    cache = TreeCache(num_layers=2, capacity=16, num_lanes=num_lanes, recurrent={1})
    count = base + num_rows
    cache.update(states(*range(count)), states(*range(count)), 0)
    (layer,) = cache.recurrent
    rows = torch.arange(base, count, dtype=torch.float32)[:, None]
    piece = PiecePaths(0, slice(0, count), base, Paths(torch.ones(num_rows, num_rows, dtype=torch.bool)), None, True)
    tensors = RecurrentTensors(torch.zeros(1, 1, 1), torch.zeros(3, 1), rows, rows, rows)
    layer.after(piece, LaneState(base, tensors))
    return cache


def rows_held(cache: TreeCache, lane: int = 0) -> list[float]:
    tensors = cache.recurrent[0].lanes[lane].tensors
    return [] if tensors is None else tensors.rows[:, 0].tolist()


def test_layers_with_states_hold_a_pass_once_it_has_succeeded() -> None:
    cache = hybrid_cache(base=4, num_rows=3)
    assert cache.num_cached == 0
    cache.undo(0)
    cache.settle()
    assert cache.num_cached == 0 and rows_held(cache) == []
    cache = hybrid_cache(base=4, num_rows=3)
    cache.settle()
    assert cache.num_cached == 7 and rows_held(cache) == [4, 5, 6]


def test_all_layers_are_cut_to_what_states_can_be_cut_to() -> None:
    cache = hybrid_cache(base=4, num_rows=5)
    cache.settle()
    cache.compact(5, [6, 8])
    assert cached_keys(cache) == [0, 1, 2, 3, 4, 6, 8] and rows_held(cache) == [4, 6, 8]
    assert cache.truncate(6) == cache.num_cached == 6 and rows_held(cache) == [4, 6]
    assert cache.reachable(4) == 4 and cache.reachable(3) == 0
    assert [cache.num_folded(count) for count in (6, 5, 4, 0)] == [4, 4, 4, 0]
    assert cache.truncate(3) == cache.num_cached == 0
    assert hybrid_cache(base=4, num_rows=1).row_bytes(torch.float32) is None


def test_a_lane_takes_over_states_and_slots_alike() -> None:
    cache = hybrid_cache(base=4, num_rows=3, num_lanes=2)
    cache.settle()
    for count, rows in ((6, [4, 5]), (4, [])):
        cache.copy(count, source=0, lane=1)
        assert cache.num_cached_in(1) == count and rows_held(cache, 1) == rows
    with pytest.raises(AssertionError, match="can be cut to"):
        cache.copy(2, source=0, lane=1)


def test_a_measured_lane_holds_what_it_is_told_in_every_layer() -> None:
    cache = TreeCache(num_layers=2, capacity=16, recurrent={1})
    cache.update(states(0), states(0), 0)
    cache.occupy(9)
    assert cache.num_cached == 9
    cache.compact(0, [0, 3])
    assert cache.num_cached == 2 and cache.truncate(0) == 0
