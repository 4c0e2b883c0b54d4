"""Answers the prompts of a file on the nodes of a Ray cluster, with a whole engine on each.

Ray places one actor on a node, starts it anew when its process ends, says when its node is gone, keeps the requests in
its object store, and brings every result as it is made. Known here is only whose result is still missing. All that
crosses is JSON text, so that nothing depends on how Ray serialises between its own processes, which is pickle.
"""

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec
import ray
from ray.exceptions import ActorUnschedulableError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from profiles.errors import BadInputError, OverstoryError
from runtime.config import EngineConfig
from runtime.prompts.headless import PromptResult, run_prompts
from runtime.prompts.prompt_file import PromptRequest

if TYPE_CHECKING:
    from runtime.engine.loading import OpenSession

MOST_ENDED_PROCESSES = 3
"""How many processes may end on a prompt before it is given up; on a load, so many more than one."""
_LOOK_SECONDS = 2.0
"""How often new nodes are looked for."""

OpenOnNode = Callable[[EngineConfig, ExitStack, Sequence[PromptRequest]], "OpenSession"]
"""Opens a session on the node that it is called on, in a process of Ray's; a function of a module, which it imports."""
_Kind = TypeVar("_Kind")


@dataclass(frozen=True, slots=True)
class NodeChanged:
    """What a node does has changed."""

    node_id: str
    name: str
    """Its address."""
    state: Literal["loading", "answering", "lost"]
    sentences: tuple[str, ...] = ()
    """What its session has to say, or why it is lost."""


RayEvent = NodeChanged | PromptResult


def to_text(value: object) -> str:
    """Return a record of ours as JSON, halves of surrogate pairs included, which a file's name may hold."""
    return json.dumps(msgspec.to_builtins(value))


def from_text(text: str, kind: type[_Kind]) -> _Kind:
    """Return the record of this kind that `to_text` has written."""
    return msgspec.convert(json.loads(text), kind)


class NodeEngine:
    """An engine in a process of Ray's on a node; everything that it takes and returns is JSON text."""

    def __init__(self, config: str, open_on_node: OpenOnNode) -> None:
        """Load nothing yet."""
        self._config = from_text(config, EngineConfig)
        self._open_on_node = open_on_node
        self._stack = ExitStack()
        self._requests: dict[str, PromptRequest] = {}
        self._opened: OpenSession | None = None

    def open(self, requests: str) -> str:
        """Open the session; return its `sentences` and how many prompts it answers together, or the `error` why not.

        `requests`: all of the run, which size the caches.
        """
        try:
            opened = self._session(requests)
        except OverstoryError as error:
            return json.dumps({"error": str(error), "exit_code": error.exit_code})
        sentences = [opened.plan.advice.sentence, *opened.notes]
        return json.dumps({"sentences": sentences, "num_together": opened.plan.need.num_texts})

    def answer(self, requests: str, ids: Sequence[str]) -> Iterator[str]:
        """Yield a PromptResult for each of these requests, as they end."""
        generate_all = self._session(requests).session.generate_all
        for event in run_prompts(generate_all, [self._requests[each] for each in ids]):
            if isinstance(event, PromptResult):
                yield to_text(event)

    def _session(self, requests: str) -> "OpenSession":
        if self._opened is None:  # also where Ray has started this process anew
            with ExitStack() as stack:
                self._requests = {request.id: request for request in from_text(requests, list[PromptRequest])}
                self._opened = self._open_on_node(self._config, stack, list(self._requests.values()))
                self._stack = stack.pop_all()
        return self._opened


def answer_on_nodes(
    config: EngineConfig, requests: Sequence[PromptRequest], open_on_node: OpenOnNode
) -> Iterator[RayEvent]:
    """Give every request its result, as they end, on all nodes of the cluster (see `ray_cluster`) that have a CPU.

    Nodes may come and go; they need the models where `config` says, and this program in the same version.

    Raises:
        BadInputError: a node cannot open its session.
        OverstoryError: the same while it runs, or no node is left.
    """
    yield from _Run(config, requests, open_on_node).events()


@dataclass(slots=True)
class _Node:
    node_id: str
    name: str
    actor: Any
    requests: Any
    """All requests of the run, in Ray's object store."""
    pending: Any = None
    """What Ray is asked for: that the session is open, then results one by one; None where nothing is."""
    is_open: bool = False
    has_opened: bool = False
    num_together: int = 1
    """How many prompts share its passes."""
    missing: dict[str, None] = field(default_factory=dict)
    """Ids of the prompts that it was given and has not answered, in order."""

    def open(self) -> None:
        """Ask for an open session, also after the process has ended: Ray starts it anew, or says that it is gone."""
        self.is_open = False
        self.pending = self.actor.open.options(max_task_retries=-1).remote(self.requests)

    def answer(self, ids: Sequence[str]) -> None:
        """Ask for results one by one.

        Without Ray's own retries: those of a stream must bring the same results in the same order.
        """
        self.missing = dict.fromkeys(ids)
        self.pending = self.actor.answer.options(num_returns="streaming", max_task_retries=0).remote(self.requests, ids)


class _Run:
    """The nodes of a cluster, what each was given, and what waits."""

    def __init__(self, config: EngineConfig, requests: Sequence[PromptRequest], open_on_node: OpenOnNode) -> None:
        self._requests = {request.id: request for request in requests}
        self._waiting = deque(self._requests)
        self._suspects: deque[str] = deque()
        """Those that a process has ended on, which are given out one by one."""
        self._num_ended: Counter[str] = Counter()
        """For each of these, how many processes."""
        self._nodes: dict[str, _Node] = {}
        self._lost: dict[str, str] = {}
        """Why, by the node's id."""
        self._stored = ray.put(to_text(requests))
        self._arguments = (to_text(config), open_on_node)
        self._next_look = 0.0

    def events(self) -> Iterator[RayEvent]:
        """Answer everything, and say which nodes do."""
        while self._waiting or self._suspects or any(node.missing for node in self._nodes.values()):
            yield from self._add_nodes()
            for node in self._nodes.values():
                if node.pending is None and (ids := self._next_ids(node)):
                    node.answer(ids)
            asked = [node for node in self._nodes.values() if node.pending is not None]
            ready, _ = ray.wait([node.pending for node in asked], timeout=_LOOK_SECONDS)
            for node in asked:
                if any(node.pending is each for each in ready):
                    yield from self._take(node)

    def _add_nodes(self) -> Iterator[NodeChanged]:
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_SECONDS
        for found in ray.nodes():
            node_id, resources = found["NodeID"], found["Resources"]
            if found["Alive"] and resources.get("CPU", 0) >= 1 and node_id not in {*self._nodes, *self._lost}:
                # All of the node, so that it has one engine, which sees its accelerators and uses all its cores.
                whole = {"num_cpus": resources["CPU"], "num_gpus": resources.get("GPU", 0)}
                place = NodeAffinitySchedulingStrategy(node_id, soft=False)
                kind = ray.remote(NodeEngine).options(
                    **whole, scheduling_strategy=place, max_restarts=MOST_ENDED_PROCESSES
                )
                actor = kind.remote(*self._arguments)
                node = self._nodes[node_id] = _Node(node_id, found["NodeManagerAddress"], actor, self._stored)
                node.open()
                yield NodeChanged(node_id, node.name, "loading")
        if not self._nodes:
            why = "; ".join(self._lost.values()) or "no node of the cluster has a CPU to give"
            raise OverstoryError(f"{why}; start a node with ray start --address, and go on with --resume")

    def _next_ids(self, node: _Node) -> list[str]:
        """Return what an idle node is given: half of its share of what waits, so that fast nodes answer more.

        But no fewer than share its passes, which cost the same with fewer.
        """
        if self._suspects:
            return [self._suspects.popleft()]
        half_share = -(-len(self._waiting) // (2 * len(self._nodes)))
        size = min(max(half_share, node.num_together), len(self._waiting))
        return [self._waiting.popleft() for _ in range(size)]

    def _take(self, node: _Node) -> Iterator[RayEvent]:
        """Take what a node has brought."""
        try:
            text = ray.get(next(node.pending) if node.is_open else node.pending)
        except StopIteration:
            node.pending = None
        except RayTaskError as error:
            cause = error.cause
            raise OverstoryError(f"node {node.name}: unexpected {type(cause).__name__}: {cause}") from error
        except RayError as error:
            yield from self._lose(node, error)
        else:
            yield from self._result(node, text) if node.is_open else self._opened(node, text)

    def _opened(self, node: _Node, text: str) -> Iterator[RayEvent]:
        told = json.loads(text)
        if "error" in told:
            kind = BadInputError if told["exit_code"] == BadInputError.exit_code else OverstoryError
            raise kind(f"node {node.name}: {told['error']}")
        node.is_open, node.has_opened, node.pending = True, True, None
        node.num_together = told["num_together"]
        yield NodeChanged(node.node_id, node.name, "answering", tuple(told["sentences"]))
        for each in node.missing:  # one of these may have ended the process
            self._num_ended[each] += 1
            if self._num_ended[each] < MOST_ENDED_PROCESSES:
                self._suspects.append(each)
            else:
                line_number, number = self._requests[each].line_number, self._num_ended[each]
                error = f"the engine's process ended {number} times with this prompt, the last time on node {node.name}"
                yield PromptResult(id=each, line_number=line_number, error=error)
        node.missing = {}

    def _result(self, node: _Node, text: str) -> Iterator[RayEvent]:
        result = from_text(text, PromptResult)
        del node.missing[result.id]
        yield result

    def _lose(self, node: _Node, error: RayError) -> Iterator[RayEvent]:
        """Wait for the process that has ended to come back; if Ray gives it up, others get what it was given."""
        if node.is_open:
            node.open()
            yield NodeChanged(node.node_id, node.name, "loading")
            return
        del self._nodes[node.node_id]
        self._waiting.extendleft(reversed(node.missing))
        sentence = f"node {node.name} is lost: {_reason(error)}"
        if not node.has_opened:  # else the node is asked again, if it is still there
            self._lost[node.node_id] = sentence
        self._next_look = 0.0
        yield NodeChanged(node.node_id, node.name, "lost", (sentence,))


def _reason(error: RayError) -> str:
    """Return why an actor is given up, without Ray's own surroundings."""
    if isinstance(error, ActorUnschedulableError):
        return "it is gone"
    told = str(error).strip().splitlines()
    return told[-1] if isinstance(error, RayActorError) and error.actor_init_failed else told[0]
