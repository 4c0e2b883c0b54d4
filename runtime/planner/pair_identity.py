"""Which models a session uses, as a pair profile names them: by content, and by how their layers are held.

Whoever looks for a profile and whoever measures one must mean the same pair, so both ask here. Reads headers and
samples of the weights.
"""

from offload.formats.draft_weight import draft_policy
from offload.formats.four_bit import FourBitFormat
from profiles.pair_profile import ModelIdentity
from runtime.engine.load_plan import LoadPlan
from runtime.model.model_loader import ComputePlan, ModelFiles
from runtime.planner.model_digest import model_identity


def pair_identity(plan: LoadPlan) -> tuple[ModelIdentity, ModelIdentity]:
    """Target and draft of a session that has a draft; a substitute has the target's digest and its own `held`.

    Raises CheckpointError if the files cannot be read any more.
    """
    target = model_identity(plan.target.checkpoint.folder, held_name(plan.target, "stored"))
    files, is_substitute = plan.draft or plan.target, plan.draft is None
    compute = ComputePlan(plan.dtype, draft_policy(plan.dtype, plan.device), plan.device)
    held = files.held_format(plan.config.draft_format, compute, is_substitute=is_substitute)
    return target, model_identity(files.checkpoint.folder, held_name(files, held))


def held_name(files: ModelFiles, held: str) -> str:
    """What layers are held as, by name: "int8" or "nf4"; what is "stored" by what the files store."""
    if held != "stored":
        return held
    kinds = {
        form.quant_type if isinstance(form, FourBitFormat) else "int8"
        for layer in files.formats
        for form in layer.values()
    }
    return "+".join(sorted(kinds)) or str(files.stored_dtype).removeprefix("torch.")
