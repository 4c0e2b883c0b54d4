"""What `doctor` does: the real machine's probes, and the models that it asks about.

The 70B model of the paper is known by its shape, the user's by its headers. Reads no weight, downloads nothing.
"""

from collections.abc import Generator
from pathlib import Path

import torch

from offload.checkpoint.checkpoint import resolve_model_folder
from offload.device import select_device
from offload.errors import CheckpointError
from profiles.errors import quote
from runtime.engine.load_plan import default_max_nodes
from runtime.engine_config import DEFAULT_CONTEXT_TOKENS, EngineConfig
from runtime.fit.doctor import DoctorReport, ModelQuestion, examine
from runtime.fit.file_need import need_of_files
from runtime.fit.known_shapes import LLAMA_3_8B, LLAMA_3_70B
from runtime.fit.machine_probes import MachineProbes
from runtime.fit.model_shape import ModelShape
from runtime.model.architecture import max_positions
from runtime.model.model_loader import ModelFiles


def check_up(config: EngineConfig, *, cache_folder: Path) -> Generator[str, None, DoctorReport]:
    """Examine this machine for a 70B model and for the config's target, if it names one; yields what it is about to do.

    Raises:
        BadInputError: the target or the draft cannot be used; nothing has been measured then.
    """
    device = select_device(config.device)
    questions, folder = [question_of_shapes(device)], None
    if config.target is not None:
        folder = find_folder(config.target)
        draft = None if config.draft in ("none", "substitute") else find_folder(config.draft)
        questions.append(question_of_files(device, config, folder, draft))
    return (yield from examine(MachineProbes(device, cache_folder, model_folder=folder), questions))


def question_of_shapes(
    device: torch.device, target: ModelShape = LLAMA_3_70B, draft: ModelShape = LLAMA_3_8B
) -> ModelQuestion:
    """A model that is not here, with a draft in int8 rows; the files are still to be downloaded."""
    item_bytes = 4 if device.type == "cpu" else target.item_bytes  # as a session computes: see LoadPlan
    need = target.need(
        draft.as_draft(item_bytes),
        context_tokens=DEFAULT_CONTEXT_TOKENS,
        max_nodes=default_max_nodes(device),
        compute_item_bytes=item_bytes,
    )
    return ModelQuestion(target.name, f"{draft.name} in int8 rows", need)


def question_of_files(device: torch.device, config: EngineConfig, target: Path, draft: Path | None) -> ModelQuestion:
    """The model in the folder `target`, with the draft in `draft` or the one that the config names.

    Raises:
        CheckpointError: a folder cannot be used.
    """
    files = ModelFiles.open(target)
    need = need_of_files(
        config,
        files,
        None if draft is None else ModelFiles.open(draft),
        compute_dtype=torch.float32 if device.type == "cpu" else files.stored_dtype,
        context_tokens=min(config.context_tokens or DEFAULT_CONTEXT_TOKENS, max_positions(files.config) or 1 << 30),
        max_nodes=default_max_nodes(device),
        device=device,
    )
    return ModelQuestion(str(target), config.draft, need)


def find_folder(name_or_path: str) -> Path:
    """The model folder of that path, or that the hub's cache holds under that name. Raises CheckpointError."""
    return resolve_model_folder(name_or_path, download=_cached_folder)


def _cached_folder(name: str) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, local_files_only=True))
    except Exception as error:  # the hub's client and the file system each raise their own
        raise CheckpointError(
            f"the model {quote(name)} is not on this machine, and doctor downloads nothing; name its folder, or fetch "
            "it first"
        ) from error
