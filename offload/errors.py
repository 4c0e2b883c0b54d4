"""Everything that can go wrong below the terminal, as one tree.

    OverstoryError                  exit code 1: something failed while running
    ├── BadInputError               exit code 2: what the user gave cannot be used
    │   ├── CheckpointError         a model folder that is missing, damaged, not safetensors, or no dense decoder
    │   └── BudgetError             the memory budgets cannot hold what must be held
    ├── LinkError                   a copy failed: the pass is lost, the next one may work
    ├── WriteError                  a file could not be written: the disk is full, or not writable
    └── PassCancelledError          somebody cancelled the pass that was waiting

The two roots stand in profiles.errors, one floor down, where ProfileError derives from them; import them from here.
Every message is one sentence: what, where, found, expected, next step.
"""

from profiles.errors import BadInputError, OverstoryError


class CheckpointError(BadInputError):
    """A model folder is missing, damaged, not stored as safetensors, or no dense decoder-only causal language model."""


class BudgetError(BadInputError):
    """The memory budgets cannot hold what has to be held at the same time."""


class LinkError(OverstoryError):
    """A copy over a link failed; the cause is chained."""


class WriteError(OverstoryError):
    """A file could not be written; what was finished before is kept."""


class PassCancelledError(OverstoryError):
    """The pass was cancelled while it waited for a layer."""
