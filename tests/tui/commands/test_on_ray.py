"""What `run --ray` does around the cluster; the cluster itself: tests/runtime/prompts/test_ray_run.py."""

import io
import sys
from contextlib import contextmanager
from types import ModuleType

import pytest
from rich.console import Console

from runtime.config import EngineConfig
from runtime.prompts.headless import PromptResult
from runtime.prompts.prompt_file import BadLine, PromptRequest
from runtime.prompts.result_file import ResultStream
from tui.commands import on_ray
from tui.commands.on_ray import answer_on_ray


class NodeChanged:
    def __init__(self, node_id, state, *sentences):
        self.node_id, self.name, self.state, self.sentences = node_id, f"10.0.0.{node_id}", state, sentences


@pytest.fixture
def cluster(monkeypatch):
    """A cluster whose events are those in the list, and what was asked of it."""
    found = ModuleType("runtime.prompts.ray_run")
    found.events, found.asked, found.opened = [], [], []

    def answer_on_nodes(config, requests, open_on_node):
        found.asked.append((config, requests, open_on_node))
        yield from found.events

    @contextmanager
    def open_cluster(address):
        found.opened.append(address)
        yield
        found.opened.append("closed")

    found.answer_on_nodes = answer_on_nodes
    monkeypatch.setitem(sys.modules, "runtime.prompts.ray_run", found)
    monkeypatch.setattr(on_ray, "open_cluster", open_cluster)
    return found


def answered(items, *, width=0):
    """How many errors there are, the ids on stdout, and what a terminal of this width shows."""
    out, shown = io.StringIO(), io.StringIO()
    console = Console(file=shown, force_terminal=width > 0, width=width or 80)
    console.quiet = not width
    num_errors = answer_on_ray("10.0.0.1:6379", EngineConfig(target="here"), items, ResultStream(out), console)
    return num_errors, [line.split('"')[3] for line in out.getvalue().splitlines()], shown.getvalue()


REQUEST = PromptRequest(id="a", prompt="hello")


def test_results_and_bad_lines_are_written_and_errors_counted(cluster):
    cluster.events += [PromptResult(id="a", line_number=1, error="it is too long")]
    assert answered([REQUEST, BadLine(2, "2", "line 2 is bad")])[:2] == (2, ["2", "a"])
    assert cluster.opened == ["10.0.0.1:6379", "closed"]
    assert cluster.asked[0][1:] == ([REQUEST], on_ray.open_on_node)


def test_without_a_prompt_to_answer_no_cluster_is_asked(cluster):
    assert answered([BadLine(2, "2", "line 2 is bad")])[:2] == (1, ["2"])
    assert answered([])[:2] == (0, [])
    assert not cluster.opened


def test_a_folder_here_is_named_as_other_working_folders_see_it(cluster, tmp_path, monkeypatch):
    """A name of the hub is the same everywhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    answered([REQUEST])
    (config, *_), *_ = cluster.asked
    assert (config.target, config.draft) == (str(tmp_path / "here"), "substitute")
    monkeypatch.chdir("/")
    answered([REQUEST])
    assert cluster.asked[1][0].target == "here"


def test_a_terminal_shows_what_the_nodes_do(cluster):
    cluster.events += [NodeChanged("1", "loading"), NodeChanged("2", "answering", "it fits"), NodeChanged("3", "lost")]
    cluster.events += [PromptResult(id="a", line_number=1, error="it is too long")]
    _, _, shown = answered([REQUEST], width=120)
    assert "10.0.0.2: it fits" in shown and "it is too long" in shown
    assert "nodes: 1 answering, 1 loading, 1 lost" in shown and "1/1" in shown
