"""The pair profiles that were stored for what `plan` is asked about, by how the draft is held.

Only where both models are folders on this machine; a profile that no longer holds is told, not used. Knows no torch.
"""

from collections.abc import Mapping
from pathlib import Path

from profiles.errors import ProfileError
from profiles.machine_profile import DeviceIdentity
from profiles.pair_profile import PairProfile
from profiles.profile_store import load_pair_profile
from runtime.fit.model_shape import ModelShape
from runtime.fit.plan_question import PlanQuestion
from runtime.planner.model_digest import model_identity


def stored_pairs(
    question: PlanQuestion, device: DeviceIdentity | None, *, cache_folder: Path
) -> tuple[Mapping[str, PairProfile], tuple[str, ...]]:
    """(profile by how the draft is held, what to say of those that could not be used); none for another machine.

    Raises:
        CheckpointError: a model folder cannot be read.
    """
    target, draft = question.target_folder, question.draft_folder
    if question.is_substitute:
        draft = target
    if device is None or target is None or draft is None or not any(cache_folder.glob("pair-*.json")):
        return {}, ()
    of_target = model_identity(target, question.format_names[0])
    found, problems = {}, []
    for held in question.held_formats:
        name = _published(question.draft or question.target) if held == "stored" else held
        try:
            profile = load_pair_profile(
                cache_folder,
                device=device,
                target=of_target,
                draft=model_identity(draft, name),
                compute_dtype="float32" if device.device_type == "cpu" else _dtype(question.target),
            )
        except ProfileError as error:
            problems.append(str(error))
            continue
        if profile is not None:
            found[held] = profile
    return found, tuple(problems)


def _published(shape: ModelShape) -> str:
    return shape.formats[0].name


def _dtype(shape: ModelShape) -> str:
    """What an accelerator computes in: as stored."""
    return "float16" if shape.published_as == "float16" else {2: "bfloat16", 4: "float32"}[shape.item_bytes]
