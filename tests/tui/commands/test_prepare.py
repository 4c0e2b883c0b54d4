import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from runtime.prepare import shards
from tests.support.model_factory import save_tiny_model
from tests.support.paths import ROOT
from tui import cli


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny_model("llama", tmp_path / "model", hidden_size=64, intermediate_size=128)


def prepare(source: Path, *options: str) -> int:
    return cli.execute(["prepare", str(source), *options])


@pytest.mark.parametrize(
    ("options", "weight_format", "is_double"),
    [
        (["--format", "int8"], "int8", False),
        (["--format", "nf4", "--no-double-quant", "--quiet"], "nf4", False),
        (["--format", "nf4", "--double-quant", "-q"], "nf4", True),
    ],
)
def test_it_ends_with_one_json_line_and_a_folder_that_loads(source, capsys, options, weight_format, is_double) -> None:
    output = source.parent / "prepared"
    assert prepare(source, *options, "--output", str(output)) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert err == ""  # nobody watches a terminal
    assert (record["folder"], record["format"], record["double_quant"]) == (str(output), weight_format, is_double)
    assert record["num_bytes"] < record["source_bytes"]
    settings = AutoModelForCausalLM.from_pretrained(output).config.quantization_config
    assert (settings.load_in_8bit, settings.bnb_4bit_use_double_quant) == (weight_format == "int8", is_double)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--format", "q4"], "the format is 'q4'; it must be one of int8, nf4, packed"),
        (["--format", "int8", "--double-quant"], "double quantization belongs to nf4"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(source, capsys, options, sentence) -> None:
    assert prepare(source, *options, "-o", str(source.parent / "prepared")) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and sentence in err
    assert {path.name for path in source.parent.iterdir()} == {"model"}


def test_a_full_disk_is_one_line_and_exit_code_1_and_going_on_works(source, capsys, monkeypatch) -> None:
    def full(tensors, file, **settings):
        if "00003" in file.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(tensors, file, **settings)

    options = ["--format", "nf4", "-o", str(source.parent / "prepared")]
    with monkeypatch.context() as patch:
        patch.setattr(shards, "save_file", full)
        assert prepare(source, *options) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "No space left on device; make room and run the same command again" in err
    assert prepare(source, *options) == 0
    assert json.loads(capsys.readouterr().out)["num_kept_shards"] == 2


COMMAND = """
import sys
from runtime.prepare import preparation
original = preparation.PreparationPlan.make

def waiting(*arguments):
    print("waiting", file=sys.stderr, flush=True)
    sys.stdin.read()
    return original(*arguments)

preparation.PreparationPlan.make = waiting
from tui.cli import main
main()
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_says_how_to_go_on(source) -> None:
    command = [sys.executable, "-c", COMMAND, "prepare", str(source), "--format", "int8", "-o", str(source) + "-int8"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        while process.stderr.readline() != b"waiting\n":
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.stdout.read(), process.stderr.read()
    assert process.returncode == 130
    assert out == b""
    assert err == b"overstory: interrupted; run the same command again to go on where it stopped\n"


def test_the_bar_says_where_it_is(source, monkeypatch, capsys) -> None:
    """Drawn on a terminal that is 120 wide; what matters is that every event can be shown."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    assert prepare(source, "--format", "nf4", "-o", str(source.parent / "prepared")) == 0
    out, err = capsys.readouterr()
    assert "looking for the model" in err
    assert "prepared" in err and "source bytes" in err
    assert json.loads(out)["num_kept_shards"] == 0
