import json
from dataclasses import replace

import pytest

from offload.errors import LinkError
from runtime.fit import doctor
from runtime.fit.doctor import examine
from tests.support.doctor_fakes import PROBES, FakeProbes, finished, link, question
from tests.support.fit_needs import GB, machine
from tui import cli


@pytest.fixture
def install(monkeypatch):
    """Make the command examine a fake machine; returns the configs that it was asked with."""

    def install_probes(probes, *questions):
        seen = []

        def check_up(config, *, cache_folder):
            seen.append(config)
            return (yield from examine(probes, questions or [question()]))

        monkeypatch.setattr(doctor, "check_up", check_up)
        return seen

    return install_probes


def run(capsys, *options):
    code = cli.execute(["doctor", *options])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_machine_and_the_models_are_shown(install, capsys):
    install(FakeProbes())
    code, out, err = run(capsys)
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    for expected in (
        "system Linux 6.1 (x86_64), WSL2",
        "device xpu:0: Some Card, 13.0 GB free of 16.0 GB cpu: Some Processor, 8 cores",
        "driver SomeDriver 1.2.3",
        "a memory control group leaves 12.0 GB",
        "pinned memory 800 MB of host memory can be pinned",
        "link 20.0 GB/s from pinned host memory 5.00 GB/s from pageable host memory",
        "disk 2.00 GB/s past the page cache, in /models/x",
        "caches 100 GB free for overstory in /cache/overstory",
        "versions python 3.12.1, torch 2.13.0 (CUDA 13.0)",
        "Some-70B, 4000 tokens of context, draft: none",
        "bfloat16 slow bfloat16 would need 44.0 GB of host memory, int8 18.0 GB; you have 15.0 GB, so nf4 (5.00 GB) is "
        "the nearest that fits; as it is, every pass reads 32.0 GB from disk layers: 2 wait in host memory, 8 are read "
        "from disk; a pass moves 40.0 GB in 16 s or more",
        "nf4 fits 6 of 10 layers stay on the device (13.0 GB of 13.0 GB) and 4.00 GB wait in host memory a pass moves "
        "4.00 GB in 0.2 s or more",
        "overstory prepare MODEL --format int8|nf4 --output DIR",
    ):
        assert expected in text


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_no_line_is_wider_than_the_terminal_or_80_columns(install, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    install(FakeProbes(failures={"driver": OSError("a long reason " * 20)}), question(name="a/" * 60))
    _, out, _ = run(capsys)
    assert max(map(len, out.splitlines())) <= min(int(columns), 80)


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_that_fails_is_one_line_and_never_a_traceback(install, capsys, name):
    install(FakeProbes(failures={name: LinkError("it is\x1b[2J broken")}))
    code, out, err = run(capsys)
    assert "not found out: it is broken" in out and "\x1b" not in out
    assert "Traceback" not in out + err
    assert code == (1 if name == "memory" else 0)


def test_everything_may_fail_at_once(install, capsys):
    install(FakeProbes(failures={name: RuntimeError("no") for name in PROBES}))
    code, out, _ = run(capsys)
    assert code == 1 and out.count("not found out: RuntimeError: no") == len(PROBES)
    assert "nothing can be said about models" in out


def test_a_model_that_runs_in_no_format_is_exit_code_1(install, capsys):
    install(FakeProbes(found=machine(host=GB, device=GB)))
    code, out, _ = run(capsys)
    assert code == 1
    assert [line.split()[:2] for line in out.splitlines() if line.startswith("  b")] == [["bfloat16", "no"]]


def test_rates_that_are_missing_are_said(install, capsys):
    install(
        FakeProbes(failures={"disk": OSError("x")}, links_found=(link(5e9, "from pageable host memory; refused: no"),))
    )
    text = " ".join(run(capsys)[1].split())
    assert "a pass moves 40.0 GB; how fast was not measured" in text
    assert "5.00 GB/s from pageable host memory; refused: no" in text


def test_keys_and_values_that_travel_are_said(install, capsys):
    long = replace(question(), need=replace(question(context_tokens=19_999).need, kv_cache="host"))
    install(FakeProbes(found=machine(host=60 * GB, device=13_001 * 10**6)), long)
    text = " ".join(run(capsys)[1].split())
    assert "a pass moves 50.0 GB (10.0 GB of it keys and values, with the context half full) in 2.5 s or more" in text


def test_on_a_cpu_layers_stay_in_memory(install, capsys):
    install(FakeProbes(found=machine(host=30 * GB), links_found=(link(9e9, "memory to memory"),)))
    text = " ".join(run(capsys)[1].split())
    assert "link 9.00 GB/s memory to memory" in text
    assert "layers: 4 stay in memory, 6 are read from disk; a pass moves 24.0 GB in 12 s or more" in text


def test_json_is_one_document_on_stdout(install, capsys):
    install(FakeProbes(failures={"driver": OSError("none")}))
    code, out, err = run(capsys, "--json")
    record = json.loads(out)
    assert (code, err, out.count("\n")) == (0, "", 1)
    report, _ = finished(examine(FakeProbes(failures={"driver": OSError("none")}), [question()]))
    assert record == json.loads(json.dumps(report.to_record()))
    assert record["models"][0]["formats"][2]["runs_well"] is True


def test_options_reach_the_check(install, capsys):
    seen = install(FakeProbes())
    run(capsys, "--target", "/models/a", "--draft", "none", "--device", "xpu:0")
    assert [(config.target, config.draft, config.device) for config in seen] == [("/models/a", "none", "xpu:0")]


def test_a_target_that_cannot_be_used_is_exit_code_2_and_one_line(capsys, tmp_path):
    code, out, err = run(capsys, "--target", str(tmp_path))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "has no config.json" in err
    assert run(capsys, "--draft", " ")[0] == 2
    assert run(capsys, "--device", "nonsense:9")[0] == 2
