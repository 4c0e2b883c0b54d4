import pytest

from runtime.bench.round_check import LinkCheck, ShapeCheck
from runtime.bench.yield_check import ChainCheck, YieldCurve, YieldReport
from tui.cli import execute
from tui.commands.validate_command import link_lines, yield_lines


def test_the_links_and_trees_are_the_commands_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["bench", "validate", "--emulate-link", "1GB/s"]) == 2
    assert "--link" in capsys.readouterr().err


def test_a_missing_prompt_file_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["bench", "validate", "nowhere.jsonl"]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err


def test_a_link_is_shown_tree_by_tree() -> None:
    shapes = (ShapeCheck(8, 4, 1.0, 1.25, 3, 4.0, 5.0), ShapeCheck(1, 1, 0.9, 0.9, 3, 1.0, 1.0))
    assert link_lines(LinkCheck("disk", 0.5, shapes)) == [
        "disk: 8x4 round 1.000 s predicted, 1.250 measured; 4.00 tokens predicted, 5.00 counted",
        "disk: 1x1 round 0.900 s predicted, 0.900 measured; 1.00 tokens predicted, 1.00 counted",
        "disk: seconds per round off by 10.0 % in the median, 20.0 % at worst; per token 0.0 and 0.0 %; the planner's "
        "8x4 takes 1.000 of the best measured",
    ]


def test_tokens_are_shown_with_their_fit_their_errors_and_the_chains() -> None:
    sixteen = (2.0,) * 16
    curve = YieldCurve(sixteen, sixteen, (2.25,) * 16, (0.5,) * 16, (None,) * 16, 50, 0.5, 1.25, 0.987, 0.2, 0.05)
    chains = (ChainCheck(16, 6.0, 0.5, 5.0, 5.9, 0.75),)
    assert yield_lines(YieldReport(curve, chains, 324, 12)) == [
        "G(n) = 0.50 + 1.25 ln n explains 98.7 % of the variance over 50 positions; by rank it is off by up to 20 %, "
        "by depth by up to 5 %",
        "predictions rest on 324 positions of 12 texts; standard errors are between texts",
        "trees of 16 nodes: 2.00 (±0.50) tokens counted, 2.00 by rank, 2.25 by depth",
        "a chain of 16: 6.00 (±0.50) tokens counted, 5.00 by rank, 5.90 (±0.75) by depth",
    ]
