import pytest

from profiles.errors import ProfileError
from runtime.errors import OptionError
from runtime.fit import this_machine
from runtime.fit.machine_request import MachineRequest, find_machine
from tests.support.doctor_fakes import finished
from tests.support.fit_needs import GB
from tests.support.plan_fakes import plan_machine


def find(tmp_path, **fields):
    return finished(find_machine(MachineRequest(**fields), cache_folder=tmp_path))


def test_a_built_in_machine_measures_nothing(tmp_path):
    machine, said = find(tmp_path, name="l40")
    assert (machine.name, said, list(tmp_path.iterdir())) == ("L40", [], [])


def test_budgets_and_rates_are_applied(tmp_path):
    machine, _ = find(tmp_path, name="l40", device_memory="8GB", host_memory="64GB", link="5GB/s,10us", disk="7GB/s")
    assert (machine.memory.device_budget_bytes, machine.memory.host_budget_bytes) == (8 * GB, 64 * GB)
    assert (machine.links.link_bytes_per_second, machine.links.disk_bytes_per_second) == (5e9, 7e9)
    assert find(tmp_path, name="l40", device_memory="min")[0].memory.device_budget_bytes == 0


def test_this_machine_is_measured(tmp_path, monkeypatch):
    seen = []

    def measure(device, *, cache_folder, model_folder):
        seen.append((device, cache_folder, model_folder))
        yield "measuring"
        return plan_machine()

    monkeypatch.setattr(this_machine, "this_machine", measure)
    machine, said = find(tmp_path, device="xpu:1", link="3GB/s")
    assert (machine.name, said, seen) == ("Some Card", ["measuring"], [("xpu:1", tmp_path, None)])
    assert machine.links.link_bytes_per_second == 3e9


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "l40", "device": "cuda:0"}, "--device is of this machine"),
        ({"device_memory": "much"}, "--device-memory"),
        ({"host_memory": "-3"}, "--host-memory"),
        ({"link": "fast"}, "--link"),
        ({"disk": "0GB/s"}, "--disk"),
    ],
)
def test_nonsense_names_its_option(fields, words):
    with pytest.raises(OptionError, match=words):
        MachineRequest(**fields)


def test_an_unknown_machine_is_refused(tmp_path):
    with pytest.raises(ProfileError, match="not a built-in machine"):
        find(tmp_path, name="z80")
