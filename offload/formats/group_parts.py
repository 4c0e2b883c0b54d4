"""The tensors that are the parts of a quantized matrix: named, checked and, where they steer, read.

Each fault is one sentence that names the tensor, its file, what was found and what was expected.
"""

from offload.checkpoint.checkpoint import Checkpoint
from offload.checkpoint.tensor_entry import TensorEntry
from offload.errors import CheckpointError
from profiles.errors import quote


def require_part(checkpoint: Checkpoint, name: str, owner: TensorEntry) -> TensorEntry:
    """Return the tensor of that name. Raises CheckpointError, which names its owner too, if there is none."""
    if name not in checkpoint.tensors:
        raise CheckpointError(
            f"{checkpoint.folder} lacks the tensor {quote(name)} that the quantized {quote(owner.name)} needs; "
            "download it again"
        )
    return checkpoint.tensors[name]


def check_part(entry: TensorEntry, dtype: str | tuple[str, ...], shape: tuple[int, ...]) -> None:
    """Raise CheckpointError unless a tensor has that shape and type, or one of those."""
    dtypes = (dtype,) if isinstance(dtype, str) else dtype
    if entry.dtype not in dtypes or entry.shape != shape:
        found = f"has type {entry.dtype} and shape {quote(list(entry.shape))}"
        raise wrong_part(entry, found, f"{' or '.join(dtypes)} of {quote(list(shape))}, which config.json calls for")


def wrong_part(entry: TensorEntry, found: str, expected: str) -> CheckpointError:
    """Return the error that says what a tensor is, and what it should be."""
    return CheckpointError(f"the tensor {quote(entry.name)} in {entry.file} {found}; expected {expected}")


def read_part(entry: TensorEntry) -> bytes:
    """Return a tensor's bytes: only those of steering ones, a few kilobytes at most. Raises CheckpointError."""
    try:
        with entry.file.open("rb") as opened:
            opened.seek(entry.offset_bytes)
            raw = opened.read(entry.num_bytes)
    except OSError as error:
        raise CheckpointError(f"{entry.file} cannot be read: {quote(str(error))}") from error
    if len(raw) != entry.num_bytes:
        raise wrong_part(entry, f"ends after {len(raw)} bytes", f"{entry.num_bytes}; download it again")
    return raw
