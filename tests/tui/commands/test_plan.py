import io
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from offload.units import format_bytes
from runtime.errors import OptionError
from runtime.fit import plan_question
from tests.support.fit_needs import GB
from tests.support.model_factory import save_tiny_model
from tests.support.paths import ROOT
from tests.support.plan_fakes import measured_machines, plan_machine, planned
from tui import cli
from tui.commands.plan import curves_of, draw_curves, print_plan, write_plot


def run(capsys, *options):
    code = cli.execute(["plan", *options])
    out, err = capsys.readouterr()
    return code, out, err


def test_text_is_on_stdout(capsys):
    code, out, err = run(capsys, "--machine", "l40")
    assert (code, err) == (0, "")
    assert out.startswith("Llama-3-70B on L40, draft Llama-3-8B")


def test_json_is_one_document_on_stdout(capsys):
    code, out, err = run(capsys, "--machine", "l40", "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert json.loads(out) == json.loads(json.dumps(planned(pack="auto").to_record()))


def test_every_option_reaches_the_plan(capsys):
    options = (
        "--machine 4090 --target qwen2.5-32b --draft qwen2.5-0.5b --format int8 --draft-format int8 --context 2048"
    )
    options += " --temperature 0.6 --tree 64x10 --device-memory 20GB --host-memory 16GB --link 10GB/s --disk 2GB/s"
    options += " --search dp --cost paper --json"
    _, out, _ = run(capsys, *options.split())
    record = json.loads(out)
    assert (record["machine"], record["target"], record["draft"]) == ("RTX 4090", "Qwen2.5-32B", "Qwen2.5-0.5B")
    assert (record["context_tokens"], record["temperature"]) == (2048, 0.6)
    assert (record["search"], record["cost"]) == ("dp", "paper")
    plan = record["plan"]
    assert (plan["format"], plan["draft_format"]) == ("int8", "int8")
    assert plan["tree"] == {"nodes": 64, "levels": 10, "is_dynamic": False}
    assert plan["device_budget_bytes"] == 20 * 10**9
    assert plan["tiers"]["host"]["bytes"] <= 16 * 10**9
    assert {one["what"]: one["basis"] for one in record["rests_on"]}["link"] == "given"


def test_this_machine_is_measured_on_the_way(capsys, monkeypatch):
    seen = measured_machines(monkeypatch)
    code, out, err = run(capsys, "--target", "llama-3-8b", "--device", "xpu:0")
    assert (code, err, seen) == (0, "", [("xpu:0", None)])
    assert out.startswith("Llama-3-8B on Some Card")


def test_a_folder_is_what_the_disk_is_measured_with(capsys, monkeypatch, tmp_path):
    folder = save_tiny_model("llama", tmp_path)
    seen = measured_machines(monkeypatch)
    code, out, _ = run(capsys, "--target", str(folder), "--draft", "none", "--json")
    assert (code, [where for _, where in seen]) == (0, [folder])
    first, second = json.loads(out)["verdicts"]
    assert first == "Nothing streams: every layer stays on the device."
    assert "llama-server -m MODEL.gguf" in second


def test_explain_draws_after_the_text_and_beside_json_on_stderr(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run(capsys, "--machine", "l40", "--explain")
    assert out.index("what this rests on") < out.index("nodes of the tree")
    assert max(map(len, out.splitlines())) <= 80
    _, out, err = run(capsys, "--machine", "l40", "--explain", "--json")
    assert json.loads(out) and "nodes of the tree" in err


def test_plot_writes_the_file(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "a.svg"
    assert run(capsys, "--machine", "l40", "--plot", str(path))[0] == 0
    assert path.read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--machine z80", "'z80' is not a built-in machine"),
        ("--machine l4", "near it: l40"),
        ("--machine l40 --target lama-3-70b", "did you mean llama-3-70b"),
        ("--machine l40 --draft nonsense", "the draft 'nonsense' is not known; known are llama-3-70b"),
        ("--machine l40 --tree 9x99", "tree is '9x99'"),
        ("--machine l40 --tree tall", "tree is 'tall'"),
        ("--machine 4070ti --draft substitute", "does not fit RTX 4070 Ti"),
        ("--machine l40 --device cuda:0", "leave out --machine or --device"),
        ("--machine l40 --link fast", "--link"),
        ("--machine l40 --device-memory lots", "--device-memory"),
        ("--machine l40 --host-memory -3", "--host-memory"),
        ("--machine l40 --disk 0GB/s", "--disk"),
        ("--machine l40 --plot a.pdf", "must end in .png or .svg"),
        ("--machine l40 --format q4", "format is 'q4'"),
        ("--machine l40 --temperature nan", "temperature is nan"),
        ("--machine l40 --context x", "--context"),
    ],
)
def test_nonsense_is_one_line_and_exit_code_2(capsys, options, words):
    code, out, err = run(capsys, *options.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_a_wrong_plot_stops_before_anything_is_measured(capsys, monkeypatch):
    monkeypatch.setattr(plan_question, "find_machine", None)
    assert run(capsys, "--plot", "a.pdf")[0] == 2


def test_a_built_in_machine_needs_no_torch_and_answers_at_once():
    """Importing torch alone takes seconds."""
    program = "import sys; from tui import cli; code = cli.execute(['plan', '--machine', 'l40']); "
    program += "sys.stderr.write(str('torch' in sys.modules or 'transformers' in sys.modules)); sys.exit(code)"
    before = os.times()
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    seconds = os.times().children_user - before.children_user
    assert (ran.stderr, seconds < 15) == ("False", True)  # 1.4 s of a core that is quiet


def text_of(report, *, width=80):
    file = io.StringIO()
    print_plan(report, Console(file=file, width=width, highlight=False))
    return file.getvalue()


def flat(report):
    return " ".join(text_of(report).split())


def test_everything_that_was_asked_for_is_shown():
    report = planned()
    assert report.main.tree.is_dynamic
    main, static, plain = report.main, report.main.ranking.best, report.plain
    text, placed = flat(report), main.placement
    for expected in (
        "Llama-3-70B on L40, draft Llama-3-8B, 4096 tokens of context, greedy",
        f"speed {main.seconds_per_token:.3g} s/token ({1 / main.seconds_per_token:.3g} tokens/s); bound by the link",
        f"settings --draft meta-llama/Meta-Llama-3-8B-Instruct --draft-format {main.draft_held} --context 4096",
        f"tree {main.tree.num_nodes} nodes x {main.tree.num_levels} levels, shaped by context, "
        f"{main.tree.expected_tokens:.2f} tokens",
        f"layers bfloat16: {placed.num_resident_layers} on the device ({format_bytes(placed.resident_bytes)}), "
        f"{placed.num_host_layers} in pinned host memory ({format_bytes(placed.host_bytes)})",
        f"ring {format_bytes(placed.streamed_bytes)} move in every pass, through 2 slots (3.42 GB)",
        f"device {format_bytes(placed.device_bytes)} of {format_bytes(placed.device_budget_bytes)}",
        f"until an answer begins a prompt of 512 {report.first_tokens[512].seconds:.3g} s, 1 pass: stream ",
        f"a prompt of 4096 {report.first_tokens[4096].seconds:.3g} s, ",
        f"best static {static.num_nodes} x {static.num_levels}: ",
        f"plain {plain.seconds_per_token:.3g} s/token",
        "other formats int8 ",
        "what more would bring 1.00 GB more device memory ",
        "PCIe 5.0 instead of 4.0 ",
        "link published: 24.9 GB/s, PCIe 4.0 x16: ",
        "computing data sheet: 864 GB/s and 181 TFLOPS",
        "acceptance published: Llama-3-70B-Instruct / 8B-Instruct",
        "note: host memory is assumed",
    ):
        assert expected in text


def test_keys_and_values_that_travel_as_int8_are_shown():
    question = {"target": "llama-3.3-70b", "format": "nf4", "context_tokens": 32768, "kv_cache": "host"}
    narrow = planned("rtx-4090", **question, kv_format="int8")
    placed, text = narrow.main.placement, flat(narrow)
    assert f"wait in host memory as int8 and move with them, {format_bytes(placed.travelling_bytes)} once" in text
    assert "--kv-format int8 --context 32768" in text and "note: keys and values that travel are int8" in text
    assert "int8" not in flat(planned("rtx-4090", **question)).split("keys, values")[1].split("device")[0]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_line_is_wider_than_the_terminal_or_80_columns(width):
    assert max(map(len, text_of(planned(), width=width).splitlines())) <= min(width, 80)


def test_a_users_tree_is_shown_with_the_best_and_the_option():
    report = planned(tree="32x6", temperature=0.6)
    text, best = flat(report), report.main.ranking.best
    assert "--tree 32x6 --context 4096" in text and "temperature 0.6" in text
    assert f"best tree {best.num_nodes} x {best.num_levels}: " in text


def test_plain_decoding_has_no_tree_and_no_second_line():
    text = flat(planned(draft="none"))
    assert "tree none: one token per pass" in text and "settings --draft none --context" in text
    assert "plain" not in text.split("what this rests on")[0].replace("plain decoding", "")


def test_a_format_that_does_not_run_says_why():
    report = planned(plan_machine(disk=None), draft="none", format="nf4", host_bytes=30 * GB)
    assert "bfloat16 does not run: " in flat(report)


def test_what_brings_nothing_is_said():
    report = planned()
    same = replace(report, what_ifs={"a larger case": report.main.seconds_per_token})
    assert "no change" in flat(same)


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
    assert list(curves) == sorted({2, 4, 8, 16, 32, best.num_levels})
    for num_levels, curve in curves.items():
        for size, seconds in curve.T:
            assert seconds == report.main.ranking.seconds_per_token[num_levels - 1, int(size) - 1]
    assert curves[best.num_levels][1].min() == pytest.approx(best.seconds_per_token, rel=0.01)


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
