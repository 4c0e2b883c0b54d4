"""`bench` as it is typed: one JSON line on stdout, and a sentence for what cannot be measured."""

import json
import sys
from pathlib import Path

import pytest

from tests.support.fake_llama_server import save_fake_model, save_fake_server
from tests.support.hybrids import save_hybrid
from tests.support.session_factory import save_tiny_folder
from tui.cli import execute
from tui.commands.bench import draw_robustness
from tui.environment import packaged_prompts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model") / "target", seed=37)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "p.txt"
    path.write_text("the cat and the dog\nin the end\nthe sun and the sea\n")
    return str(path)


@pytest.fixture
def measured(folder: Path, capsys: pytest.CaptureFixture[str]):
    """Runs a benchmark of the folder; its one line on stdout, with nothing on a stderr that is no terminal."""

    def run(name: str, *arguments: str) -> dict:
        assert execute(["bench", name, *arguments, "--target", str(folder)]) == 0
        out, err = capsys.readouterr()
        (line,) = out.splitlines()
        assert err == ""
        return json.loads(line)

    return run


def test_streams_end_with_one_json_line(measured) -> None:
    record = measured("stream")
    assert (record["num_streamed_layers"], record["num_resident_layers"]) == (4, 0)
    assert record["ratio"] > 0 and len(record["turns"]) == 6


def test_rounds_end_with_one_json_line(measured, folder: Path) -> None:
    link = ("--draft", str(folder), "--emulate-link", "50MB/s")
    record = measured("round", *link, "--tree", "8x4", "--rounds", "2")
    assert (record["num_nodes"], record["num_levels"], len(record["rounds"])) == (8, 4, 2)
    assert record["ratio"] > 0


def test_the_round_benchmark_has_a_tree_of_its_own(measured, folder: Path) -> None:
    record = measured("round", "--draft", str(folder), "--emulate-link", "50MB/s", "--rounds", "1")
    assert (record["num_nodes"], record["num_levels"]) == (64, 10)


def test_reopened_conversations_end_with_one_json_line(measured) -> None:
    record = measured("prefix", "--draft", "none", "--tokens", "100", "--max-new-tokens", "2")
    assert record["is_same_text"] and record["kept_bytes"] == 0  # no block of 256 tokens is whole
    assert record["with"]["num_computed_tokens"] == record["num_prompt_tokens"]


def test_layers_of_a_hybrid_end_with_one_json_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--target", str(save_hybrid(tmp_path / "hybrid")), "--nodes", "3", "--tokens", "20", "--turns", "1"]
    assert execute(["bench", "hybrid", *options]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert record["target"] == options[1] and [tree["num_nodes"] for tree in record["trees"]] == [3]


def test_a_model_without_recurrent_layers_is_no_hybrid(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["bench", "hybrid", "--target", str(folder), "--nodes", "3", "--tokens", "20"]) == 2
    assert "no layer of the kind recurrent; give a hybrid such as Qwen3.5" in capsys.readouterr().err


def test_choices_end_with_one_json_line(measured, folder: Path, prompts: str) -> None:
    options = ["--draft", str(folder), "--draft-format", "stored", "--max-new-tokens", "40", "--turns", "1"]
    record = measured("choice", prompts, *options, "--temperature", "0.7")
    assert len(record["choices"]) == 8
    assert record["default_over_best"] > 0


def test_ratios_end_with_one_json_line(measured, folder: Path, prompts: str) -> None:
    options = ["--draft", str(folder), "--tree", "6x6", "--draft-format", "stored", "--max-new-tokens", "20"]
    record = measured("ratio", prompts, *options, "--steps-per-pass", "5")
    alone = measured("ratio", prompts, *options, "--steps-per-pass", "5", "--temperature", "0.6")
    assert [run["temperature"] for run in alone["runs"]] == [0.6]
    assert [run["temperature"] for run in record["runs"]] == [0.0, 0.6]
    assert record["draft"] == "target"
    assert [run["published_speedup"] for run in record["runs"]] == [9.5, 9.3]


def test_trees_end_with_one_json_line(measured, prompts: str) -> None:
    options = ["--nodes", "6", "--levels", "3", "--temperature", "0", "--max-new-tokens", "16", "--context", "128"]
    record = measured("trees", prompts, *options)
    assert [tree["kind"] for tree in record["trees"]] == ["static", "dynamic"]
    assert all(1 <= tree["tokens_per_pass"] <= 3 for tree in record["trees"])
    assert record["gains"][0][:2] == [0.0, 6]


def test_robustness_ends_with_one_json_line_and_a_picture(measured, prompts: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "a.png"
    options = ["--positions", "2", "--tree-nodes", "5", "--context", "512", "--tree", "6x3", "--plot", str(plot)]
    record = measured("robustness", prompts, *options)
    assert (record["draft"], record["tree_nodes"], len(record["settings"])) == ("substitute", 5, 22)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_plot_needs_only_some_settings(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    schemes = [{"scheme": "sequoia", "rejection": [0.2] * 16, "tokens_per_pass": 3.456}]
    settings = [{"temperature": heat, "top_p": top_p, "schemes": schemes} for heat, top_p in ((0.0, 1.0), (0.6, 0.9))]
    draw_robustness({"tree_nodes": 64, "settings": settings}, tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")


@pytest.mark.skipif(sys.platform == "win32", reason="the fake server is a shell script")
def test_peers_end_with_one_json_line_and_a_failure_with_exit_code_1(
    folder: Path, prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = save_fake_server(tmp_path)
    sound, failing = (
        save_fake_model(tmp_path / "a.gguf", seconds=0.05),
        save_fake_model(tmp_path / "b.gguf", fails="loading"),
    )
    options = [prompts, "--target", str(folder), "--draft", str(folder), "--draft-format", "stored"]
    options += ["--peer", str(program), "--max-new-tokens", "8", "--prompts-per-turn", "3"]
    peer = ["--peer-target", str(sound), "--peer-draft", str(sound), "--peer-drafted", "0", "--peer-drafted", "4"]
    assert execute(["bench", "peers", *options, *peer]) == 0
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    record = json.loads(line)
    assert err == ""
    assert [row["setting"] for row in record["settings"]] == ["overstory", "peer, plain", "peer, 4 drafted"]
    assert (record["num_prompts"], record["peer_version"]) == (3, "version: 1 (fake)")
    assert record["speedup"] == pytest.approx(record["best_peer_seconds_per_token"] / record["seconds_per_token"])
    assert execute(["bench", "peers", *options, "--peer-target", str(failing)]) == 1
    record = json.loads(capsys.readouterr().out)
    assert "no room for the model" in record["settings"][1]["failure"]


def test_peers_need_a_peer(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--peer-target", str(tmp_path / "a.gguf"), "--target", str(folder), "--peer", str(tmp_path / "none")]
    assert execute(["bench", "peers", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "no llama.cpp to measure beside" in err


@pytest.mark.skipif(sys.platform == "win32", reason="the fake server is a shell script")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--peer-target nowhere.gguf", "nowhere.gguf is no file"),
        ("--peer-target a --peer-drafted 4", "--peer-draft FILE"),
    ],
)
def test_peers_need_their_models(
    arguments: str, words: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = ["--peer", str(save_fake_server(tmp_path)), "--target", str(folder)]
    assert execute(["bench", "peers", *peer, *arguments.split()]) == 2
    assert words in capsys.readouterr().err


def test_perplexity_ends_with_one_json_line(measured, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("the cat and the dog in the hat")
    record = measured("perplexity", "--text", str(path), "--device-memory", "min")
    assert record["perplexity"] > 1
    assert record["num_tokens"] > 5
    assert (record["target"], record["text"]) == (str(folder), str(path))
    assert "relative_difference" not in record


def test_beside_transformers_both_agree(measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", False)  # as the program sees to it when it starts
    path = tmp_path / "text.txt"
    path.write_text("the cat and the dog in the hat")
    record = measured("perplexity", "--text", str(path), "--beside-transformers", "--quiet")
    assert abs(record["relative_difference"]) < 1e-5
    assert record["perplexity"] == pytest.approx(record["transformers_perplexity"], rel=1e-5)
    assert record["transformers_seconds"] > 0


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "cannot be read: No such file"), (b"\xff\xfe", "is not UTF-8"), (b"a", "the text has 1 tokens")],
)
def test_a_text_that_cannot_be_used_is_one_line_and_exit_code_2(
    folder: Path, tmp_path: Path, capsys, content, sentence
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    assert execute(["bench", "perplexity", "--target", str(folder), "--text", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and sentence in err


def test_the_text_that_comes_with_it_is_plain_and_long_enough() -> None:
    content = packaged_prompts("perplexity.txt").read_text(encoding="utf-8")
    assert 6_000 <= len(content) <= 8_000
    assert content.isascii()
    assert "def longest_run" in content and "The ferry" in content


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("round --draft none --target {folder}", "no layer streams here"),
        ("round --tree dynamic", "give nodes x levels"),
        ("ratio --emulate-link 1GB/s", "--steps-per-pass"),
        ("ratio --draft none", "--draft none leaves nothing to compare; leave it out, or name a draft"),
        ("ratio --target {folder} --draft {folder} --device-memory 1GB", "no layer streams here"),
        ("ratio {folder}/p.jsonl", "p.jsonl"),
        ("validate --emulate-link 1GB/s", "--link"),
        ("validate --draft none", "--draft none leaves nothing to validate"),
        ("validate nowhere.jsonl", "nowhere.jsonl"),
        ("trees --draft none", "--draft none"),
        ("trees --tree 64x10", "--nodes and --levels"),
        ("trees --nodes 8", "8 is less than the 25"),
        ("robustness --draft none", "--draft none"),
        ("robustness --plot a.txt", ".png or .svg"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    arguments: str, words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "p.jsonl").write_text("{\n")
    assert execute(["bench", *arguments.format(folder=folder).split()]) == 2
    assert words in capsys.readouterr().err
