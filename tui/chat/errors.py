"""What can go wrong with what the chat app keeps, below `profiles.errors.OverstoryError`.

OverstoryError                      exit code 1
└── ConversationStoreError          the database cannot be opened, read or written
    ├── ForeignSchemaError          its tables are not ours: it is set aside
    └── NewerSchemaError            a later version of the program wrote it: it is left alone
"""

from profiles.errors import OverstoryError


class ConversationStoreError(OverstoryError):
    """The database cannot be opened, read or written; what was saved before is kept."""


class ForeignSchemaError(ConversationStoreError):
    """The database holds tables that are not ours."""


class NewerSchemaError(ConversationStoreError):
    """The database is ours, but of a later version of the program."""
