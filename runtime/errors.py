"""What can go wrong with tokens, below `profiles.errors.OverstoryError`.

OverstoryError                  exit code 1
├── PeerError                   another runtime could not be started, or did not answer
├── QueueFullError              more wait for answers than may
└── ShuttingDownError           the server ends before it can answer
BadInputError                   exit code 2
├── OptionError                 a setting outside its range
│   ├── OptionValueError        one option's value, whose name leads the sentence
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


class OptionValueError(OptionError):
    """The value of one option is outside its range; the sentence begins with the option's name."""

    def __init__(self, option: str, rest: str) -> None:
        """`rest` is what follows the name, as in ` is 0; it must be 1 or more`."""
        super().__init__(f"{option}{rest}")
        self.option, self.rest = option, rest

    def called(self, name: str) -> "OptionValueError":
        """Return the error under the name that the option has where it was typed."""
        return OptionValueError(name, self.rest)


class PromptTooLongError(OptionError):
    """The prompt leaves no room in the context for an answer."""


class PromptFileError(BadInputError):
    """A prompt file or one of its lines cannot be read."""
