"""Markdown whose texts are text, whatever prompts call themselves."""

from tui.report.markdown_page import escaped, to_markdown
from tui.report.page import Chart, Facts, Page, Section, Table


def test_a_page_has_headings_sentences_tables_and_a_chart_of_characters():
    parts = (
        "It ran.",
        Facts([("target", "m")]),
        Table(("name", "n"), [("a", "1")]),
        Chart("Speed", [1.0, 2.0] * 5, [(0, "0:00:00"), (5, "hidden"), (10, "0:00:02")], "tokens/s"),
        Chart("Hidden", [1.0], [], "x", is_in_text=False),
    )
    written = to_markdown(Page("Run", "All well.", (Section("What", parts),)))
    lines = written.split("\n")
    assert lines[:5] == ["# Run", "", "All well.", "", "## What"]
    assert lines[6] == "It ran."
    assert lines[8:11] == ["|  |  |", "| --- | --- |", "| target | m |"]
    assert lines[12:15] == ["| name | n |", "| --- | ---: |", "| a | 1 |"]
    assert "Speed, tokens/s; the top is 2" in lines
    assert lines.count("```") == 2 and "█" in written and "0:00:00   0:00:02" in lines
    assert "Hidden" not in written


def test_texts_cannot_leave_their_place():
    hostile = "a|b\n# c `d` *e* <b>f</b> [g](javascript:h) ![i](j) http://k www.l m@n \x1b[2J\u202e \ud800 &lt; \\|"
    written = escaped(hostile)
    assert not set("|`*<>[]\n\x1b\u202e\ud800\\@") & set(written)
    assert "://" not in written and "www." not in written
    assert written.encode()
    row = to_markdown(Page("t", "", (Section("s", (Table(("a", "b"), [(hostile, hostile)]),)),))).split("\n")[8]
    assert row.count("|") == 3


def test_many_values_become_a_chart_that_fits():
    written = to_markdown(Page("t", "", (Section("s", (Chart("c", [1.0] * 240, [(240, "end")], "u"),)),)))
    assert max(map(len, written.split("\n"))) <= 80
