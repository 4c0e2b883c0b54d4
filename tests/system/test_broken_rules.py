"""The enumeration of rounds sees a rule that is broken: without this its silence would prove nothing."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from runtime.speculation import schemes
from runtime.speculation.rejection import residual_step
from runtime.speculation.sampling import draw_with_replacement
from runtime.speculation.schemes import Children
from runtime.speculation.token_tree import TokenTree
from tests.support.round_enumeration import PLAIN, STAR, Pair, Round, largest_error
from tests.support.trees import tree_of_counts


def keep_draft(target_probs: np.ndarray, draft_probs: np.ndarray, rejected: Sequence[int]) -> tuple:
    """Broken: the draft keeps the rejected token."""
    return residual_step(target_probs, draft_probs, rejected)[0], draft_probs


def zero_without_renormalising(target_probs: np.ndarray, draft_probs: np.ndarray, rejected: Sequence[int]) -> tuple:
    """Broken: the draft loses the rejected token but does not sum to 1."""
    draft_left = draft_probs.copy()
    draft_left[rejected[-1]] = 0
    return residual_step(target_probs, draft_probs, rejected)[0], draft_left


def keep_target(target_probs: np.ndarray, draft_probs: np.ndarray, rejected: Sequence[int]) -> tuple:
    """Broken: no residual."""
    return target_probs, residual_step(target_probs, draft_probs, rejected)[1]


def error_over_four_tokens(verification: str = "sequoia", *, num_grafts: int = 0) -> float:
    pair, params = Pair("moderate", 4), replace(PLAIN, verification=verification)
    return largest_error(pair, params, Round(pair, tree_of_counts(STAR), params, num_grafts).emitted())


@pytest.mark.parametrize("broken", [keep_draft, zero_without_renormalising, keep_target])
def test_the_enumeration_catches_a_broken_rule(broken: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemes, "residual_step", broken)
    assert error_over_four_tokens() > 1e-3


def test_the_enumeration_catches_a_target_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemes, "target_residual", lambda target_probs, draft_probs: target_probs)
    assert error_over_four_tokens("specinfer") > 1e-3


def safe_ratio(target_probs: np.ndarray, draft_probs: np.ndarray, token: int) -> float:
    """A token that was rejected before has no mass left."""
    return min(1.0, float(target_probs[token] / draft_probs[token])) if draft_probs[token] else 0.0


def test_the_enumeration_catches_draws_with_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemes, "accept_probability", safe_ratio)
    monkeypatch.setattr(schemes, "draw_while_mass", draw_with_replacement)
    assert error_over_four_tokens() > 1e-3


def test_the_enumeration_catches_a_graft_that_is_taken_for_a_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemes, "accept_probability", safe_ratio)
    assert error_over_four_tokens(num_grafts=1) < 1e-12
    below = Children.below

    def all_drawn(tree: TokenTree, node: int) -> Children:
        children = below(tree, node)
        return replace(children, drawn=range(len(children.token_ids))) if children.drawn else children

    monkeypatch.setattr(Children, "below", all_drawn)
    assert error_over_four_tokens(num_grafts=1) > 1e-3
