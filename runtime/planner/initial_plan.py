"""What a session plans trees from before its first round: stored profiles, or the builtin acceptance and no costs.

A profile that is stale or damaged costs a session its head start, never the session: the first tree is then a modest
one, and a sentence says why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from offload.device import identify_device
from offload.errors import BudgetError
from offload.formats.stored_sizes import COLUMN_MULTIPLE, PACKED
from offload.residency_plan import Tier
from offload.units import LinkSpeed, parse_link
from profiles.errors import OverstoryError, ProfileError
from profiles.machine_profile import MachineProfile
from profiles.pair_profile import ModelIdentity, PairProfile
from profiles.profile_store import load_machine_profile, load_pair_profile
from runtime.config import MAX_TREE_LEVELS, EngineConfig
from runtime.engine.load_plan import LoadPlan
from runtime.fit.machine import stored_speeds
from runtime.model.model_loader import ModelFiles
from runtime.planner.costs import RoundCosts, StreamShape, costs_from_profiles
from runtime.planner.growth import builtin_chances, chances_of
from runtime.planner.known_pairs import model_identity
from runtime.planner.planner import PairPrior
from runtime.planner.tree_choice import choose_tree
from runtime.prompts.prompt_file import PromptRequest
from runtime.speculation.acceptance import acceptance_of, builtin_acceptance

NO_PROFILE = (
    "this pair of models has not been measured here: trees start from the built-in acceptance and follow what is "
    "accepted; overstory calibrate measures the pair"
)
FEW_POSITIONS = (
    "the profile of this pair saw too few positions to tell what is accepted: trees start from the built-in "
    "acceptance; overstory calibrate on an idle machine, without --quick, sees more"
)
NO_LINK_SPEED = (
    "the machine's profile lacks the speed of the link or disk that layers come through: the first rounds measure it; "
    "overstory calibrate would know it beforehand"
)
NO_DRAFT = (
    "everything stays in memory, where a draft gains little: none is loaded; --draft substitute loads one, and after "
    "overstory calibrate it is loaded wherever it pays"
)
LEAST_GAIN = 1.25
"""Times the speed of plain decoding that trees must promise before a substitute is loaded that nothing streams for.

It takes half of the target's memory again. Measured on two cores, all in memory: 1.1 times with SmolLM2-135M and 1.2
with Qwen2.5-Coder-0.5B on a quiet machine, but 0.5 to 0.8 times beside busy processes.
"""


@dataclass(frozen=True, slots=True)
class InitialPlan:
    """What the profiles say of this session's rounds.

    The pair's profile says it about computation and acceptance, the machine's about link and disk, for the tiers that
    the layers really got. An emulated link is taken at its word.
    """

    profile: PairProfile | None = None
    """Of this target and draft on this device."""
    machine: MachineProfile | None = None
    """Of this machine and device; for the link's and the disk's speed."""
    problems: tuple[str, ...] = ()
    """A sentence for each stored profile that does not hold."""

    def prior(self, *, substitute_held: str | None) -> PairPrior:
        """Return what the pair's profile knows, or what is built in (see `builtin_acceptance`, `builtin_chances`)."""
        acceptance = builtin_acceptance(substitute_held=substitute_held)
        chances = builtin_chances(substitute_held=substitute_held)
        profile = self.profile
        if profile is None or not self.is_acceptance_measured:
            return PairPrior(lambda temperature: acceptance, lambda temperature: chances)
        return PairPrior(
            partial(acceptance_of, profile),
            lambda temperature: chances_of(profile, temperature) or chances,
            is_measured=True,
        )

    @property
    def is_acceptance_measured(self) -> bool:
        """Whether the profile saw enough positions at any temperature to plan from them."""
        return self.profile is not None and bool(self.profile.believed_acceptance)

    def costs(self, tiers: Sequence[Tier], stream: StreamShape, plan: LoadPlan) -> RoundCosts | None:
        """Return a round's costs at half the context; None where a profile or a speed is missing."""
        config, profile = plan.config, self.profile
        link, disk = stored_speeds(self.machine)
        if config.link is not None:
            link = parse_link(config.link)
        elif plan.is_host:
            link = None
        if config.disk_link is not None:
            disk = parse_link(config.disk_link)
        from_disk = [link] if stream.num_stages else [disk] if config.link is None else [link, disk]
        ways = [from_disk if tier is Tier.DISK else [link] for tier in tiers]
        num_copies = [
            pieces if tier is Tier.DISK else 1
            for pieces, tier in zip(stream.num_pieces or (1,) * len(tiers), tiers, strict=True)
        ]
        copies = [_slowest_seconds(*each) for each in zip(ways, stream.streamed_bytes, num_copies, strict=True)]
        reads = [_slowest_seconds([disk], size, num) for size, num in zip(stream.read_bytes, num_copies, strict=False)]
        moved = zip((*stream.streamed_bytes, *stream.read_bytes), (*copies, *reads), strict=True)
        if profile is None or any(size is not None and seconds is None for size, seconds in moved):
            return None
        if config.link is not None:  # which takes no part of cores or memory
            profile = replace(profile, compute_slowdown=0.0, copy_slowdown=0.0)
        return costs_from_profiles(
            profile,
            copy_seconds=copies,
            num_slots=stream.num_slots,
            read_seconds=reads,
            num_stages=stream.num_stages,
            num_pieces=stream.num_pieces,
            context_tokens=plan.need.context_tokens // 2,
        ).with_token_multiple(stream.token_multiple)

    def notes(self, plan: LoadPlan, *, is_planned: bool) -> tuple[str, ...]:
        """Return the problems, and one sentence where the first tree could be a planned one and is not."""
        if plan.config.is_plain or plan.config.tree_shape is not None:
            return self.problems
        if self.profile is not None and not self.is_acceptance_measured:
            return (*self.problems, FEW_POSITIONS)
        if is_planned:
            return self.problems
        return (*self.problems, NO_PROFILE if self.profile is None else NO_LINK_SPEED)


def _slowest_seconds(speeds: Sequence[LinkSpeed | None], num_bytes: int | None, num_copies: int) -> float | None:
    """What so many bytes take over the slowest of these ways; None for no bytes, or a speed that is not known."""
    if num_bytes is None or None in speeds:
        return None
    return max(speed.copy_seconds(num_bytes, num_copies) for speed in speeds if speed is not None)


def stream_shape(
    tiers: Sequence[Tier],
    payload_bytes: Sequence[int],
    *,
    num_slots: int,
    num_stages: int,
    num_pieces: Sequence[int] = (),
    row_bytes: Mapping[int, int] = MappingProxyType({}),
    is_host: bool = False,
) -> StreamShape:
    """Return what crosses the link in every pass, with the layers in these tiers; no disk without stages.

    `row_bytes`: per token, of the layers whose keys and values travel. `is_host`: whether a processor computes.
    """
    sizes = list(zip(tiers, payload_bytes, strict=True))
    return StreamShape(
        streamed_bytes=tuple(None if tier is Tier.RESIDENT else size for tier, size in sizes),
        num_slots=num_slots,
        read_bytes=tuple(size if tier is Tier.DISK else None for tier, size in sizes) if num_stages else (),
        num_stages=num_stages,
        num_pieces=tuple(num_pieces) if num_stages else (),
        row_bytes=tuple(row_bytes.get(index, 0) for index in range(len(tiers))) if row_bytes else (),
        token_multiple=COLUMN_MULTIPLE if is_host else 1,
    )


def plan_session(
    config: EngineConfig, requests: Sequence[PromptRequest], state_folder: Path | None
) -> tuple[LoadPlan, InitialPlan, bool]:
    """Return what a session will hold, what its first trees are planned from, and whether it was left without a draft.

    The latter where everything stays in memory and nothing promises that one would pay. Raises as `LoadPlan.build`.
    """
    plan = LoadPlan.build(config, requests=requests)
    start = find_profiles(plan, state_folder)
    is_undrafted = config.draft == "auto" and plan.config.is_plain and not plan.residency.streamed_layers
    if is_undrafted and (paying := find_paying_substitute(plan, state_folder)) is not None:
        return *paying, False
    return plan, start, is_undrafted


def find_profiles(plan: LoadPlan, state_folder: Path | None) -> InitialPlan:
    """Load the profiles of the session's device and models from `state_folder` (None: nowhere).

    Nothing is looked for where nothing depends on it: plain streaming, or a static tree that the user gave.
    """
    config, problems = plan.config, []
    is_given = config.tree_shape is not None and config.tree_kind == "static"
    is_apart = plan.draft_device.type != plan.device.type  # profiles are of a draft beside its target
    if state_folder is None or config.is_plain or is_given or is_apart:
        return InitialPlan()
    pair = machine = None
    device = identify_device(plan.device)
    try:
        target, draft = pair_identity(plan)
        dtype = str(plan.dtype).removeprefix("torch.")
        pair = load_pair_profile(state_folder, device=device, target=target, draft=draft, compute_dtype=dtype)
    except OverstoryError as error:  # a profile that does not hold, or files that the load will refuse by itself
        problems.append(str(error))
    try:
        machine = load_machine_profile(state_folder, device)
    except ProfileError as error:
        problems.append(str(error))
    return InitialPlan(pair, machine, tuple(problems))


def find_paying_substitute(plan: LoadPlan, state_folder: Path | None) -> tuple[LoadPlan, InitialPlan] | None:
    """Return the plan with a substitute and its profiles if they promise LEAST_GAIN over the plain `plan`, else None.

    For a session whose layers are all in memory. Only a profile of this pair is believed: what such rounds cost is
    computation alone, which no data sheet foretells to within the gain.
    """
    if state_folder is None or not any(state_folder.glob("pair-*.json")):
        return None
    try:
        drafted = plan.with_substitute()
    except BudgetError:
        return None
    if drafted.residency.streamed_layers:
        return None
    start, residency = find_profiles(drafted, state_folder), drafted.residency
    payloads = drafted.placement.payload_bytes
    stream = stream_shape(
        residency.tiers, payloads, num_slots=plan.config.ring_slots, num_stages=0, is_host=plan.is_host
    )
    costs = start.costs(residency.tiers, stream, drafted)
    if costs is None or not start.is_acceptance_measured:
        return None
    acceptance = start.prior(substitute_held=drafted.draft_held).acceptance_at(0.0)
    need, num_texts = drafted.need, drafted.need.num_texts
    if num_texts > 1:
        costs = costs.for_texts(num_texts)
    max_nodes = max(1, min(need.text_nodes, need.max_nodes // num_texts))
    return (drafted, start) if gain_of_trees(costs, acceptance, max_nodes=max_nodes) >= LEAST_GAIN else None


def gain_of_trees(costs: RoundCosts, acceptance: NDArray[np.float64], *, max_nodes: int) -> float:
    """Return how many times as fast as plain decoding the best tree is predicted to be; 1 where plain is the best."""
    ranking = choose_tree(costs, acceptance, max_nodes=max_nodes, max_levels=MAX_TREE_LEVELS)
    plain = ranking.of_shape(1, 1)
    assert plain is not None, "a root alone is among the trees"
    return plain.seconds_per_token / ranking.best.seconds_per_token


def pair_identity(plan: LoadPlan) -> tuple[ModelIdentity, ModelIdentity]:
    """Return target and draft of a session that has a draft, as a pair profile names them: by content and `held`.

    A substitute has the target's digest and its own `held`. Reads headers and samples of the weights; raises
    CheckpointError if the files cannot be read any more.
    """
    held = PACKED if plan.need.stored is not None else "stored"
    target = model_identity(plan.target.checkpoint.folder, held_name(plan.target, held))
    files = plan.draft_files
    return target, model_identity(files.checkpoint.folder, held_name(files, plan.draft_held))


def held_name(files: ModelFiles, held: str) -> str:
    """Return what layers are held as, by name: "int8", "nf4" or "packed"; what is "stored" by what the files store."""
    return files.stored_name if held == "stored" else held
