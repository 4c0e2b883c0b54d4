"""This engine as a child that answers by lines: the same text as a session of this process, and its failures."""

import json
import signal
from pathlib import Path

import psutil
import pytest

from profiles.child_process import child_command
from runtime.bench.peers import own_engine
from runtime.bench.peers.own_engine import OwnEngine, serve
from runtime.bench.peers.runner import Question
from runtime.config import EngineConfig, SamplingParams
from runtime.engine.loading import open_session
from runtime.errors import PeerError
from runtime.events import Finished
from runtime.prompts.prompt_file import Message, PromptRequest
from tests.support.session_factory import save_tiny_folder

RAW = PromptRequest(id="raw", prompt="the cat and the dog")
TOLD = PromptRequest(id="told", messages=(Message("system", "the sun"), Message("user", "the sea")))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    folder = save_tiny_folder(tmp_path_factory.mktemp("model") / "target", seed=37)
    return EngineConfig(target=str(folder), draft=str(folder), draft_format="stored", device_memory_bytes=0)


def test_a_child_answers_as_a_session_does_and_is_gone_with_the_turn(config: EngineConfig) -> None:
    before = set(psutil.Process().children(recursive=True))
    own = OwnEngine(config, max_new_tokens=12)
    own.start([Question(RAW)])
    try:
        found = own.answer(Question(RAW))
    finally:
        own.close()
    assert set(psutil.Process().children(recursive=True)) - before == set()
    asked = PromptRequest(id="raw", prompt=RAW.prompt, params=SamplingParams(max_new_tokens=12))
    with open_session(config, requests=[asked]) as opened:
        *_, last = opened.session.generate(asked)
        prompt = opened.session.format_prompt(asked)
    assert isinstance(last, Finished)
    costs = last.statistics
    assert (found.text, found.token_ids) == (last.text, tuple(prompt))
    assert (found.num_tokens, found.num_passes, found.decode_tokens) == (
        costs.new_tokens,
        costs.rounds,
        costs.decode_tokens,
    )
    assert found.first_seconds > 0 and found.told_seconds_per_token is not None
    assert found.told_seconds_per_token * found.decode_tokens < found.first_seconds + found.decode_seconds
    assert found.bytes_read is None or found.bytes_read >= 0
    (rate,) = own.disk_rates
    assert rate > 0


def opening(config: EngineConfig, *requests: PromptRequest) -> str:
    records = [own_engine._to_record(request) for request in requests]
    fields = {name: getattr(config, name) for name in EngineConfig.__dataclass_fields__}
    return json.dumps({"config": fields, "max_new_tokens": 4, "state_folder": None, "requests": records})


def test_raw_prompts_and_conversations_cross_the_pipe(config: EngineConfig) -> None:
    heard: list[dict] = []
    serve([opening(config, RAW, TOLD), '{"answer": "told"}', '{"answer": "raw"}'], heard.append)
    assert [next(iter(record)) for record in heard] == ["ready", "first", "answer", "first", "answer"]
    with open_session(config) as opened:
        prompts = [opened.session.format_prompt(request) for request in (TOLD, RAW)]
    assert [heard[2]["answer"]["token_ids"], heard[4]["answer"]["token_ids"]] == prompts


def test_where_no_layer_streams_there_is_no_rate(config: EngineConfig) -> None:
    heard: list[dict] = []
    whole = EngineConfig(target=config.target, draft="none")
    serve([opening(whole, RAW)], heard.append)
    assert heard == [{"ready": {"disk_bytes_per_second": None}}]


def test_what_cannot_be_loaded_is_a_sentence(config: EngineConfig, tmp_path: Path) -> None:
    heard: list[dict] = []
    serve([opening(EngineConfig(target=str(tmp_path / "nowhere")), RAW)], heard.append)
    (told,) = heard
    assert "nowhere" in told["failure"]


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Puts a small program in the place of the child."""

    def replace(program: str) -> None:
        (tmp_path / "child.py").write_text(program)
        command = (*child_command("x")[:1], "-S", str(tmp_path / "child.py"))
        monkeypatch.setattr(own_engine, "child_command", lambda module: command)

    return replace


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ('input(); print(\'{"failure": "too small"}\')', "too small"),
        ("raise SystemExit('no torch')", "this engine's process ended with 1: no torch"),
        (f"import os; input(); os.kill(os.getpid(), {signal.SIGKILL.value})", "ended by SIGKILL"),
    ],
)
def test_a_child_that_fails_to_load_is_a_sentence(program: str, words: str, replaced, config: EngineConfig) -> None:
    replaced(program)
    with pytest.raises(PeerError) as caught:
        OwnEngine(config, max_new_tokens=4).start([Question(RAW)])
    assert words in str(caught.value)


def test_a_child_that_ends_within_an_answer_is_a_sentence(replaced, config: EngineConfig) -> None:
    replaced(
        'print(input() and \'{"ready": {"disk_bytes_per_second": 2.5}}\', flush=True); input(); raise SystemExit(7)'
    )
    own = OwnEngine(config, max_new_tokens=4)
    own.start([Question(RAW)])
    with pytest.raises(PeerError, match="ended with 7"):
        own.answer(Question(RAW))
    own.close()
    assert own.disk_rates == [2.5]


def test_the_child_is_found_from_any_folder(
    config: EngineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is started with our packages on its path, and from a folder that may hold a `runtime` of its own."""
    (tmp_path / "runtime").mkdir()
    monkeypatch.chdir(tmp_path)
    own = OwnEngine(EngineConfig(target=str(tmp_path / "nowhere")), max_new_tokens=4)
    with pytest.raises(PeerError, match="nowhere"):
        own.start([Question(RAW)])
