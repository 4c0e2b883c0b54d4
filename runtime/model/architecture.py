"""From a checkpoint to an empty transformers model whose decoder layers can be fed one at a time.

Accepts dense decoder-only causal language models by what they are (one list of layers of attention or Gated DeltaNet,
masks and positions taken from the caller), not by a list of names, and refuses everything else in a sentence; of an
image-text model the text part is built (`text_tower.py`), and the tensors of its other parts are passed over. Checks
every name and shape against the files before any weight is read. A mangled config.json must neither crash, hang nor
fill the memory: layer counts are compared before anything is built, and sizes while it is.
"""

import inspect
import logging
import math
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import Concatenate, WeightConverter, WeightRenaming, rename_source_key

from offload.checkpoint.checkpoint import Checkpoint
from offload.checkpoint.tensor_entry import TensorEntry
from offload.errors import CheckpointError
from offload.formats.quantized_group import QuantizedGroup, find_group
from offload.formats.weight_format import GatheredFormat, WeightFormat
from profiles.errors import quote
from runtime.model import gguf_names
from runtime.model.attention import register_grouped_attention
from runtime.model.delta_layers import delta_module
from runtime.model.layer_binding import PIECE
from runtime.model.safe_build import SUPPORTED, SafeBuild, declared, refuse_unsupported, walk_settings
from runtime.model.text_tower import decoder_class, is_composite, model_class, other_token_ids, text_config

MAX_BUILT_ELEMENTS = 2**31
"""No single parameter of a dense model is larger; a config that asks for one is damaged."""
_MAX_COUNT = 100_000
_COUNT_KEY = re.compile(r"^(?!.*(size|dim|length|token|position)).*(layer|block|depth|label|loop|cycle)")
_TOWER = re.compile(r"vis(ion|ual)|audio")
"""In the names of layers that are no decoder's, of which there may be more."""
_PLAIN_RETURNS = {
    "output_hidden_states": False,
    "output_attentions": False,
    "output_router_logits": False,
    "return_dict": True,
    "use_cache": True,
}
"""Settings that change only what a forward returns beside its result."""
_NOT_ATTENTION = frozenset(
    ("experts", "router", "mamba", "linear_attn", "delta_net", "short_conv", "conv", "recurrent", "temporal_block")
)


@dataclass(frozen=True, slots=True)
class DecoderParts:
    """An empty causal language model, taken apart, with the stored tensor of each of its parameters."""

    model: PreTrainedModel
    """Parameters on the meta device, non-persistent buffers real, eval mode."""
    layers_name: str
    """Dotted path of the list of decoder layers: "model.layers", "transformer.h", ..."""
    layers: nn.ModuleList
    """The decoder layers, in the order in which a pass visits them."""
    layer_windows: tuple[int | None, ...]
    """Per layer: W if the token at position q sees the keys at positions q-W+1..q (W keys, its own included), as
    transformers' masks have it (key > q - W); None for full attention."""
    layer_tensors: tuple[Mapping[str, TensorEntry], ...]
    """Per layer: its parameters by their names below the layer; of a quantized or packed matrix every tensor, by name
    and suffix."""
    layer_formats: tuple[Mapping[str, WeightFormat], ...]
    """Per layer: the formats of its quantized and packed matrices, by their names below the layer."""
    other_tensors: Mapping[str, TensorEntry]
    """Everything else by full name: embeddings, final norm, head, and persistent buffers wherever they stand."""
    other_formats: Mapping[str, WeightFormat]
    """The formats of quantized matrices among them (the input embeddings, a head)."""
    tied: Mapping[str, str]
    """Parameters that are not stored because they are another one: full name -> full name of the stored one."""
    paired_heads: Mapping[str, int] = field(default_factory=dict)
    """Heads of the linear layers whose outputs the file has in pairs, by full name: see `gguf_names`."""
    restored: Mapping[str, gguf_names.Restore] = field(default_factory=dict)
    """What a stored vector is changed by when it is bound, by its parameter's full name."""
    has_tiled_heads: bool = False
    """Whether heads of values of recurrent layers take turns between those of keys: see `gguf_names`."""

    @property
    def config(self) -> PreTrainedConfig:
        """The decoder's configuration: of a composite model a part of its own."""
        return text_config(self.model.config)

    @property
    def decoder_name(self) -> str:
        """Dotted path of the decoder below `model`: "model", "transformer", "model.language_model", ..."""
        return self.layers_name.rpartition(".")[0]

    @property
    def trunk_name(self) -> str:
        """Dotted path of what the head takes hidden states from: the decoder, or what has it in a composite model."""
        return self.model.base_model_prefix if is_composite(self.model.config) else self.decoder_name

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def other_token_ids(self) -> frozenset[int]:
        """Tokens that stand for an image or for sound; of what is there, text is all that can be computed."""
        return other_token_ids(self.model.config)


def open_decoder(checkpoint: Checkpoint, *, dtype: torch.dtype) -> DecoderParts:
    """Load the configuration, build the empty model, and match it with the files.

    Raises CheckpointError if they do not belong together, or are no dense decoder-only causal language model.
    """
    config = load_config(checkpoint)
    sizes = (max(math.prod(entry.shape), entry.num_bytes) for entry in checkpoint.tensors.values())
    largest = max(sizes, default=0)  # of 4-bit codes too: they are two a byte
    model = build_empty_model(config, dtype=dtype, max_elements=max(2 * largest, 2**24))
    gguf_names.divide_frequencies(model, checkpoint)
    try:
        return inspect_decoder(model, checkpoint)
    except (TypeError, AttributeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        where = checkpoint.settings_place
        raise CheckpointError(f"{where} holds a setting of the wrong kind: {first_line(error)}") from error


def load_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    """Return transformers' configuration of a checkpoint; no code of the checkpoint is run.

    Raises CheckpointError if config.json is damaged, counts other layers than the files hold, or describes something
    else than a dense decoder-only causal language model.
    """
    where = checkpoint.settings_place
    raw = checkpoint.config
    for key, value in walk_settings(raw):  # some configurations build lists of this length while they are parsed
        if type(value) is int and _COUNT_KEY.search(key) and not -1 <= value <= _MAX_COUNT:
            raise CheckpointError(f"{where} has {quote(key)} = {quote(value)}; expected at most {_MAX_COUNT}")
    if not isinstance(raw.get("model_type"), str):
        raise CheckpointError(f"{where} has the model_type {quote(raw.get('model_type'))}; expected a name like llama")
    try:
        with warnings.catch_warnings(), _unlogged("transformers"):
            warnings.simplefilter("ignore")  # old spellings of settings, which transformers translates
            config = _config_of(checkpoint)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file makes transformers raise nearly anything
        if "auto_map" in raw and "trust_remote_code" in str(error):
            reason = "needs code from its own repository (auto_map), which is never run"
            raise CheckpointError(f"{where} {reason}; {SUPPORTED}") from error
        found = f"model_type {quote(raw['model_type'])}"
        raise CheckpointError(f"{where} ({found}) was refused by transformers: {first_line(error)}") from error
    try:
        refuse_unsupported(config, where=where)
        _check_layer_count(text_config(config), checkpoint)
    except (TypeError, AttributeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"{where} holds a setting of the wrong kind: {first_line(error)}") from error
    for part in (config, text_config(config)):
        for name, value in _PLAIN_RETURNS.items():
            if hasattr(part, name):
                setattr(part, name, value)
    return config


def _config_of(checkpoint: Checkpoint) -> PreTrainedConfig:
    if checkpoint.gguf is not None:
        settings = {**checkpoint.config, **gguf_names.rope_settings(checkpoint)}
        config: PreTrainedConfig = AutoConfig.for_model(**settings)
        return config
    config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
    return config


@contextmanager
def _unlogged(name: str) -> Iterator[None]:
    """Keep a library from logging what it raises as well, whole configurations included."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_layer_count(config: PreTrainedConfig, checkpoint: Checkpoint) -> None:
    """Check, before building, that the files' tensor names show as many layers as the configuration counts."""
    indices: dict[str, set[int]] = {}
    for name in checkpoint.tensors:
        numbered = re.match(r"(\D*\.|)(\d{1,6})\.", name, re.ASCII)
        if numbered and not _TOWER.search(numbered[1]):
            indices.setdefault(numbered[1], set()).add(int(numbered[2]))
    if not indices:
        raise CheckpointError(f"{checkpoint.folder} has no decoder layers: expected tensors named like model.layers.0")
    stored = max(indices.values(), key=len)
    num_layers = config.num_hidden_layers
    if type(num_layers) is not int or stored != set(range(num_layers if num_layers < _MAX_COUNT else 0)):
        raise CheckpointError(
            f"{checkpoint.settings_place} calls for {quote(num_layers)} decoder layers, but the files hold tensors "
            f"of {len(stored)}; the download is incomplete or its settings belong to another model"
        )


def build_empty_model(
    config: PreTrainedConfig, *, dtype: torch.dtype, max_elements: int = MAX_BUILT_ELEMENTS
) -> PreTrainedModel:
    """Return transformers' model in eval mode: parameters of `dtype` on the meta device, buffers (rotary tables) real.

    No parameter is initialised: what no memory holds need not be drawn. Raises CheckpointError if the configuration is
    inconsistent, or asks for a tensor of more than `max_elements`.
    """
    built, decoder = model_class(config), decoder_class(config)
    assert built is not None and decoder is not None, "refuse_unsupported lets no other pass"
    attention = "sdpa" if getattr(decoder, "_supports_sdpa", False) else "eager"
    if attention == "sdpa" and decoder._can_set_attn_implementation():  # it looks the function up by this name
        attention = register_grouped_attention()
    try:
        with warnings.catch_warnings(), SafeBuild(max_elements), init_empty_weights(include_buffers=False):
            warnings.simplefilter("ignore")
            model: PreTrainedModel = built._from_config(config, dtype=dtype, attn_implementation=attention)
    except Exception as error:  # settings that contradict each other make transformers and torch raise nearly anything
        where = f"config.json ({config.model_type})"
        raise CheckpointError(f"{where} describes a model that cannot be built: {first_line(error)}") from error
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq") and not buffer.is_meta and not bool(buffer.isfinite().all()):
            where = f"config.json ({config.model_type})"
            raise CheckpointError(
                f"{where} gives rotary frequencies that are no finite numbers; check its rope settings"
            )
    return model.eval().requires_grad_(False)


def inspect_decoder(model: PreTrainedModel, checkpoint: Checkpoint) -> DecoderParts:
    """Find the decoder layers of an empty model and match every parameter with its stored tensor.

    Raises CheckpointError if a tensor is missing, or has another shape or type than the model needs, or if the model
    has no single list of attention layers.
    """
    layers_name, layers = _find_layers(model)
    header = checkpoint.gguf
    tied, stored_names, pieces = _match_names(model, checkpoint)
    groups = _find_groups(model, checkpoint, stored_names, tied=tied)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
    whole = {name: shape for name, shape in shapes.items() if name not in groups and name not in pieces}
    checkpoint.check(whole, stored_names=stored_names)
    for name, found in pieces.items():
        _check_pieces(checkpoint, name, found, shapes[name])
    streamed = {
        name for name, _ in model.named_parameters(remove_duplicate=False) if name.startswith(f"{layers_name}.")
    }
    if any(name in streamed for pair in tied.items() for name in pair):
        raise unsupported(model, "layers that share weights with other parts")
    others = [name for name in shapes if name not in streamed]
    prefixes = [f"{layers_name}.{index}." for index in range(len(layers))]
    by_layer = [[name for name in shapes if name in streamed and name.startswith(prefix)] for prefix in prefixes]

    def entries_of(names: Sequence[str], prefix: str = "") -> dict[str, TensorEntry]:
        return {
            f"{name}{suffix}".removeprefix(prefix): entry
            for name in names
            for suffix, entry in (
                groups[name].entries
                if name in groups
                else pieces[name]
                if name in pieces
                else {"": checkpoint.tensors[stored_names[name]]}
            ).items()
        }

    def formats_of(names: Sequence[str], prefix: str = "") -> dict[str, WeightFormat]:
        return {name.removeprefix(prefix): groups[name].format for name in names if name in groups}

    return DecoderParts(
        model=model,
        layers_name=layers_name,
        layers=layers,
        layer_windows=_layer_windows(model, layers_name, num_layers=len(layers)),
        layer_tensors=tuple(map(entries_of, by_layer, prefixes)),
        layer_formats=tuple(map(formats_of, by_layer, prefixes)),
        other_tensors=entries_of(others),
        other_formats=formats_of(others),
        tied=tied,
        paired_heads={} if header is None else gguf_names.paired_heads(stored_names, header, model.config),
        restored={} if header is None else gguf_names.restored_vectors(stored_names, header),
        has_tiled_heads=header is not None and gguf_names.has_tiled_heads(header),
    )


def _find_groups(
    model: PreTrainedModel, checkpoint: Checkpoint, stored_names: Mapping[str, str], *, tied: Mapping[str, str]
) -> dict[str, QuantizedGroup]:
    """Return the quantized or packed matrices of a folder by their full names: of linear layers, and of the input
    embeddings where rows of the format can be gathered.
    """
    if not checkpoint.is_quantized:
        return {}
    groups, inputs = {}, model.get_input_embeddings()
    for module_name, module in model.named_modules():
        name = f"{module_name}.weight"
        if name not in stored_names or name in tied:
            continue
        if type(module) is nn.Linear:
            group = find_group(checkpoint, stored_names[name], (module.out_features, module.in_features))
        elif module is inputs and isinstance(module, nn.Embedding):
            group = find_group(checkpoint, stored_names[name], (module.num_embeddings, module.embedding_dim))
            group = group if group is not None and isinstance(group.format, GatheredFormat) else None
        else:
            continue
        if group is not None:
            groups[name] = group
    if any(name in groups and not isinstance(groups[name].format, GatheredFormat) for name in tied.values()):
        raise unsupported(model, "embeddings that are tied to a quantized head")
    return groups


def _find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    prefix, num_layers = f"{model.base_model_prefix}.", text_config(model.config).num_hidden_layers
    outermost = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == num_layers
        and next(module.parameters(), None) is not None
        and not re.search(r"\.\d+\.", name)
    ]
    if len(outermost) != 1 or not outermost[0][0].startswith(prefix) or "encoder" in outermost[0][0].split("."):
        raise unsupported(model, "no single list of decoder layers")
    layers_name, layers = outermost[0]
    if "attention_mask" not in inspect.signature(layers[0].forward).parameters:
        raise unsupported(model, "layers that take no attention mask")
    deltas = {id(part) for layer in layers if (found := delta_module(layer)) for part in found.modules()}
    for name, module in layers.named_modules():
        if id(module) in deltas:
            continue
        if not _NOT_ATTENTION.isdisjoint(name.split(".")) or type(module) is nn.Conv1d:
            raise unsupported(model, f"layers that are not dense attention layers ({quote(name)})")
    return layers_name, layers


def _match_names(
    model: PreTrainedModel, checkpoint: Checkpoint
) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, TensorEntry]]]:
    """Return which parameters are tied to which, the stored name of every parameter that has one, and what is stored
    of those that are stored in pieces, by what follows the parameter's name in a piece's.

    transformers' own renaming decides: old spellings, and the base prefix that checkpoints of base models lack.
    Where it would also change values while loading, the file's bytes are not the layer's; a convolution's rows may
    come in several tensors.
    """
    state = model.state_dict()
    conversions = get_model_conversion_mapping(model)
    renamings = [item for item in conversions if isinstance(item, WeightRenaming)]
    converters = [item for item in conversions if isinstance(item, WeightConverter)]
    stored_names = {name: name for name in state if name in checkpoint.tensors}
    pieces: dict[str, dict[str, TensorEntry]] = {}
    if checkpoint.gguf is not None:
        num_layers = model.config.num_hidden_layers
        stored_names = gguf_names.stored_names_of(state, checkpoint.gguf, num_layers=num_layers)
    for stored_name in checkpoint.tensors if checkpoint.gguf is None else ():
        name, conversion = rename_source_key(stored_name, renamings, converters, model.base_model_prefix, state)
        place = None if conversion is None else _place_of_rows(model, name, conversion, converters)
        if place is not None:
            pieces.setdefault(name, {})[f"{PIECE}{place}"] = checkpoint.tensors[stored_name]
        elif conversion is not None and name in state:
            raise unsupported(model, f"tensors that are converted while loading ({quote(stored_name)})")
        elif name in state:
            stored_names.setdefault(name, stored_name)
    tied: dict[str, str] = {}
    for target, source in model.all_tied_weights_keys.items():
        if source in stored_names and target not in stored_names:
            tied[target] = source
        elif target in stored_names and source not in stored_names:
            tied[source] = target
    return tied, stored_names, pieces


def _place_of_rows(
    model: PreTrainedModel, name: str, conversion: str, converters: Sequence[WeightConverter]
) -> int | None:
    """Return which of the tensors it is that transformers puts one below the other for a convolution; None if none."""
    converter = next(each for each in converters if conversion in each.source_patterns)
    owner = model.get_submodule(name.rpartition(".")[0]) if name in model.state_dict() else None
    operations = converter.operations
    is_stacked = len(operations) == 1 and isinstance(operations[0], Concatenate) and operations[0].dim == 0
    return converter.source_patterns.index(conversion) if is_stacked and type(owner) is nn.Conv1d else None


def _check_pieces(checkpoint: Checkpoint, name: str, pieces: Mapping[str, TensorEntry], shape: tuple[int, ...]) -> None:
    """Raise CheckpointError unless the pieces of a parameter make up its shape."""
    checkpoint.check({entry.name: (entry.shape[0], *shape[1:]) for entry in pieces.values() if entry.shape})
    num_rows = sum(entry.shape[0] for entry in pieces.values() if entry.shape)
    if num_rows != shape[0]:
        raise CheckpointError(
            f"{checkpoint.folder} holds {num_rows} rows of {quote(name)} in {len(pieces)} tensors, but "
            f"{checkpoint.settings_place} calls for {shape[0]}; the download is incomplete or damaged"
        )


def _layer_windows(model: PreTrainedModel, layers_name: str, *, num_layers: int) -> tuple[int | None, ...]:
    """Return the windows of the model's own masks: by layer type where the class declares types, else one for all.

    Raises CheckpointError where transformers' own cache would keep other tokens than the masks show: its text would
    depend on whether it is used.
    """
    config, where = text_config(model.config), f"config.json ({model.config.model_type})"
    decoder = model.get_submodule(layers_name.rpartition(".")[0])
    window = getattr(config, "sliding_window", None)  # what the mask functions read
    layer_types = declared(config, "layer_types")
    if not hasattr(sys.modules[type(decoder).__module__], "create_sliding_window_causal_mask"):
        layer_types = ["full_attention"] * num_layers
    elif layer_types is None:
        layer_types = ["sliding_attention" if window is not None else "full_attention"] * num_layers
    if len(layer_types) != num_layers:
        raise CheckpointError(f"{where} lists {len(layer_types)} layer_types for {num_layers} layers")
    windows: tuple[int | None, ...] = tuple(window if kind == "sliding_attention" else None for kind in layer_types)
    if "sliding_attention" in layer_types and (type(window) is not int or window < 2):
        raise CheckpointError(
            f"{where} has layers of sliding attention and sliding_window = {quote(window)}; "
            "expected a window of 2 or more (transformers' own cache keeps everything for a window of 1)"
        )
    limit = max_positions(config) or math.inf
    for index, (seen, kept) in enumerate(zip(windows, _cached_windows(config), strict=True)):
        if kept not in (None, seen) and kept < limit:
            raise CheckpointError(
                f"{where} lets transformers' cache keep {kept} tokens of layer {index}, whose attention sees "
                f"{'all' if seen is None else seen}; remove sliding_window, attention_chunk_size or layer_types, "
                "whichever this architecture ignores"
            )
    return windows


def _cached_windows(config: PreTrainedConfig) -> list[int | None]:
    """Return per layer how many tokens transformers' own cache keeps for the next one, which counts; None for all."""
    _, settings = get_layer_types_and_kwargs(config)
    return [one.get("sliding_window") for one in settings]


def max_positions(config: PreTrainedConfig) -> int | None:
    """Return the number of positions that a text may have; None if the configuration does not say.

    With longrope the frequencies of all tokens change once a text is longer than its original length: keys in the cache
    keep the old ones, so that a text would depend on where its passes begin and end. It ends before that.
    """
    limits = [getattr(config, "max_position_embeddings", None)]
    ropes = getattr(config, "rope_parameters", None)
    if isinstance(ropes, Mapping):
        for rope in (ropes, *ropes.values()):
            if isinstance(rope, Mapping) and rope.get("rope_type") == "longrope":
                limits.append(rope.get("original_max_position_embeddings"))
    return min((limit for limit in limits if type(limit) is int and limit > 0), default=None)


def unsupported(model: PreTrainedModel, reason: str) -> CheckpointError:
    """Return the error that says what a model has that cannot be run."""
    return CheckpointError(f"{type(model).__name__} has {reason}; {SUPPORTED}")


def first_line(error: BaseException) -> str:
    """Return an error of a library as one line that is safe to print."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {quote(lines[0] if lines else '')}"
