"""Download a model, or one of its GGUF files, from the hub into its usual cache, unless the disk is too small for it.

The same cache, tokens and offline switches as transformers' own downloads, but no pickle files. Sizes are asked for
before a byte is written; a hub that does not tell them is left to the download itself to complain about.
"""

import glob
import shutil
import threading
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path

from offload.checkpoint.gguf_file import part_files
from offload.checkpoint.model_places import HubModel, choose_variant, first_parts
from offload.errors import CheckpointError
from offload.units import format_bytes
from profiles.errors import quote

_PATTERNS: dict[str, list[str]] = {
    "allow_patterns": ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"],
    "ignore_patterns": ["*/*", "consolidated*"],  # the same weights in other formats
}
_ASKING_SECONDS = 5.0
_LOOKING_SECONDS = 0.5
"""Between two looks at what has arrived."""


class HuggingFaceHub:
    """What is asked of the hub; its errors are huggingface_hub's."""

    def sizes(self, name: str, files: Sequence[str] | None = None) -> tuple[int, int]:
        """Return the bytes of the newest revision of the model `name`, and how many of them are still missing here.

        Counted are its safetensors and small files, or only `files`.

        What an unfinished download left is here, unless the attempt named it for itself, `HASH.NUMBER.incomplete`:
        such versions begin anew.
        """
        import huggingface_hub as hub

        info = hub.HfApi().model_info(name, files_metadata=True, timeout=_ASKING_SECONDS)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        wanted = list(hub.utils.filter_repo_objects(sizes, **_patterns(files)))
        is_cached = {
            file: isinstance(hub.try_to_load_from_cache(name, file, revision=info.sha), str) for file in wanted
        }
        partial_bytes = sum(_size(path) for path in self._blobs(name).glob("*.incomplete") if "." not in path.stem)
        missing_bytes = sum(sizes[file] for file in wanted if not is_cached[file]) - partial_bytes
        return sum(sizes[file] for file in wanted), max(0, missing_bytes)

    def download(self, name: str, files: Sequence[str] | None = None) -> Path:
        """Download what is missing of those files, and return the folder in the cache that holds them."""
        import huggingface_hub as hub

        return Path(hub.snapshot_download(name, **_patterns(files)))

    def file_names(self, name: str) -> list[str]:
        """Return the files of the newest revision of the model `name`, or those here where the hub is out of reach."""
        import huggingface_hub as hub
        from huggingface_hub import errors

        try:
            return list(hub.HfApi().list_repo_files(name))
        except (errors.RepositoryNotFoundError, errors.GatedRepoError):
            raise
        except Exception:  # the hub's client and its transport each raise their own
            folder = Path(hub.snapshot_download(name, local_files_only=True, allow_patterns=["*.gguf"]))
            return [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf")]

    def cache_folder(self) -> Path:
        """Return where downloads go; it may not exist yet."""
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE)

    def stored_bytes(self, name: str) -> int:
        """Return the bytes of the model in the cache, those of unfinished files included."""
        return sum(_size(path) for path in self._blobs(name).glob("*"))

    def _blobs(self, name: str) -> Path:
        from huggingface_hub.file_download import repo_folder_name

        return self.cache_folder() / str(repo_folder_name(repo_id=name, repo_type="model")) / "blobs"


def cached_model(model: HubModel) -> Path:
    """Return the folder or GGUF file that the hub's cache holds of a model. Raises what the hub's library raises."""
    import huggingface_hub as hub

    folder = Path(hub.snapshot_download(model.name, local_files_only=True))
    if model.variant is None:
        return folder
    chosen = choose_variant([path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf")], model.variant)
    if chosen is None:
        raise FileNotFoundError(model.variant)
    return folder / chosen


def _patterns(files: Sequence[str] | None) -> dict[str, list[str]]:
    return _PATTERNS if files is None else {"allow_patterns": [glob.escape(file) for file in files]}


def watch_download(
    name: str, *, variant: str | None = None, hub: HuggingFaceHub | None = None
) -> Generator[tuple[int, int], None, Path]:
    """Download what is missing of the hub's model `name` ("owner/name"), and return its local folder.

    With a `variant`, such as Q4_K_M, that is its GGUF file of this quantization, of parts the first. Yields (bytes that
    are here, bytes in all) meanwhile; nothing if the hub does not tell sizes. Closed before its end, it leaves the
    download to go on until the process ends.

    Raises CheckpointError if the disk is too small for it, the hub could not deliver it, or has no such variant.
    """
    hub = HuggingFaceHub() if hub is None else hub
    files: dict[str, Sequence[str]] = {} if variant is None else {"files": _files_of(name, variant, hub)}
    num_bytes, missing_bytes = _check_disk(name, hub, files)
    stored_before = hub.stored_bytes(name)
    outcome: Future[Path] = Future()

    def fetch() -> None:
        try:
            outcome.set_result(hub.download(name, **files))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=fetch, name=f"download {name}", daemon=True).start()
    while not wait([outcome], timeout=_LOOKING_SECONDS).done:
        if missing_bytes:
            num_arrived = hub.stored_bytes(name) - stored_before
            yield num_bytes - missing_bytes + min(max(0, num_arrived), missing_bytes), num_bytes
    try:
        folder = outcome.result()
    except Exception as error:  # the hub, its HTTP client and the file system each raise their own
        raise CheckpointError(f"the model {name} could not be downloaded: {_reason(error)}") from error
    return folder / files["files"][0] if files else folder


def _files_of(name: str, variant: str, hub: HuggingFaceHub) -> list[str]:
    """Return the names of the GGUF file of that quantization, or of all its parts. Raises CheckpointError."""
    try:
        names = hub.file_names(name)
    except Exception as error:  # the hub and its HTTP client each raise their own
        raise CheckpointError(f"the model {name} could not be downloaded: {_reason(error)}") from error
    chosen = choose_variant(names, variant)
    if chosen is None:
        there = ", ".join(quote(file.removesuffix(".gguf")) for file in first_parts(names)[:20])
        raise CheckpointError(
            f"{name} has no single GGUF file for {quote(variant)}; "
            + (f"there are {there}" if there else "it has none at all: leave :VARIANT out for its safetensors")
        )
    return [part.as_posix() for part in part_files(Path(chosen))]


def free_disk_bytes(folder: Path) -> int | None:
    """Return the free bytes where `folder` is or would be made; None if the system does not say."""
    for place in (folder, *folder.parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None


def _check_disk(name: str, hub: HuggingFaceHub, files: Mapping[str, Sequence[str]]) -> tuple[int, int]:
    """Return (bytes in all, bytes that are missing), zeros if the hub does not tell. Raises CheckpointError."""
    try:
        num_bytes, missing_bytes = hub.sizes(name, **files)
        folder = hub.cache_folder()
        free = free_disk_bytes(folder)
    except Exception:  # offline, unknown, or not ours to see: the download says so in its own words
        return 0, 0
    if free is not None and missing_bytes > free:
        raise CheckpointError(
            f"the model {name} could not be downloaded: it needs {format_bytes(missing_bytes)} more and "
            f"{format_bytes(free)} are free in {folder}; free some, or set HF_HOME to a folder on a larger disk"
        )
    return num_bytes, missing_bytes


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it has just been renamed
        return 0


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "its owner grants access on request: accept the terms on its page and log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has no such model (or it is private), and there is no folder of that name here"
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        return "the hub cannot be reached and no complete copy is in the local cache; name a local folder instead"
    return f"{type(error).__name__}: {quote(str(error))}"
