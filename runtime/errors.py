"""What can go wrong with tokens, below `profiles.errors.OverstoryError`.

BadInputError                   exit code 2
├── OptionError                 a setting outside its range
│   └── PromptTooLongError      the prompt leaves no room in the context
├── PromptFileError             a prompt file or one of its lines cannot be read
├── TokenizerMismatchError      the draft's token ids mean other strings than the target's
└── DemoModelError              the default model could not be fetched, or is not the expected one
"""

from profiles.errors import BadInputError


class OptionError(BadInputError):
    """A setting is outside its range."""


class PromptTooLongError(OptionError):
    """The prompt leaves no room in the context for an answer."""


class PromptFileError(BadInputError):
    """A prompt file or one of its lines cannot be read."""


class TokenizerMismatchError(BadInputError):
    """Draft and target must share one vocabulary: the same id must mean the same string."""


class DemoModelError(BadInputError):
    """The default model could not be fetched or is not the expected one."""
