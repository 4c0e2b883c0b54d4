import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from offload.errors import LinkError
from runtime.model.generation_config import GenerationConfig
from runtime.prompts.headless import PromptResult, run_prompts
from tests.support.answer_fakes import echo, loading_of
from tests.support.batch_files import chat_line, completion_line, write_lines
from tests.support.paths import ROOT
from tui import cli
from tui.environment import prepare_libraries


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"id": name, "prompt": name}) + "\n" for name in ("one", "two", "three")))
    return path


@pytest.fixture
def install(monkeypatch):
    """Make the commands open sessions that answer with the given generate; returns the fake loading module."""

    def install_generate(generate=echo, *, generation=None):
        module = loading_of(generate, generation=generation)
        for name in ("loading", "load_plan"):
            monkeypatch.setitem(sys.modules, f"runtime.engine.{name}", module)
        return module

    return install_generate


def run(prompts, *options):
    return cli.execute(["run", str(prompts), "--target", str(prompts.parent), *options])


def records(text):
    return [json.loads(line) for line in text.splitlines()]


def test_answers_are_json_lines_on_stdout_and_stderr_is_quiet(prompts, install, capsys):
    install()
    assert run(prompts) == 0
    out, err = capsys.readouterr()
    assert [(record["id"], record["text"], record["error"]) for record in records(out)] == [
        ("one", "ONE", None),
        ("two", "TWO", None),
        ("three", "THREE", None),
    ]
    assert err == ""


def test_options_reach_the_session_and_the_requests(prompts, install, capsys):
    seen = []

    def watch(request):
        seen.append(request)
        yield from echo(request)

    module = install(watch)
    options = ["--tree", "64x10", "--device-memory", "2GB", "--temperature", "0.5", "--stop", "a", "--stop", "b"]
    assert run(prompts, *options, "--system", "Be brief.", "--max-new-tokens", "7") == 0
    (config,) = module.opened
    assert (config.tree, config.device_memory_bytes, config.target) == ("64x10", 2_000_000_000, str(prompts.parent))
    params = seen[0].params
    assert (params.temperature, params.stop, params.max_new_tokens) == (0.5, ("a", "b"), 7)
    assert seen[0].messages[0].content == "Be brief."


def test_the_models_own_settings_are_told_once_and_fill_what_nobody_chose(prompts, install, capsys):
    """On stderr, whoever reads it, unless it is to be quiet; the session does the filling."""
    seen = []

    def watch(request):
        seen.append(request)
        yield from echo(request)

    own = GenerationConfig(choice="auto", do_sample=True, temperature=0.7, top_k=20, repetition_penalty=1.05)
    module = install(watch, generation=own)
    prompts.write_text('{"prompt": "one"}\n{"prompt": "two", "top_k": 5}\n')
    assert run(prompts, "--top-p", "1") == 0
    assert capsys.readouterr().err == (
        "overstory: the model's own generation settings: temperature 0.7, top-k 20, repetition penalty 1.05; "
        "--generation plain leaves them out\n"
    )
    assert module.opened[0].generation == "auto"
    one, two = (request.unchosen for request in seen)
    assert {"temperature", "top_k", "max_new_tokens", "stop"} <= one and "top_p" not in one
    assert one - two == {"top_k"}
    assert run(prompts, "--quiet") == 0 and capsys.readouterr().err == ""
    assert run(prompts, "--temperature", "0", "--repetition-penalty", "1") == 0 and capsys.readouterr().err == ""


def test_a_bad_line_is_a_result_and_the_exit_code_is_1(prompts, install, capsys):
    install()
    prompts.write_text('{"prompt": "one"}\n{"prompt": 2}\n{"prompt": "three"}\n')
    assert run(prompts) == 1
    out, err = capsys.readouterr()
    assert [(record["line"], record["error"] is None) for record in records(out)] == [(1, True), (2, False), (3, True)]
    assert err == "overstory: error: 1 of 3 prompts have no answer; see `error` in their results\n"


def test_no_model_is_opened_where_no_line_can_be_answered(prompts, install, capsys):
    module = install()
    prompts.write_text("{\n")
    assert run(prompts) == 1
    assert module.opened == []


def test_resume_answers_only_what_is_missing(prompts, install, tmp_path, capsys):
    asked = []

    def fail_once_on_two(request):
        asked.append(request.id)
        if request.id == "two" and asked.count("two") == 1:
            raise LinkError("the link is gone")
        yield from echo(request)

    module = install(fail_once_on_two)
    output = tmp_path / "results.jsonl"
    assert run(prompts, "--output", str(output)) == 1
    assert run(prompts, "--output", str(output)) == 2
    assert "already holds something; add --resume" in capsys.readouterr().err
    assert run(prompts, "--output", str(output), "--resume") == 0
    assert run(prompts, "--output", str(output), "--resume") == 0
    assert asked == ["one", "two", "three", "two"]
    assert [record["id"] for record in records(output.read_text())] == ["one", "three", "two"]
    assert len(module.opened) == 2


def test_a_batch_of_openais_is_answered_in_its_format_and_gone_on_with(prompts, install, tmp_path, capsys):
    asked = []

    def watch(request):
        asked.append((request.id, request.params.temperature))
        yield from echo(request)

    install(watch)
    lines = (chat_line("a", "one", n=2), {"prompt": "of another format"}, completion_line("b", "two"), chat_line("c"))
    batch, output = write_lines(tmp_path / "batch.jsonl", *lines), tmp_path / "results.jsonl"
    assert run(batch, "--output", str(output), "--limit", "1") == 0
    assert [record["custom_id"] for record in records(output.read_text())] == ["a"]
    assert run(batch, "--output", str(output), "--limit", "1", "--resume") == 1
    assert [record["custom_id"] for record in records(output.read_text())] == ["a", None, "b"]
    assert run(batch, "--output", str(output), "--resume", "--temperature", "0.5") == 1
    assert [record["custom_id"] for record in records(output.read_text())] == ["a", "b", None, "c"]
    assert asked == [("a [0]", 1.0), ("a [1]", 1.0), ("b", 1.0), ("c", 0.5)]
    capsys.readouterr()
    assert run(prompts, "--output", str(output), "--resume") == 2
    assert "holds results in OpenAI's batch format, and this prompt file gives" in capsys.readouterr().err
    assert run(batch) == 1
    assert [record["custom_id"] for record in records(capsys.readouterr().out)] == ["a", None, "b", "c"]


def test_the_first_lines_alone_are_answered_and_then_the_next_ones(prompts, install, tmp_path, capsys):
    install()
    assert run(prompts, "--limit", "2") == 0
    assert [record["id"] for record in records(capsys.readouterr().out)] == ["one", "two"]
    output = tmp_path / "results.jsonl"
    for expected in (["one"], ["one", "two"], ["one", "two", "three"], ["one", "two", "three"]):
        assert run(prompts, "--output", str(output), "--resume", "--limit", "1") == 0
        assert [record["id"] for record in records(output.read_text())] == expected


@pytest.mark.parametrize("options", [["--in-order"], []], ids=["in order", "as they finish"])
def test_results_in_any_order_are_written_as_they_finish_or_in_order(
    prompts, install, tmp_path, capsys, monkeypatch, options
):
    def backwards(generate_all, items):
        return reversed([event for event in run_prompts(generate_all, items) if isinstance(event, PromptResult)])

    install()
    monkeypatch.setattr("tui.commands.run.run_prompts", backwards)
    output = tmp_path / "results.jsonl"
    assert run(prompts, "--output", str(output), *options) == 0
    names = ["one", "two", "three"]
    assert [record["id"] for record in records(output.read_text())] == (names if options else names[::-1])
    assert run(prompts, *options) == 0
    assert [record["id"] for record in records(capsys.readouterr().out)] == names


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "x.txt", "--limit", "0"], "--limit is 0; it must be 1 or more"),
        (["run", "missing.txt"], "missing.txt cannot be read"),
        (["run"], "Missing argument"),
        (["run", "x.txt", "--frobnicate"], "No such option"),
        (["run", "x.txt", "--top-k", "many"], "--top-k is 'many'; it must be a whole number"),
        (["run", "x.txt", "--resume"], "--resume needs the file"),
        (["run", "x.txt", "--top-p", "2"], "--top-p is 2; it must be from 0"),
        (["rum"], "No such command"),
        (["compare", "--draft", "none"], "nothing to compare"),
        (["bench", "stream", "--ring-slots", "1"], "--ring-slots is 1"),
    ],
)
def test_input_that_cannot_be_used_is_one_line_and_exit_code_2(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.execute(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("overstory: error: ") and err.count("\n") == 1 and expected.lower() in err.lower()
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_no_file_can_have_is_one_sentence(tmp_path, capsys):
    assert cli.execute(["run", str(tmp_path / ("x" * 300)) + ".txt"]) == 2
    assert "cannot be read: File name too long; give a readable prompt file\n" in capsys.readouterr().err


def test_a_file_that_the_system_refuses_is_named(prompts, install, capsys):
    """Wherever it is opened, that is no fault of the program."""

    def refused(request):
        raise PermissionError(errno.EACCES, "Permission denied", "/the/cache/profile.json")
        yield

    install(refused)
    assert run(prompts) == 1
    assert capsys.readouterr().err == (
        "overstory: error: /the/cache/profile.json cannot be used: Permission denied; mend that, or choose another\n"
    )


def test_an_endless_argument_is_not_repeated_whole(prompts, capsys):
    assert run(prompts, "--io", "x" * 50_000) == 2
    err = capsys.readouterr().err
    assert err.endswith("it must be one of auto, direct, buffered\n") and len(err) < 1100


def test_options_are_checked_before_the_prompt_file_costs_anything(prompts, install, tmp_path, capsys):
    install()
    output = tmp_path / "results.jsonl"
    assert run(prompts, "--output", str(output), "--tree", "banana") == 2
    assert not output.exists()


def test_a_model_that_cannot_be_opened_leaves_no_output_file(prompts, tmp_path, capsys):
    output = tmp_path / "results.jsonl"
    assert cli.execute(["run", str(prompts), "--target", "./nowhere/at/all", "--output", str(output)]) == 2
    assert not output.exists()


def test_an_unexpected_error_is_one_line_that_says_how_to_see_more(prompts, install, capsys, monkeypatch):
    def broken(request):
        raise ZeroDivisionError("two\nlines\x1b[2J")
        yield

    install(broken)
    assert run(prompts) == 1
    err = capsys.readouterr().err
    assert err == (
        "overstory: error: unexpected ZeroDivisionError: two lines; "
        "run again with OVERSTORY_DEBUG=1 for the traceback\n"
    )
    monkeypatch.setenv("OVERSTORY_DEBUG", "1")
    assert run(prompts) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_keeps_the_results_so_far(prompts, install, tmp_path, capsys):
    def interrupted_on_two(request):
        for event in echo(request):
            yield event
            if request.id == "two":
                raise KeyboardInterrupt

    install(interrupted_on_two)
    output = tmp_path / "results.jsonl"
    assert run(prompts, "--output", str(output)) == 130
    assert [record["id"] for record in records(output.read_text())] == ["one"]
    assert capsys.readouterr().err == "overstory: interrupted; what was written is kept\n"


COMMAND = """
import sys
from tests.support.answer_fakes import loading_of, echo

waiting_id = sys.argv.pop(1)

def generate(request):
    if request.id == waiting_id:
        print("waiting", file=sys.stderr, flush=True)
        sys.stdin.read()
    yield from echo(request)

sys.modules["runtime.engine.loading"] = loading_of(generate)
from tui.cli import main
main()
"""


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_a_real_ctrl_c_ends_with_130(prompts):
    with start("two", "run", str(prompts), "--target", str(prompts.parent)) as process:
        assert process.stderr.readline() == b"waiting\n"
        process.send_signal(signal.SIGINT)
        out, err = process.stdout.read(), process.stderr.read()
    assert process.returncode == 130
    assert [record["id"] for record in records(out.decode())] == ["one"]
    assert err == b"overstory: interrupted; what was written is kept\n"


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize(
    ("name", "exit_code", "sentence"), [("SIGTERM", 143, "terminated"), ("SIGHUP", 129, "the terminal is gone")]
)
def test_a_service_manager_and_a_closed_terminal_end_a_run_as_ctrl_c_does(prompts, name, exit_code, sentence):
    with start("two", "run", str(prompts), "--target", str(prompts.parent)) as process:
        assert process.stderr.readline() == b"waiting\n"
        process.send_signal(getattr(signal, name))
        out, err = process.stdout.read(), process.stderr.read()
    assert process.returncode == exit_code
    assert [record["id"] for record in records(out.decode())] == ["one"]
    assert err.decode() == f"overstory: {sentence}; what was written is kept\n"


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_twenty_times_is_as_once(prompts):
    """The second one was a traceback out of the middle of putting things in order."""
    with start("two", "run", str(prompts), "--target", str(prompts.parent)) as process:
        assert process.stderr.readline() == b"waiting\n"
        for _ in range(20):
            process.send_signal(signal.SIGINT)
            time.sleep(0.005)
        err = process.stderr.read()
    assert process.returncode == 130
    assert err == b"overstory: interrupted; what was written is kept\n"


@pytest.mark.skipif(os.name != "posix", reason="closes descriptors")
@pytest.mark.parametrize(
    ("redirection", "expected"),
    [
        (">&-", "standard output is closed; leave it open, or let run write to a file with --output"),
        (">/dev/full", "standard output took no more results: No space left on device; give --output a file with room"),
    ],
)
def test_a_standard_output_that_takes_nothing_is_one_sentence(prompts, redirection, expected):
    command = [sys.executable, "-c", COMMAND, "none", "run", str(prompts), "--target", str(prompts.parent)]
    finished = subprocess.run(
        f"{shlex.join(command)} {redirection}",
        shell=True,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert finished.stderr.decode() == f"overstory: error: {expected}\n"
    assert finished.returncode == 1


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux")
def test_a_stderr_that_takes_nothing_costs_no_result(prompts, tmp_path):
    """A command in the background whose terminal was closed died of its own progress."""
    prompts.write_text('{"id": "one", "prompt": "one"}\n{"prompt": 2}\n')
    command = [sys.executable, "-c", COMMAND, "one", "run", str(prompts), "--target", str(prompts.parent)]
    finished = subprocess.run(
        f"{shlex.join(command)} 2>/dev/full",
        shell=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert finished.returncode == 1
    assert [record["text"] for record in records(finished.stdout.decode())] == ["ONE", None]


def test_signals_are_heard_before_the_commands_are_imported():
    """A Ctrl-C in the first tenth of a second, or the first seconds of a slow disk, was a traceback."""
    program = (
        "import sys; import tui.cli; print([each for each in ('typer', 'rich', 'runtime') if each in sys.modules])"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert finished.stdout == "[]\n"


@pytest.mark.skipif(os.name != "posix", reason="closes descriptors")
def test_results_go_to_a_file_while_all_standard_streams_are_closed(prompts, tmp_path):
    """The file got the number of standard output, and whatever a library printed went into the results."""
    output = tmp_path / "results.jsonl"
    command = [sys.executable, "-c", COMMAND, "none", "run", str(prompts), "--target", str(prompts.parent)]
    command += ["--output", str(output)]
    finished = subprocess.run(
        f"{shlex.join(command)} <&- >&- 2>&-", shell=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert finished.returncode == 0
    assert [record["text"] for record in records(output.read_text())] == ["ONE", "TWO", "THREE"]


@pytest.mark.skipif(os.name != "posix", reason="closes a pipe")
def test_a_reader_that_leaves_ends_the_run_quietly(prompts):
    """As in `overstory run prompts.jsonl | head -1`."""
    with start("two", "run", str(prompts), "--target", str(prompts.parent)) as process:
        assert process.stderr.readline() == b"waiting\n"
        process.stdout.close()
        process.stdin.close()
        err = process.stderr.read()
    assert err == b""
    assert process.returncode in (1, 141)


def compare(prompts, *options):
    return cli.execute(["compare", str(prompts), "--target", str(prompts.parent), *options])


def test_compare_answers_twice_and_ends_with_two_lines(prompts, install, capsys):
    module = install()
    assert compare(prompts, "--emulate-link", "1GB/s") == 0
    out = capsys.readouterr().out
    assert [(config.draft, config.link) for config in module.opened] == [("none", "1GB/s"), ("substitute", "1GB/s")]
    plain, tree = out.splitlines()[-2:]
    assert plain.startswith("plain  0.5 s/token   2.00 tokens/pass   12.0 MB streamed")
    assert tree.startswith("tree   0.5 s/token") and tree.endswith("1.00x as fast, 3 of 3 texts identical")
    assert out.count("ONE") == 2


def test_compare_can_end_with_one_json_line_and_nothing_else_on_stdout(prompts, install, capsys):
    install()
    assert compare(prompts, "--json") == 0
    out, err = capsys.readouterr()
    (record,) = records(out)
    assert (record["num_answered"], record["num_identical"]) == (3, 3)
    assert "3 of 3 texts identical" in err


def test_version_and_help_are_data(capsys):
    assert cli.execute(["--version"]) == 0
    assert capsys.readouterr().out.startswith("overstory ")
    assert cli.execute(["run", "--help"]) == 0
    assert "--device-memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "end"),
    [
        (["ask", "--frobnicate"], "; see overstory ask --help"),
        (["bench", "round", "--frobnicate"], "; see overstory bench round --help"),
        (["ask", "--seed"], "Option '--seed' requires an argument; see overstory ask --help"),
        (["asks"], "Did you mean 'ask'? See overstory --help"),
    ],
)
def test_what_is_mistyped_points_to_the_help_of_its_own_command(arguments, end, capsys):
    assert cli.execute(arguments) == 2
    assert capsys.readouterr().err.rstrip().endswith(end)


def test_no_command_shows_the_help(capsys):
    assert cli.execute([]) == 2
    out, err = capsys.readouterr()
    assert "compare" in out + err and "error" not in err


def test_libraries_are_told_to_stay_quiet_unless_the_user_says_otherwise(monkeypatch):
    names = ("HF_HUB_DISABLE_TELEMETRY", "TOKENIZERS_PARALLELISM", "TORCHDYNAMO_DISABLE", "TRANSFORMERS_VERBOSITY")
    for name in names:
        monkeypatch.setenv(name, "")  # so that what is set here is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    prepare_libraries()
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert os.environ["TORCHDYNAMO_DISABLE"] == "1"
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "0"


def test_the_help_loads_neither_torch_nor_transformers():
    """Both together take seconds, and the help needs neither."""
    code = (
        "import sys; from tui.cli import execute; execute(['calibrate', '--help']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'bitsandbytes')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


def test_the_compiler_is_not_loaded_with_bitsandbytes():
    """torch.compile at the top of its modules took a quarter of the time that opening a session takes."""
    code = (
        "import sys; from tui.environment import prepare_libraries; prepare_libraries(); import bitsandbytes;"
        "sys.exit('torch._inductor.compile_fx' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TORCHDYNAMO_DISABLE"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, env=environment)
    assert run.returncode == 0


def test_bitsandbytes_recommends_nothing_on_stderr():
    """Where the processor has AVX512 with bf16 it asks for a package that would download kernels."""
    code = (
        "import logging; from tui.environment import prepare_libraries; prepare_libraries();"
        "logging.getLogger('bitsandbytes.backends.cpu.ops').warning('install this'); import bitsandbytes"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, b"")
