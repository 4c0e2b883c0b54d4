"""Trees that take their shape while they grow: against brute force over every path of small random models."""

import itertools

import numpy as np
import pytest

from runtime.speculation.dynamic_tree import GrowthLimits, TreeGrowth
from runtime.speculation.token_tree import TokenTree

ROOT = 100


class Draft:
    """Candidates of a random model of V tokens, by path; ties between worths where `is_coarse`."""

    def __init__(self, seed: int, *, vocab_size: int, num_candidates: int, is_coarse: bool = False) -> None:
        self.seed, self.vocab_size, self.num_candidates, self.is_coarse = seed, vocab_size, num_candidates, is_coarse

    def row(self, path: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and log worths, likeliest first."""
        rng = np.random.default_rng([self.seed, *path])
        probs = rng.dirichlet(np.full(self.vocab_size, 0.5))
        if self.is_coarse:
            probs = 2.0 ** np.floor(np.log2(np.maximum(probs, 1e-6)))
        tokens = np.argsort(-probs, kind="stable")[: self.num_candidates]
        return tokens, np.log(probs[tokens])

    def grow(self, growth: TreeGrowth) -> tuple[TokenTree, np.ndarray, list[list[int]]]:
        """The tree, the order in which its nodes were run, and the nodes that each step ran."""
        steps = []
        while len(nodes := growth.next_nodes()):
            rows = [self.row(tuple(growth.path_token_ids(node))) for node in nodes.tolist()]
            growth.place_children([row[0] for row in rows], [row[1] for row in rows])
            steps.append(nodes.tolist())
        return *growth.finish(), steps

    def best_worths(self, num_nodes: int, num_levels: int) -> np.ndarray:
        """The largest path products, by looking at every path of candidates."""
        worths = []
        for depth in range(num_levels):
            for ranks in itertools.product(range(self.num_candidates), repeat=depth):
                path, worth = (), 0.0
                for rank in ranks:
                    tokens, logs = self.row(path)
                    path, worth = (*path, int(tokens[rank])), worth + logs[rank]
                worths.append(worth)
        return np.sort(worths)[::-1][:num_nodes]

    def worths_of(self, tree: TokenTree) -> np.ndarray:
        """(M,) the path product of every node of a tree, from its tokens alone."""
        worths = []
        for node in range(tree.topology.num_nodes):
            path = tuple(tree.path_token_ids(node)[1:].tolist())
            worth = 0.0
            for depth, token in enumerate(path):
                tokens, logs = self.row(path[:depth])
                worth += float(logs[tokens.tolist().index(token)])
            worths.append(worth)
        return np.array(worths)


def growth_of(num_nodes: int, num_steps: int = 99, max_width: int = 10_000, least_lead: float = 1.0) -> TreeGrowth:
    return TreeGrowth(GrowthLimits(num_nodes, num_steps, max_width, least_lead), root_token_id=ROOT)


@pytest.mark.parametrize("num_nodes", [2, 5, 17])
@pytest.mark.parametrize("is_coarse", [False, True])
def test_without_a_width_limit_the_best_nodes_of_all_paths_are_found(num_nodes: int, is_coarse: bool) -> None:
    for seed in range(8):
        draft = Draft(seed, vocab_size=4, num_candidates=3, is_coarse=is_coarse)
        tree, _, steps = draft.grow(growth_of(num_nodes, num_steps=4))

        assert len(steps) <= 4
        assert tree.topology.num_nodes == num_nodes
        assert np.allclose(np.sort(draft.worths_of(tree))[::-1], draft.best_worths(num_nodes, num_levels=5))


@pytest.mark.parametrize("max_width", [1, 2, 5])
def test_siblings_stand_in_the_order_of_their_ranks_without_a_gap(max_width: int) -> None:
    """What is learned from a verdict is learned by rank."""
    for seed in range(6):
        draft = Draft(seed, vocab_size=6, num_candidates=4)
        tree = draft.grow(growth_of(24, num_steps=12, max_width=max_width))[0]

        assert tree.topology.num_nodes == 24
        for node in np.flatnonzero(tree.topology.num_children).tolist():
            children = tree.topology.children(node)
            ranked = draft.row(tuple(tree.path_token_ids(node)[1:].tolist()))[0]
            assert tree.token_ids[children.start : children.stop].tolist() == ranked[: len(children)].tolist()


def test_a_step_runs_the_worthiest_nodes_of_any_depth() -> None:
    """A confident line is followed while what lies beside it waits."""
    growth = growth_of(8, num_steps=3, max_width=1)
    growth.next_nodes()
    growth.place_children([[1, 2]], np.log([[0.9, 0.1]]))
    growth.next_nodes()
    growth.place_children([[3, 4]], np.log([[0.9, 0.05]]))
    assert growth.nodes.token_ids[growth.next_nodes()].tolist() == [3]
    growth.place_children([[5, 6]], np.log([[0.05, 0.01]]))
    tree, run_index = growth.finish()

    assert not len(growth.next_nodes())
    assert tree.token_ids.tolist() == [ROOT, 1, 2, 3, 4, 5, 6]
    assert tree.topology.parents.tolist() == [-1, 0, 0, 1, 1, 3, 3]
    assert run_index.tolist() == [0, 1, -1, 2, -1, -1, -1]


def test_what_was_run_and_then_outdone_leaves_the_tree() -> None:
    growth = growth_of(4, num_steps=2, max_width=3)
    growth.next_nodes()
    growth.place_children([[1, 2, 3]], np.log([[0.6, 0.3, 0.1]]))
    assert growth.nodes.token_ids[growth.next_nodes()].tolist() == [1, 2, 3]
    growth.place_children([[4, 5], [6, 7], [8, 9]], np.log([[0.9, 0.1], [0.5, 0.5], [0.9, 0.1]]))

    tree, run_index = growth.finish()
    assert tree.token_ids.tolist() == [ROOT, 1, 2, 4]  # 0.54 against 0.15 twice and 0.1
    assert run_index.tolist() == [0, 1, 2, -1]


def test_a_node_that_leads_too_little_is_not_run() -> None:
    """Whatever its best child is worth, hardly anything would be gained: 0.3 is not twice the least worth, 0.2."""
    growth = growth_of(4, least_lead=2.0)
    growth.next_nodes()
    growth.place_children([[1, 2, 3]], np.log([[0.5, 0.3, 0.2]]))
    assert growth.nodes.token_ids[growth.next_nodes()].tolist() == [1]
    growth.place_children([[4]], np.log([[0.41]]))
    assert not len(growth.next_nodes())

    growth = growth_of(5, least_lead=2.0)  # not full yet: whatever is there may be run
    growth.next_nodes()
    growth.place_children([[1, 2, 3]], np.log([[0.5, 0.3, 0.2]]))
    assert growth.nodes.token_ids[growth.next_nodes()].tolist() == [1, 2, 3]


def test_of_equal_nodes_the_ones_placed_first_stay() -> None:
    """Same text, same tree: nothing is left to the sort."""
    growth = growth_of(3, num_steps=2)
    growth.next_nodes()
    growth.place_children([[1, 2, 3]], np.log([[0.25, 0.25, 0.25]]))
    growth.next_nodes()
    growth.place_children([[4], [5]], [[0.0], [0.0]])

    assert growth.finish()[0].token_ids.tolist() == [ROOT, 1, 2]


def test_a_later_rank_counts_as_no_likelier_than_the_one_before() -> None:
    growth = growth_of(3, num_steps=1)
    growth.next_nodes()
    growth.place_children([[7, 8, 9]], np.log([[0.2, 0.5, 0.3]]))

    assert growth.finish()[0].token_ids.tolist() == [ROOT, 7, 8]


@pytest.mark.parametrize("limits", [GrowthLimits(1, 5, 4), GrowthLimits(5, 0, 4)])
def test_one_node_or_no_step_is_the_root_alone(limits: GrowthLimits) -> None:
    growth = TreeGrowth(limits, root_token_id=ROOT)
    assert not len(growth.next_nodes())
    tree, run_index = growth.finish()
    assert tree.token_ids.tolist() == [ROOT]
    assert run_index.tolist() == [-1]


def test_a_vocabulary_of_one_token_grows_a_chain_until_the_steps_end() -> None:
    draft = Draft(0, vocab_size=1, num_candidates=1)
    tree, _, steps = draft.grow(growth_of(9, num_steps=5))
    assert len(steps) == 5
    assert tree.topology.parents.tolist() == [-1, 0, 1, 2, 3, 4]


def test_without_candidates_the_tree_is_smaller_and_growth_ends() -> None:
    growth = growth_of(9, num_steps=5)
    growth.next_nodes()
    growth.place_children([[1, 2]], [[-0.1, -np.inf]])
    growth.next_nodes()
    growth.place_children([[3, 4]], [[-np.inf, -np.inf]])

    assert not len(growth.next_nodes())
    assert growth.finish()[0].token_ids.tolist() == [ROOT, 1]


def test_each_node_sees_itself_and_its_ancestors_in_running_order() -> None:
    for seed in range(4):
        draft = Draft(seed, vocab_size=5, num_candidates=3)
        growth = growth_of(20, num_steps=6, max_width=3)
        run: list[tuple[int, ...]] = []
        while len(nodes := growth.next_nodes()):
            paths = [tuple(growth.path_token_ids(node)) for node in nodes.tolist()]
            before, run = run, run + paths
            expected = [[path[: len(other)] == other for other in run] for path in paths]
            assert growth.sight(nodes).tolist() == expected
            assert growth.nodes.depths[growth.run].tolist() == [len(path) for path in before]
            assert growth.nodes.depths[nodes].tolist() == [len(path) for path in paths]
            rows = [draft.row(path) for path in paths]
            growth.place_children([row[0] for row in rows], [row[1] for row in rows])
        tree, run_index = growth.finish()
        for node, index in enumerate(run_index.tolist()):
            if index >= 0:
                assert run[index] == tuple(tree.path_token_ids(node)[1:].tolist())


def test_asking_twice_gives_the_same_nodes() -> None:
    growth = growth_of(5)
    assert growth.next_nodes().tolist() == growth.next_nodes().tolist() == [0]


def test_candidates_without_worths_and_rows_without_nodes_are_refused() -> None:
    growth = growth_of(5)
    growth.next_nodes()
    with pytest.raises(AssertionError, match="as many candidates"):
        growth.place_children([[1, 2]], [[-0.1]])
    with pytest.raises(AssertionError, match="as many candidates"):
        growth.place_children([[1], [2]], [[-0.1], [-0.2]])


def test_no_more_nodes_are_run_than_the_draft_has_slots_for() -> None:
    draft = Draft(1, vocab_size=5, num_candidates=4)
    limits = GrowthLimits(24, num_steps=12, max_width=3, least_lead=1.0, max_run=11)
    _, run_index, steps = draft.grow(TreeGrowth(limits, root_token_id=ROOT))
    assert [len(step) for step in steps] == [1, 3, 3, 3, 1]
    assert run_index.max() <= 10


def test_the_tree_knows_where_its_root_stands() -> None:
    growth = TreeGrowth(GrowthLimits(2, 1, 1), root_token_id=ROOT, root_position=17)
    growth.next_nodes()
    growth.place_children([[5]], [[-0.1]])
    assert growth.finish()[0].root_position == 17


def test_what_is_worth_too_little_is_not_run_even_while_there_is_room() -> None:
    growth = TreeGrowth(GrowthLimits(9, num_steps=5, max_width=9, least_worth=0.2), root_token_id=ROOT)
    growth.next_nodes()
    growth.place_children([[1, 2, 3]], np.log([[0.7, 0.2, 0.1]]))
    assert growth.nodes.token_ids[growth.next_nodes()].tolist() == [1, 2]
    growth.place_children([[4], [5]], np.log([[0.2], [0.9]]))
    assert not len(growth.next_nodes())
    assert growth.finish()[0].token_ids.tolist() == [ROOT, 1, 2, 3, 4, 5]
