import builtins
from pathlib import Path

import pytest

from runtime.errors import OptionError
from tui.commands.plot_file import check_plot_path, save_figure


@pytest.mark.parametrize("name", ["a.png", "b.SVG"])
def test_a_file_that_can_be_drawn_is_fine(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    check_plot_path(tmp_path / name)


def test_a_drawing_that_cannot_be_put_there_leaves_nothing_behind(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    (tmp_path / "a.png").mkdir()
    with pytest.raises(OptionError, match="cannot be written"):
        save_figure(Figure(), tmp_path / "a.png")
    assert [found.name for found in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("name", ["a.pdf", "a", "a.png.txt"])
def test_another_suffix_is_a_sentence(tmp_path, name):
    with pytest.raises(OptionError, match=r"must end in \.png or \.svg"):
        check_plot_path(tmp_path / name)


def test_without_matplotlib_it_says_how_to_install_it(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(OptionError, match=r"pip install 'overstory\[plot\]'"):
        check_plot_path(tmp_path / "a.png")
