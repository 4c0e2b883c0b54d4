"""A server's process and what it is asked: a fake one that speaks as llama.cpp's does, on the loopback address."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from runtime.bench.peers import llama_server
from runtime.bench.peers.llama_server import LlamaServer, PeerBuild, peer_environment
from runtime.bench.peers.runner import Answer, Question
from runtime.errors import PeerError
from runtime.prompts.prompt_file import PromptRequest
from tests.support.fake_llama_server import OLD_HELP, save_fake_model, save_fake_server

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the fake server is a shell script")
QUESTION = Question(PromptRequest(id="1", prompt="a b"), (5, 6, 7))


@pytest.fixture
def build(tmp_path: Path) -> PeerBuild:
    return PeerBuild.find(str(save_fake_server(tmp_path)))


def server(build: PeerBuild, folder: Path, *, num_drafted: int = 0, **says: Any) -> LlamaServer:
    target = save_fake_model(folder / "target.gguf", **says)
    draft = save_fake_model(folder / "draft.gguf")
    return LlamaServer(build, target, draft, num_drafted=num_drafted, max_new_tokens=8)


def answer(asked: LlamaServer) -> Answer:
    asked.start([QUESTION])
    try:
        return asked.answer(QUESTION)
    finally:
        asked.close()


def test_an_answer_is_counted_by_the_server_and_timed_by_us(build: PeerBuild, tmp_path: Path) -> None:
    found = answer(server(build, tmp_path, text=["a ", "b ", "c ", "d"], seconds=0.05))
    assert (found.text, found.num_tokens, found.decode_tokens, found.num_passes) == ("a b c d", 4, 3, 4)
    assert found.told_seconds_per_token == pytest.approx(0.05)
    # The first part may be read late on a busy machine, and the time of the others then seems shorter.
    assert found.first_seconds + found.decode_seconds >= 3 * 0.05 and found.decode_seconds > 0
    assert found.seconds_per_token == pytest.approx(found.decode_seconds / 3)
    assert found.token_ids == QUESTION.token_ids
    assert found.bytes_read is None or found.bytes_read >= 0


def test_accepted_drafts_save_passes(build: PeerBuild, tmp_path: Path) -> None:
    asked = server(build, tmp_path, num_drafted=4, text=["a"] * 6, accepted=4)
    assert asked.name == "peer, 4 drafted"
    assert answer(asked).num_passes == 2


def test_its_process_is_gone_with_the_turn(build: PeerBuild, tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    asked = server(build, tmp_path)
    asked.start([QUESTION])
    assert len(set(psutil.Process().children(recursive=True)) - before) == 1
    asked.close()
    asked.close()
    assert set(psutil.Process().children(recursive=True)) - before == set()


def test_it_listens_on_the_loopback_address_with_our_cores(build: PeerBuild, tmp_path: Path) -> None:
    command = server(build, tmp_path).command(99)
    given = dict(zip(command[1::2], command[2::2], strict=True))
    assert given["--host"] == "127.0.0.1" and given["--ctx-size"] == "99" and given["--parallel"] == "1"
    assert int(given["--threads"]) == int(given["--threads-batch"]) <= (os.cpu_count() or 1)
    assert "--model-draft" not in given


@pytest.mark.parametrize(
    ("help_text", "expected"),
    [
        (None, {"--spec-draft-n-max": "8", "--spec-type": "draft-simple", "--cache-ram": "0"}),
        (OLD_HELP, {"--draft-max": "8", "--ctx-size-draft": "99"}),
    ],
)
def test_options_have_the_names_that_the_build_knows(
    help_text: str | None, expected: dict[str, str], tmp_path: Path
) -> None:
    program = save_fake_server(tmp_path) if help_text is None else save_fake_server(tmp_path, help_text=help_text)
    command = server(PeerBuild.find(str(program)), tmp_path, num_drafted=8).command(99)
    given = dict(zip(command[1::2], command[2::2], strict=True))
    assert given.items() >= expected.items()
    unexpected = {"--spec-draft-n-max", "--spec-type", "--cache-ram", "--draft-max", "--ctx-size-draft"} - set(expected)
    assert unexpected.isdisjoint(given)


def test_the_context_holds_prompt_answer_and_drafts_and_further_arguments_come_last(
    build: PeerBuild, tmp_path: Path
) -> None:
    record = tmp_path / "record"
    target = save_fake_model(tmp_path / "target.gguf", record=str(record))
    asked = LlamaServer(build, target, target, num_drafted=4, max_new_tokens=8, arguments=["--ctx-size", "77"])
    answer(asked)
    (arguments,) = map(json.loads, record.read_text().splitlines())
    sizes = [arguments[index + 1] for index, word in enumerate(arguments) if word == "--ctx-size"]
    assert int(sizes[0]) >= len(QUESTION.token_ids) + 8 + 4 and sizes[1] == "77"
    assert arguments[-2:] == ["--ctx-size", "77"]


@pytest.mark.parametrize(
    ("fails", "words"),
    [
        ("loading", "llama-server ended with 1: error: there is no room for the model"),
        ("answering", "llama-server ended by SIGKILL (the system does this where memory runs out): it said nothing"),
        ("halfway", "llama-server ended with 3: it said nothing"),
        ("refusing", "it refused the prompt"),
        ("counting", "it counted 4 tokens in a prompt of 3"),
        ("babbling", "what it said is no JSON"),
    ],
)
def test_what_fails_is_a_sentence(fails: str, words: str, build: PeerBuild, tmp_path: Path) -> None:
    with pytest.raises(PeerError) as caught:
        answer(server(build, tmp_path, fails=fails))
    assert str(caught.value).startswith("peer, plain: ") and words in str(caught.value)


def test_one_that_stays_silent_is_given_up(build: PeerBuild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = server(build, tmp_path, seconds=30)
    asked.start([QUESTION])
    monkeypatch.setattr(llama_server, "SILENCE_SECONDS", 0.2)
    try:
        with pytest.raises(PeerError, match=r"it said nothing for 0\.2 s"):
            asked.answer(QUESTION)
    finally:
        asked.close()


def test_one_that_never_loads_is_given_up(build: PeerBuild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_server, "LOAD_SECONDS", 0)
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(PeerError, match="did not load its models within 0 s"):
        server(build, tmp_path).start([QUESTION])
    assert set(psutil.Process().children(recursive=True)) == before


def test_where_there_is_none_a_sentence_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="--peer") as caught:
        PeerBuild.find("llama-server-of-nobody")
    assert caught.value.exit_code == 1
    (tmp_path / "another").write_text("#!/bin/sh\necho --help\n")
    (tmp_path / "another").chmod(0o755)
    with pytest.raises(PeerError, match="has no --ctx-size, so that it is no llama-server"):
        PeerBuild.find(str(tmp_path / "another"))
    (tmp_path / "garbage").write_bytes(b"\x7fELF")
    (tmp_path / "garbage").chmod(0o755)
    with pytest.raises(PeerError, match="cannot be run"):
        PeerBuild.find(str(tmp_path / "garbage"))


def test_a_build_tells_its_version(build: PeerBuild) -> None:
    assert build.version == "version: 1 (fake)"


def test_our_own_settings_of_threads_are_not_the_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that stop spinning early are what torch wants here; llama.cpp's wait for each other in every layer."""
    monkeypatch.setenv("GOMP_SPINCOUNT", "3000")
    monkeypatch.setenv("SOMETHING", "1")
    environment = peer_environment()
    assert "GOMP_SPINCOUNT" not in environment and environment["SOMETHING"] == "1"
