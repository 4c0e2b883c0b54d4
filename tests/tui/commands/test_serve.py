"""`overstory serve`: what it refuses before it loads, and a process of it from its first line to its end."""

import json
import os
import re
import signal
import subprocess
import sys

import httpx2
import openai
import pytest

from runtime.config import EngineConfig
from tests.support.model_factory import save_tiny_model, save_tiny_tokenizer
from tests.support.paths import ROOT
from tests.support.session_factory import save_tiny_folder
from tui.cli import execute
from tui.commands.serve import model_name
from tui.server.listening import listen
from tui.server.running import running_servers


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--host", "0.0.0.0"], "--host is '0.0.0.0'; it must be 127.0.0.1 or ::1"),
        (["--port", "70000"], "--port is 70000; it must be from 0"),
        (["--api-key", " "], "the API key is empty"),
        (["--max-queue", "0"], "max-queue"),
    ],
)
def test_what_cannot_be_served_is_a_sentence(arguments, sentence, capsys):
    assert execute(["serve", "--target", "/nowhere", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_a_port_in_use_is_named(capsys):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert execute(["serve", "--target", "/nowhere", "--port", str(port)]) == 2
    assert f"port {port} of 127.0.0.1 is in use already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (None, "demo"),
        ("Qwen/Qwen3-32B", "Qwen/Qwen3-32B"),
        ("/models/qwen", "qwen"),
        ("./qwen/", "qwen"),
        ("models/x.Q4_K_M.gguf", "x.Q4_K_M.gguf"),
        ("ollama:llama3.3:70b", "ollama:llama3.3:70b"),
    ],
)
def test_a_model_is_called_as_people_call_it(target, name):
    assert model_name(EngineConfig(target=target)) == name


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.parametrize("is_background_job", [False, True])
def test_a_signal_ends_answers_under_way_in_words(is_background_job, tmp_path):
    """A shell's background job is begun with SIGINT ignored, and goes on ignoring it."""
    save_tiny_model("llama", tmp_path / "long", max_position_embeddings=8192)
    arguments = ["serve", "--target", str(save_tiny_tokenizer(tmp_path / "long")), "--port", "0", "--draft", "none"]
    program = [sys.executable, "-c", "from tui.cli import main; main()", *arguments, "--context", "8192"]
    if is_background_job:
        program = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *program]
    environment = {**os.environ, "OVERSTORY_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(program, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            first = process.stderr.readline()
            assert ("SIGTERM" if is_background_job else "Ctrl-C") + " ends the server" in first
            url = re.search(r"(http://127\.0\.0\.1:[0-9]+)/v1", first)[1]
            body = {"prompt": "the cat", "max_tokens": 8000, "stream": True, "logit_bias": {"2": -100}}
            with httpx2.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
                lines = (line for line in answer.iter_lines() if line.startswith("data: "))
                next(lines)
                process.send_signal(signal.SIGINT)
                if is_background_job:
                    assert all("error" not in next(lines) for _ in range(20)), "it goes on"
                    process.send_signal(signal.SIGTERM)
                *_, last = lines
            assert "the server is shutting down" in json.loads(last.removeprefix("data: "))["error"]["message"]
            rest = process.stderr.read()
            assert process.wait(30) == (143 if is_background_job else 130)
        finally:
            process.kill()
    word = "terminated" if is_background_job else "interrupted"
    assert rest.endswith(f"overstory: {word}; the server has ended, and with it the answers under way\n")
    assert "Traceback" not in rest and "left behind" not in rest


def test_a_server_runs_from_its_first_line_to_its_end(tmp_path):
    folder = save_tiny_folder(tmp_path / "tiny")
    arguments = ["serve", "--target", str(folder), "--port", "0", "--draft", "none"]
    environment = {**os.environ, "OVERSTORY_CACHE": str(tmp_path / "cache"), "OVERSTORY_API_KEY": "secret"}
    program = [sys.executable, "-c", "from tui.cli import main; main()", *arguments]
    with subprocess.Popen(program, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stderr.readline, "")
            first = next(lines)
            url = re.search(r"serving tiny at (http://127\.0\.0\.1:[0-9]+)/v1", first)[1]
            assert f"{url}/v1 (Anthropic's: {url}) and your API key" in next(lines)
            assert any("the model is loaded" in line for line in lines)
            (record,) = running_servers(folder=tmp_path / "cache" / "servers")
            assert (record.base_url, record.model, record.api_key) == (url, "tiny", "secret")
            with openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client:
                answer = client.completions.create(model="any", prompt="the cat", max_tokens=4, seed=1)
                assert answer.usage.completion_tokens <= 4
            assert httpx2.get(f"{url}/metrics").status_code == 401
            process.send_signal(signal.SIGTERM)
            rest = process.stderr.read()
            assert process.wait(30) == 143
        finally:
            process.kill()
    answered, refused, ended = rest.splitlines()
    assert re.fullmatch(
        r"overstory: [0-9:]{8} /v1/completions: [0-9]+ prompt tokens, [1-4] new tokens?, .*(limit of tokens|complete)",
        answered,
    )
    assert "/metrics: no answer (status 401): the API key is missing or wrong" in refused
    assert ended == "overstory: terminated; the server has ended, and with it the answers under way"
    assert running_servers(folder=tmp_path / "cache" / "servers") == []


@pytest.mark.skipif(sys.platform != "linux", reason="makes a pipe small")
def test_a_log_that_nobody_reads_holds_no_answer_up(tmp_path):
    """The server stood still for good once the pipe of its stderr was full."""
    import fcntl

    folder = save_tiny_folder(tmp_path / "tiny")
    program = [
        sys.executable,
        "-c",
        "from tui.cli import main; main()",
        "serve",
        "--target",
        str(folder),
        "--port",
        "0",
    ]
    environment = {**os.environ, "OVERSTORY_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(program, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
            url = re.search(r"(http://127\.0\.0\.1:[0-9]+)/v1", process.stderr.readline())[1]
            with httpx2.Client(base_url=url, timeout=60) as client:
                for _ in range(100):
                    assert client.post("/v1/completions", json={"prompt": 1.5}).status_code == 400
                answer = client.post("/v1/completions", json={"prompt": "the cat", "max_tokens": 2})
                assert answer.json()["usage"]["completion_tokens"] <= 2
            process.send_signal(signal.SIGTERM)
            rest = process.stderr.read()
            assert process.wait(30) == 143
        finally:
            process.kill()
    assert rest.count("status 400") == 100 and "left out" not in rest
    assert rest.endswith("overstory: terminated; the server has ended, and with it the answers under way\n")


def test_a_model_that_is_not_there_ends_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OVERSTORY_CACHE", str(tmp_path))
    assert execute(["serve", "--target", str(tmp_path / "nothing"), "--port", "0"]) == 2
    error = capsys.readouterr().err
    assert "nothing" in error.splitlines()[-1] and "Traceback" not in error
