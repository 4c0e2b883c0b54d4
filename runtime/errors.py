"""What can go wrong with tokens, below `profiles.errors.OverstoryError`.

BadInputError                   exit code 2
├── OptionError                 a setting outside its range
│   └── PromptTooLongError      the prompt leaves no room in the context
└── PromptFileError             a prompt file or one of its lines cannot be read
"""

from profiles.errors import BadInputError


class OptionError(BadInputError):
    """A setting is outside its range."""


class PromptTooLongError(OptionError):
    """The prompt leaves no room in the context for an answer."""


class PromptFileError(BadInputError):
    """A prompt file or one of its lines cannot be read."""
