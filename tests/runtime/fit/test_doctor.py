import json

import pytest

from offload.errors import LinkError
from runtime.fit.doctor import LinkRates, examine, seconds_per_pass
from runtime.fit.place import place
from tests.support.doctor_fakes import PROBES, FakeProbes, finished, question
from tests.support.fit_needs import GB, machine, round_need

FIXED = 5_001 * 10**6


def examined(probes, *questions):
    return finished(examine(probes, questions or [question()]))[0]


def test_every_probe_is_asked_once_and_what_takes_time_is_announced():
    probes = FakeProbes()
    report, steps = finished(examine(probes, [question()]))
    assert sorted(probes.asked) == sorted(PROBES)
    assert all(getattr(report, name).problem is None for name in PROBES)
    assert steps == ["asking how much memory can be pinned", "measuring copies", "measuring the disk"]


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("error", [LinkError("the disk\nis gone"), OSError("the disk is gone"), AttributeError("x")])
def test_a_probe_that_fails_costs_only_its_own_line(name, error):
    report = examined(FakeProbes(failures={name: error}))
    failed = getattr(report, name)
    assert failed.value is None and "\n" not in failed.problem
    assert failed.problem in ("the disk is gone", "OSError: the disk is gone", "AttributeError: x")
    assert all(getattr(report, other).problem is None for other in PROBES if other != name)
    assert len(report.models) == (0 if name == "memory" else 1)


def test_ctrl_c_is_no_failing_probe():
    with pytest.raises(KeyboardInterrupt):
        examined(FakeProbes(failures={"disk": KeyboardInterrupt()}))


def test_nothing_can_be_promised_where_every_probe_fails():
    report = examined(FakeProbes(failures={name: RuntimeError("no") for name in PROBES}))
    assert not report.can_run
    assert json.loads(json.dumps(report.to_record()))["can_run"] is False


def test_a_model_is_held_against_the_machine_in_each_format():
    (model,) = examined(FakeProbes()).models
    assert [(one.format_name, one.fit.can_run, one.fit.runs_well) for one in model.formats] == [
        ("bfloat16", True, False),
        ("int8", True, False),
        ("nf4", True, True),
    ]
    assert model.can_run


def test_one_format_that_runs_is_enough_and_none_is_not():
    assert examined(FakeProbes(found=machine(host=GB, device=FIXED + 2 * GB))).can_run  # nf4's ring alone
    assert not examined(FakeProbes(found=machine(host=GB, device=FIXED + 2 * GB - 1))).can_run
    assert not examined(FakeProbes(), question(), question(context_tokens=10**6)).can_run  # each model counts


def test_a_pass_takes_the_slower_links_time():
    placement = place(round_need(), machine(host=24 * GB, device=FIXED + 12 * GB))
    assert (placement.host_bytes, placement.disk_bytes) == (24 * GB, 12 * GB)
    for link, disk, expected in [(36e9, 12e9, 1.0), (36e9, 2e9, 6.0), (9e9, 12e9, 4.0)]:
        assert seconds_per_pass(placement, link_bytes_per_second=link, disk_bytes_per_second=disk) == expected
    assert seconds_per_pass(placement, link_bytes_per_second=36e9, disk_bytes_per_second=None) is None


def test_on_a_cpu_only_the_disk_is_a_link():
    placement = place(round_need(), machine(host=FIXED + 12 * GB))
    assert seconds_per_pass(placement, link_bytes_per_second=None, disk_bytes_per_second=9e9) == 36 / 9
    resident = place(round_need(), machine(host=60 * GB))
    assert seconds_per_pass(resident, link_bytes_per_second=None, disk_bytes_per_second=9e9) is None


def test_seconds_come_from_the_rates_that_were_measured():
    def seconds(probes):
        return [one.seconds_per_pass for one in examined(probes).models[0].formats]

    assert seconds(FakeProbes()) == [32 / 2, 2 / 2, 4 / 20]
    without_disk = seconds(FakeProbes(failures={"disk": OSError("x")}))
    assert without_disk[:2] == [None, None] and without_disk[2] is not None
    assert seconds(FakeProbes(failures={"link": OSError("x")})) == [None, None, None]
    pageable = FakeProbes(link_rates=LinkRates(pageable_bytes_per_second=5e9, problem="refused"))
    assert seconds(pageable)[2] == pytest.approx(4 * seconds(FakeProbes())[2])


def test_the_record_is_json_with_all_that_was_found():
    record = json.loads(json.dumps(examined(FakeProbes(failures={"driver": OSError("none")})).to_record()))
    assert record["schema_version"] == 1 and record["can_run"] is True
    assert record["driver"] == {"value": None, "problem": "OSError: none"}
    assert record["disk"]["value"]["bytes_per_second"] == 2e9
    (model,) = record["models"]
    bfloat16 = model["formats"][0]
    assert bfloat16["placement"]["disk_bytes"] > 0 and not bfloat16["runs_well"]
    assert bfloat16["changes"][0]["kind"] == "format" and bfloat16["sentence"].startswith("bfloat16 would need")
