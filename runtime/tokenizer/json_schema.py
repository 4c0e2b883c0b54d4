"""JSON schemas as grammars of llguidance (the extra `json`), which compiles and holds texts to them.

A schema is a stranger's, and what compiling it takes is not known before. So a box, a process with limits, compiles it
first, one that holds no tokenizer and no answer: what breaks the limits there costs its own line, and nothing else.
Source: llguidance's docs/json_schema.md, which says what of JSON Schema 2020-12 there is; anything else it refuses.
"""

import json
import re
from typing import Any

from profiles.errors import quote
from runtime.errors import OptionError

ANY_OBJECT = '{"type": "object"}'
"""The schema of any JSON object."""
MAX_SCHEMA_BYTES = 2**18
"""As text; twice what OpenAI's API takes."""
_MOST_LEVELS = 200
"""Of objects and lists within one another: Python's own limit depends on who asks."""
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,64}"
"""Between two tokens of JSON. Without an end a model that is at a loss writes blanks until its limit."""
_SETTINGS = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": True,
    "whitespace_pattern": _WHITESPACE,
    "coerce_one_of": False,
    "lenient": False,
}
_HEAD = '%llguidance {"no_forcing": true}\nstart: %json '
"""Any tokens that spell an allowed text are allowed: which of them come is the model's choice."""
_PLACE = re.compile(r"at \d+\(\d+\): (failed to compile JSON schema: )?")


def json_library() -> Any:
    """Return the module of llguidance. Raises OptionError, which names the extra, where it is not installed."""
    try:
        import llguidance
    except ImportError as error:
        raise OptionError("response_format needs llguidance; install it with: pip install 'overstory[json]'") from error
    return llguidance


def limits() -> Any:
    """Return what a grammar may take: the library's own limits, the compiled one a tenth."""
    return json_library().LLParserLimits(verbose_errors=False)


def grammar_of(schema: str) -> str:
    """Return the grammar of a JSON schema in the library's words. Raises OptionError where it is too long or none."""
    num_bytes = len(schema.encode(errors="replace"))
    if num_bytes > MAX_SCHEMA_BYTES:
        raise OptionError(
            f"the JSON schema takes {num_bytes} bytes; it may take {MAX_SCHEMA_BYTES}, so make it smaller"
        )
    try:
        fields = json.loads(schema)
        if not isinstance(fields, dict):
            raise ValueError("it is no object")
        if _is_deep(fields):
            raise ValueError(f"it is nested more than {_MOST_LEVELS} times")
        return _HEAD + json.dumps({**fields, "x-guidance": _SETTINGS})
    except (ValueError, RecursionError) as error:
        raise OptionError(f"the JSON schema cannot be read: {error}; give an object that is nested less") from error


def _is_deep(fields: object) -> bool:
    level = [fields]
    for _ in range(_MOST_LEVELS):
        level = [
            value
            for each in level
            if isinstance(each, dict | list)
            for value in (each.values() if isinstance(each, dict) else each)
        ]
    return bool(level)


def compile_schema(schema: str) -> None:
    """Raise OptionError where a schema has what the library does not do, or too much of it: for a box, see above."""
    try:
        is_refused, messages = json_library().LLMatcher.validate_grammar_with_warnings(
            grammar_of(schema), limits=limits()
        )
    except (KeyboardInterrupt, SystemExit, MemoryError, OptionError):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        is_refused, messages = True, [f"{type(error).__name__}: {error}"]
    if is_refused:
        raise OptionError(f"the JSON schema cannot be held to: {reason(messages[0])}; change the schema")


def reason(message: str) -> str:
    """Return the library's words as a part of a sentence, without places in a grammar that nobody wrote."""
    first = _PLACE.sub("", message.strip()).partition("\n")[0].rstrip(".")
    return quote(first)[1:-1]
