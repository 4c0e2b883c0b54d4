"""Dense language models found by what a person calls them: a folder, a known model or a name on the hub.

Only config.json and headers are read, as untrusted data, and no torch imported. For known models an excerpt of it
stands in profiles/builtin/models.json; of a model on the hub only that file is fetched.
"""

import difflib
import functools
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path

from offload.checkpoint.border import MAX_SETTINGS_BYTES, check_border
from offload.checkpoint.checkpoint import SUPPORTED_DTYPES, Checkpoint, is_hub_name
from offload.checkpoint.gguf_config import quantization_of_gguf
from offload.checkpoint.hub_download import cached_model
from offload.checkpoint.model_places import as_hub_model, find_local
from offload.checkpoint.strict_json import read_json
from offload.errors import CheckpointError
from offload.units import format_bytes
from profiles.errors import quote
from runtime.engine.model_folders import model_name
from runtime.errors import OptionError
from runtime.fit.config_shape import shape_of_config
from runtime.fit.file_formats import FILE_FORMATS, header_sizes, split_format
from runtime.fit.shapes import ModelShape

logger = logging.getLogger(__name__)

TOLERATED_DIFFERENCE = 0.06
"""Share by which the files' bytes may differ from the sizes' before a note says so; plain NF4 scales are 5 %."""
_WORDS_WITHOUT_MEANING = {"instruct", "chat", "hf", "meta", "it", "base", "coder", "gguf"}
_FILE_ENDING = re.compile(r"([-._](ud-)?(i?q\d\w*|b?f16|mxfp4))?(-\d{5}-of-\d{5})?(\.gguf)?$")
_ASKING_SECONDS = 5.0
_MOST_NAMES = 24
"""Of known models that an error lists."""


def find_model(name: str, *, what: str) -> ModelShape:
    """Return the sizes of a folder, a known model or a hub name; `what` names it in errors.

    A name may end in a format, as in "llama-3.3-70b:Q4_K_M".

    Raises:
        OptionError: nothing has that name.
        CheckpointError: what has it cannot be used.
    """
    if not name.strip():
        raise OptionError(f"{what} is empty; give a model folder, a known model or a hub name")
    if (place := find_local(name) or _cached_file(name)) is not None:
        return shape_of_folder(place)
    model, format_name = split_format(name)
    found = find_shape(model) or (shape_on_hub(model) if is_hub_name(model) else None)
    if found is not None:
        return found if format_name is None else found.stored_as(format_name)
    names = {_key(known): known.lower() for known in known_shapes()}
    near = [names[key] for key in difflib.get_close_matches(_key(model), names, n=3, cutoff=0.6)]
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"known are {', '.join(list(names.values())[:_MOST_NAMES])} ..."
    )
    raise OptionError(f"{what} {quote(name)} is not known; {hint}")


def find_shape(name: str) -> ModelShape | None:
    """Return the known model of that name; case, separators and endings such as -Instruct do not count."""
    wanted = _key(name)
    shapes = known_shapes().values()
    return next((shape for shape in shapes if wanted in (_key(shape.name), _key(shape.hub_name or ""))), None)


def known_like(shape: ModelShape) -> ModelShape | None:
    """Return the known model of a shape's name, else the one that has all its sizes, as a fine-tune has; None if none.

    The name of a folder in the hub's cache is what the hub calls it.
    """
    if (named := find_shape(shape.name)) is not None:
        return named
    return next((known for known in known_shapes().values() if known.dimensions == shape.dimensions), None)


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
        where = one.get("source", f"config.json of {one['hub_name']}")
        shapes[one["name"]] = replace(
            shape_of_config(one["config"], name=one["name"], where=where),
            hub_name=one["hub_name"],
            usual_draft=one["usual_draft"],
            is_draft_compared=one.get("is_draft_compared", True),
        )
    return shapes


def shape_of_folder(folder: Path) -> ModelShape:
    """Return the sizes of the model in `folder`, whose weights may be missing, or of a GGUF file.

    Raises CheckpointError.
    """
    if folder.is_file():
        return _shape_of_gguf(folder)
    if not (folder / "config.json").exists():
        raise CheckpointError(f"{folder} has no config.json; expected a model folder in Hugging Face format")
    check_border(folder)
    config = read_json(folder / "config.json", max_bytes=MAX_SETTINGS_BYTES)
    shape = shape_of_config(config, name=folder.name or str(folder), where=f"{folder}/config.json")
    if not any(folder.glob("*.safetensors")):
        return shape
    tensors = Checkpoint.open(folder).tensors.values()
    stored = header_sizes(tensors, shape.num_layers)
    if stored is not None and shape.published_as in FILE_FORMATS:
        return replace(shape, folder=folder, stored=stored)
    stored_bytes = sum(entry.num_bytes for entry in tensors) if stored is None else stored.total_bytes
    expected_bytes = shape.formats[0].total_bytes + shape.others_bytes
    note = None
    if abs(stored_bytes - expected_bytes) > TOLERATED_DIFFERENCE * stored_bytes:
        note = (
            f"the files of {shape.name} hold {format_bytes(stored_bytes)}, but its config.json gives "
            f"{format_bytes(expected_bytes)} for a Llama-like model: figures may be off by as much"
        )
    return replace(shape, folder=folder, note=note)


def _shape_of_gguf(file: Path) -> ModelShape:
    checkpoint = Checkpoint.open(file)
    assert checkpoint.gguf is not None, "it is a file"
    shape = shape_of_config(checkpoint.config, name=model_name(file), where=checkpoint.settings_place)
    mix = quantization_of_gguf(checkpoint.gguf)
    shape = replace(shape, folder=checkpoint.folder)
    if mix in SUPPORTED_DTYPES:
        return replace(shape, published_as="float16" if mix == "F16" else None, item_bytes=4 if mix == "F32" else 2)
    return replace(shape, published_as=mix, stored=header_sizes(checkpoint.tensors.values(), shape.num_layers))


def _cached_file(name: str) -> Path | None:
    """Return the GGUF file of a name like owner/name:Q4_K_M, if the hub's cache has it."""
    model = as_hub_model(name)
    if model is None or model.variant is None:
        return None
    try:
        return cached_model(model)
    except Exception as error:  # the hub's client and the file system each raise their own
        logger.debug("%s is not in the hub's cache: %s", name, error)
        return None


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
    return replace(shape_of_config(config, name=name, where=f"config.json of {name}"), hub_name=name)


def _fetch_config(name: str) -> Path:
    import huggingface_hub as hub

    cached = hub.try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        return Path(cached)
    hub.HfApi().model_info(name, timeout=_ASKING_SECONDS)  # fails at once where the download would try five times
    return Path(hub.hf_hub_download(name, "config.json", etag_timeout=_ASKING_SECONDS))


def _key(name: str) -> str:
    """Return what is left of a name without its spelling: "meta-llama/Meta-Llama-3-8B-Instruct" -> "llama38b"."""
    words = re.findall("[a-z0-9]+", _FILE_ENDING.sub("", name.rpartition("/")[2].removeprefix("ollama:").lower()))
    return "".join(word for word in words if word not in _WORDS_WITHOUT_MEANING)
