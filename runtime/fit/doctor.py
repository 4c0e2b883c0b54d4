"""What this machine is and can do, and whether a model would run on it, from probes that may each fail.

`examine` asks every probe once, keeps what it answers or the sentence that says why it does not, and holds each model
in each format against the memory found. Knows no device and prints nothing; `machine_probes` is the real machine.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, Protocol, TypeVar

from profiles.errors import OverstoryError
from runtime.fit.fit_check import FitReport, check_fit
from runtime.fit.need import MemoryNeed
from runtime.fit.place import MachineMemory, Placement

SCHEMA_VERSION = 1
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[_Value]):
    """What a probe found, or why it found nothing."""

    value: _Value | None
    """None if it failed."""
    problem: str | None = None
    """One line; None if it did not fail."""


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """One device."""

    address: str
    """As `--device` takes it: cpu, cuda:0."""
    name: str
    """As its maker calls it."""
    free_bytes: int | None
    """Of its memory; None if it does not say."""
    total_bytes: int | None
    """Of its memory; None if it does not say."""


@dataclass(frozen=True, slots=True)
class LinkRates:
    """How fast bytes reach the device."""

    memory_bytes_per_second: float | None = None
    """From memory to memory, where the CPU is the device."""
    pinned_bytes_per_second: float | None = None
    """From pinned host memory to an accelerator."""
    pageable_bytes_per_second: float | None = None
    """From ordinary host memory to an accelerator."""
    problem: str | None = None
    """Why one of them is missing."""

    @property
    def bytes_per_second(self) -> float | None:
        """The fastest way to an accelerator; None where the CPU is the device."""
        return self.pinned_bytes_per_second or self.pageable_bytes_per_second


@dataclass(frozen=True, slots=True)
class DiskRate:
    """How fast a disk is read."""

    bytes_per_second: float
    """By several threads in large blocks."""
    is_direct: bool
    """Whether the page cache was bypassed; if not, this may be the speed of memory."""
    where: str
    """The file or folder that was read."""


@dataclass(frozen=True, slots=True)
class CacheSpace:
    """A folder that downloads go to."""

    purpose: str
    """Whose it is."""
    folder: str
    """Its path; may not exist yet."""
    free_bytes: int | None
    """Free on its disk; None if the system does not say."""


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Memory as the session would find it, and what limits it."""

    machine: MachineMemory
    """For the fit check."""
    group_left_bytes: int | None
    """What the tightest memory control group leaves; None if there is none."""


class Probes(Protocol):
    """The machine; every method may raise anything."""

    def system(self) -> str:
        """Operating system, and whether it is WSL2."""

    def versions(self) -> Mapping[str, str]:
        """Version by program or package."""

    def devices(self) -> Sequence[DeviceFacts]:
        """Every device, the one that would be used first."""

    def driver(self) -> str:
        """The accelerator's driver."""

    def memory(self) -> HostMemory:
        """Memory of device and host."""

    def pinning(self) -> str:
        """How much host memory can be pinned, in a sentence."""

    def link(self) -> LinkRates:
        """Measured copies to the device."""

    def disk(self) -> DiskRate:
        """Measured reads."""

    def caches(self) -> Sequence[CacheSpace]:
        """Where downloads go."""


@dataclass(frozen=True, slots=True)
class ModelQuestion:
    """A model that might be run here."""

    name: str
    """For the user."""
    draft: str
    """What would draft for it, for the user."""
    need: MemoryNeed
    """What it takes, in the first of its formats."""


@dataclass(frozen=True, slots=True)
class FormatOutlook:
    """How a model would run in one format."""

    format_name: str
    """Of its decoder layers."""
    fit: FitReport
    """Whether it fits, and where the bytes would lie."""
    seconds_per_pass: float | None
    """The least that moving them takes at the measured rates; None if nothing moves, or a rate is missing."""


@dataclass(frozen=True, slots=True)
class ModelOutlook:
    """How a model would run here."""

    name: str
    """For the user."""
    draft: str
    """For the user."""
    context_tokens: int
    """Most tokens of prompt and answer together."""
    formats: tuple[FormatOutlook, ...]
    """The largest first."""

    @property
    def can_run(self) -> bool:
        """Whether it runs in some format."""
        return any(outlook.fit.can_run for outlook in self.formats)


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorReport:
    """Everything that was found."""

    system: Outcome[str]
    """Operating system."""
    versions: Outcome[Mapping[str, str]]
    """Programs and packages."""
    devices: Outcome[Sequence[DeviceFacts]]
    """Devices."""
    driver: Outcome[str]
    """Driver."""
    memory: Outcome[HostMemory]
    """Memory."""
    pinning: Outcome[str]
    """Pinned memory."""
    link: Outcome[LinkRates]
    """Link."""
    disk: Outcome[DiskRate]
    """Disk."""
    caches: Outcome[Sequence[CacheSpace]]
    """Caches."""
    models: tuple[ModelOutlook, ...]
    """One for each question; none where the memory is not known."""

    @property
    def can_run(self) -> bool:
        """Whether every model that was asked about runs in some format, slowly or not."""
        return bool(self.models) and all(model.can_run for model in self.models)

    def to_record(self) -> dict[str, Any]:
        """The report as a JSON object."""
        found = {
            name: asdict(getattr(self, name))
            for name in ("system", "versions", "devices", "driver", "memory", "pinning", "link", "disk", "caches")
        }
        models = [
            {
                "name": model.name,
                "draft": model.draft,
                "context_tokens": model.context_tokens,
                "can_run": model.can_run,
                "formats": [_outlook_record(outlook) for outlook in model.formats],
            }
            for model in self.models
        ]
        return {"schema_version": SCHEMA_VERSION, **found, "models": models, "can_run": self.can_run}


def examine(probes: Probes, questions: Sequence[ModelQuestion]) -> Generator[str, None, DoctorReport]:
    """Ask every probe and return the report; yields what it is about to do before what takes time."""
    system, versions = _attempt(probes.system), _attempt(probes.versions)
    devices, driver, memory = _attempt(probes.devices), _attempt(probes.driver), _attempt(probes.memory)
    yield "asking how much memory can be pinned"
    pinning = _attempt(probes.pinning)
    yield "measuring copies"
    link = _attempt(probes.link)
    yield "measuring the disk"
    disk = _attempt(probes.disk)
    caches = _attempt(probes.caches)
    machine = None if memory.value is None else memory.value.machine
    models = () if machine is None else tuple(_look(question, machine, link, disk) for question in questions)
    return DoctorReport(
        system=system,
        versions=versions,
        devices=devices,
        driver=driver,
        memory=memory,
        pinning=pinning,
        link=link,
        disk=disk,
        caches=caches,
        models=models,
    )


def seconds_per_pass(
    placement: Placement, *, link_bytes_per_second: float | None, disk_bytes_per_second: float | None
) -> float | None:
    """The slower link's time for what crosses it in a pass; None if nothing does, or a rate that counts is unknown.

    Without a link to a device (`link_bytes_per_second` is None), only what is read from disk counts.
    """
    parts: list[float | None] = []
    if placement.disk_bytes:
        parts.append(placement.disk_bytes / disk_bytes_per_second if disk_bytes_per_second else None)
    if placement.streamed_bytes and link_bytes_per_second:
        parts.append(placement.streamed_bytes / link_bytes_per_second)
    known = [part for part in parts if part is not None]
    return max(known) if known and len(known) == len(parts) else None


def _look(
    question: ModelQuestion, machine: MachineMemory, link: Outcome[LinkRates], disk: Outcome[DiskRate]
) -> ModelOutlook:
    outlooks = []
    for layers in question.need.formats:
        fit = check_fit(question.need.in_format(layers.name), machine)
        link_rate = None if link.value is None else link.value.bytes_per_second
        disk_rate = None if disk.value is None else disk.value.bytes_per_second
        has_rates = machine.is_cpu or link_rate is not None
        seconds = None
        if fit.can_run and has_rates:
            seconds = seconds_per_pass(fit.placement, link_bytes_per_second=link_rate, disk_bytes_per_second=disk_rate)
        outlooks.append(FormatOutlook(layers.name, fit, seconds))
    return ModelOutlook(question.name, question.draft, question.need.context_tokens, tuple(outlooks))


def _attempt(probe: Callable[[], _Value]) -> Outcome[_Value]:
    try:
        return Outcome(probe())
    except OverstoryError as error:
        return Outcome(None, " ".join(str(error).split()))
    except Exception as error:  # drivers and libraries raise anything, and what else there is must still be told
        return Outcome(None, " ".join(f"{type(error).__name__}: {error}".split()))


def _outlook_record(outlook: FormatOutlook) -> dict[str, Any]:
    fit = outlook.fit
    return {
        "format": outlook.format_name,
        "can_run": fit.can_run,
        "runs_well": fit.runs_well,
        "bytes_per_pass": fit.placement.streamed_bytes,
        "seconds_per_pass": outlook.seconds_per_pass,
        "placement": fit.placement.to_record(),
        "sentence": fit.sentence,
        "changes": [
            {
                "words": change.words,
                "kind": change.kind,
                "runs_well": change.placement.runs_well,
                "placement": change.placement.to_record(),
            }
            for change in fit.changes
        ],
    }
