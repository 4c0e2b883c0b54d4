"""FIGURES.md and the README say what the kept JSON lines say."""

import pytest

from tests.support.figures import FIGURES, README, WRITTEN, measure, read_kept, written, written_readme


def test_the_written_figures_are_those_that_were_measured():
    assert WRITTEN.read_text(encoding="utf-8") == written(read_kept())


def test_every_kept_figure_still_has_its_command():
    commands = {figure.name: figure.command for figure in FIGURES}
    assert {name: row["command"] for name, row in read_kept().items()}.items() <= commands.items()


def test_the_readmes_tables_are_those_of_plan_and_of_what_was_measured():
    text = README.read_text(encoding="utf-8")
    assert text == written_readme(), "run python -m tests.support.figures write"
    assert len(text.encode()) <= 9000


@pytest.mark.slow
def test_a_figure_is_measured_by_its_command(tmp_path):
    plan = next(figure for figure in FIGURES if figure.name == "plan")
    row = measure(plan, tmp_path)
    assert "s/token predicted" in plan.say(row["record"]) and row["commit"] and row["machine"]
