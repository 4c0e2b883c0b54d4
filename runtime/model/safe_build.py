"""Which models may be built from a config.json that anybody may have written, and how to build them safely.

Accepts every dense decoder-only causal language model that a tree of tokens can be run through, by what its
configuration and its class are, not by a list of names. While a model is built, its parameters have no memory but its
buffers (rotary and position tables, causal masks) do, and their sizes come from the file: absurd ones are stopped.
"""

import inspect
import math
import re
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedConfig

from offload import llama_cpp
from offload.errors import CheckpointError
from profiles.errors import quote
from runtime.model.delta_layers import has_delta_functions
from runtime.model.text_tower import decoder_class, model_class, text_config

SUPPORTED = (
    "supported are dense decoder-only causal language models and the text part of image-text models (Llama, Qwen, "
    "Mistral, Gemma and their kin)"
)
_EXPERT_KEY = re.compile(r"experts?$")
_OTHER_INPUT_KEY = re.compile(r"^(vision|visual|audio|speech|image|video|text|thinker|talker|encoder|decoder)_config$")
_UNSUITABLE_TYPES = {
    "gpt_neo": "its local attention goes by cache slots, not by positions",
    "hrm_text": "it runs its layers several times per token",
}

_FILLS = frozenset(
    (torch.ops.aten.normal_, torch.ops.aten.uniform_, torch.ops.aten.zero_, torch.ops.aten.fill_)
)  # what initialisers end in


def refuse_unsupported(config: PreTrainedConfig, *, where: str) -> None:
    """Raise CheckpointError, saying what was found, unless a tree can be run; `where` names the file."""
    reason = _unsuitable_parts(text_config(config)) or _unsafe_forward(config)
    if reason is not None:
        raise CheckpointError(f"{where} describes {quote(_architecture(config))}, {reason}; {SUPPORTED}")


def _unsuitable_parts(config: PreTrainedConfig) -> str | None:
    """Say what this model has that a dense decoder has not; None if nothing."""
    settings = config.to_dict()
    is_expert_switch_off = settings.get("is_moe") is False or settings.get("enable_moe_block") is False
    for key, value in settings.items():
        if _OTHER_INPUT_KEY.match(key) and value:
            return f"a composite model ({key}) of a kind whose text part cannot be run alone"
    for key, value in walk_settings(settings):
        if _EXPERT_KEY.search(key) and type(value) is int and value > 1 and not is_expert_switch_off:
            layers = getattr(config.get_text_config(), "num_hidden_layers", None)
            return f"a mixture of experts ({key} = {value}), {llama_cpp.for_experts(layers)}"
    if getattr(config, "is_encoder_decoder", False):
        return "an encoder-decoder model"
    kinds = {"full_attention", "sliding_attention"}
    decoder = decoder_class(config)
    if decoder is not None and has_delta_functions(sys.modules[decoder.__module__]):
        kinds.add("linear_attention")
    other_types = set(declared(config, "layer_types") or ()) - kinds
    if other_types:
        return (
            "a model with layers other than full or sliding attention, or Gated DeltaNet as Qwen3.5 has it "
            f"({quote(min(map(str, other_types)))})"
        )
    return None


def _unsafe_forward(config: PreTrainedConfig) -> str | None:
    """Say why a token tree cannot be run through this model's forward; None if it can."""
    built, decoder, text = model_class(config), decoder_class(config), text_config(config)
    if built is None or decoder is None:
        return "not a causal language model in transformers"
    if not re.search(r"(ForCausalLM|LMHeadModel|Model|ForConditionalGeneration)$", _architecture(config)):
        return "not a causal language model"
    accepted = inspect.signature(decoder.forward).parameters
    needed = ("input_ids", "attention_mask", "position_ids", cache_argument(accepted))
    missing = [name for name in needed if name not in accepted]
    if missing:
        return f"a model whose forward takes no {missing[0]}, so that a tree of tokens cannot be placed in it"
    if not hasattr(sys.modules[decoder.__module__], "create_causal_mask"):
        return "a model that does not take attention masks from its caller"
    return _unsafe_settings(text)


def _unsafe_settings(config: PreTrainedConfig) -> str | None:
    """Say which setting makes a decoder attend otherwise than a tree of tokens can; None if none does."""
    if getattr(config, "alibi", False):
        return "a model whose attention goes by distance in memory (alibi)"
    bidirectional = getattr(config, "use_bidirectional_attention", False)
    concerns_images = bidirectional == "vision" and config.model_type == "gemma4_text"
    if (bidirectional and not concerns_images) or not getattr(config, "is_causal", True):
        return "a model with bidirectional attention"
    if getattr(config, "add_cross_attention", False):
        return "a model with cross-attention"
    if getattr(config, "num_kv_shared_layers", 0):
        return "a model whose layers share keys and values"
    return _UNSUITABLE_TYPES.get(config.model_type)


def cache_argument(accepted: Container[str]) -> str:
    """Return what a forward calls its cache: transformers renamed `past_key_values` to `cache` in 5.24."""
    return "cache" if "cache" in accepted else "past_key_values"


def _architecture(config: PreTrainedConfig) -> str:
    """Return the class that config.json names, or the one that transformers would choose."""
    names = getattr(config, "architectures", None)
    if isinstance(names, list) and names:
        return str(names[0])
    return str(getattr(model_class(config), "__name__", config.model_type))


def declared(config: PreTrainedConfig, name: str) -> Any:
    """Return a setting if the configuration's class knows it, else None: every key of config.json is an attribute."""
    return getattr(config, name, None) if hasattr(type(config), name) else None


def walk_settings(settings: object) -> Iterator[tuple[str, object]]:
    """Yield every number and string of nested settings with the key that it stands under, without recursion."""
    pending = [("", settings)]
    while pending:
        key, value = pending.pop()
        if isinstance(value, Mapping):
            pending.extend((str(name), item) for name, item in value.items())
        elif isinstance(value, list):
            pending.extend((key, item) for item in value)
        else:
            yield key, value


class SafeBuild(TorchDispatchMode):
    """A context for building an empty model: no tensor of more than `max_elements`, and no fill without memory.

    Building a model also initialises it. On the meta device that changes nothing, but every random fill is worked out
    step by step in Python: two thirds of the time that building takes. Real tensors, such as rotary tables, are filled.
    An operation that would make too large a tensor raises ValueError.
    """

    def __init__(self, max_elements: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.max_elements = max_elements

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run `func`, unless it fills a tensor without memory or its arguments announce one that is too large."""
        if getattr(func, "overloadpacket", None) in _FILLS and args[0].is_meta:
            return args[0]
        num_elements = max(_sizes_asked_for(args), _broadcast_elements(args))
        if "arange" in str(func):
            num_elements = max(
                num_elements, *(math.ceil(abs(value)) for value in args if isinstance(value, (int, float)))
            )
        if num_elements > self.max_elements:
            raise ValueError(f"a tensor of {quote(num_elements)} elements; expected at most {self.max_elements}")
        return func(*args, **(kwargs or {}))


def _sizes_asked_for(args: Sequence[Any]) -> int:
    """Return the elements of the largest list of sizes among the arguments, as for zeros, empty, full, expand."""
    lists = [value for value in args if isinstance(value, (list, tuple)) and all(type(item) is int for item in value)]
    return max((abs(math.prod(sizes)) for sizes in lists), default=0)


def _broadcast_elements(args: Sequence[Any]) -> int:
    """Return the elements of the tensor arguments broadcast together: position tables are outer products."""
    shapes = [value.shape for value in args if isinstance(value, torch.Tensor)]
    rank = max((len(shape) for shape in shapes), default=0)
    return math.prod(max(shape[i] for shape in shapes if -i <= len(shape)) for i in range(-rank, 0)) if shapes else 0
