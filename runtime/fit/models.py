"""Finds a model's sizes by what a person calls it: a folder, a known model, or a name on the hub.

Only config.json is read, as untrusted plain JSON: no class of transformers is looked up. For known models an excerpt
of it stands in profiles/builtin/models.json; of a model on the hub only that file is fetched.
"""

import difflib
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from offload.checkpoint.checkpoint import MAX_CONFIG_BYTES, Checkpoint, is_hub_name
from offload.checkpoint.strict_json import read_json
from offload.errors import CheckpointError
from offload.units import format_bytes
from profiles.errors import quote
from runtime.errors import OptionError
from runtime.fit.shapes import ModelShape

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
_ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_EXPERT_KEY = re.compile(r"experts?$")
_PART_KEY = re.compile(r"^(vision|visual|audio|speech|image|video|text|thinker|talker|encoder|decoder)_config$")
_WORDS_WITHOUT_MEANING = {"instruct", "chat", "hf", "meta", "it", "base", "coder"}
_LARGEST_SIZE = 1 << 24
_ASKING_SECONDS = 5.0


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
    config = read_json(folder / "config.json", max_bytes=MAX_CONFIG_BYTES)
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
    config = read_json(path, max_bytes=MAX_CONFIG_BYTES)
    return shape_of_config(config, name=name, where=f"config.json of {name}")


def shape_of_config(config: Mapping[str, Any], *, name: str, where: str) -> ModelShape:
    """Return the sizes that a parsed config.json gives; `where` names it in errors. Raises CheckpointError."""
    _refuse_other_models(config, where=where)
    kind = str(config.get("model_type", ""))
    hidden, heads = _size(config, "hidden_size", where), _size(config, "num_attention_heads", where)
    head_dim = _optional_size(config, ("head_dim",), where) or max(1, hidden // heads)
    is_old = "n_embd" in config  # names of GPT-2, which has as many key heads
    kv_heads = heads if is_old else _optional_size(config, ("num_key_value_heads",), where) or heads
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
        max_context_tokens=_optional_size(config, ("max_position_embeddings", "n_positions"), where),
    )


def _refuse_other_models(config: Mapping[str, Any], *, where: str) -> None:
    """Raise CheckpointError for every model but a dense decoder, as far as plain JSON shows it."""
    reason = None
    for key, value in config.items():
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
