import json

import pytest

from tests.support.fit_needs import GB
from tests.support.plan_fakes import plan_machine, planned, processor


def test_the_record_is_json_and_says_everything():
    report = planned()
    record = json.loads(json.dumps(report.to_record(), allow_nan=False))
    plan = record["plan"]
    assert record["schema_version"] == 1
    assert (record["machine"], record["target"], record["draft"]) == ("L40", "Llama-3-70B", "Llama-3-8B")
    assert sum(tier["layers"] for tier in plan["tiers"].values()) == 80
    assert plan["bytes_per_pass"] == plan["tiers"]["host"]["bytes"] + plan["tiers"]["disk"]["bytes"]
    assert plan["ring"] == {"slots": 2, "bytes": 2 * 1_711_308_800}
    assert plan["tokens_per_second"] == pytest.approx(1 / plan["seconds_per_token"])
    assert plan["seconds_per_token"] == pytest.approx(plan["round_seconds"] / plan["expected_tokens"])
    assert record["second"]["seconds_per_token"] > plan["seconds_per_token"]
    assert record["plain"]["tree"] == {"nodes": 1, "levels": 1, "is_dynamic": False}
    assert [one["format"] for one in record["other_formats"]] == ["int8", "nf4"]
    for one in record["what_if"]:
        saved = plan["seconds_per_token"] - one["seconds_per_token"]
        assert one["saved_seconds_per_token"] == pytest.approx(saved)
        assert one["saved_percent"] == pytest.approx(100 * saved / plan["seconds_per_token"], abs=1e-5)
    assert {one["what"]: one["basis"] for one in record["rests_on"]} == {
        "link": "published",
        "computing": "data sheet",
        "acceptance": "published",
    }


def test_what_does_not_run_is_a_problem_in_the_record():
    record = planned(plan_machine(disk=None), draft="none", format="nf4", host_bytes=30 * GB).to_record()
    assert set(record["other_formats"][0]) == {"format", "problem"}


def test_the_disk_is_named_only_where_it_is_used():
    used = planned("rtx-4090", target="qwen2.5-32b", host_bytes=16 * GB)
    assert [what for what, _, _ in used.basis_lines] == ["link", "disk", "computing", "acceptance"]


def test_a_processors_disk_is_its_bound_and_its_part():
    record = planned(processor(), target="qwen2.5-32b", draft="none", device_bytes=8 * GB).to_record()["plan"]
    assert record["bound"] == "disk"
    assert record["part_seconds"]["link"] == 0
    assert record["part_seconds"]["disk"] == pytest.approx(record["bytes_per_pass"] / 1e9)
