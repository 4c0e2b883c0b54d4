"""A machine of round numbers for the tests of `doctor`, each of whose probes can be made to fail."""

from dataclasses import dataclass, field, replace

from offload.units import LinkSpeed
from runtime.fit.doctor import ModelOutlook
from runtime.fit.machine import Basis, Link, Machine
from runtime.fit.probes import CacheSpace, DeviceFacts
from tests.support.fit_needs import GB, machine, round_need
from tests.support.generator_ends import drained
from tests.support.plan_fakes import device_speed

PROBES = (
    "system",
    "versions",
    "devices",
    "driver",
    "memory",
    "pinning",
    "link",
    "disk",
    "computing",
    "caches",
    "setup",
)
SMALL_GPU = machine(host=11 * GB, device=13_001 * 10**6, disk=100 * GB)
"""On which bfloat16 and int8 of `round_need()` stream from disk and nf4 runs well."""


def link(bytes_per_second, source):
    """A link as a probe finds it."""
    return Link(LinkSpeed(bytes_per_second), Basis.MEASURED, source)


PINNED, PAGEABLE = link(20e9, "from pinned host memory"), link(5e9, "from pageable host memory")


@dataclass
class FakeProbes:
    """Answers from fields; raises `failures[name]` instead where there is one."""

    found: Machine = SMALL_GPU
    links_found: tuple[Link, ...] = (PINNED, PAGEABLE)
    hints: tuple[str, ...] = ()
    failures: dict[str, Exception] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def _answer(self, name, value):
        self.asked.append(name)
        if name in self.failures:
            raise self.failures[name]
        return value

    def system(self):
        return self._answer("system", "Linux 6.1 (x86_64), WSL2")

    def versions(self):
        return self._answer("versions", {"python": "3.12.1", "torch": "2.13.0 (CUDA 13.0)"})

    def setup(self):
        return self._answer("setup", list(self.hints))

    def devices(self):
        gpu = DeviceFacts("xpu:0", "Some Card", 13 * GB, 16 * GB)
        return self._answer("devices", [gpu, DeviceFacts("cpu", "Some Processor, 8 cores", None, None)])

    def driver(self):
        return self._answer("driver", "SomeDriver 1.2.3")

    def memory(self):
        return self._answer("memory", replace(self.found, group_left_bytes=12 * GB))

    def pinning(self):
        return self._answer("pinning", "800 MB of host memory can be pinned")

    def speed(self):
        return self._answer("computing", device_speed())

    def links(self):
        return self._answer("link", list(self.links_found))

    def disk(self):
        return self._answer("disk", link(2e9, "past the page cache, in /models/x"))

    def caches(self):
        return self._answer("caches", [CacheSpace("overstory", "/cache/overstory", 100 * GB)])


def question(name="Some-70B", **need):
    """A model of `round_need(...)`."""
    return ModelOutlook(name, "none", round_need(**need))


def finished(steps):
    """What a generator of steps returns, and the steps."""
    said, returned = drained(steps)
    return returned, said
