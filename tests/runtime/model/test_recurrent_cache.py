"""States of texts, what may be taken back, and which tokens a pass folds in."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.model.gated_delta import Paths
from runtime.model.pass_shapes import MARKS_OF_PASS, MOST_MARKS
from runtime.model.recurrent_cache import (
    BORDER_TOKENS,
    LanePlanner,
    LaneState,
    PiecePaths,
    RecurrentLayer,
    RecurrentShape,
    RecurrentTensors,
)


def tensors_of(tokens: list[int], *, base: int) -> RecurrentTensors:
    """Numbers by which a state and each row of a stash are known again."""
    rows = torch.tensor(tokens, dtype=torch.float32)
    return RecurrentTensors(torch.full((1, 2, 2), base), torch.zeros(3, 2), rows[:, None], rows[:, None], rows[:, None])


def piece(
    lane: int = 0, *, is_marked: bool = False, is_border: bool = False, source: tuple[int, int] | None = None
) -> PiecePaths:
    paths = Paths(torch.ones(1, 1, dtype=torch.bool))
    return PiecePaths(lane, slice(0, 1), 0, paths, source, is_marked or is_border, is_border)


def advance(
    layer: RecurrentLayer,
    base: int,
    num_rows: int,
    *,
    lane: int = 0,
    is_marked: bool = False,
    is_border: bool = False,
) -> None:
    """Let a pass leave a state of `base` tokens and rows that are numbered by their slots."""
    one = piece(lane, is_marked=is_marked, is_border=is_border)
    layer.before(one)
    layer.after(one, LaneState(base, tensors_of(list(range(base, base + num_rows)), base=base)))
    layer.settle()


def rows_of(layer: RecurrentLayer, lane: int = 0) -> list[float]:
    tensors = layer.lanes[lane].tensors
    assert tensors is not None
    assert torch.equal(tensors.rows, tensors.log_decay) and torch.equal(tensors.rows, tensors.beta)
    return tensors.rows[:, 0].tolist()


def test_what_a_pass_makes_counts_once_it_has_succeeded() -> None:
    layer = RecurrentLayer(1)
    advance(layer, 4, 3)
    held = layer.lanes[0]
    layer.after(piece(), LaneState(6, tensors_of([6], base=6)))
    assert layer.lanes[0] is held and layer.before(piece()).base == 6, "the next slice stands on it"
    layer.drop()
    assert layer.lanes[0] is held and layer.before(piece()) is held
    assert layer.get_seq_length() == held.count == 7


def test_an_accepted_path_keeps_its_rows_alone() -> None:
    layer = RecurrentLayer(2)
    advance(layer, 4, 6, lane=1)
    layer.compact(5, [6, 9], lane=1)
    assert rows_of(layer, 1) == [4, 6, 9] and layer.lanes[1].count == 7
    with pytest.raises(AssertionError, match="cannot be cut to 3"):
        layer.compact(3, [4], lane=1)


def test_a_lane_is_cut_within_its_stash_or_to_a_mark() -> None:
    layer = RecurrentLayer(1)
    for base in (10, 40, 90):
        advance(layer, base, 3, is_marked=base != 90)
    assert [layer.reachable(count, 0) for count in (95, 93, 91, 90, 89, 40, 39, 9, 0)] == [
        93,
        93,
        91,
        90,
        40,
        40,
        10,
        0,
        0,
    ]
    layer.truncate(91, 0)
    assert rows_of(layer) == [90]
    layer.truncate(40, 0)
    assert (layer.lanes[0].base, rows_of(layer)) == (40, [])
    assert layer.last_mark(0) == 40 and layer.last_mark(0, 39) == 10
    layer.truncate(10, 0)
    assert layer.reachable(40, 0) == 10, "marks of what was cut off are gone"
    layer.truncate(0, 0)
    assert layer.lanes[0].tensors is None and layer.reachable(9, 0) == 0


def test_a_lane_takes_over_what_another_one_can_be_cut_to() -> None:
    layer = RecurrentLayer(2)
    advance(layer, 10, 2, is_marked=True)
    advance(layer, 30, 4)
    layer.copy(32, source=0, lane=1)
    assert rows_of(layer, 1) == [30, 31] and layer.reachable(29, 1) == 10
    taken = piece(1, source=(0, 10))
    assert layer.before(taken).base == 10
    layer.after(taken, LaneState(11, tensors_of([11], base=11)))
    layer.settle()
    assert layer.lanes[1].base == 11 and layer.reachable(10, 1) == 10 and layer.lanes[0].count == 34


@pytest.mark.parametrize("num_lanes", [1, 3, MOST_MARKS + 1])
def test_marks_are_few_and_the_closest_together_go(num_lanes: int) -> None:
    layer = RecurrentLayer(num_lanes)
    for base in range(100, 4100, 100):
        advance(layer, base, 1, is_marked=True)
    most = MOST_MARKS // num_lanes
    kept = sorted({layer.last_mark(0, count) for count in range(4001)} - {0})
    assert len(kept) == most
    if num_lanes == 1:
        assert max(np.diff([0, *kept])) <= 1000, "none is far from the next"
    assert layer.last_mark(0) == (4000 if most else 0)


def marks_of(layer: RecurrentLayer, lane: int = 0) -> list[int]:
    found, most = [], None
    while base := layer.last_mark(lane, most):
        found.insert(0, base)
        most = base - 1
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.lists(st.tuples(st.integers(1, 300), st.booleans()), min_size=1, max_size=25))
def test_the_last_ends_of_prompts_stay(most_marks: int, steps: list[tuple[int, bool]]) -> None:
    """Two of them beside the last mark, as far as there is room, and the last one before all others."""
    layer = RecurrentLayer(1)
    layer.most_marks = most_marks
    base, borders = 0, []
    for num_tokens, is_border in steps:
        base += num_tokens
        if is_border:
            borders.append(base)
        advance(layer, base, 1, is_marked=True, is_border=is_border)
        found = marks_of(layer)
        assert len(found) <= most_marks
        assert set(borders[-max(1, min(2, most_marks - 1)) :]) <= set(found)
        assert base in found or (most_marks == 1 and borders)
        assert layer.keeps_more_than_borders(0) == (most_marks > 1 or not borders)
        assert layer.keeps_more_than_borders(0, most=0)


def test_a_state_from_disk_stays_like_the_end_of_a_prompt() -> None:
    layer = RecurrentLayer(1)
    layer.most_marks = 2
    layer.put(90, 0, tensors_of([], base=90), torch.device("cpu"))
    for base in range(100, 400, 10):
        advance(layer, base, 1, is_marked=True)
    assert marks_of(layer) == [90, 390]
    layer.truncate(layer.reachable(95, 0), 0)
    assert marks_of(layer) == [90]


def test_a_measured_lane_holds_whatever_it_is_told() -> None:
    layer = RecurrentLayer(1)
    layer.occupy(500, 0)
    assert layer.lanes[0].count == 500
    layer.compact(0, [0, 3, 4], 0)
    assert layer.lanes[0].count == 3


def test_key_heads_follow_from_the_channels() -> None:
    assert RecurrentShape((6, 8, 4), num_channels=2 * 2 * 8 + 6 * 4, window=4).num_key_heads == 2


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_plan_knows_the_paths_of_every_token_that_is_not_certain(data: st.DataObject) -> None:
    """Of trees that grow in several passes, whose earlier nodes a new one sees or not."""
    num_text, base = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 8))
    base = min(base, num_text - 1)
    parents: list[int] = []
    for node in range(data.draw(st.integers(1, 9))):
        parents.append(data.draw(st.integers(-1, node - 1)))
    num_new = data.draw(st.integers(1, len(parents)))
    paths = np.zeros((len(parents), len(parents)), dtype=np.bool_)
    for node, parent in enumerate(parents):
        paths[node] = paths[parent] if parent >= 0 else False
        paths[node, node] = True
    num_keys = num_text + len(parents)
    planner = LanePlanner(0, base=base, last_mark=0, num_text=num_text)
    plan = planner.plan(slice(0, num_new), num_keys=num_keys, seen=paths[-num_new:])
    assert plan.num_folded == num_text - 1 - base and planner.base == num_text - 1
    found = plan.paths.ancestors.numpy()
    assert found.shape == (len(parents) + 1,) * 2 and found[-num_new:, 0].all(), "the root is on every path"
    wanted = found[-num_new:, 1:]
    assert np.array_equal(wanted, paths[-num_new:])
    for node in range(len(parents)):
        if paths[-num_new:, node].any():  # seen, so that its own path matters
            assert found[1 + node, 0] and np.array_equal(found[1 + node, 1:], paths[node])


def test_text_is_folded_but_for_its_last_token_piece_by_piece() -> None:
    planner = LanePlanner(2, base=3, last_mark=0, num_text=40, source=(1, 4))
    first = planner.plan(slice(0, 8), num_keys=12)
    assert (first.lane, first.num_folded, first.source) == (2, 8, (1, 4))
    second = planner.plan(slice(8, 36), num_keys=40, seen=np.empty((28, 0), dtype=np.bool_))
    assert (second.num_folded, second.source, planner.base) == (28, None, 39)
    assert second.paths.ancestors.tolist() == [[True]]


@pytest.mark.parametrize(
    ("last_mark", "is_border", "expected"), [(0, False, False), (0, True, True), (600, True, True), (90, False, True)]
)
def test_a_state_is_marked_where_a_prompt_ends_and_every_so_many_tokens(
    last_mark: int, is_border: bool, expected: bool
) -> None:
    num_keys = {0: 20, 600: 610, 90: 700}[last_mark]
    planner = LanePlanner(0, base=num_keys - 3, last_mark=last_mark, num_text=num_keys)
    assert planner.plan(slice(0, 1), num_keys=num_keys, is_border=is_border).is_marked == expected
    assert planner.last_mark == (num_keys - 1 if expected else last_mark)


def test_where_one_mark_is_kept_only_ends_of_prompts_are_marked() -> None:
    planner = LanePlanner(0, base=700, last_mark=90, num_text=710, marks_between=False)
    assert not planner.plan(slice(0, 1), num_keys=705).is_marked
    made = planner.plan(slice(0, 1), num_keys=710, is_border=True)
    assert made.is_marked and made.is_border and planner.last_mark == 709
    assert not planner.plan(slice(0, 0), num_keys=710, is_border=True).is_marked, "it is there already"


@pytest.mark.parametrize(("num_new", "num_unmarked"), [(200, 0), (1024, 500), (2000, 0), (4096, 0), (4096, 300)])
def test_a_pass_marks_few_states(num_new: int, num_unmarked: int) -> None:
    """However long it is: those that they replace are held until it ends."""
    planner = LanePlanner(0, base=0, last_mark=0, num_text=num_unmarked + num_new, num_new=num_new)
    marked = [
        planner.plan(slice(0, 8), num_keys=num_unmarked + stop, is_border=stop == num_new).is_marked
        for stop in range(8, num_new + 1, 8)
    ]
    assert min(3, num_new // 512) <= sum(marked) <= MARKS_OF_PASS + 1 and marked[-1]


@pytest.mark.parametrize(
    ("num_cached", "last_mark", "wanted", "expected"),
    [
        (0, 0, None, 700),
        (690, 0, None, 0),  # a round
        (0, 0, 698, 698),
        (697, 600, 698, 698),  # what a long prompt's last pass begins with
        (697, 697, 698, 0),  # it is there
        (698, 0, 698, 0),  # a round
        (0, 0, BORDER_TOKENS, 0),
    ],
)
def test_a_border_is_where_it_is_wanted_or_where_a_prompt_ends(
    num_cached: int, last_mark: int, wanted: int | None, expected: int
) -> None:
    planner = LanePlanner(0, base=0, last_mark=last_mark, num_text=700)
    assert planner.border(num_cached, wanted) == expected


def test_windows_are_found_once() -> None:
    one = piece()
    assert one.windows(4) is one.windows(4)
    assert one.windows(4).tolist() == [[0, 1, 2, 3]]
