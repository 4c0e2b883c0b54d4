"""The drafter against plain forwards of the same draft model: every child must come from its own path's row."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from profiles.steps import finish
from runtime.config import SamplingParams
from runtime.engine.drafter import Drafter
from runtime.engine.growing_tree import WantedTree
from runtime.events import LevelDrafted
from runtime.model.pass_shapes import most_ranked, widest_level
from runtime.model.streamed_model import chain_input
from runtime.speculation.dynamic_tree import GrowthLimits
from runtime.speculation.sampling import logits_to_probs, top_tokens
from runtime.speculation.schemes import (
    Coupled,
    Greedy,
    Place,
    RankingScheme,
    scheme_for,
)
from runtime.speculation.token_tree import TokenTree
from tests.support.generator_ends import drained
from tests.support.hybrids import save_hybrid
from tests.support.reference_models import own_logits
from tests.support.session_factory import open_tiny, save_tiny_folder
from tests.support.trees import tree_of_counts

TEXT = [5, 17, 40, 8, 33]
TOPOLOGY = tree_of_counts([3, 2, 0, 1, 1, 0, 0, 0])
GREEDY = SamplingParams()
SAMPLED = SamplingParams(temperature=0.8, top_p=0.95, verification="sequoia")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("models") / "draft", "qwen2", seed=4)


@pytest.fixture
def drafter(folder: Path) -> Iterator[Drafter]:
    with open_tiny(folder, draft=folder, tree="8x4") as opened:
        drafter = opened.session.engine.drafter
        assert drafter is not None
        yield drafter


def grown(drafter: Drafter, text: list[int], params: SamplingParams) -> TokenTree:
    rng, scheme = np.random.default_rng(3), scheme_for(params)
    wanted = WantedTree(text=text, shape=TOPOLOGY, params=params, rng=rng, scheme=scheme)
    levels, (tree,) = drained(drafter.grow([wanted]))
    assert levels == [LevelDrafted(0, 1), LevelDrafted(1, 2), LevelDrafted(2, 1)]
    return tree


def own_row(folder: Path, tokens: list[int]) -> np.ndarray:
    return own_logits(folder, tokens)[-1].numpy()


def assert_children_are_the_rows_own(tree: TokenTree, folder: Path, text: list[int]) -> None:
    for node in np.flatnonzero(TOPOLOGY.num_children).tolist():
        row = own_row(folder, text[:-1] + tree.path_token_ids(node).tolist())
        children = tree.token_ids[list(TOPOLOGY.children(node))]
        assert children.tolist() == top_tokens(row, len(children)).tolist()


def test_greedy_children_are_the_most_likely_tokens_of_their_path(drafter: Drafter, folder: Path) -> None:
    assert_children_are_the_rows_own(grown(drafter, TEXT, GREEDY), folder, TEXT)


def test_drafting_goes_on_correctly_behind_an_accepted_path(drafter: Drafter, folder: Path) -> None:
    """Path 0 -> 1 -> 4 -> 7 ends in a leaf that the draft has not run: it is fed with the next root."""
    tree = grown(drafter, TEXT, GREEDY)
    drafter.commit([0, 1, 4, 7])
    assert drafter.num_committed == len(TEXT) + 2
    text = [*TEXT, *tree.token_ids[[1, 4, 7]].tolist(), 60]
    assert_children_are_the_rows_own(grown(drafter, text, GREEDY), folder, text)
    assert drafter.step_seconds[0][0] == 2


def test_accepted_nodes_that_are_not_its_own_are_fed_with_the_next_root(drafter: Drafter, folder: Path) -> None:
    tree = grown(drafter, TEXT, GREEDY)
    drafter.commit([0, 1, -1, -1])
    assert drafter.num_committed == len(TEXT) + 1
    text = [*TEXT, int(tree.token_ids[1]), 50, 51, 60]
    assert_children_are_the_rows_own(grown(drafter, text, GREEDY), folder, text)


def test_rejecting_everything_leaves_only_the_text(drafter: Drafter, folder: Path) -> None:
    grown(drafter, TEXT, GREEDY)
    drafter.commit([0])
    text = [*TEXT, 61]
    assert_children_are_the_rows_own(grown(drafter, text, GREEDY), folder, text)


def test_sampled_children_are_different_and_their_rows_are_kept(drafter: Drafter, folder: Path) -> None:
    tree = grown(drafter, TEXT, SAMPLED)
    assert set(tree.draft_probs) == set(np.flatnonzero(TOPOLOGY.num_children).tolist())
    for node, probs in tree.draft_probs.items():
        row = own_row(folder, TEXT[:-1] + tree.path_token_ids(node).tolist())
        np.testing.assert_allclose(probs, logits_to_probs(row, SAMPLED), atol=1e-5)
        children = tree.token_ids[list(TOPOLOGY.children(node))]
        assert len(set(children.tolist())) == len(children)


def test_following_a_long_text_in_chunks_changes_nothing(drafter: Drafter, folder: Path) -> None:
    text = [int(token) for token in np.random.default_rng(2).integers(3, 90, 30)]
    drafter.follow(text, chunk_tokens=7)
    assert drafter.num_committed == 28
    assert_children_are_the_rows_own(grown(drafter, text, GREEDY), folder, text)


def test_leaves_are_never_run(drafter: Drafter) -> None:
    grown(drafter, TEXT, GREEDY)
    widths = [width for width, _ in drafter.step_seconds]
    assert widths == [len(TEXT), 2, 1]  # the root brings the text along; 2 and 5, 6, 7 have no children


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sequoia"])
def test_a_wide_level_chooses_its_children_in_parts(
    drafter: Drafter, folder: Path, params: SamplingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a tree may be one level, of which no more rows of logits are held than are counted for its size."""
    topology = tree_of_counts([20] + [1] * 20 + [0] * 20)
    head, rows = drafter.model.logits, list[int]()
    monkeypatch.setattr(drafter.model, "logits", lambda hidden: rows.append(len(hidden)) or head(hidden))
    rng, scheme = np.random.default_rng(3), scheme_for(params)
    wanted = WantedTree(text=TEXT, shape=topology, params=params, rng=rng, scheme=scheme)
    levels, (tree,) = drained(drafter.grow([wanted]))
    assert [level.width for level in levels] == [1, widest_level(41)] == [1, 20]
    assert rows == [1, 10, 10] and max(rows) == most_ranked(41)
    for node in range(21):
        row = own_row(folder, TEXT[:-1] + tree.path_token_ids(node).tolist())
        if params.is_greedy:
            assert (
                tree.token_ids[list(topology.children(node))].tolist()
                == top_tokens(row, 20 if node == 0 else 1).tolist()
            )
        else:
            np.testing.assert_allclose(tree.draft_probs[node], logits_to_probs(row, params), atol=1e-5)


def test_rolling_back_forgets_a_shortened_text(drafter: Drafter, folder: Path) -> None:
    grown(drafter, TEXT, GREEDY)
    drafter.commit([0, 1])
    drafter.roll_back(3)
    text = [*TEXT[:3], 70, 71]
    assert_children_are_the_rows_own(grown(drafter, text, GREEDY), folder, text)


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(temperature=0.8)], ids=["greedy", "coupled"])
def test_a_tree_in_context_has_every_nodes_own_best_candidates(
    drafter: Drafter, folder: Path, params: SamplingParams
) -> None:
    """Wherever and in whichever step a node was run, its children are the first of its own path's row."""
    scheme: RankingScheme = Greedy() if params.is_greedy else Coupled(3)
    limits = GrowthLimits(num_nodes=8, num_steps=4, max_width=2, least_lead=1.0, max_run=7)
    wanted = WantedTree(text=TEXT, shape=limits, params=params, scheme=scheme, spread=0.5)
    levels, (tree,) = drained(drafter.grow([wanted]))
    assert tree.root_position == len(TEXT) - 1
    assert tree.topology.num_nodes == 8
    assert [level.width for level in levels] == [1, 2, 2, 2]
    for node in np.flatnonzero(tree.topology.num_children).tolist():
        path = tree.path_token_ids(node).tolist()
        children = tree.token_ids[list(tree.topology.children(node))]
        place = Place(params, len(TEXT) - 1 + len(path), tuple(path[1:]))
        ranked = scheme.rank(own_row(folder, TEXT[:-1] + path), len(children), place)
        assert children.tolist() == ranked.token_ids.tolist()


def test_a_wide_step_of_a_tree_in_context_chooses_its_children_in_parts(
    drafter: Drafter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its width follows from the tree, the rows of logits that are held at once from memory: the tree is the same."""
    limits = GrowthLimits(num_nodes=41, num_steps=3, max_width=15, least_lead=1.0, max_run=41)
    head, rows = drafter.model.logits, list[int]()
    monkeypatch.setattr(drafter.model, "logits", lambda hidden: rows.append(len(hidden)) or head(hidden))
    wanted = WantedTree(text=TEXT, shape=limits, params=GREEDY, scheme=Greedy(), spread=0.5)
    levels, (tree,) = drained(drafter.grow([wanted]))
    assert [level.width for level in levels] == [1, 15, 15]
    assert rows == [1, 10, 5, 10, 5] and max(rows) == most_ranked(41)
    for node in np.flatnonzero(tree.topology.num_children).tolist():
        row = own_row(folder, TEXT[:-1] + tree.path_token_ids(node).tolist())
        children = tree.token_ids[list(tree.topology.children(node))]
        assert children.tolist() == top_tokens(row, len(children)).tolist()


def test_drafting_goes_on_behind_a_path_of_a_tree_in_context(drafter: Drafter, folder: Path) -> None:
    limits = GrowthLimits(num_nodes=8, num_steps=4, max_width=2, max_run=8)
    wanted = WantedTree(text=TEXT, shape=limits, params=GREEDY, scheme=Greedy(), spread=0.5)
    (tree,) = finish(drafter.grow([wanted]))
    path = np.flatnonzero(tree.topology.ancestor_mask[-1])  # a deepest leaf, run or not
    drafter.commit(path)
    assert len(TEXT) + len(path) - 2 <= drafter.num_committed <= len(TEXT) + len(path) - 1
    text = [*TEXT, *tree.token_ids[list(path[1:])].tolist(), 60]
    assert_children_are_the_rows_own(grown(drafter, text, GREEDY), folder, text)


def test_what_the_draft_had_run_is_restored_and_followed_from_there(drafter: Drafter, folder: Path) -> None:
    text = [*TEXT, 3, 9, 12]
    drafter.follow(text, chunk_tokens=8, num_left=1)
    num_held, row_bytes = drafter.num_committed, drafter.model.row_bytes
    assert num_held == len(text) - 1 and row_bytes is not None
    content = torch.empty(4 * sum(row_bytes), dtype=torch.uint8)
    drafter.model.cache.take_rows(0, 4, content)
    before = grown(drafter, text, GREEDY)
    drafter.roll_back(0)
    drafter.restore(0, 4, content)
    assert drafter.num_committed == drafter.model.cache.num_cached == 4
    after = grown(drafter, text, GREEDY)
    assert after.token_ids.tolist() == before.token_ids.tolist()


def test_a_lane_of_a_hybrid_takes_over_what_a_state_can_be_cut_to(tmp_path: Path) -> None:
    """And follows its text from there; it never gives up what it has for less."""
    folder = save_hybrid(tmp_path)
    with open_tiny(folder, draft=folder, tree="8x4", num_texts=2) as opened:
        drafter = opened.session.engine.drafter
        assert drafter is not None
        text = np.random.default_rng(1).integers(7, 90, 60).tolist()
        drafter.follow(text[:40], chunk_tokens=40, num_left=1)
        held = drafter.num_committed
        for wanted, expected in ((held - 7, 0), (held, held), (held - 1, held)):
            drafter.share(wanted, source=0, lane=1)
            assert drafter.num_committed_in(1) == expected == drafter.model.cache.num_cached_in(1)
        drafter.follow(text, chunk_tokens=16, num_left=1, lane=1)
        inputs = chain_input(text[-1:], num_cached=59, lane=1)
        found = drafter.model.logits(drafter.model.run_pass(inputs))[0]
        torch.testing.assert_close(found, own_logits(folder, text)[-1], rtol=1e-4, atol=1e-4)
