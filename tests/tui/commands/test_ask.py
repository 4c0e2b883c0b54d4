"""`overstory ask` as it is typed: who answers, what goes where, and what is kept of an answer that is broken off."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from profiles.child_process import child_environment
from tests.support.fake_chat_server import ANSWER, USAGE, FakeServer, chunk, running
from tests.support.session_factory import save_tiny_folder
from tests.support.thinking_models import BEGIN, save_thinking_folder
from tui.cli import execute
from tui.commands.chat import open_conversations
from tui.server.running import RunningServer, announced


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for kind in ("CACHE", "DATA", "CONFIG"):
        monkeypatch.setenv(f"OVERSTORY_{kind}", str(tmp_path / kind.lower()))
    monkeypatch.chdir(tmp_path)
    piping(monkeypatch, b"")
    return tmp_path


def piping(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    stdin = SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: False, closed=False)
    monkeypatch.setattr(sys, "stdin", stdin)


@contextmanager
def served(fake: FakeServer, **changes: Any) -> Iterator[RunningServer]:
    """A server that `ask` finds."""
    with running(fake) as server, announced(replace(server, **changes)):
        yield server


def test_a_running_server_answers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeServer()
    piping(monkeypatch, b"a log\n")
    with served(fake) as server:
        assert (
            execute(
                [
                    "ask",
                    "What",
                    "is new?",
                    "--system",
                    "Be brief.",
                    "--temperature",
                    "0.5",
                    "--stop",
                    "x",
                    "--top-k",
                    "7",
                    "--think",
                    "20",
                ]
            )
            == 0
        )
        assert capsys.readouterr() == (
            "Hello **there**.\n",
            f"overstory: answered by tiny of the server at {server.base_url}\n",
        )
    (asked,) = fake.asked
    assert asked["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Attached file standard input (1 line):\n```\na log\n```\n\nWhat is new?"},
    ]
    assert (asked["temperature"], asked["stop"], asked["max_tokens"], asked["top_k"]) == (0.5, ["x"], 1024, 7)
    assert asked["thinking_budget"] == 20
    assert "seed" not in asked and "top_p" not in asked


def test_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    with served(FakeServer()) as server:
        assert execute(["ask", "Hi", "--json", "--quiet"]) == 0
        record = json.loads(capsys.readouterr().out)
    assert record.pop("seconds") > 0
    assert record == {
        "text": "Hello **there**.",
        "reasoning": "They greet. I greet.",
        "finish_reason": "stop",
        "usage": USAGE,
        "model": "tiny",
        "server": server.base_url,
    }


def test_an_answer_that_was_cut_says_what_cut_it(capsys: pytest.CaptureFixture[str]) -> None:
    """It ended in the middle of a sentence as if that was all."""
    cut = tuple(chunk("length") if each == chunk("stop") else each for each in ANSWER)
    for limit, words in (
        ("3", "the answer was cut at 3 tokens; a larger --max-new-tokens"),
        ("9", "the context is full"),
    ):
        with served(FakeServer(stream=cut)):
            assert execute(["ask", "Hi", "--max-new-tokens", limit]) == 0
        out, errors = capsys.readouterr()
        assert out == "Hello **there**.\n" and words in errors.splitlines()[-1]
    with served(FakeServer()):
        assert execute(["ask", "Hi"]) == 0
    assert "cut" not in capsys.readouterr().err


def test_going_on(capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeServer()
    with served(fake):
        for arguments in (["Hi"], ["And?", "--continue"], ["Then?", "-c", "--no-keep"], ["So?", "-c"]):
            assert execute(["ask", *arguments, "--quiet"]) == 0
        assert execute(["ask"]) == 2
    assert [len(asked["messages"]) for asked in fake.asked] == [1, 3, 5, 5]
    assert fake.asked[1]["messages"][1] == {"role": "assistant", "content": "Hello **there**."}
    assert "error: nothing is asked; write the question" in capsys.readouterr().err


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model"))


HERE = ("--draft", "none", "--max-new-tokens", "4", "--device", "cpu")


def test_without_a_server_the_model_is_loaded(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["ask", "the cat", "--target", str(model), "--json", "--think", "9", *HERE]) == 0
    out, errors = capsys.readouterr()
    record = json.loads(out)
    assert record["usage"]["completion_tokens"] <= 4 and record["server"] is None
    assert f"answered by {record['model']}, loaded here" in errors
    assert f"{record['model']} marks no thinking, so --think changes nothing" in errors
    store, _ = open_conversations()
    with store:
        (conversation,) = store.list_conversations()
        assert store.messages(conversation.id)[1].content == record["text"]


def test_what_a_model_thinks_is_no_part_of_its_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_thinking_folder(tmp_path / "thinking")
    options = ("--target", str(folder), "--draft", "none", "--max-new-tokens", "12", "--device", "cpu")
    assert execute(["ask", "the cat", *options, "--think", "5", "--json", "--ban-token", str(BEGIN)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["reasoning"] and "think>" not in record["reasoning"] + record["text"]
    store, _ = open_conversations()
    with store:
        (conversation,) = store.list_conversations()
        thought = store.messages(conversation.id)[1].thinking
        assert thought is not None and thought.text == record["reasoning"]


def test_a_server_answers_only_for_its_own_model_and_as_it_was_set_up(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeServer()
    link = model.with_name("link")
    if not link.exists():
        link.symlink_to(model)
    with served(fake, target=str(link)):
        assert execute(["ask", "Hi", "--target", str(model), "--quiet"]) == 0, "one model under two names"
        assert len(fake.asked) == 1
        for others in (["--no-server"], ["--draft", "none"], ["--ban-token", "3"], ["--raw"]):
            assert execute(["ask", "the cat", "--target", str(model), *HERE, *others]) == 0
            assert "loaded here" in capsys.readouterr().err
        assert len(fake.asked) == 1
    fake.models = b'{"data": []}'
    with served(fake, target=str(model)):
        assert execute(["ask", "the cat", "--target", str(model), "--max-new-tokens", "4"]) == 0
        assert "loaded here" in capsys.readouterr().err


def test_without_a_model_it_is_the_one_of_the_chat(
    model: Path, folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folders / "config").mkdir()
    (folders / "config" / "settings.toml").write_text(f'target = "{model}"\ndraft = "none"\n')
    assert execute(["ask", "the cat", "--max-new-tokens", "4"]) == 0
    assert f"answered by {model.name}, loaded here" in capsys.readouterr().err


def test_errors_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["ask", "sum up @missing.txt"]) == 2
    assert execute(["ask", "Hi", "--target", "missing"]) == 2
    assert execute(["ask", "Hi", "--continue"]) == 2
    with served(FakeServer(stream=ANSWER[:5])):
        assert execute(["ask", "Hi"]) == 1
    out, errors = capsys.readouterr()
    lines = errors.splitlines()
    assert "there is no file 'missing.txt' to attach" in lines[0]
    assert "no conversation of ask to continue" in lines[2]
    assert "it stopped in the middle" in lines[-1] and len(lines) == 5
    assert out == "Hello \n", "what came is there"


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_ctrl_c_keeps_what_came(folders: Path) -> None:
    fake = FakeServer(stream=(chunk(content="Once "), chunk(content="upon ")), is_endless=True)
    with served(fake):
        command = [sys.executable, "-P", "-c", "from tui.cli import main; main()", "ask", "Tell", "--quiet"]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_environment(),
        )
        assert process.stdout is not None
        assert process.stdout.read(10) == b"Once upon "
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
        assert fake.is_hung_up.wait(10)
    assert (process.returncode, out) == (130, b"\n")
    assert errors == b"overstory: interrupted; what came of the answer is kept\n"
    store, _ = open_conversations()
    with store:
        (conversation,) = store.list_conversations()
        answer = store.messages(conversation.id)[1]
        assert (answer.content, answer.state) == ("Once upon ", "stopped")
