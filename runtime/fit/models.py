"""Dense Llama-like models as numbers, found by what a person calls them: a folder, a known model, a name on the hub.

A dozen sizes say what a model needs. Only config.json is read, as untrusted plain JSON: no class of transformers is
looked up, and no torch imported. For known models an excerpt of it stands in profiles/builtin/models.json; of a model
on the hub only that file is fetched.
"""

import difflib
import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

from offload.checkpoint.border import MAX_SETTINGS_BYTES, check_border
from offload.checkpoint.checkpoint import PACKED_METHOD, Checkpoint, is_hub_name
from offload.checkpoint.strict_json import read_json
from offload.errors import CheckpointError
from offload.formats.stored_sizes import (
    CHUNK_ELEMENTS,
    ESCAPE_BYTES,
    PACKED,
    QUANTIZED_FORMATS,
    WIDE_HEAD_ELEMENTS,
    int8_rows_bytes,
    int8_token_bytes,
    nf4_bytes,
    packed_bytes,
    scratch_elements,
)
from offload.units import format_bytes, round_up_to_page
from profiles.errors import quote
from runtime.config import ACCELERATOR_MAX_PREFILL_TOKENS, MAX_PREFILL_TOKENS, PREFILL_CHUNK_TOKENS, KvFormat
from runtime.errors import OptionError
from runtime.fit.place import DraftNeed, LayerFormat, MemoryNeed, quantized_layers
from runtime.fit.workspace import Workspace, expanded_width, num_masks

TOLERATED_DIFFERENCE = 0.06
"""Share by which the files' bytes may differ from the sizes' before a note says so; plain NF4 scales are 5 %."""
_NAMES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "vocab_size": ("vocab_size",),
}
"""What each size is called, the usual name first."""
_WITHOUT_GATE = {"gpt2", "gpt_neox", "gptj", "gpt_bigcode", "opt", "phi", "starcoder2", "bloom", "falcon", "codegen"}
_TIED_UNLESS_SAID = {"gemma", "gemma2", "gemma3_text", "gpt2", "cohere", "cohere2", "smollm3", "opt", "bloom"}
_BIASED_QUERIES = {"qwen2"}
_ONE_KEY_HEAD = {"falcon", "gpt_bigcode"}
"""Whose queries share one key and one value unless `multi_query` says otherwise."""
_ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_ESCAPE_SHARE = 4e-4
"""Of a model's weights, for whose escapes memory is kept: twice what the worst of three trained models has."""
_EXPERT_KEY = re.compile(r"experts?$")
_PART_KEY = re.compile(r"^(vision|visual|audio|speech|image|video|text|thinker|talker|encoder|decoder)_config$")
_WORDS_WITHOUT_MEANING = {"instruct", "chat", "hf", "meta", "it", "base", "coder"}
_LARGEST_SIZE = 1 << 24
_ASKING_SECONDS = 5.0
_HELD_WORDS = {"stored": "as published", "int8": "int8 rows", "nf4": "nf4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes of a dense decoder with grouped-query attention, an MLP and two norms a layer."""

    name: str
    source: str
    """Where the numbers were read."""
    num_layers: int
    hidden_size: int
    inner_size: int
    """Width of the MLP."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    is_tied: bool = False
    """Whether the head is the embeddings."""
    item_bytes: int = 2
    """Bytes of one stored number: 2 is bfloat16, 4 float32."""
    num_vector_elements: int = 0
    """Elements of a layer's biases and other vectors, beside its two norms."""
    is_gated: bool = True
    """Whether the MLP has a gate beside up and down."""
    published_as: str | None = None
    """Format of the published layers: float16, int8, nf4, packed; None is what item_bytes says."""
    cache_heads: tuple[int, int] | None = None
    """(heads, numbers in all) that a layer's cache keeps of one token; None is a key and a value of each key head."""
    num_masks: int = 1
    """Windows that its layers have, full attention included."""
    expanded_width: int = 0
    """Numbers per key that a layer makes while it attends."""
    max_context_tokens: int | None = None
    """None where not known."""
    usual_draft: str | None = None
    """Name of the known model that drafts for it."""
    folder: Path | None = None
    """Where its weights are; None if they are not on this machine."""
    note: str | None = None
    """Why the sizes may be wrong; None where nothing says so."""

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of a layer's linear weights: q, k, v, o, gate, up, down."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        hidden, inner = self.hidden_size, self.inner_size
        attention = ((queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries))
        gates = ((inner, hidden),) if self.is_gated else ()
        return (*attention, *gates, (inner, hidden), (hidden, inner))

    @property
    def num_layer_parameters(self) -> int:
        """Weights of one decoder layer that a token is multiplied with."""
        return sum(rows * columns for rows, columns in self.matrices)

    @property
    def num_parameters(self) -> int:
        layer = self.num_layer_parameters + 2 * self.hidden_size + self.num_vector_elements
        return self.num_layers * layer + self._num_other_elements

    @property
    def formats(self) -> tuple[LayerFormat, ...]:
        """The decoder layers as published, then int8 and NF4, unless they are published quantized."""
        name = self.published_as or {2: "bfloat16", 4: "float32"}[self.item_bytes]
        if name in QUANTIZED_FORMATS:
            return (self._quantized(name),)
        matrix_bytes = self.num_layer_parameters * self.item_bytes
        if self.is_packed:
            matrix_bytes = sum(map(packed_bytes, self.matrices))
        layer_bytes = round_up_to_page(matrix_bytes + self._vector_bytes)
        published = LayerFormat(name, (layer_bytes,) * self.num_layers)
        return (published, *map(self._quantized, QUANTIZED_FORMATS))

    @property
    def is_packed(self) -> bool:
        return self.published_as == PACKED

    def _quantized(self, name: str) -> LayerFormat:
        layer = quantized_layers(name, [self.matrices], [self._vector_bytes])
        return LayerFormat(name, layer.layer_bytes * self.num_layers)

    @property
    def _vector_bytes(self) -> int:
        return (2 * self.hidden_size + self.num_vector_elements) * self.item_bytes

    @property
    def others_bytes(self) -> int:
        """Bytes of embeddings, final norm and head."""
        return self._num_other_elements * self.item_bytes

    @property
    def table_bytes(self) -> int:
        """Bytes of the input embeddings, which an accelerator leaves in host memory; 0 where they are the head too."""
        return 0 if self.is_tied else self.vocab_size * self.hidden_size * self.item_bytes

    def cache_bytes_per_token(self, compute_item_bytes: int) -> int:
        """Return the bytes of one token's keys and values in all layers."""
        _, num_elements = self._cached
        return self.num_layers * num_elements * compute_item_bytes

    def row_layer_bytes(self, kv_format: KvFormat) -> tuple[int, ...]:
        """Return the same by layer where keys and values travel; empty where they do as they are computed."""
        return () if kv_format == "exact" else (int8_token_bytes(*self._cached),) * self.num_layers

    @property
    def _cached(self) -> tuple[int, int]:
        return self.cache_heads or (2 * self.num_kv_heads, 2 * self.num_kv_heads * self.head_dim)

    def held_bytes(self, held: str) -> int:
        """Return the bytes of the decoder layers as a draft holds them: `stored` as published, `int8` rows or `nf4`.

        What is packed a draft has unpacked.
        """
        if held == "stored" and self.is_packed:
            return self.num_layers * (self.num_layer_parameters * self.item_bytes + self._vector_bytes)
        if held == "stored" or self.published_as in QUANTIZED_FORMATS:
            return self.formats[0].total_bytes
        size = {"int8": int8_rows_bytes, "nf4": nf4_bytes}[held]
        return self.num_layers * (sum(map(size, self.matrices)) + self._vector_bytes)

    def as_draft(
        self, compute_item_bytes: int, *, held: str = "int8", is_substitute: bool = False, is_cpu: bool = True
    ) -> DraftNeed:
        """Return this model as a draft; a substitute has the embeddings and the head of its target."""
        table_bytes = 0 if is_cpu or is_substitute else self.table_bytes
        is_stored = held == "stored" and self.published_as not in QUANTIZED_FORMATS
        is_widened = not is_stored or self.item_bytes != compute_item_bytes
        return DraftNeed(
            f"{'substitute draft' if is_substitute else f'draft {self.name}'} ({_HELD_WORDS[held]})",
            self.held_bytes(held) + (0 if is_substitute else self.others_bytes) - table_bytes,
            self.cache_bytes_per_token(compute_item_bytes),
            table_bytes,
            self.workspace(compute_item_bytes),
            scratch_bytes=self._scratch_bytes(compute_item_bytes, is_cpu=is_cpu) if is_widened else 0,
            is_recorded=not is_cpu and self.num_masks == 1,
        )

    def workspace(self, compute_item_bytes: int) -> Workspace:
        """Return what its passes hold."""
        return Workspace(
            hidden_size=self.hidden_size,
            head_dim=self.head_dim,
            inner_size=self.inner_size,
            vocab_size=self.vocab_size,
            item_bytes=compute_item_bytes,
            num_masks=self.num_masks,
            expanded_width=self.expanded_width,
        )

    def need(
        self,
        draft: DraftNeed | None,
        *,
        context_tokens: int,
        max_nodes: int,
        compute_item_bytes: int,
        is_cpu: bool = True,
    ) -> MemoryNeed:
        """Return what running it takes, its files included, which are not on this machine yet.

        `is_cpu`: whether a processor computes, which widens less at a time and has the embeddings at hand.
        """
        formats = self.formats
        table_bytes = 0 if is_cpu else self.table_bytes
        return MemoryNeed(
            formats=formats,
            others_bytes=self.others_bytes - table_bytes,
            table_bytes=table_bytes,
            draft=draft,
            cache_bytes_per_token=self.cache_bytes_per_token(compute_item_bytes),
            context_tokens=context_tokens,
            max_nodes=1 if draft is None else max_nodes,
            workspace=self.workspace(compute_item_bytes),
            scratch_bytes=self._scratch_bytes(compute_item_bytes, is_cpu=is_cpu),
            narrow_scratch_bytes=(
                self._narrow_scratch_bytes(compute_item_bytes, is_cpu=is_cpu) if self.is_packed else 0
            ),
            head_scratch_bytes=self._head_scratch_bytes(compute_item_bytes, is_cpu=is_cpu),
            is_widened=self.published_as in (*QUANTIZED_FORMATS, PACKED) or self.item_bytes != compute_item_bytes,
            slice_tokens=PREFILL_CHUNK_TOKENS if is_cpu else None,
            prefill_tokens=MAX_PREFILL_TOKENS if is_cpu else ACCELERATOR_MAX_PREFILL_TOKENS,
            file_bytes=formats[0].total_bytes + self.others_bytes,
        )

    def packed(self, need: MemoryNeed, compute_item_bytes: int, *, is_cpu: bool = True) -> MemoryNeed:
        """Return the same need with layers that lie packed in memory, as trained weights let them."""
        layer_bytes = round_up_to_page(sum(map(packed_bytes, self.matrices)) + self._vector_bytes)
        num_escapes = math.ceil(_ESCAPE_SHARE * self.num_layers * self.num_layer_parameters)
        return need.packed(
            LayerFormat(PACKED, (layer_bytes,) * self.num_layers),
            escape_bytes=ESCAPE_BYTES * num_escapes,
            narrow_scratch_bytes=self._narrow_scratch_bytes(compute_item_bytes, is_cpu=is_cpu),
        )

    def _scratch_bytes(self, compute_item_bytes: int, *, is_cpu: bool) -> int:
        """Return what widening its matrices takes at a time, a head in another type than computed included."""
        head = () if self.item_bytes == compute_item_bytes else ((self.vocab_size, self.hidden_size),)
        return compute_item_bytes * scratch_elements((*self.matrices, *head), is_host=is_cpu)

    def _narrow_scratch_bytes(self, compute_item_bytes: int, *, is_cpu: bool) -> int:
        """Return what unpacking its matrices takes at a time, where they are multiplied in another type."""
        return 0 if compute_item_bytes == 2 else 2 * scratch_elements(self.matrices, is_host=is_cpu)

    def _head_scratch_bytes(self, compute_item_bytes: int, *, is_cpu: bool) -> int:
        """Return what widening its head takes at a time, where it does not multiply to float32 by itself."""
        if compute_item_bytes in (4, self.item_bytes):
            return 0
        return 4 * min(CHUNK_ELEMENTS if is_cpu else WIDE_HEAD_ELEMENTS, self.vocab_size * self.hidden_size)

    @property
    def _num_other_elements(self) -> int:
        return (1 if self.is_tied else 2) * self.vocab_size * self.hidden_size + self.hidden_size


def find_model(name: str, *, what: str) -> ModelShape:
    """Return the sizes of a folder, a known model or a hub name; `what` names it in errors.

    Raises:
        OptionError: nothing has that name.
        CheckpointError: what has it cannot be used.
    """
    if not name.strip():
        raise OptionError(f"{what} is empty; give a model folder, a known model or a hub name")
    try:
        folder = Path(name).expanduser()
        is_folder, is_file = folder.is_dir(), folder.is_file()
    except (OSError, ValueError, RuntimeError):  # a name too long, or the home of an unknown user
        is_folder = is_file = False
    if is_folder:
        return shape_of_folder(folder)
    if is_file:
        raise CheckpointError(f"{what} {name!r:.80} is a file; expected the model folder that holds it")
    known = find_shape(name)
    if known is not None:
        return known
    if is_hub_name(name):
        return shape_on_hub(name)
    names = {_key(known): known.lower() for known in known_shapes()}
    near = [names[key] for key in difflib.get_close_matches(_key(name), names, n=3, cutoff=0.6)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(names.values())}"
    raise OptionError(f"{what} {quote(name)} is not known; {hint}")


def find_shape(name: str) -> ModelShape | None:
    """Return the known model of that name; case, separators and endings such as -Instruct do not count."""
    wanted = _key(name)
    return next((shape for shape in known_shapes().values() if _key(shape.name) == wanted), None)


def usual_draft(name: str) -> ModelShape | None:
    """Return the small known model that usually drafts for the one of that name; None if none is known."""
    target = find_shape(name)
    return None if target is None or target.usual_draft is None else known_shapes()[target.usual_draft]


@functools.cache
def known_shapes() -> Mapping[str, ModelShape]:
    """Return the models that people ask about, by name."""
    file = resources.files("profiles").joinpath("builtin", "models.json")
    shapes = {}
    for one in json.loads(file.read_text(encoding="utf-8"))["models"]:
        shape = shape_of_config(one["config"], name=one["name"], where=f"config.json of {one['hub_name']}")
        shapes[shape.name] = replace(shape, usual_draft=one["usual_draft"])
    return shapes


def shape_of_folder(folder: Path) -> ModelShape:
    """Return the sizes of the model in `folder`, whose weights may be missing. Raises CheckpointError."""
    if not (folder / "config.json").exists():
        raise CheckpointError(f"{folder} has no config.json; expected a model folder in Hugging Face format")
    check_border(folder)
    config = read_json(folder / "config.json", max_bytes=MAX_SETTINGS_BYTES)
    shape = shape_of_config(config, name=folder.name or str(folder), where=f"{folder}/config.json")
    if not any(folder.glob("*.safetensors")):
        return shape
    stored_bytes = Checkpoint.open(folder).total_bytes
    expected_bytes = shape.formats[0].total_bytes + shape.others_bytes
    note = None
    if abs(stored_bytes - expected_bytes) > TOLERATED_DIFFERENCE * stored_bytes:
        note = (
            f"the files of {shape.name} hold {format_bytes(stored_bytes)}, but its config.json gives "
            f"{format_bytes(expected_bytes)} for a Llama-like model: figures may be off by as much"
        )
    return replace(shape, folder=folder, note=note)


def shape_on_hub(name: str) -> ModelShape:
    """Return the sizes of the hub's model `name` ("owner/name"), of which config.json alone is fetched.

    Raises:
        CheckpointError: the hub does not deliver it, or it is not a model that can be run.
    """
    try:
        path = _fetch_config(name)
    except Exception as error:  # the hub's client, its transport and the file system each raise their own
        raise CheckpointError(
            f"the config.json of {quote(name)} could not be fetched ({type(error).__name__}); go online, name a model "
            "folder, or ask about a known model such as llama-3-70b"
        ) from error
    config = read_json(path, max_bytes=MAX_SETTINGS_BYTES)
    return shape_of_config(config, name=name, where=f"config.json of {name}")


def shape_of_config(config: Mapping[str, Any], *, name: str, where: str) -> ModelShape:
    """Return the sizes that a parsed config.json gives; `where` names it in errors. Raises CheckpointError."""
    _refuse_other_models(config, where=where)
    kind = str(config.get("model_type", ""))
    hidden, heads = _size(config, "hidden_size", where), _size(config, "num_attention_heads", where)
    head_dim = _optional_size(config, ("head_dim",), where) or max(1, hidden // heads)
    is_old = "n_embd" in config  # names of GPT-2, which has as many key heads
    kv_heads = heads if is_old else _optional_size(config, ("num_key_value_heads", "num_kv_heads"), where) or heads
    if kind in _ONE_KEY_HEAD and config.get("multi_query", True) and not config.get("new_decoder_architecture"):
        kv_heads = 1
    inner_names = ("n_inner",) if is_old else ("intermediate_size", "ffn_dim")
    published_as, item_bytes = _stored_as(config, where=where)
    is_tied = config.get("tie_word_embeddings")
    return ModelShape(
        name=name,
        source=where,
        num_layers=_size(config, "num_hidden_layers", where),
        hidden_size=hidden,
        inner_size=_optional_size(config, inner_names, where) or 4 * hidden,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=_size(config, "vocab_size", where),
        is_tied=is_tied if isinstance(is_tied, bool) else kind in _TIED_UNLESS_SAID,
        item_bytes=item_bytes,
        num_vector_elements=(heads + 2 * kv_heads) * head_dim if kind in _BIASED_QUERIES else 0,
        is_gated=kind not in _WITHOUT_GATE,
        published_as=published_as,
        cache_heads=_cache_heads(config, heads, head_dim, where=where),
        num_masks=num_masks(config),
        expanded_width=expanded_width(config, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim),
        max_context_tokens=_max_context_tokens(config, where=where),
    )


def _max_context_tokens(config: Mapping[str, Any], *, where: str) -> int | None:
    """Return the most positions of a text, which with longrope are those before its frequencies change."""
    sizes = [_optional_size(config, ("max_position_embeddings", "n_positions"), where)]
    for rope in (config.get("rope_scaling"), config.get("rope_parameters")):
        if isinstance(rope, dict) and "longrope" in (rope.get("rope_type"), rope.get("type")):
            sizes += [_optional_size(one, ("original_max_position_embeddings",), where) for one in (config, rope)]
    return min(filter(None, sizes), default=None)


def _cache_heads(config: Mapping[str, Any], heads: int, head_dim: int, *, where: str) -> tuple[int, int] | None:
    """Return what a layer keeps of a token where that is not a key and a value of each key head."""
    if config.get("model_type") == "falcon" and config.get("new_decoder_architecture"):
        return 2 * heads, 2 * heads * head_dim  # it repeats the heads before it keeps them
    latent, rotary = (_optional_size(config, (name,), where) for name in ("kv_lora_rank", "qk_rope_head_dim"))
    return (2, latent + rotary) if latent and rotary else None


def _refuse_other_models(config: Mapping[str, Any], *, where: str) -> None:
    """Raise CheckpointError for every model but a dense decoder, as far as plain JSON shows it."""
    reason = None
    nested = (value.items() for value in config.values() if isinstance(value, dict))
    for key, value in chain(config.items(), *nested):
        if _PART_KEY.match(key) and value:
            reason = f"a composite model ({key})"
        if _EXPERT_KEY.search(key) and type(value) is int and value > 1:
            reason = f"a mixture of experts ({key} = {value})"
    if config.get("is_encoder_decoder") is True:
        reason = "an encoder-decoder model"
    layers = config.get("layer_types")
    if isinstance(layers, list) and set(map(str, layers)) - {"full_attention", "sliding_attention"}:
        reason = "a model with layers other than full or sliding attention"
    if reason is not None:
        raise CheckpointError(f"{where} describes {reason}; expected a dense decoder-only language model")


def _stored_as(config: Mapping[str, Any], *, where: str) -> tuple[str | None, int]:
    """Return the format of the published layers, None for what their numbers' size says, and that size in bytes."""
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    item_bytes = _ITEM_BYTES.get(dtype)
    if item_bytes is None:
        raise CheckpointError(f"{where} says dtype {quote(dtype)}; expected one of {', '.join(_ITEM_BYTES)}")
    settings = config.get("quantization_config")
    if isinstance(settings, dict) and settings.get("quant_method") == PACKED_METHOD:
        return PACKED, 2
    if settings is None:
        return ("float16" if dtype == "float16" else None), item_bytes
    if not isinstance(settings, dict) or settings.get("quant_method", "bitsandbytes") != "bitsandbytes":
        method = settings.get("quant_method") if isinstance(settings, dict) else settings
        raise CheckpointError(
            f"{where} says it is quantized with {quote(method)}, which cannot be streamed; ask about its original, or "
            "about a bitsandbytes folder"
        )
    return ("int8" if settings.get("load_in_8bit") is True else "nf4"), item_bytes


def _size(config: Mapping[str, Any], name: str, where: str) -> int:
    found = _optional_size(config, _NAMES[name], where)
    if found is None:
        raise CheckpointError(f"{where} has no {name}; expected the configuration of a decoder-only language model")
    return found


def _optional_size(config: Mapping[str, Any], names: tuple[str, ...], where: str) -> int | None:
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if type(value) is not int or not 1 <= value <= _LARGEST_SIZE:  # True is an int too
            raise CheckpointError(f"{where} has {name} = {quote(value)}; expected a whole number above 0")
        return value
    return None


def _fetch_config(name: str) -> Path:
    import huggingface_hub as hub

    cached = hub.try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        return Path(cached)
    hub.HfApi().model_info(name, timeout=_ASKING_SECONDS)  # fails at once where the download would try five times
    return Path(hub.hf_hub_download(name, "config.json", etag_timeout=_ASKING_SECONDS))


def _key(name: str) -> str:
    """Return what is left of a name without its spelling: "meta-llama/Meta-Llama-3-8B-Instruct" -> "llama38b"."""
    words = re.findall("[a-z0-9]+", name.rpartition("/")[2].lower())
    return "".join(word for word in words if word not in _WORDS_WITHOUT_MEANING)
