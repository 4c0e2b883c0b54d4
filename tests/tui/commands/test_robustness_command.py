import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from runtime.bench.robustness_benchmark import RobustnessReport, SchemeRobustness, SettingRobustness
from tests.support.session_factory import save_tiny_folder
from tui.cli import execute
from tui.commands.robustness_command import draw, robustness_table


def report() -> RobustnessReport:
    def scheme(name: str, rate: float) -> SchemeRobustness:
        rejection = tuple(rate / count for count in range(1, 17))
        return SchemeRobustness(name, rejection, (0.01,) * 16, 3.456)

    schemes = (scheme("sequoia", 0.2), scheme("top-k", 0.4))
    settings = (SettingRobustness(0.0, 1.0, 100, schemes), SettingRobustness(0.6, 1.0, 100, schemes))
    return RobustnessReport("target", "draft", 64, 8, settings)


def test_the_last_line_is_the_report_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = save_tiny_folder(tmp_path / "target", seed=37)
    prompts = tmp_path / "p.txt"
    prompts.write_text("the cat and the dog\n")
    command = ["bench", "robustness", str(prompts), "--target", str(target), "--positions", "2", "--tree-nodes", "5"]
    assert execute([*command, "--context", "512", "--tree", "6x3"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (record["draft"], record["tree_nodes"], len(record["settings"])) == ("substitute", 5, 22)


def test_people_read_a_line_for_each_scheme_and_one_for_temperature_0() -> None:
    file = io.StringIO()
    Console(file=file, width=100).print(robustness_table(report()))
    lines = [line for line in file.getvalue().splitlines() if "3.46" in line]
    assert [line.split("│")[3].strip() for line in lines] == ["all", "sequoia", "top-k"]
    assert [cell.strip() for cell in lines[2].split("│")[4:9]] == ["0.400", "0.200", "0.100", "0.050", "0.025"]


def test_a_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(report(), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "word"), [(["--draft", "none"], "--draft none"), (["--plot", "a.txt"], ".png or .svg")]
)
def test_what_cannot_be_done_is_a_sentence(options: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["bench", "robustness", *options]) == 2
    assert word in capsys.readouterr().err
