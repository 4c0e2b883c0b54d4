"""What a run over a prompt file will take, predicted before a weight is read: its passes, rounds and hours.

Prompts are counted by the target's tokenizer, and the session is planned as a load plans it. Its passes are then run
through on paper: all texts that share a pass advance by the tokens that a round is expected to bring, one that ends is
replaced at once, and what new prompts have to be read is computed beside the others' rounds.
"""

import math
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import takewhile
from pathlib import Path

from offload.errors import BudgetError, CheckpointError
from offload.units import parse_link
from profiles.errors import OverstoryError
from runtime.config import PREFILL_CHUNK_TOKENS, SCHEMES_IN_CONTEXT, EngineConfig, SamplingParams
from runtime.engine.demo_model import DEMO_MODEL_NAME, is_demo_model_here
from runtime.engine.load_plan import LoadPlan, question_beside
from runtime.engine.session import check_room, check_tokens, format_prompt
from runtime.engine.token_sequence import LEAST_SHARED
from runtime.fit.doctor import find_folder
from runtime.fit.first_token import pass_between
from runtime.fit.plan import PlacedPlan
from runtime.fit.plan_question import find_machine
from runtime.fit.plan_report import PlanOption, PlanReport
from runtime.fit.request import MachineRequest
from runtime.model.architecture import load_config
from runtime.model.text_tower import other_token_ids
from runtime.planner.initial_plan import plan_session
from runtime.planner.prefill import PassWidths, PrefillPlanner
from runtime.prompts.prompt_file import PromptRequest


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt that can be answered, in tokens."""

    prompt_tokens: int
    unread_tokens: int
    """Of them, what no text before it has in common with it."""
    new_tokens: int
    """Most tokens of the answer."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Passes of a run, one after another."""

    num_passes: int
    seconds: float
    reading_seconds: float
    """Of these, what prompts take beside the rounds of the same passes."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run will take, if every answer takes all the tokens that it may."""

    plan: LoadPlan
    asked: tuple[Asked, ...]
    refused: tuple[tuple[PromptRequest, str], ...]
    """Prompts that cannot be answered, as far as that shows before the model is loaded, and why."""
    report: PlanReport | None
    """A round of as many texts as share a pass, and what its figures rest on; None where no plan can be made."""
    schedule: Schedule | None
    problem: str | None = None
    """Why no plan can be made."""

    @property
    def prompt_tokens(self) -> int:
        return sum(each.prompt_tokens for each in self.asked)

    @property
    def most_new_tokens(self) -> int:
        return sum(each.new_tokens for each in self.asked)

    @property
    def num_together(self) -> int:
        """Prompts that share a pass."""
        return max(1, min(self.plan.need.num_texts, len(self.asked)))


def locate_here(config: EngineConfig, *, cache_folder: Path) -> EngineConfig:
    """Return the config with its models' folders in place of their names; downloads nothing.

    Raises CheckpointError where one of them is not on this machine.
    """
    asking = "a dry run"
    target = config.target or str(cache_folder / DEMO_MODEL_NAME)
    if config.target is None and not is_demo_model_here(cache_folder):
        raise CheckpointError(f"the demo model is not on this machine, and {asking} downloads nothing; give --target")
    draft = config.draft
    if config.draft_model is not None:
        draft = str(find_folder(config.draft_model, asking=asking).absolute())
    return replace(config, target=str(find_folder(target, asking=asking).absolute()), draft=draft)


def forecast_run(
    config: EngineConfig, requests: Sequence[PromptRequest], *, cache_folder: Path
) -> Generator[str, None, Forecast]:
    """Predict what answering `requests` takes in a session of `config`, whose models are folders by now.

    Yields what it is about to measure of this machine, where no profile in `cache_folder` knows it. Raises
    BadInputError as a load would.
    """
    plan, start, _ = plan_session(config, requests, cache_folder)
    counted = list(_count(plan, requests))
    asked = tuple(each for _, each, _ in counted if isinstance(each, Asked))
    refused = tuple((request, each) for request, each, _ in counted if isinstance(each, str))
    texts = [params for _, _, params in counted if params is not None]
    if not texts:
        return Forecast(plan, asked, refused, None, None, "no prompt can be answered")
    machine = yield from find_machine(
        _machine_request(plan.config), cache_folder=cache_folder, model_folder=plan.target.checkpoint.folder
    )
    (usual, _), *_ = Counter(texts).most_common(1)
    try:
        question = question_beside(plan.config, plan.target, plan.draft, usual_context_tokens=plan.need.context_tokens)
        can_grow = usual.scheme_name in SCHEMES_IN_CONTEXT or question.request.tree != "auto"
        request = replace(
            question.request, temperature=usual.temperature, tree=question.request.tree if can_grow else "static"
        )
        question = replace(question, request=request)
        held = None if plan.config.is_plain else plan.draft_held
        profile = start.profile
        if profile is not None and config.link is not None:  # which takes no part of cores or memory
            profile = replace(profile, compute_slowdown=0.0, copy_slowdown=0.0)
        placed = PlacedPlan.of(question, machine, plan.need, plan.placement, held=held, profile=profile)
        rounds = _Rounds(placed, plan)
        num_together = max(1, min(plan.need.num_texts, len(asked)))
        main = rounds.of(num_together)
    except (BudgetError, CheckpointError) as error:
        return Forecast(plan, asked, refused, None, None, str(error))
    question = replace(question, request=replace(question.request, num_prompts=num_together))
    report = PlanReport(question, machine, main, main, {}, {}, {})
    return Forecast(plan, asked, refused, report, run_through(asked, num_together, rounds))


def _count(
    plan: LoadPlan, requests: Iterable[PromptRequest]
) -> Iterable[tuple[PromptRequest, Asked | str, SamplingParams | None]]:
    """Yield each request in tokens, and how it is sampled; or why it cannot be answered, and None."""
    vocab_size, others = int(plan.target.config.vocab_size), other_token_ids(load_config(plan.target.checkpoint))
    before: Sequence[int] = ()
    for request in requests:
        try:
            prompt = format_prompt(plan.tokenizer, request)
            check_tokens(prompt, plan.tokenizer, vocab_size=vocab_size, other_token_ids=others)
            check_room(prompt, plan.need.context_tokens)
            params = plan.generation.choices(request.params, request.unchosen, num_prompt_tokens=len(prompt)).params
        except OverstoryError as error:
            yield request, str(error), None
            continue
        num_shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, prompt[:-1], strict=False)))
        unread = len(prompt) - (num_shared if num_shared >= LEAST_SHARED else 0)
        new_tokens = min(params.max_new_tokens, plan.need.context_tokens - len(prompt))
        before = prompt
        yield request, Asked(len(prompt), unread, new_tokens), params


def _machine_request(config: EngineConfig) -> MachineRequest:
    link, disk = (None if each is None else parse_link(each) for each in (config.link, config.disk_link))
    return MachineRequest(
        device=config.device,
        device_memory_bytes=config.device_memory_bytes,
        host_memory_bytes=config.host_memory_bytes,
        link=link,
        disk=disk,
    )


class _Rounds:
    """What rounds cost by how many texts have one, and what prompts cost that are read in the same passes."""

    def __init__(self, placed: PlacedPlan, plan: LoadPlan) -> None:
        self._placed = placed
        self._costs, self._target_seconds, self._reading_seconds = placed.reading()
        need = plan.need
        is_streamed = bool(plan.residency.streamed_layers)
        most_tokens = min(need.prefill_tokens, need.context_tokens) if is_streamed else need.slice_width
        self._prefill = PrefillPlanner(
            slice_tokens=need.slice_width, most_tokens=most_tokens, first_tokens=most_tokens, is_streamed=is_streamed
        )
        self._widths = PassWidths(need.slice_width, need.pass_tokens)
        self._options: dict[int, PlanOption] = {}

    def of(self, num_texts: int) -> PlanOption:
        """Return the round of so many texts. Raises BudgetError."""
        if num_texts not in self._options:
            self._options[num_texts] = self._placed.option(num_texts)
        return self._options[num_texts]

    def chunk(self, num_unread: int) -> int:
        """Return how many tokens of prompts the next pass reads."""
        return min(num_unread, self._prefill.next_tokens(num_unread, self._costs))

    def more_seconds(self, num_tokens: int, num_texts: int) -> float:
        """Return what a round of so many texts takes longer where its pass also reads tokens of prompts."""
        tree = self.of(num_texts).tree
        num_nodes = tree.num_nodes * num_texts
        bounds = self._widths.bounds(num_tokens + num_nodes - 1, num_wanted=num_nodes)
        compute = sum(self._target_seconds(stop - first, 0) for first, stop in bounds)
        drafting = tree.draft_seconds
        if self._reading_seconds is not None:
            for first in range(0, num_tokens, PREFILL_CHUNK_TOKENS):
                drafting += self._reading_seconds(min(PREFILL_CHUNK_TOKENS, num_tokens - first), 0)
        walk = num_texts * float(self._costs.walk_seconds(tree.num_nodes))
        return max(0.0, pass_between(self._costs, compute, drafting + walk) - tree.round_seconds)


def run_through(asked: Sequence[Asked], num_together: int, rounds: "_Rounds") -> Schedule:
    """Return the passes of a run that answers these in order, so many at a time. Raises BudgetError."""
    live: list[float] = []
    """Where each text under way ends, in tokens that any text of the whole run has written by then."""
    coming = iter(asked)
    seconds = reading = written = 0.0
    num_passes = num_unread = 0
    following = next(coming, None)
    while live or following is not None:
        while following is not None and len(live) < num_together:
            num_unread += following.unread_tokens
            num_before = math.ceil(num_unread / rounds.chunk(num_unread)) - 1 if num_unread else 0
            waited = num_before * rounds.of(num_together).tree.expected_tokens  # in passes that bring it no round
            heappush(live, written + waited + following.new_tokens)
            following = next(coming, None)
        option = rounds.of(_nearby(len(live), num_together))
        tree = option.tree
        num_rounds = max(1, math.ceil((live[0] - written) / tree.expected_tokens - 1e-9))
        for _ in range(num_rounds):
            if num_unread <= 0:
                break
            num_read = rounds.chunk(num_unread)
            more = rounds.more_seconds(num_read, _nearby(len(live), num_together))
            num_unread -= num_read
            reading += more
            seconds += more
        num_passes += num_rounds
        seconds += num_rounds * tree.round_seconds
        written += num_rounds * tree.expected_tokens
        while live and live[0] <= written + 1e-9:
            heappop(live)
    return Schedule(num_passes, seconds, reading)


def _nearby(num_texts: int, most: int) -> int:
    """Return the number of texts that so many are priced as: one of few, since pricing takes a while."""
    return num_texts if num_texts <= 4 else min(most, 2 ** math.ceil(math.log2(num_texts)))
