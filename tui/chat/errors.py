"""What can go wrong with what the chat app keeps, below `profiles.errors.OverstoryError`.

OverstoryError                      exit code 1
└── ConversationStoreError          the database cannot be opened, read or written
    ├── ForeignSchemaError          its tables are not ours: it is set aside
    └── NewerSchemaError            a later version of the program wrote it: it is left alone
BadInputError                       exit code 2
├── UnknownConversationError        a conversation or message that is not there, or no longer
└── ConversationFileError           a file that cannot be exported to or imported from
"""

from profiles.errors import BadInputError, OverstoryError


class ConversationStoreError(OverstoryError):
    """The database cannot be opened, read or written; what was saved before is kept."""


class ForeignSchemaError(ConversationStoreError):
    """The database holds tables that are not ours."""


class NewerSchemaError(ConversationStoreError):
    """The database is ours, but of a later version of the program."""


class UnknownConversationError(BadInputError):
    """The conversation or message is not in the database, or no longer."""


class ConversationFileError(BadInputError):
    """A file cannot be exported to, or holds no conversation of ours."""
