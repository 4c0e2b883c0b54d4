"""Finds what was measured of this machine and pair earlier, and says by name what no longer holds.

A profile that is stale or damaged costs a session its head start, never the session: the first tree is then a modest
one, and a sentence says why. Measures nothing.
"""

from dataclasses import dataclass
from pathlib import Path

from offload.device import identify_device
from profiles.errors import OverstoryError, ProfileError
from profiles.profile_store import load_machine_profile, load_pair_profile
from runtime.engine.load_plan import LoadPlan
from runtime.planner.initial_plan import InitialPlan
from runtime.planner.pair_identity import pair_identity


@dataclass(frozen=True, slots=True)
class StoredProfiles:
    """What was found."""

    start: InitialPlan
    """The profiles that hold; empty where there are none."""
    notes: tuple[str, ...]
    """A sentence for each that does not."""


def find_profiles(plan: LoadPlan, state_folder: Path | None) -> StoredProfiles:
    """The profiles of the session's device and models in `state_folder` (None: nowhere).

    Nothing is looked for where nothing depends on it: plain streaming, or a static tree that the user gave.
    """
    config, notes = plan.config, []
    is_given = config.tree_shape is not None and config.tree_kind == "static"
    if state_folder is None or config.is_plain or is_given:
        return StoredProfiles(InitialPlan(), ())
    pair = machine = None
    device = identify_device(plan.device)
    try:
        target, draft = pair_identity(plan)
        dtype = str(plan.dtype).removeprefix("torch.")
        pair = load_pair_profile(state_folder, device=device, target=target, draft=draft, compute_dtype=dtype)
    except OverstoryError as error:  # a profile that does not hold, or files that the load will refuse by itself
        notes.append(str(error))
    try:
        machine = load_machine_profile(state_folder, device)
    except ProfileError as error:
        notes.append(str(error))
    return StoredProfiles(InitialPlan(pair, machine), tuple(notes))
