"""Which machine `plan` is asked about, as typed: a built-in one or this one, under the user's own limits and rates.

Knows no torch until this machine is to be measured.
"""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from offload.units import parse_link
from profiles.errors import BadInputError
from runtime.engine_config import parse_memory
from runtime.errors import OptionError
from runtime.fit.plan_machine import PlanMachine, reference_plan_machine


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRequest:
    """The choices as typed; raises OptionError for a value outside its range."""

    name: str | None = None
    """A built-in machine; None is this one."""
    device: str = "auto"
    """Of this machine."""
    device_memory: str | None = None
    """Budget as in `2.2GB`, or `min`; None is what is free."""
    host_memory: str | None = None
    """Budget for layers that wait; None is what is free."""
    link: str | None = None
    """Rate and latency as in `25GB/s,10us`; None is the machine's own."""
    disk: str | None = None
    """Rate as in `3.5GB/s`; None is the machine's own."""

    def __post_init__(self) -> None:
        if self.name is not None and self.device != "auto":
            raise OptionError("--device is of this machine; leave out --machine or --device")
        for option, text in (("--device-memory", self.device_memory), ("--host-memory", self.host_memory)):
            if text is not None:
                parse_memory(text, option)
        for option, text in (("--link", self.link), ("--disk", self.disk)):
            if text is not None:
                try:
                    parse_link(text)
                except BadInputError as error:
                    raise OptionError(f"{option}: {error}") from error


def find_machine(
    request: MachineRequest, *, cache_folder: Path, model_folder: Path | None = None
) -> Generator[str, None, PlanMachine]:
    """The machine that is asked about; yields what it is about to measure. `model_folder` is read to time the disk.

    Raises:
        ProfileError: there is no built-in machine of that name.
        BadInputError: this machine has no such device, or a device that does not say how much memory it has.
    """
    if request.name is not None:
        machine = reference_plan_machine(request.name)
    else:
        from runtime.fit.this_machine import this_machine

        machine = yield from this_machine(request.device, cache_folder=cache_folder, model_folder=model_folder)
    if request.link is not None:
        machine = machine.with_link(parse_link(request.link))
    if request.disk is not None:
        machine = machine.with_disk(parse_link(request.disk))
    device, host = request.device_memory, request.host_memory
    return machine.with_memory(
        device_bytes=None if device is None else parse_memory(device, "--device-memory"),
        host_bytes=None if host is None else parse_memory(host, "--host-memory"),
    )
