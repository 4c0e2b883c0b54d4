"""Numbers that are added to the logits of tokens, whatever stands before them, before all other changes of a row.

Source: `logit_bias` of OpenAI's API reference; the order is that of vLLM, whose penalties see the changed logits.
"""

from collections.abc import Sequence

import numpy as np

from runtime.errors import OptionError
from runtime.speculation.schemes import Row, RowChanges, RowRules


class BiasedRows:
    """Rules that see rows with a bias on them: draft and target rows alike, and on every path the same."""

    def __init__(self, rules: RowRules, bias: Sequence[tuple[int, float]], *, vocab_size: int) -> None:
        """`bias` of token ids; `vocab_size` V: columns of every row. Raises OptionError for an id that is not one."""
        self._rules = rules
        self._bias = np.zeros(vocab_size, dtype=np.float32)
        for token_id, value in bias:
            if not 0 <= token_id < vocab_size:
                raise OptionError(f"logit_bias names the token {token_id}; the model's ids are 0 to {vocab_size - 1}")
            self._bias[token_id] = value

    def adjusted(self, row: Row, path_token_ids: Sequence[int] = ()) -> Row:
        return self._rules.adjusted(row + self._bias, path_token_ids)

    def changes(self, paths: Sequence[Sequence[int]]) -> RowChanges | None:
        return None  # what `RowChanges` holds is penalised, and so cannot come before penalties
