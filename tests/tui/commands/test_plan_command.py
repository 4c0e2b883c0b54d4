import json
import subprocess
import sys
import time

import pytest

from runtime.fit import plan_question, probes
from tests.support.model_factory import save_tiny_model
from tests.support.paths import ROOT
from tests.support.plan_fakes import plan_machine, planned
from tui import cli


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
    assert json.loads(out) == json.loads(json.dumps(planned().to_record()))


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
    seen = []

    def measure(device, *, cache_folder, model_folder):
        seen.append((device, model_folder))
        yield "measuring"
        return plan_machine()

    monkeypatch.setattr(probes, "this_machine", measure)
    code, out, err = run(capsys, "--target", "llama-3-8b", "--device", "xpu:0")
    assert (code, err, seen) == (0, "", [("xpu:0", None)])
    assert out.startswith("Llama-3-8B on Some Card")


def test_a_folder_is_what_the_disk_is_measured_with(capsys, monkeypatch, tmp_path):
    folder = save_tiny_model("llama", tmp_path)
    seen = []

    def measure(device, *, cache_folder, model_folder):
        seen.append(model_folder)
        yield "measuring"
        return plan_machine()

    monkeypatch.setattr(probes, "this_machine", measure)
    code, out, _ = run(capsys, "--target", str(folder), "--draft", "none", "--json")
    assert (code, seen) == (0, [folder])
    assert json.loads(out)["verdicts"] == ["Nothing streams: every layer stays on the device."]


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
    began = time.perf_counter()
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    assert (ran.stderr, time.perf_counter() - began < 15) == ("False", True)  # 1.4 s on quiet cores
