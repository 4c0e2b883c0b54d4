"""Results handed on in the order of their prompts, however they come, and where a run is interrupted and goes on."""

from hypothesis import given
from hypothesis import strategies as st

from runtime.prompts.headless import PromptResult, pending_items
from runtime.prompts.prompt_file import BadLine, PromptRequest
from runtime.prompts.result_order import InputOrder, first_lines


class Written(list):
    """Results as they were written; an error is written and no answer."""

    @property
    def finished_ids(self):
        return {result.id for result in self if result.error is None}


def items_of(shape):
    """A line for each entry: of so many choices, or a bad one for 0."""
    items = []
    for number, num_choices in enumerate(shape, start=1):
        items += [PromptRequest(id=f"{number}.{i}", prompt="x", line_number=number) for i in range(num_choices)]
        items += [] if num_choices else [BadLine(number, str(number), "bad")]
    return items


def result_of(item):
    error = item.error if isinstance(item, BadLine) else None
    return PromptResult(id=item.id, line_number=item.line_number, error=error)


SHAPES = st.lists(st.integers(min_value=0, max_value=3), max_size=8)


@given(SHAPES, st.data())
def test_results_that_come_in_any_order_are_written_in_that_of_their_prompts(shape, data):
    items = items_of(shape)
    written = Written()
    order = InputOrder(written, items)
    arriving = data.draw(st.permutations(range(len(items))))
    for step, place in enumerate(arriving):
        order.append(result_of(items[place]))
        here = set(arriving[: step + 1])
        num_ready = next((number for number in range(len(items)) if number not in here), len(items))
        assert written == list(map(result_of, items[:num_ready])), "each as soon as all before it are there"
        assert order.num_held == len(here) - num_ready
    assert written == list(map(result_of, items)) and order.num_held == 0


@given(st.integers(min_value=1, max_value=40), st.integers(min_value=1, max_value=5), st.data())
def test_it_holds_only_what_a_prompt_under_way_stands_before(num_items, num_lanes, data):
    """As prompts are answered side by side: one that ends is replaced by the next of the file."""
    items = items_of([1] * num_items)
    written = Written()
    order = InputOrder(written, items)
    lanes, waiting = [], list(range(num_items))
    while lanes or waiting:
        while waiting and len(lanes) < num_lanes:
            lanes.append(waiting.pop(0))
        ended = lanes.pop(data.draw(st.integers(min_value=0, max_value=len(lanes) - 1)))
        order.append(result_of(items[ended]))
        num_begun = num_items - len(waiting)
        assert len(written) == min(lanes, default=num_begun)
        assert order.num_held == num_begun - len(written) - len(lanes)
    assert len(written) == num_items


@given(SHAPES, st.lists(st.integers(min_value=0, max_value=12), max_size=6), st.data())
def test_however_often_a_run_is_interrupted_the_answers_are_in_order_and_each_once(shape, interruptions, data):
    items = items_of(shape)
    kept = Written()
    for num_results in [*interruptions, len(items)]:
        pending = pending_items(items, kept.finished_ids)
        order = InputOrder(kept, pending)
        for place in data.draw(st.permutations(range(len(pending))))[:num_results]:
            order.append(result_of(pending[place]))
        kept = Written(result for result in kept if result.error is None)  # as a file is taken over on resume
    assert kept == [result_of(item) for item in items if isinstance(item, PromptRequest)]


def test_a_bad_line_may_have_the_number_that_is_another_lines_id():
    items = [BadLine(1, "1", "bad"), PromptRequest(id="1", prompt="x", line_number=2)]
    written = Written()
    order = InputOrder(written, items)
    order.append(result_of(items[1]))
    assert written == []
    order.append(result_of(items[0]))
    assert [result.line_number for result in written] == [1, 2]


def test_the_first_lines_are_those_that_can_be_answered_with_all_their_choices():
    items = items_of([0, 2, 0, 1, 0, 3, 1])
    lines = {limit: [item.line_number for item in first_lines(items, limit)] for limit in (1, 2, 3, 4, 9, None)}
    assert lines[1] == [1, 2, 2]
    assert lines[2] == [1, 2, 2, 3, 4]
    assert lines[3] == [1, 2, 2, 3, 4, 5, 6, 6, 6]
    assert lines[4] == lines[9] == lines[None] == [item.line_number for item in items]
    assert first_lines([], 3) == []
