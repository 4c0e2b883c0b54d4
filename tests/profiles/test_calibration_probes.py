"""The two scopes: grids that a planner needs, and parts that leave time for texts."""

from profiles.calibration_probes import FULL, QUICK


def test_both_scopes_leave_time_for_texts_and_keep_their_promise() -> None:
    for scope, promised in ((FULL, 180), (QUICK, 40)):
        parts = 2 * scope.transfers_share + scope.draft_share + scope.passes_share
        assert parts + scope.walks_share + scope.overlap_share + scope.texts_share <= 1.0
        assert scope.budget_seconds < promised


def test_grids_are_ascending_and_reach_what_planners_ask_for() -> None:
    for scope in (FULL, QUICK):
        for sizes in (scope.widths, scope.tree_sizes, scope.contexts, scope.walk_sizes, scope.transfer_bytes):
            assert list(sizes) == sorted(set(sizes))
        assert (scope.widths[-1], scope.tree_sizes[-1], scope.contexts) == (256, 1024, (128, 512, 2048, 4096))
        assert scope.temperatures == (0.0, 0.6, 1.0)
    assert FULL.tree_sizes == tuple(1 << power for power in range(11))
