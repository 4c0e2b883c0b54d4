"""What can go wrong with tokens, below `profiles.errors.OverstoryError`.

OverstoryError                  exit code 1
├── PeerError                   another runtime could not be started, or did not answer
├── QueueFullError              more wait for answers than may
└── ShuttingDownError           the server ends before it can answer
BadInputError                   exit code 2
├── OptionError                 a setting outside its range
│   └── PromptTooLongError      the prompt leaves no room in the context
└── PromptFileError             a prompt file or one of its lines cannot be read
"""

from profiles.errors import BadInputError, OverstoryError


class PeerError(OverstoryError):
    """A runtime beside which ours is measured could not be started, or did not answer."""


class QueueFullError(OverstoryError):
    """More wait for answers than may."""

    def __init__(self, sentence: str, *, retry_seconds: int) -> None:
        """`retry_seconds`: when there will be room, about."""
        super().__init__(sentence)
        self.retry_seconds = retry_seconds


class ShuttingDownError(OverstoryError):
    """The server ends before it can answer."""


class OptionError(BadInputError):
    """A setting is outside its range."""


class PromptTooLongError(OptionError):
    """The prompt leaves no room in the context for an answer."""


class PromptFileError(BadInputError):
    """A prompt file or one of its lines cannot be read."""
