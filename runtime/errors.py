"""What can go wrong with tokens, below `profiles.errors.OverstoryError`.

OverstoryError                  exit code 1
└── PeerError                   another runtime could not be started, or did not answer
BadInputError                   exit code 2
├── OptionError                 a setting outside its range
│   └── PromptTooLongError      the prompt leaves no room in the context
└── PromptFileError             a prompt file or one of its lines cannot be read
"""

from profiles.errors import BadInputError, OverstoryError


class PeerError(OverstoryError):
    """A runtime beside which ours is measured could not be started, or did not answer."""


class OptionError(BadInputError):
    """A setting is outside its range."""


class PromptTooLongError(OptionError):
    """The prompt leaves no room in the context for an answer."""


class PromptFileError(BadInputError):
    """A prompt file or one of its lines cannot be read."""
