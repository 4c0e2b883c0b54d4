"""Profiles as JSON files in one folder: one per device, replaced in one step, refused by name if not of use.

A profile is looked up by the device's type and name, and believed only if the driver is the same too. Files may have
been damaged or edited by hand: a regular file of bounded size, no key twice, nothing that is not finite. Knows not what
the figures mean, nor how to measure them again.
"""

import json
import math
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Any

from profiles.errors import ProfileError, StaleProfileError
from profiles.machine_profile import DeviceIdentity, MachineProfile, profile_from_record

MAX_FILE_BYTES = 1 << 20
_MAX_NAME_LENGTH = 80


def profile_path(folder: Path, device: DeviceIdentity) -> Path:
    """Where the profile of this device is kept, whatever its driver."""
    words = re.findall("[a-z0-9]+", f"{device.device_type} {device.name}".lower())
    return folder / f"machine-{'-'.join(words)[:_MAX_NAME_LENGTH]}.json"


def load_machine_profile(folder: Path, device: DeviceIdentity) -> MachineProfile | None:
    """The stored profile of this device with this driver; None if there is none.

    Raises:
        StaleProfileError: what is stored was measured on another device or with another driver.
        ProfileError: the file cannot be read, has another schema version, or holds nonsense.
    """
    path = profile_path(folder, device)
    try:
        raw = _read(path)
        if raw is None:
            return None
        profile = profile_from_record(_parse(raw))
    except ProfileError as error:
        raise ProfileError(f"{path} is not a usable machine profile: {error}; delete it to measure again") from error
    if profile.device != device:
        raise StaleProfileError(
            f"{path} was measured on {profile.device}, but this is {device}; delete it to measure again"
        )
    return profile


def save_machine_profile(folder: Path, profile: MachineProfile) -> Path:
    """Replace the device's profile in one step and return its path; makes the folder if need be.

    Raises:
        ProfileError: the file system refused; an older profile is still there as it was.
    """
    path = profile_path(folder, profile.device)
    content = json.dumps(profile.to_record(), indent=2, allow_nan=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace_content(path, content.encode())
    except OSError as error:
        raise ProfileError(
            f"{path} cannot be written ({error.strerror or error}); make room, or choose a folder that is writable"
        ) from error
    return path


def _replace_content(path: Path, content: bytes) -> None:
    """Write a neighbour and rename it, so that a process killed here leaves the old file or the new one."""
    # A neighbour for each writer: two processes may measure at the same time, and the later one wins.
    handle, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".partial", dir=path.parent)
    neighbour = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        neighbour.replace(path)
    except BaseException:
        neighbour.unlink(missing_ok=True)
        raise


def _read(path: Path) -> bytes | None:
    """The content of a regular file of bounded size; None if there is none."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise ProfileError("it is not a regular file")
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ProfileError(f"it cannot be read ({error.strerror or error})") from error
    if len(raw) > MAX_FILE_BYTES:
        raise ProfileError(f"it has more than {MAX_FILE_BYTES} bytes")
    return raw


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique_pairs, parse_constant=_finite, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"it is not valid JSON ({str(error)[:120]!r})") from error
    if not isinstance(parsed, dict):
        raise ProfileError("it does not hold a JSON object")
    return parsed


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise ValueError("a key stands twice")
    return unique


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is not a finite number")
    return number
