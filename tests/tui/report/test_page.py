from tui.report.page import regrouped


def test_neighbours_become_their_mean():
    assert regrouped([1, 3, 5, 7, 9], 3) == [2, 6, 9]
    assert regrouped([1, 2], 3) == [1, 2]
    assert regrouped([], 3) == []
