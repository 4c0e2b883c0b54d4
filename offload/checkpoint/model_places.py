"""Where people have models: folders, GGUF files, and those of other programs; one function reads every spelling.

A model is a folder in Hugging Face format or a GGUF file (the first of its parts). `ollama:NAME[:TAG]` and
`lmstudio:PUBLISHER/REPOSITORY[/FILE]` name what those programs hold on this machine; `owner/name` is the hub's, and
`owner/name:Q4_K_M` a GGUF file of it. Reads no model, only names, sizes and ollama's manifests, which count as hostile.
Imports neither torch nor transformers.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from offload.checkpoint.checkpoint import is_hub_name
from offload.checkpoint.gguf_file import PART_NAME, part_files
from offload.checkpoint.strict_json import read_json
from offload.errors import CheckpointError
from profiles.errors import quote

OLLAMA, LM_STUDIO = "ollama:", "lmstudio:"
_WORD = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_MODEL_LAYER = "application/vnd.ollama.image.model"
_IGNORED_LAYERS = ("application/vnd.ollama.image.template", "application/vnd.ollama.image.params")
_MAX_MANIFEST_BYTES = 1 << 20
_MAX_ENTRIES = 10_000
"""Of a folder that is searched."""
_REGISTRY, _LIBRARY = "registry.ollama.ai", "library"


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model by its name on the hub."""

    name: str
    """owner/name."""
    variant: str | None = None
    """Which of its GGUF files: "Q4_K_M"; None of a safetensors model."""


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A GGUF model on this machine, as another program has it."""

    spelling: str
    """What it is asked for by: "ollama:llama3.3:70b"."""
    file: Path
    num_bytes: int
    """All its parts."""


def find_place(name_or_path: str) -> Path | HubModel:
    """Return the model's folder or GGUF file on this machine, or its name on the hub.

    Raises CheckpointError if it can be neither, or what the name says is not there.
    """
    found = find_local(name_or_path) or as_hub_model(name_or_path)
    if found is None:
        raise CheckpointError(
            f"model folder not found: {quote(name_or_path)}; expected an existing folder or GGUF file, a hub name like "
            "owner/name or owner/name:Q4_K_M, ollama:NAME:TAG or lmstudio:PUBLISHER/REPOSITORY"
        )
    return found


def find_local(name_or_path: str) -> Path | None:
    """Return the model's folder or GGUF file on this machine; None for what may be a name of the hub.

    Raises CheckpointError if another program does not hold what the name says of it, or a file is no GGUF file.
    """
    if name_or_path.startswith(OLLAMA):
        return ollama_file(name_or_path.removeprefix(OLLAMA))
    if name_or_path.startswith(LM_STUDIO):
        return lm_studio_file(name_or_path.removeprefix(LM_STUDIO))
    try:
        path = Path(name_or_path).expanduser()
        if name_or_path and path.is_dir():
            return only_gguf(path) or path
        return _as_gguf(path) if path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # a name too long, or the home of an unknown user
        return None


def as_hub_model(text: str) -> HubModel | None:
    """Return the model of the hub that this can be the name of, "owner/name" or "owner/name:VARIANT"; else None."""
    name, colon, variant = text.partition(":")
    if not is_hub_name(name) or (colon and not _WORD.fullmatch(variant)):
        return None
    return HubModel(name, variant or None)


def only_gguf(folder: Path) -> Path | None:
    """Return the only GGUF model of a folder; None if it has none, or is a model folder itself.

    Raises CheckpointError if it has several.
    """
    if (folder / "config.json").exists() or any(folder.glob("*.safetensors")):
        return None
    files = gguf_files(folder)
    if len(files) > 1:
        shown = ", ".join(quote(file.name) for file in files[:5])
        raise CheckpointError(f"{folder} holds {len(files)} GGUF models ({shown}); name one of the files")
    return files[0] if files else None


def gguf_files(folder: Path) -> list[Path]:
    """Return the GGUF models right in a folder by name, of parts the first; images' projectors are none."""
    with suppress(OSError):
        names = [entry.name for entry in islice(os.scandir(folder), _MAX_ENTRIES)]
        return [folder / name for name in first_parts(names)]
    return []


def first_parts(names: Sequence[str]) -> list[str]:
    """Return the names of GGUF models among those of files, sorted; of one in parts the first part's."""
    found = []
    for name in sorted(names):
        own_name = name.rpartition("/")[2].lower()
        part = PART_NAME.fullmatch(name)
        is_model = own_name.endswith(".gguf") and not own_name.startswith(("mmproj", "imatrix"))
        if is_model and (part is None or int(part["number"]) == 1):
            found.append(name)
    return found


def choose_variant(names: Sequence[str], variant: str) -> str | None:
    """Return which of these GGUF files is the variant, as in NAME-Q4_K_M.gguf; None if no single one is."""
    stems = {
        name: (PART_NAME.fullmatch(name) or {"stem": name[: -len(".gguf")]})["stem"] for name in first_parts(names)
    }
    wanted = variant.lower()
    ending = [name for name, stem in stems.items() if re.search(rf"(^|[-._/]){re.escape(wanted)}$", stem.lower())]
    inside = [name for name, stem in stems.items() if re.search(rf"(^|[-._/]){re.escape(wanted)}[-._/]", stem.lower())]
    found = ending or inside
    return found[0] if len(found) == 1 else None


def ollama_folders() -> list[Path]:
    """Return where ollama may keep its models, the chosen folder alone where one is chosen."""
    if chosen := os.environ.get("OLLAMA_MODELS"):
        return [Path(chosen)]
    shared = [] if sys.platform in ("win32", "darwin") else [Path("/usr/share/ollama/.ollama/models")]
    return [*_below_home(".ollama", "models"), *shared]


def ollama_file(name: str) -> Path:
    """Return the GGUF file that ollama holds as NAME[:TAG]. Raises CheckpointError."""
    repository, _, tag = name.partition(":")
    words = repository.split("/")
    if not all(_WORD.fullmatch(word) for word in (*words, tag or "latest")) or len(words) > 3:
        raise CheckpointError(f"{quote(OLLAMA + name)} is no name of an ollama model; expected ollama:NAME:TAG")
    place = Path(*[_REGISTRY, _LIBRARY][: 3 - len(words)], *words, tag or "latest")
    for folder in ollama_folders():
        if (folder / "manifests" / place).is_file():
            return _ollama_blob(folder, folder / "manifests" / place)
    places = ", ".join(map(str, ollama_folders()))
    raise CheckpointError(
        f"ollama has no {quote(name)} in {places}; fetch it with ollama pull, or set OLLAMA_MODELS to its folder"
    )


def ollama_ignores(file: Path) -> str | None:
    """Return the sentence on what ollama keeps beside a model and is not used here; None for any other file."""
    for model in ollama_models() if file.parent.name == "blobs" else ():
        if model.file == file:
            return (
                f"{model.spelling} is read as its GGUF file says: ollama's own template and parameters for it are not "
                "used"
            )
    return None


def ollama_models() -> Iterator[FoundModel]:
    """Yield the models that ollama holds; what is damaged is passed over."""
    for folder in ollama_folders():
        manifests = folder / "manifests"
        with suppress(OSError):
            for manifest in islice(sorted(manifests.glob("*/*/*/*")), _MAX_ENTRIES):
                with suppress(CheckpointError, OSError):
                    registry, owner, name, tag = manifest.relative_to(manifests).parts
                    words = [word for word in (registry, owner, name) if word not in (_REGISTRY, _LIBRARY)]
                    file = _ollama_blob(folder, manifest)
                    yield FoundModel(f"{OLLAMA}{'/'.join(words)}:{tag}", file, file.stat().st_size)


def _ollama_blob(folder: Path, manifest: Path) -> Path:
    layers = read_json(manifest, max_bytes=_MAX_MANIFEST_BYTES).get("layers")
    digests = [
        layer.get("digest")
        for layer in (layers if isinstance(layers, list) else ())
        if isinstance(layer, dict) and layer.get("mediaType") == _MODEL_LAYER
    ]
    if len(digests) != 1 or not isinstance(digests[0], str) or not _DIGEST.fullmatch(digests[0]):
        raise CheckpointError(
            f"{manifest} names no single file of a model ({_MODEL_LAYER}); fetch the model again with ollama pull"
        )
    blob = folder / "blobs" / digests[0].replace(":", "-")
    if not blob.is_file():
        raise CheckpointError(f"{blob} is missing, which {manifest} names; fetch the model again with ollama pull")
    return blob


def lm_studio_folders() -> list[Path]:
    """Return where LM Studio may keep its models."""
    return [*_below_home(".lmstudio", "models"), *_below_home(".cache", "lm-studio", "models")]


def lm_studio_file(name: str) -> Path:
    """Return the GGUF file that LM Studio holds as PUBLISHER/REPOSITORY[/FILE]. Raises CheckpointError."""
    words = name.split("/")
    if not all(_WORD.fullmatch(word) for word in words) or len(words) not in (2, 3):
        raise CheckpointError(
            f"{quote(LM_STUDIO + name)} is no name of an LM Studio model; expected lmstudio:PUBLISHER/REPOSITORY[/FILE]"
        )
    for place in lm_studio_folders():
        folder = place.joinpath(*words[:2])
        if len(words) == 3 and (folder / words[2]).is_file():
            return _as_gguf(folder / words[2])
        if len(words) == 2 and folder.is_dir() and (file := only_gguf(folder)) is not None:
            return file
    places = " and ".join(map(str, lm_studio_folders()))
    raise CheckpointError(f"LM Studio has no GGUF model {quote(name)} in {places}; fetch it there, or name a file")


def lm_studio_models() -> Iterator[FoundModel]:
    """Yield the GGUF models that LM Studio holds."""
    for place in lm_studio_folders():
        with suppress(OSError):
            for folder in islice(sorted(place.glob("*/*")), _MAX_ENTRIES):
                files = gguf_files(folder)
                for file in files:
                    name = f"{LM_STUDIO}{folder.parent.name}/{folder.name}"
                    spelling = name if len(files) == 1 else f"{name}/{file.name}"
                    with suppress(OSError):
                        yield FoundModel(spelling, file, total_bytes(file))


def total_bytes(file: Path) -> int:
    """Return the bytes of a GGUF model, all parts together. Raises OSError if one is missing."""
    return sum(part.stat().st_size for part in part_files(file))


def _as_gguf(path: Path) -> Path:
    with path.open("rb") as file:
        begins = file.read(4)
    if begins != b"GGUF":
        raise CheckpointError(
            f"{quote(str(path))} is a file, and no GGUF file; expected the model folder that holds it"
        )
    return part_files(path)[0]


def _below_home(*names: str) -> list[Path]:
    try:
        return [Path.home().joinpath(*names)]
    except RuntimeError:  # a user without a home
        return []
