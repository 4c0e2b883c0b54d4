"""The machine that the program runs on, for `plan`: its memory now, and links and speed as stored or as quickly probed.

A figure that the machine's profile holds is taken from there; what it lacks is measured as `doctor` does. Yields what
it is about to do. Reads no model.
"""

from collections.abc import Callable, Generator
from pathlib import Path

import torch

from offload.device import device_name, identify_device, select_device
from profiles.errors import OverstoryError, ProfileError
from profiles.machine_profile import MachineProfile
from profiles.profile_store import load_machine_profile
from runtime.fit.device_speed import Basis, DeviceSpeed, Rate
from runtime.fit.machine_probes import MachineProbes
from runtime.fit.plan_machine import PlanMachine
from runtime.fit.speed_probe import measure_speed


def this_machine(
    device: str,
    *,
    cache_folder: Path,
    model_folder: Path | None = None,
    measure: Callable[[torch.device], DeviceSpeed] = measure_speed,
) -> Generator[str, None, PlanMachine]:
    """What this machine is; `model_folder` has files that the disk can be measured with.

    Raises:
        BadInputError: there is no such device, or it does not say how much memory it has.
    """
    chosen = select_device(device)
    probes = MachineProbes(chosen, cache_folder, model_folder=model_folder)
    memory = probes.memory().machine
    stored = _stored(chosen, cache_folder)
    yield "measuring copies"
    link = _link(probes, stored)
    yield "measuring the disk"
    disk = _disk(probes, stored)
    yield "measuring products"
    speed = measure(chosen)
    is_cpu = chosen.type == "cpu"
    return PlanMachine(
        name="this machine's processor" if is_cpu else device_name(chosen),
        identity=identify_device(chosen),
        memory=memory,
        link=link,
        link_latency_seconds=(stored.link_latency_seconds or 0.0) if stored is not None and not is_cpu else 0.0,
        disk=disk,
        speed=speed,
    )


def _stored(device: torch.device, folder: Path) -> MachineProfile | None:
    """The machine's profile, if one is stored that still holds."""
    try:
        return load_machine_profile(folder, identify_device(device))
    except ProfileError:
        return None  # of another driver, or damaged: everything is measured


def _link(probes: MachineProbes, stored: MachineProfile | None) -> Rate | None:
    if probes.device.type == "cpu":
        return None
    if stored is not None and stored.link_bytes_per_second is not None:
        return Rate(stored.link_bytes_per_second, Basis.MEASURED, _stored_words(stored))
    rates = probes.link()
    if rates.bytes_per_second is None:
        raise OverstoryError(f"the link to {probes.device} could not be measured; give its rate with --link")
    kind = "pinned" if rates.pinned_bytes_per_second else "pageable"
    return Rate(rates.bytes_per_second, Basis.MEASURED, f"copies from {kind} memory just now")


def _disk(probes: MachineProbes, stored: MachineProfile | None) -> Rate | None:
    if stored is not None and stored.disk_bytes_per_second is not None:
        return Rate(stored.disk_bytes_per_second, Basis.MEASURED, _stored_words(stored))
    try:
        rate = probes.disk()
    except (OverstoryError, OSError):  # no room for the sample, or not ours to write
        return None
    way = "past the page cache" if rate.is_direct else "through the page cache"
    return Rate(rate.bytes_per_second, Basis.MEASURED, f"reads {way} just now")


def _stored_words(stored: MachineProfile) -> str:
    return f"machine profile of {stored.measured_at.isoformat()}"
