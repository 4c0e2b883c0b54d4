"""Bars as exact text."""

import pytest

from tui.chat.widgets.text_bars import column_chart, progress_bar, share_bar, spark_line


@pytest.mark.parametrize(
    ("share", "bar"),
    [
        (-1, "──────────"),
        (0, "──────────"),
        (0.5, "━━━━━─────"),
        (0.55, "━━━━━╸────"),
        (1, "━━━━━━━━━━"),
        (7, "━━━━━━━━━━"),
    ],
)
def test_progress(share, bar):
    assert progress_bar(share, 10) == bar


@pytest.mark.parametrize(
    ("share", "bar"), [(0, "    "), (0.5, "██  "), (0.65625, "██▋ "), (0.999, "████"), (2, "████")]
)
def test_shares(share, bar):
    assert share_bar(share, 4) == bar


@pytest.mark.parametrize(
    ("values", "top", "line"),
    [
        ((), None, "     "),
        ((0, 0), None, "   ▁▁"),
        ((7,), None, "    █"),
        ((0, 1, 2, 4, 7), None, "▁▂▃▅█"),
        ((9, 9, 0, 1, 2, 4, 7), None, "▁▂▃▅█"),
        ((0.5, 1.0, 3.0), 1.0, "  ▅██"),
    ],
)
def test_curves(values, top, line):
    assert spark_line(values, 5, top=top) == line


def test_no_width_is_no_text():
    assert spark_line((1, 2), 0) == progress_bar(0.5, 0) == share_bar(0.5, 0) == ""


def test_columns():
    rows = column_chart((None, 1.0, 0.75, 0.5, 0.1, 0.0), height=2, step=2, width=20)
    assert rows == ("  █ ▄", "· █ █ █ ▂ ▁")
    assert column_chart((1.0, 1.0, 1.0), height=1, step=2, width=3) == ("█ █",)
