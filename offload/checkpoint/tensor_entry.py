"""Where the bytes of a stored tensor lie, in whatever kind of file. Imports nothing of what reads those."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor's bytes are."""

    name: str
    """The name in the file."""
    dtype: str
    """The storage type in safetensors' spelling: "BF16", "F16", "F32", ..., or a GGUF file's block type: "Q4_K", ..."""
    shape: tuple[int, ...]
    """Row-major."""
    file: Path
    offset_bytes: int
    """From the beginning of the file, its header included."""
    num_bytes: int
