"""Machines and plans for the tests of `plan`: built-in ones, and one of round numbers."""

from offload.units import LinkSpeed
from runtime.fit import probes
from runtime.fit.machine import Basis, DeviceSpeed, Link, Machine, reference_machine
from runtime.fit.models import known_shapes
from runtime.fit.plan import make_plan
from runtime.fit.plan_question import resolve_question, under_request
from runtime.fit.request import MachineRequest, PlanRequest
from tests.support.fit_needs import GB

LLAMA_3_70B, LLAMA_3_8B = known_shapes()["Llama-3-70B"], known_shapes()["Llama-3-8B"]

LLAMA_3_8B_CONFIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}


def device_speed(**fields):
    """A gigaweight a second in every format, a teraflop, a gigabyte a second."""
    names = ("bfloat16", "float16", "float32", "int8", "nf4", "packed")
    given = {
        "target_weights_per_second": dict.fromkeys(names, 1e9),
        "draft_weights_per_second": dict.fromkeys(("stored", "int8", "nf4"), 1e9),
        "flops": 1e12,
        "memory_bytes_per_second": 1e9,
        "basis": Basis.MEASURED,
        "source": "made up",
    }
    return DeviceSpeed(**given | fields)


def link_of(bytes_per_second):
    """A link that was measured just now."""
    return Link(LinkSpeed(bytes_per_second), Basis.MEASURED, "just now")


def plan_machine(**fields):
    """A card of 16 GB, a host of 32 GB, a link of 10 GB/s and a disk of 1 GB/s."""
    given = {
        "name": "Some Card",
        "host_total_bytes": 32 * GB,
        "host_free_bytes": 32 * GB,
        "device_free_bytes": 16 * GB,
        "link": link_of(10e9),
        "disk": link_of(1e9),
        "speed": device_speed(),
    }
    return Machine(**given | fields)


def processor(**fields):
    """A machine of 32 GB without a card."""
    none = {"device_free_bytes": None, "link": None}
    return plan_machine(**none | {"speed": device_speed(compute_item_bytes=4)} | fields)


def planned(machine="l40", *, device_bytes=None, host_bytes=None, **request):
    """The plan for a built-in machine by its name, or for a made one; layers as stored, as in all published systems."""
    found = reference_machine(machine) if isinstance(machine, str) else machine
    limits = MachineRequest(device_memory_bytes=device_bytes, host_memory_bytes=host_bytes)
    return make_plan(resolve_question(PlanRequest(**{"pack": "off"} | request)), under_request(found, limits))


def measured_machines(monkeypatch):
    """Put `plan_machine` in the place of this machine; return the device and folder of each measurement to come."""
    seen = []

    def measure(device, *, cache_folder, model_folder):
        seen.append((device, model_folder))
        yield "measuring"
        return plan_machine()

    monkeypatch.setattr(probes, "this_machine", measure)
    return seen
