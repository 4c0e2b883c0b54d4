"""Machines and plans for the tests of `plan`: built-in ones, and one of round numbers."""

from runtime.fit.device_speed import Basis, DeviceSpeed, Rate
from runtime.fit.place import MachineMemory
from runtime.fit.plan_machine import PlanMachine, reference_plan_machine
from runtime.fit.plan_maker import make_plan
from runtime.fit.plan_question import PlanRequest, resolve_question
from tests.support.fit_needs import GB


def device_speed(**fields):
    """A gigaweight a second in every format, a teraflop, a gigabyte a second."""
    names = ("bfloat16", "float16", "float32", "int8", "nf4")
    given = {
        "target_weights_per_second": dict.fromkeys(names, 1e9),
        "draft_weights_per_second": dict.fromkeys(("stored", "int8", "nf4"), 1e9),
        "flops": 1e12,
        "memory_bytes_per_second": 1e9,
        "basis": Basis.MEASURED,
        "source": "made up",
    }
    return DeviceSpeed(**given | fields)


def plan_machine(**fields):
    """A card of 16 GB, a host of 32 GB, a link of 10 GB/s and a disk of 1 GB/s."""
    given = {
        "name": "Some Card",
        "memory": MachineMemory(
            host_total_bytes=32 * GB, host_free_bytes=32 * GB, device_total_bytes=16 * GB, device_free_bytes=16 * GB
        ),
        "link": Rate(10e9, Basis.MEASURED, "just now"),
        "disk": Rate(1e9, Basis.MEASURED, "just now"),
        "speed": device_speed(),
    }
    return PlanMachine(**given | fields)


def processor(**fields):
    """A machine of 32 GB without a card."""
    memory = MachineMemory(host_total_bytes=32 * GB, host_free_bytes=32 * GB)
    return plan_machine(**{"memory": memory, "link": None, "speed": device_speed(compute_item_bytes=4)} | fields)


def planned(machine="l40", *, device_bytes=None, host_bytes=None, **request):
    """The plan for a built-in machine by its name, or for a made one."""
    found = reference_plan_machine(machine) if isinstance(machine, str) else machine
    found = found.with_memory(device_bytes=device_bytes, host_bytes=host_bytes)
    return make_plan(resolve_question(PlanRequest(**request)), found)
