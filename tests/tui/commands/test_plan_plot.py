import io

import pytest
from rich.console import Console

from runtime.errors import OptionError
from tests.support.plan_fakes import planned
from tui.commands.plan_plot import curves_of, draw_curves, write_plot


@pytest.fixture(scope="module")
def report():
    return planned()


def drawn(report, *, width=80, **options):
    file = io.StringIO()
    draw_curves(report, Console(file=file, width=width, **options))
    return file.getvalue()


def test_the_curves_are_the_rankings(report):
    curves = curves_of(report)
    best = report.main.ranking.best
    assert [curve.num_levels for curve in curves] == sorted({2, 4, 8, 16, 32, best.num_levels})
    for curve in curves:
        for size, seconds in zip(curve.sizes, curve.seconds_per_token, strict=True):
            assert seconds == report.main.ranking.seconds_per_token[curve.num_levels - 1, size - 1]
    of_best = next(curve for curve in curves if curve.num_levels == best.num_levels)
    assert min(of_best.seconds_per_token) == pytest.approx(best.seconds_per_token, rel=0.01)


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_the_drawing_fits_the_terminal(report, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = drawn(report, width=width).splitlines()
    assert max(map(len, lines)) <= min(width, 100)
    assert "Llama-3-70B in bfloat16 on L40" in lines[0]
    text = "\n".join(lines)
    assert all(f"{levels} levels" in text for levels in (2, 4, 8, 16, 32))
    assert "nodes of the tree" in text and "1024" in text and "s/token" in text


def test_deeper_trees_are_drawn_below_shallow_ones(report, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = drawn(report).splitlines()
    inside = [line[5:55] for line in lines if line.endswith("│")]
    rows = {marker: max(index for index, line in enumerate(inside) if marker in line) for marker in "12"}
    assert rows["1"] < rows["2"]


def test_colours_are_only_for_terminals_that_want_them(report, monkeypatch):
    assert "\x1b[" not in drawn(report)
    assert "\x1b[" in drawn(report, force_terminal=True, color_system="standard", no_color=False)
    assert "\x1b[" not in drawn(report, force_terminal=True, color_system="standard", no_color=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in drawn(report, force_terminal=True, color_system="standard")


def test_two_drawings_do_not_mix(report):
    assert drawn(report) == drawn(report)


def test_plain_decoding_has_no_curve():
    assert drawn(planned(draft="none")).startswith("plain decoding has no curve")


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("b.SVG", b"<?xml")])
def test_a_file_is_drawn_whole(report, tmp_path, name, start):
    pytest.importorskip("matplotlib")
    path = tmp_path / name
    write_plot(report, path)
    assert path.read_bytes().startswith(start) and path.stat().st_size > 5000
    assert [found.name for found in tmp_path.iterdir()] == [name]


def test_a_folder_that_is_not_there_is_a_sentence(report, tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(OptionError, match="cannot be written"):
        write_plot(report, tmp_path / "nowhere" / "a.png")
