"""Whether there is room to get as far as deciding what fits: torch, the libraries and the tokenizer come before it.

Under a small limit the kernel would end the program in the middle of an import, without a word. Imports no torch.
"""

import sys
from pathlib import Path

from offload.checkpoint.border import MAX_SETTINGS_BYTES
from offload.checkpoint.checkpoint import Checkpoint
from offload.checkpoint.strict_json import read_json
from offload.errors import BudgetError, CheckpointError
from offload.free_memory import free_memory_bytes
from offload.units import format_bytes

LIBRARY_BYTES = 360 * 10**6
"""Memory of its own that this process takes for torch and transformers before any weight is read; 359 MB measured."""
TOKENIZER_BYTES = 50 * 10**6
"""The same for the tokenizer's process without a tokenizer."""
PROBE_BYTES = 240 * 10**6
"""What measuring the machine takes beside the libraries: 120 MB in most measurements, up to 246 in a third of them."""
ENTRY_BYTES = 1250
"""What that takes at its peak for one entry of a vocabulary: 1,150 to 1,220 measured for 49k, 152k and 262k entries."""
_USUAL_ENTRIES = 32_000


def check_startup(folder: Path | None, *, is_measuring: bool = False, root: Path = Path("/")) -> None:
    """Raise BudgetError if libraries and tokenizer alone would take more memory than this process may still use.

    `folder` is the model's, None where no tokenizer is wanted; `root` is where proc/ and sys/ are. What is imported
    already takes nothing more.
    """
    is_imported = "torch" in sys.modules
    needed, what = 0 if is_imported else LIBRARY_BYTES, "the libraries"
    if is_measuring:
        needed, what = needed + PROBE_BYTES, f"{what} and measuring this machine"
    if folder is not None:
        num_entries = _vocabulary_size(folder)
        needed += ENTRY_BYTES * num_entries + (0 if is_imported else TOKENIZER_BYTES)
        what += f" and a tokenizer of {num_entries} entries"
    free = free_memory_bytes(root=root)
    if free < needed:
        raise BudgetError(
            f"{format_bytes(free)} of memory are free for this process, and before any weight is read {what} take "
            f"about {format_bytes(needed)}; close other programs, or raise the limit of the container or control group"
        )


def _vocabulary_size(folder: Path) -> int:
    """Return what config.json or the metadata says; what is wrong with it is said when the model is opened."""
    try:
        is_file = folder.is_file()
        file = folder / "config.json"
        settings = Checkpoint.open(folder).config if is_file else read_json(file, max_bytes=MAX_SETTINGS_BYTES)
        found = settings.get("vocab_size")
    except CheckpointError:
        found = None
    return found if type(found) is int and 0 < found < 10**7 else _USUAL_ENTRIES
