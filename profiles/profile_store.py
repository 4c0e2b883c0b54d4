"""Keeps profiles as JSON files in one folder: one per device, one per pair of models on a device.

A profile is found by names, and believed only if driver and content are the same too; else what has changed is named.
Files may have been damaged or edited by hand: a regular file of bounded size, no key twice, nothing that is not finite.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import TypeVar

from profiles.errors import ProfileError, StaleProfileError, quote
from profiles.files import read_regular_file, replace_content
from profiles.machine_profile import DeviceIdentity, MachineProfile
from profiles.pair_profile import ModelIdentity, PairProfile
from profiles.records import from_record, parse_record, to_record

MAX_FILE_BYTES = 4 << 20
"""A pair's tables by rank and depth take 0.1 MB at 32 ranks and depths."""
_MAX_NAME_LENGTH = 80
_MAX_PAIR_NAME_LENGTH = 160
_DIGEST_LENGTH = 8
_Profile = TypeVar("_Profile", MachineProfile, PairProfile)


def profile_path(folder: Path, device: DeviceIdentity) -> Path:
    """Return where the profile of this device is kept, whatever its driver."""
    return folder / f"machine-{_words(f'{device.device_type} {device.name}', _MAX_NAME_LENGTH)}.json"


def load_machine_profile(folder: Path, device: DeviceIdentity) -> MachineProfile | None:
    """Return the stored profile of this device with this driver, None if there is none.

    Raises StaleProfileError for one of another device or driver, or of an older schema version, ProfileError for a file
    that cannot be read, is of a newer version, or holds nonsense.
    """
    path = profile_path(folder, device)
    profile = _read(path, MachineProfile, what="machine profile", next_step="delete it to measure again")
    if profile is not None and profile.device != device:
        raise StaleProfileError(
            f"{path} was measured on {profile.device}, but this is {device}; delete it to measure again"
        )
    return profile


def pair_profile_path(folder: Path, *, device: DeviceIdentity, target: ModelIdentity, draft: ModelIdentity) -> Path:
    """Return where the profile of these models on this device is kept, whatever their content and the driver."""
    names = [target.name, target.held, draft.name, draft.held, device.device_type, device.name]
    # Names that differ only in what a file name cannot hold, or beyond its length, still have files of their own.
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:_DIGEST_LENGTH]
    return folder / f"pair-{_words(' '.join(names), _MAX_PAIR_NAME_LENGTH)}-{digest}.json"


def load_pair_profile(
    folder: Path, *, device: DeviceIdentity, target: ModelIdentity, draft: ModelIdentity, compute_dtype: str
) -> PairProfile | None:
    """Return the stored profile of exactly these models on this device with this driver, None if there is none.

    Raises StaleProfileError if what it was measured with has changed, ProfileError as `load_machine_profile` does.
    """
    path = pair_profile_path(folder, device=device, target=target, draft=draft)
    next_step = "`overstory calibrate` measures it again"
    profile = _read(path, PairProfile, what="profile of this pair", next_step=next_step)
    if profile is None:
        return None
    # Models by content and format alone: one that was only renamed is the same model.
    compared = (
        ("the device", _without_driver(profile.device), _without_driver(device)),
        ("the driver", profile.device.driver_version, device.driver_version),
        ("the content of the target", profile.target.content_digest, target.content_digest),
        ("the weight format of the target", profile.target.held, target.held),
        ("the content of the draft", profile.draft.content_digest, draft.content_digest),
        ("the weight format of the draft", profile.draft.held, draft.held),
        ("the compute dtype", profile.compute_dtype, compute_dtype),
    )
    changes = [f"{what} was {quote(was)} and is {quote(now)} now" for what, was, now in compared if was != now]
    if changes:
        raise StaleProfileError(f"{path} no longer describes this pair: {', and '.join(changes)}; {next_step}")
    return profile


def save_profile(folder: Path, profile: MachineProfile | PairProfile) -> Path:
    """Replace the profile of this device or pair in one step and return its path; make the folder if need be.

    Raises ProfileError if a figure is nonsense, or the file system refused; an older profile is still there as it was.
    """
    if isinstance(profile, MachineProfile):
        path = profile_path(folder, profile.device)
    else:
        path = pair_profile_path(folder, device=profile.device, target=profile.target, draft=profile.draft)
    record = to_record(profile)
    try:
        from_record(type(profile), record)
    except ProfileError as error:
        raise ProfileError(
            f"{path} is not written, since it could not be read again: {error}; measure again"
        ) from error
    content = json.dumps(record, indent=2) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_content(path, content.encode())
    except OSError as error:
        raise ProfileError(
            f"{path} cannot be written ({error.strerror or error}); make room, or choose a folder that is writable"
        ) from error
    return path


def _without_driver(device: DeviceIdentity) -> str:
    return f"{device.name} ({device.device_type})"


def _words(name: str, max_length: int) -> str:
    """Return what a file name can hold of `name`, on any system."""
    return "-".join(re.findall("[a-z0-9]+", name.lower()))[:max_length]


def _read(path: Path, kind: type[_Profile], *, what: str, next_step: str) -> _Profile | None:
    """Return the profile in a file, None if there is no file. Raises ProfileError, which says what to do next."""
    try:
        return from_record(kind, parse_record(read_regular_file(path, max_bytes=MAX_FILE_BYTES)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, ProfileError) as error:
        reason = f"it cannot be read ({error.strerror or error})" if isinstance(error, OSError) else error
        problem = type(error) if isinstance(error, ProfileError) else ProfileError
        raise problem(f"{path} is not a usable {what}: {reason}; {next_step}") from error
