"""`run --report`: what is refused before anything is loaded, and the page at the end, however that comes."""

import json
import os
import sys

import pytest

from offload.errors import LinkError
from runtime.errors import OptionError
from tests.support.answer_fakes import echo, loading_of
from tui import cli
from tui.report import run_report
from tui.report.run_report import RunReport, check_report_path


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    names = ("one", "<b>two</b>", "three")
    path.write_text("".join(json.dumps({"id": name, "prompt": name}) + "\n" for name in names))
    return path


@pytest.fixture
def install(monkeypatch):
    """Sessions that answer with the given generate, of which nothing is predicted and little is known."""
    seen = []

    def install_generate(generate=echo):
        module = loading_of(generate)
        for name in ("loading", "load_plan"):
            monkeypatch.setitem(sys.modules, f"runtime.engine.{name}", module)
        monkeypatch.setattr(RunReport, "predict", lambda self, config, items, console: config)
        monkeypatch.setattr(RunReport, "describe", lambda self, opened: seen.append(opened))
        return seen

    return install_generate


def run(prompts, *options):
    return cli.execute(["run", str(prompts), "--target", str(prompts.parent), *map(str, options)])


@pytest.mark.parametrize("suffix", ["html", "md"])
def test_a_page_is_written_at_the_end(prompts, install, tmp_path, suffix, capsys):
    described = install()
    page = tmp_path / f"run.{suffix}"
    assert run(prompts, "--report", page, "--temperature", "0.5", "--batch", "2") == 0
    text = page.read_text()
    assert len(described) == 1 and "3 of 3 prompts answered" in text
    assert "--temperature" in text and "0.5" in text and "--batch" in text and "--top-p" not in text
    assert "<b>two</b>" not in text and ("&lt;b&gt;two" in text or "&#60;b&#62;two" in text)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_an_interrupted_run_has_a_page_as_far_as_it_got(prompts, install, tmp_path, capsys):
    def interrupt_on_three(request):
        if request.id == "three":
            raise KeyboardInterrupt
        yield from echo(request)

    install(interrupt_on_three)
    page = tmp_path / "run.md"
    assert run(prompts, "--report", page) == 130
    assert "ended early: interrupted. 2 of 3 prompts answered." in page.read_text()


def test_failed_prompts_are_named_and_the_exit_code_stays(prompts, install, tmp_path):
    def fail_on_one(request):
        if request.id == "one":
            raise LinkError("the link | is gone")
        yield from echo(request)

    install(fail_on_one)
    page = tmp_path / "run.md"
    assert run(prompts, "--report", page) == 1
    assert "| one | 1 | the link &#124; is gone |" in page.read_text()


def test_what_cannot_be_written_is_refused_before_anything_is_loaded(prompts, install, tmp_path, capsys):
    described = install()
    output = tmp_path / "results.md"
    (tmp_path / "folder.md").mkdir()
    (tmp_path / "link.md").symlink_to(output)
    for options, told in (
        (["--report", tmp_path / "run.pdf"], "must end in .html or .md"),
        (["--report", tmp_path / "missing" / "run.md"], "give a file in an existing, writable folder"),
        (["--report", tmp_path / "folder.md"], "give a file in an existing, writable folder"),
        (["--report", output, "--output", output], "is the file of --output"),
        (["--report", tmp_path / "link.md", "--output", output], "is the file of --output"),
        (["--report", tmp_path / "run.md", "--dry-run"], "leave out --report or --dry-run"),
    ):
        assert run(prompts, *options) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1
    assert described == [] and not output.exists()


def test_a_folder_that_takes_no_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # also where the tests may write everywhere
    with pytest.raises(OptionError, match="writable folder"):
        check_report_path(tmp_path / "run.md", None)


def test_a_page_that_cannot_be_written_in_the_end_is_an_error_of_its_own(
    prompts, install, tmp_path, monkeypatch, capsys
):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    install()
    monkeypatch.setattr(run_report, "replace_content", refuse)
    assert run(prompts, "--report", tmp_path / "run.md") == 2
    assert "cannot be written: No space left on device" in capsys.readouterr().err

    def interrupt(request):
        raise KeyboardInterrupt
        yield

    install(interrupt)
    assert run(prompts, "--report", tmp_path / "run.md") == 130
    error = capsys.readouterr().err
    assert "cannot be written" in error and "interrupted" in error
