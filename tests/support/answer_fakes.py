"""A session without a model, for everything that consumes events: it answers a prompt with the prompt's own words."""

from collections.abc import Callable, Generator
from dataclasses import replace
from types import ModuleType, SimpleNamespace

from offload.pass_statistics import PassStatistics
from offload.residency_plan import ResidencyPlan, Tier
from runtime.events import (
    Event,
    Finished,
    GenerationStatistics,
    LoadProgress,
    PrefillProgress,
    Round,
    TextDelta,
)
from runtime.fit.place import Placement
from runtime.model.generation_config import GenerationConfig
from runtime.prompts.headless import one_by_one
from runtime.prompts.prompt_file import PromptRequest

STATISTICS = GenerationStatistics(
    prompt_tokens=5,
    new_tokens=8,
    rounds=4,
    prefill_seconds=0.5,
    decode_seconds=3.0,
    decode_tokens=6,
    draft_seconds=1.0,
    verify_seconds=2.0,
    bytes_streamed=4_000_000,
    link_busy_seconds=2.4,
    decode_bytes_streamed=3_000_000,
)

ROUND = Round(
    parents=(-1, 0, 0, 1, 1, 2, 3, 3),
    path=(0, 1),
    draft_seconds=0.5,
    verify_seconds=2.0,
    pass_statistics=PassStatistics(
        seconds=1.75,
        wait_seconds=1.0,
        link_busy_seconds=1.5,
        bytes_streamed=1000,
        num_layers=4,
        num_streamed_layers=3,
        compute_seconds=0.75,
    ),
    num_pass_tokens=9,
    draft_steps=((1, 0.125), (3, 0.25)),
    token_ids=(1, 2),
)

PLACEMENT = Placement(
    format_name="bfloat16",
    residency=ResidencyPlan((Tier.RESIDENT, Tier.DISK, Tier.RESIDENT, Tier.DISK), (500_000,) * 4, num_slots=1),
    payload_bytes=(500_000,) * 4,
    fixed={"embeddings": 1_000_000},
    device_budget_bytes=3_000_000,
    host_budget_bytes=0,
)


def statistics(**changes: float) -> GenerationStatistics:
    """STATISTICS with some fields changed."""
    return replace(STATISTICS, **changes)


def question(request: PromptRequest) -> str:
    """The text a request asks."""
    return request.prompt if request.messages is None else request.messages[-1].content


def echo(request: PromptRequest) -> Generator[Event, None, None]:
    """Answer with the question in capitals, two deltas, in one pass."""
    answer = question(request).upper()
    yield PrefillProgress(3, 5)
    yield ROUND
    yield TextDelta(answer[:2])
    yield TextDelta(answer[2:])
    yield Finished("stop", answer, STATISTICS)


def loading_of(
    generate: Callable[[PromptRequest], Generator[Event, None, None]], *, generation: GenerationConfig | None = None
) -> ModuleType:
    """A module for the place of `runtime.engine.loading` and `load_plan`: its sessions answer with `generate`.

    `module.opened` lists the configs that were opened; `generation` is what their model's author wants.
    """
    module = ModuleType("runtime.engine.loading")
    module.opened = []

    def load_session(config, stack, *, requests=(), state_folder=None, is_early=False):
        module.opened.append(config)
        yield LoadProgress("layers", 1, 2)
        plan = SimpleNamespace(advice=SimpleNamespace(sentence="it fits"), baseline_bytes=7_000_000)
        session = SimpleNamespace(
            generate=generate,
            generate_all=one_by_one(generate),
            generation=generation or GenerationConfig(),
            can_think=True,
            knows_tools=False,
        )
        return SimpleNamespace(session=session, placement=PLACEMENT, plan=plan, notes=(), load_progress=None)

    def build(config, *, requests=(), needs_draft=False):
        found = replace(config, draft="substitute") if needs_draft and config.draft == "auto" else config
        return SimpleNamespace(placement=PLACEMENT, config=found, draft_note=None)

    module.LoadPlan = SimpleNamespace(build=build)
    module.load_session = load_session
    return module
