"""Seconds until an answer begins, on round numbers and for 70B models on the cards that it is for."""

from dataclasses import replace

import pytest

from offload.errors import BudgetError
from runtime.fit.first_token import FirstToken, predict_first_token
from runtime.fit.place import MemoryNeed
from runtime.planner.costs import CostTable, RoundCosts
from runtime.planner.tree_choice import TreeChoice
from runtime.speculation.token_tree import TreeTopology
from tests.support.fit_needs import GB, round_need
from tests.support.plan_fakes import planned

NEED: MemoryNeed = replace(round_need(context_tokens=4000), slice_tokens=100, prefill_tokens=1000, max_nodes=1)
PLAIN = TreeChoice(1, 1, 1.0, 1.0, 0.0, "link", TreeTopology.single)


def costs(*, stream: float, token: float = 0.001, walk: float = 0.0) -> RoundCosts:
    """A ring as long as the model, so that nothing waits for a slot."""
    return RoundCosts(
        copy_seconds=(stream / 10,) * 10 if stream else (None,) * 10,
        pass_seconds=CostTable((0.0, 1000.0), (0.0, 1000 * token)),
        draft_step_seconds=None,
        walk_seconds=CostTable((1.0,), (walk,)),
        num_slots=10,
    )


def first_token(num_tokens: int, known: RoundCosts, *, tree: TreeChoice = PLAIN, draft=None) -> FirstToken:
    def target(tokens: int, context: int) -> float:
        return 0.001 * tokens

    return predict_first_token(num_tokens, NEED, known, tree, target_seconds=target, reading_seconds=draft)


def test_a_pass_takes_its_stream_or_its_computation_whichever_is_longer():
    short = first_token(100, costs(stream=2.0))
    assert (short.pass_tokens, short.compute_seconds) == ((100,), pytest.approx(0.1))
    assert short.seconds == pytest.approx(2.0)
    long = first_token(900, costs(stream=0.1))
    assert long.pass_tokens == (400, 500)
    assert long.seconds == pytest.approx(0.9)


def test_passes_are_cut_as_a_session_cuts_them():
    assert first_token(3500, costs(stream=5.0)).pass_tokens == (900, 900, 800, 900)
    assert first_token(250, costs(stream=0.0)).pass_tokens == (100, 100, 50)


def test_head_and_walk_end_it():
    found = first_token(100, costs(stream=2.0, walk=0.5))
    assert found.seconds == pytest.approx(first_token(100, costs(stream=2.0)).seconds + 0.5)


def test_the_draft_reads_along_in_pieces_of_its_own_and_grows_the_first_tree():
    read: list[tuple[int, int]] = []

    def draft(tokens: int, context: int) -> float:
        read.append((tokens, context))
        return 0.01 * tokens

    tree = TreeChoice(16, 5, 4.0, 1.0, 0.5, "link", TreeTopology.single)
    found = first_token(700, costs(stream=0.0), tree=tree, draft=draft)
    assert sum(tokens for tokens, _ in read) == 700
    assert max(tokens for tokens, _ in read) <= 256
    assert [context for _, context in read] == [sum(tokens for tokens, _ in read[:place]) for place in range(len(read))]
    assert found.draft_seconds == pytest.approx(7.0 + 0.5)
    assert found.seconds == pytest.approx(0.7 + 0.015 + 7.5)  # the tree's 15 nodes beside the root


@pytest.mark.parametrize(
    ("machine", "request_", "host_gb"),
    [
        ("l40", {}, 150),
        ("rtx-4090", {"format": "nf4", "draft_format": "nf4"}, 56),
        ("rtx-4090", {"format": "nf4", "draft": "llama-3.2-1b"}, 56),
    ],
)
def test_a_prompt_of_4096_tokens_crosses_the_link_once_or_twice(machine, request_, host_gb):
    report = planned(machine, host_bytes=host_gb * GB, target="llama-3.3-70b", **request_)
    short, long, document = report.first_tokens.values()
    assert len(short.pass_tokens) == 1 and len(long.pass_tokens) <= 2
    assert len(document.pass_tokens) < 16384 / 2048
    for found in (short, long, document):
        passes = max(found.stream_seconds, found.compute_seconds)
        assert passes < found.seconds < 1.25 * (passes + found.draft_seconds)
        assert sum(found.pass_tokens) == found.prompt_tokens
    stream = long.stream_seconds / len(long.pass_tokens)
    assert long.seconds < 16 * stream, "as long as 256 tokens a pass would stream"


def test_a_prompt_longer_than_the_context_is_predicted_for_one_that_holds_it():
    found = planned("l40", target="llama-3.3-70b").first_tokens
    assert [one.context_tokens for one in found.values()] == [4096, 4352, 16640]


def test_a_prompt_that_cannot_be_asked_says_why():
    report = planned("l40", target="llama-2-7b")
    assert isinstance(report.first_tokens[4096], BudgetError) and isinstance(report.first_tokens[512], FirstToken)
    record = report.to_record()["first_token"]
    assert record[0]["passes"] == len(record[0]["pass_tokens"])
    assert record[1] == {"prompt_tokens": 4096, "problem": "Llama-2-7B has 4096 positions"}
