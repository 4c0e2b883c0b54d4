"""The sizes of models that people ask about, so that a question about one needs no file.

Each was copied from the config.json that its source names; the numbers of parameters that follow are the published
ones, which the tests check. Names are matched loosely: case, separators and endings such as -Instruct do not count.
"""

import difflib
import re
from dataclasses import replace

from profiles.errors import quote
from runtime.errors import OptionError
from runtime.fit.model_shape import ModelShape


def _llama(name: str, source: str, sizes: tuple[int, ...], *, is_tied: bool = False, context: int) -> ModelShape:
    """`sizes`: layers, hidden, inner, heads, kv heads, head dim, vocabulary."""
    layers, hidden, inner, heads, kv_heads, head_dim, vocabulary = sizes
    return ModelShape(
        name=name,
        source=f"config.json of {source}",
        num_layers=layers,
        hidden_size=hidden,
        inner_size=inner,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocabulary,
        is_tied=is_tied,
        max_context_tokens=context,
    )


def _qwen(size: str, sizes: tuple[int, ...], *, is_tied: bool = False) -> ModelShape:
    """Like `_llama`, with biases on queries, keys and values."""
    _, _, _, heads, kv_heads, head_dim, _ = sizes
    plain = _llama(f"Qwen2.5-{size}", f"Qwen/Qwen2.5-{size}-Instruct", sizes, is_tied=is_tied, context=32768)
    return replace(plain, num_vector_elements=(heads + 2 * kv_heads) * head_dim)


LLAMA_3_70B = _llama(
    "Llama-3-70B", "meta-llama/Meta-Llama-3-70B-Instruct", (80, 8192, 28672, 64, 8, 128, 128256), context=8192
)
LLAMA_3_8B = _llama(
    "Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct", (32, 4096, 14336, 32, 8, 128, 128256), context=8192
)
_LONG = 131072

KNOWN_SHAPES = (
    LLAMA_3_70B,
    LLAMA_3_8B,
    _llama("Llama-3.3-70B", "meta-llama/Llama-3.3-70B-Instruct", (80, 8192, 28672, 64, 8, 128, 128256), context=_LONG),
    _llama("Llama-3.1-70B", "meta-llama/Llama-3.1-70B-Instruct", (80, 8192, 28672, 64, 8, 128, 128256), context=_LONG),
    _llama("Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct", (32, 4096, 14336, 32, 8, 128, 128256), context=_LONG),
    _llama(
        "Llama-3.2-3B",
        "meta-llama/Llama-3.2-3B-Instruct",
        (28, 3072, 8192, 24, 8, 128, 128256),
        is_tied=True,
        context=_LONG,
    ),
    _llama(
        "Llama-3.2-1B",
        "meta-llama/Llama-3.2-1B-Instruct",
        (16, 2048, 8192, 32, 8, 64, 128256),
        is_tied=True,
        context=_LONG,
    ),
    _llama("Llama-2-70B", "meta-llama/Llama-2-70b-chat-hf", (80, 8192, 28672, 64, 8, 128, 32000), context=4096),
    _llama("Llama-2-7B", "meta-llama/Llama-2-7b-chat-hf", (32, 4096, 11008, 32, 32, 128, 32000), context=4096),
    _qwen("72B", (80, 8192, 29568, 64, 8, 128, 152064)),
    _qwen("32B", (64, 5120, 27648, 40, 8, 128, 152064)),
    _qwen("14B", (48, 5120, 13824, 40, 8, 128, 152064)),
    _qwen("7B", (28, 3584, 18944, 28, 4, 128, 152064)),
    _qwen("3B", (36, 2048, 11008, 16, 2, 128, 151936), is_tied=True),
    _qwen("1.5B", (28, 1536, 8960, 12, 2, 128, 151936), is_tied=True),
    _qwen("0.5B", (24, 896, 4864, 14, 2, 64, 151936), is_tied=True),
)
"""All of them."""

_USUAL_DRAFTS = {
    "Llama-3-70B": "Llama-3-8B",
    "Llama-3.1-70B": "Llama-3.1-8B",
    "Llama-3.3-70B": "Llama-3.1-8B",
    "Llama-3-8B": "Llama-3.2-1B",
    "Llama-3.1-8B": "Llama-3.2-1B",
    "Llama-2-70B": "Llama-2-7B",
    "Qwen2.5-72B": "Qwen2.5-1.5B",
    "Qwen2.5-32B": "Qwen2.5-1.5B",
    "Qwen2.5-14B": "Qwen2.5-0.5B",
    "Qwen2.5-7B": "Qwen2.5-0.5B",
    "Qwen2.5-1.5B": "Qwen2.5-0.5B",
}
_WORDS_WITHOUT_MEANING = {"instruct", "chat", "hf", "meta", "it", "base", "coder"}


def find_shape(name: str) -> ModelShape | None:
    """The known model of that name, however it is spelt; None if there is none."""
    wanted = _key(name)
    return next((shape for shape in KNOWN_SHAPES if _key(shape.name) == wanted), None)


def usual_draft(target: ModelShape) -> ModelShape | None:
    """The small model of the same family that drafts for this one; None if none is known."""
    name = _USUAL_DRAFTS.get(target.name)
    return None if name is None else find_shape(name)


def shape_names() -> list[str]:
    """The names that are known, as one types them."""
    return [shape.name.lower() for shape in KNOWN_SHAPES]


def nearest_names(wrong: str, names: list[str]) -> list[str]:
    """Up to three of `names` that `wrong` may be a slip for, the likeliest first."""
    keys = {_key(name): name for name in names}
    near = difflib.get_close_matches(_key(wrong), list(keys), n=3, cutoff=0.6)
    return [keys[key] for key in near]


def unknown_name(kind: str, wrong: str, names: list[str]) -> OptionError:
    """The error for a name that nothing has: with near names, or all there are."""
    near = nearest_names(wrong, names)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(names)}"
    return OptionError(f"{kind} {quote(wrong)} is not known; {hint}")


def _key(name: str) -> str:
    """What is left of a name when spelling is taken out: "meta-llama/Meta-Llama-3-8B-Instruct" -> "llama38b"."""
    words = re.findall("[a-z0-9]+", name.rpartition("/")[2].lower())
    return "".join(word for word in words if word not in _WORDS_WITHOUT_MEANING)
