"""Prompts on a Ray cluster of two nodes; each is a raylet of this machine, with processes of its own."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

# Before Ray is imported: 127.0.0.1 is then the address of its nodes; see `ray_cluster`.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402

from profiles.errors import BadInputError, OverstoryError  # noqa: E402
from runtime.config import EngineConfig, SamplingParams  # noqa: E402
from runtime.engine.loading import open_session  # noqa: E402
from runtime.events import Finished, TokenLogprob, TokenLogprobs  # noqa: E402
from runtime.prompts.headless import PromptResult, run_prompts  # noqa: E402
from runtime.prompts.prompt_file import PromptRequest  # noqa: E402
from runtime.prompts.ray_cluster import open_cluster  # noqa: E402
from runtime.prompts.ray_run import NodeChanged, NodeEngine, answer_on_nodes, from_text, to_text  # noqa: E402
from tests.support.answer_fakes import STATISTICS  # noqa: E402
from tests.support.disturbed_commands import DisturbedCommand  # noqa: E402
from tests.support.paths import ROOT  # noqa: E402
from tests.support.ray_fakes import open_broken, open_echo, open_slow  # noqa: E402
from tests.support.session_factory import save_tiny_folder  # noqa: E402
from tui.commands.on_ray import open_on_node  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="clusters are Linux's")]
NO_TARGET = EngineConfig()
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}
COMMAND = """
import tui.commands.on_ray
from tests.support.ray_fakes import open_echo
tui.commands.on_ray.open_on_node = open_echo
from tui.cli import main
main()
"""
"""The command, whose nodes say what they are told, in capitals."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
        patch.setenv("OMP_NUM_THREADS", "1")
        settings = {"health_check_period_ms": 500, "health_check_failure_threshold": 2, "health_check_timeout_ms": 500}
        head = {**NODE, "include_dashboard": False, "_system_config": settings}
        started = Cluster(initialize_head=True, head_node_args=head)
        yield started
        started.shutdown()


def prompts(*texts: str) -> list[PromptRequest]:
    """Requests whose ids are their texts."""
    greedy = SamplingParams(max_new_tokens=12, stop=("\n\n",))
    return [
        PromptRequest(id=text, prompt=text, params=greedy, line_number=number)
        for number, text in enumerate(texts, start=1)
    ]


MANY = prompts(*(f"the cat and {number} dogs" for number in range(40)))


def run_on(cluster: Cluster, *arguments: Any, at: Callable[[list[Any]], object] = lambda events: None) -> list[Any]:
    """All events of a run; `at` each of them something may be done."""
    events: list[Any] = []
    with open_cluster(cluster.address):
        for event in answer_on_nodes(*arguments):
            events.append(event)
            at(events)
    return events


def results(events: list[Any]) -> list[PromptResult]:
    """In the order of the ids, each as often as it came."""
    return sorted((each for each in events if isinstance(each, PromptResult)), key=lambda result: result.id)


def texts(events: list[Any]) -> list[tuple[str, str | None]]:
    return [(result.id, result.finished and result.finished.text) for result in results(events)]


def nodes(events: list[Any], state: str) -> list[str]:
    return [each.node_id for each in events if isinstance(each, NodeChanged) and each.state == state]


def have_two_nodes(cluster: Cluster) -> None:
    if not cluster.worker_nodes:
        cluster.add_node(**NODE)


def alone(config: EngineConfig, requests: list[PromptRequest]) -> list[PromptResult]:
    """The results without Ray."""
    with open_session(config, requests=requests) as opened:
        return results(list(run_prompts(opened.session.generate_all, requests)))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    folder = str(save_tiny_folder(tmp_path_factory.mktemp("models") / "target"))
    return EngineConfig(target=folder, draft=folder, draft_format="stored", context_tokens=128, num_texts=4)


def test_a_node_that_joins_answers_too(cluster, monkeypatch):
    monkeypatch.setattr("runtime.prompts.ray_run._LOOK_SECONDS", 0.05)

    def join(events):
        if len(results(events)) == 1:
            have_two_nodes(cluster)

    events = run_on(cluster, NO_TARGET, MANY, open_echo, at=join)
    assert texts(events) == [(text, text.upper()) for text in sorted(request.id for request in MANY)]
    assert len(set(nodes(events, "loading"))) == 2


def test_results_are_those_of_one_machine_though_a_node_is_killed_in_the_middle(cluster, tiny):
    """None is lost, none doubled, and a bad prompt costs its own answer."""
    have_two_nodes(cluster)
    requests = [*MANY[:24], *prompts("x" * 300)]
    killed: list[Any] = []

    def kill(events):
        if len(nodes(events, "answering")) == 2 and isinstance(events[-1], PromptResult) and not killed:
            killed.extend(cluster.worker_nodes)
            cluster.remove_node(killed[0], allow_graceful=False)

    events = run_on(cluster, tiny, requests, open_slow, at=kill)
    assert len(killed) == 1 and nodes(events, "lost") == [killed[0].node_id]
    expected = alone(tiny, requests)
    assert list(map(lasting, results(events))) == list(map(lasting, expected))
    assert [result.id[:3] for result in expected if result.error] == ["xxx"]


def lasting(result: PromptResult) -> dict[str, Any]:
    """All of a result but what was measured, how its trees fell, and what it shared with the one before on its node."""
    measured = ("rounds", "tokens_per_round", "prefill_seconds", "seconds_per_token", "link_utilization")
    kept = {key: value for key, value in result.to_record().items() if key not in measured}
    if kept["usage"]:
        kept["usage"] = {key: value for key, value in kept["usage"].items() if key != "prompt_tokens_details"}
    return kept


def test_a_prompt_that_ends_its_process_costs_its_own_answer(cluster):
    """And those that were given out with it are asked again one by one."""
    have_two_nodes(cluster)
    events = run_on(cluster, NO_TARGET, prompts("one", "poison", "two", "trouble", "three", "four"), open_echo)
    assert [(result.id, result.error) for result in results(events) if result.error] == [
        ("poison", "the engine's process ended 3 times with this prompt, the last time on node 127.0.0.1"),
        ("trouble", "this one cannot be answered"),
    ]
    assert [text for _, text in texts(events) if text] == ["FOUR", "ONE", "THREE", "TWO"]
    assert not nodes(events, "lost")


def test_a_model_that_a_node_has_not_ends_the_run(cluster, tmp_path):
    config = EngineConfig(target=str(tmp_path / "nowhere"), draft="none")
    with pytest.raises(BadInputError, match=r"^node 127\.0\.0\.1: model folder not found: '.*nowhere'"):
        run_on(cluster, config, MANY, open_on_node)


def test_a_fault_of_the_program_ends_the_run_in_a_sentence(cluster):
    with pytest.raises(OverstoryError, match=r"^node 127\.0\.0\.1: unexpected ZeroDivisionError: by nothing$"):
        run_on(cluster, NO_TARGET, MANY, open_broken)


def begin(folder: Path, address: str, *options: str) -> DisturbedCommand:
    """A run of MANY with results in `folder`/results.jsonl."""
    lines = [{"id": request.id, "prompt": request.id} for request in MANY]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = (folder / "prompts.jsonl", "--output", folder / "results.jsonl")
    return DisturbedCommand(COMMAND, "run", *files, "--target", folder, "--ray", address, *options)


def lines(folder: Path) -> list[Any]:
    file = folder / "results.jsonl"
    return file.read_bytes().splitlines() if file.exists() else []


def check_answers(folder: Path) -> None:
    found = map(json.loads, lines(folder))
    assert sorted((each["id"], each["text"]) for each in found) == sorted((each.id, each.id.upper()) for each in MANY)


def test_a_run_that_is_killed_goes_on(cluster, tmp_path):
    have_two_nodes(cluster)
    with begin(tmp_path, cluster.address) as command:
        command.wait_until(lambda: len(lines(tmp_path)) >= 5)
        command.send("SIGKILL")
        assert command.end() == -9
    assert len(lines(tmp_path)) < len(MANY)
    with begin(tmp_path, cluster.address, "--resume") as command:
        assert command.end() == 0, command.errors()
    check_answers(tmp_path)


def test_a_local_cluster_listens_to_this_machine_alone_and_ends_with_the_run(tmp_path):
    with begin(tmp_path, "local") as command:
        command.wait_until(lambda: len(lines(tmp_path)) >= 5)
        process = psutil.Process(command.pid)
        everything = [process, *process.children(recursive=True)]
        pids = {each.pid for each in everything}
        sockets = [each for each in psutil.net_connections("inet") if each.pid in pids]
        listening = {each.laddr.ip.removeprefix("::ffff:") for each in sockets if each.status == psutil.CONN_LISTEN}
        command.send("SIGTERM")
        assert command.end() == 143
        assert command.errors() == "overstory: terminated; what was written is kept\n"
    assert listening and listening <= {"127.0.0.1", "::1"}
    _, alive = psutil.wait_procs(everything, timeout=20)
    assert not alive


def test_what_a_result_says_of_tokens_crosses():
    token = TokenLogprob(3, -math.inf, "\\xf0", b"\xf0")
    finished = Finished("stop", "x", STATISTICS, logprobs=(TokenLogprobs(token, (token,)),))
    result = PromptResult(id="a", line_number=1, finished=finished)
    assert from_text(to_text(result), PromptResult) == result


def test_an_engine_starts_anew_where_its_process_did():
    """Ray makes it again from the same texts, and may ask for answers first."""
    engine, requests = NodeEngine(to_text(NO_TARGET), open_echo), to_text(MANY[:2])
    answers = map(json.loads, engine.answer(requests, [MANY[1].id]))
    assert [answer["finished"]["text"] for answer in answers] == ["THE CAT AND 1 DOGS"]
    assert json.loads(engine.open(requests)) == {"sentences": ["it fits", "quickly"], "num_together": 1}
