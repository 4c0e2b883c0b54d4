"""Which models a profile speaks of, told by what their files hold, and the profiles stored for a question to `plan`.

Importable without torch.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from offload.checkpoint.checkpoint import Checkpoint
from offload.checkpoint.tensor_entry import TensorEntry
from offload.errors import CheckpointError
from profiles.errors import ProfileError, quote
from profiles.machine_profile import DeviceIdentity
from profiles.pair_profile import ModelIdentity, PairProfile
from profiles.profile_store import load_pair_profile
from runtime.engine.model_folders import model_name
from runtime.fit.plan_question import PlanQuestion
from runtime.fit.shapes import ModelShape

PAGE_BYTES = 4096
"""Of each sample."""
STRIDE_BYTES = 64 << 20
"""Every tensor gives a page, and one more for each further stride: 2,385 pages of Llama-3-70B in bf16."""
_FORMAT = "overstory model digest 1"
_NUM_READERS = 8  # shards are read side by side: a page takes a disk's latency, and hides behind seven others


def model_digest(folder: Path) -> str:
    """Return 64 hexadecimal digits that stand for the model in `folder`, or the GGUF file that it is, wherever it lies.

    They cover the configuration, every tensor's name, type, shape and place, the size of every file, and samples of the
    weights themselves, so that a fine-tune of equal shapes is another model. A few megabytes of a folder are read,
    whatever its size, and never all of it: a file in which single bytes were changed by hand may pass for the one it
    was.

    Raises CheckpointError if the folder is not a sound model folder, or cannot be read.
    """
    checkpoint = Checkpoint.open(folder)
    by_file: dict[Path, list[TensorEntry]] = {}
    for entry in checkpoint.tensors.values():
        by_file.setdefault(entry.file, []).append(entry)
    with ThreadPoolExecutor(_NUM_READERS) as readers:
        digests = dict(zip(by_file, readers.map(_file_digest, by_file, by_file.values()), strict=True))
    root = checkpoint.folder if checkpoint.gguf is None else checkpoint.folder.parent
    files = {file.relative_to(root).as_posix(): digest for file, digest in digests.items()}
    if checkpoint.gguf is not None:  # however it is called
        files = {str(number): digest for number, (_, digest) in enumerate(sorted(files.items()))}
    return hashlib.sha256(_line([_FORMAT, checkpoint.config, files])).hexdigest()


def model_identity(folder: Path, held: str) -> ModelIdentity:
    """Return the model in `folder`, whose layers are held as `held`. Raises CheckpointError like `model_digest`."""
    place = folder if folder.is_file() else folder.resolve()  # the hub's files are links to blobs without names
    return ModelIdentity(name=model_name(place), content_digest=model_digest(folder), held=held)


def sample_offsets(num_bytes: int) -> Sequence[int]:
    """Return where in a tensor of `num_bytes` its pages begin: in the middle of equal parts, of a stride at most."""
    num_parts = -(-num_bytes // STRIDE_BYTES)
    last = max(0, num_bytes - PAGE_BYTES)
    return [min(last, num_bytes * (2 * part + 1) // (2 * num_parts)) for part in range(num_parts)]


def stored_pairs(
    question: PlanQuestion, device: DeviceIdentity | None, *, cache_folder: Path
) -> tuple[Mapping[str, PairProfile], tuple[str, ...]]:
    """Return profiles by how the draft is held, and what to say of those that could not be used.

    There are some only where both models are folders on this machine; one that no longer holds is told, not used.
    Raises CheckpointError if a model folder cannot be read.
    """
    target, draft = question.target, question.draft
    if device is None or draft is None or target.folder is None or draft.folder is None:
        return {}, ()
    if not any(cache_folder.glob("pair-*.json")):
        return {}, ()
    of_target = model_identity(target.folder, question.format_names[0])
    found, problems = {}, []
    for held in question.held_formats:
        name = draft.formats[0].name if held == "stored" else held
        try:
            profile = load_pair_profile(
                cache_folder,
                device=device,
                target=of_target,
                draft=model_identity(draft.folder, name),
                compute_dtype="float32" if device.device_type == "cpu" else _dtype(target),
            )
        except ProfileError as error:
            problems.append(str(error))
            continue
        if profile is not None:
            found[held] = profile
    return found, tuple(problems)


def _file_digest(file: Path, entries: Sequence[TensorEntry]) -> str:
    """Over the file's size, its tensors and the samples of their weights, in the order of the file."""
    in_order = sorted(entries, key=lambda entry: (entry.offset_bytes, entry.name))
    try:
        digest = hashlib.sha256(_line(file.stat().st_size))
        with file.open("rb", buffering=0) as opened:  # a buffer would read on after every page
            for entry in in_order:
                digest.update(_line([entry.name, entry.dtype, entry.shape, entry.offset_bytes, entry.num_bytes]))
                for offset in sample_offsets(entry.num_bytes):
                    opened.seek(entry.offset_bytes + offset)
                    digest.update(opened.read(min(PAGE_BYTES, entry.num_bytes)))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {quote(str(error))}; check the disk it is on") from error
    return digest.hexdigest()


def _line(value: object) -> bytes:
    """`value` as one line of JSON, the same whatever order its keys are in."""
    return json.dumps(value, sort_keys=True).encode() + b"\n"


def _dtype(shape: ModelShape) -> str:
    """What an accelerator computes in: as stored."""
    return "float16" if shape.published_as == "float16" else {2: "bfloat16", 4: "float32"}[shape.item_bytes]
