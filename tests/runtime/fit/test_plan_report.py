import json

import pytest

from offload.units import format_bytes
from runtime.fit.plan_report import QUALITY
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
        "device memory": "assumed",
        "link": "published",
        "computing": "data sheet",
        "acceptance": "published",
        "trees": "carried over",
    }


def test_what_does_not_run_is_a_problem_in_the_record():
    record = planned(plan_machine(disk=None), draft="none", format="nf4", host_bytes=30 * GB).to_record()
    assert set(record["other_formats"][0]) == {"format", "problem"}


def test_the_disk_is_named_only_where_it_is_used():
    used = planned("rtx-4090", target="qwen2.5-32b", host_bytes=16 * GB)
    what_it_rests_on = ["device memory", "link", "disk", "computing", "acceptance", "trees"]
    assert [what for what, _, _ in used.basis_lines] == what_it_rests_on


def test_a_processors_disk_is_its_bound_and_its_part():
    record = planned(processor(), target="qwen2.5-32b", draft="none", device_bytes=8 * GB).to_record()["plan"]
    assert record["bound"] == "disk"
    assert record["part_seconds"]["link"] == 0
    assert record["part_seconds"]["disk"] == pytest.approx(record["bytes_per_pass"] / 1e9)


def test_streaming_is_called_wrong_where_a_smaller_format_fits_whole_and_is_faster():
    report = planned("rtx-4090", target="qwen2.5-32b")
    whole = report.others["nf4"]
    assert report.main.streams and not whole.streams
    times = report.main.seconds_per_token / whole.seconds_per_token
    assert report.verdicts[0].startswith("Streaming bfloat16 is the wrong choice here: nf4 fits whole on the device (")
    assert f"{times:.3g} times as fast; perplexity +2.5 % (measured on a 1.5B model)." in report.verdicts[0]


def test_of_two_formats_that_fit_whole_the_larger_is_proposed():
    report = planned("rtx-4090", target="qwen2.5-14b", draft="none")
    assert "int8 fits whole" in report.verdicts[0] and "perplexity +0.05 %" in report.verdicts[0]


def test_a_faster_format_that_streams_too_is_only_mentioned():
    report = planned(device_bytes=0)
    assert report.verdicts[0].startswith("nf4 would run at ")
    assert "wrong choice" not in report.verdicts[0]


def test_a_format_that_fits_but_is_no_faster_is_no_advice():
    """A pass over bf16 that mostly stays is shorter than widening int8."""
    report = planned("rtx-4060-ti-16gb", target="qwen2.5-7b", draft_format="stored", device_bytes=15 * GB)
    assert report.main.streams and not any(one.streams for one in report.others.values())
    assert report.verdicts == ()


def test_what_fits_whole_does_not_stream():
    first, second = planned("l40", target="llama-3-8b").verdicts[:2]
    assert first == "Nothing streams: every layer stays on the device."
    assert second.startswith(
        "Where nothing streams llama.cpp is at least as fast: llama-server -m MODEL.gguf -ngl 999, "
    )
    assert "vllm serve meta-llama/Meta-Llama-3-8B-Instruct" in second


def test_a_mix_says_what_it_costs_by_its_makers_list_and_what_was_not_measured():
    notes = planned("rtx-4090", target="llama-3.3-70b:q4_k_m").notes
    assert any("perplexity +0.1754 on Llama-3-8B (by llama.cpp's own list)" in note for note in notes)
    assert any(note.startswith("products of Q4_K_M were not measured") for note in notes)
    assert not any("perplexity" in note for note in planned("rtx-4090", target="llama-3.3-70b:awq").notes)


def test_reading_from_disk_is_said():
    report = planned(processor(), target="qwen2.5-14b", draft="none", device_bytes=16 * GB)
    assert any(words.startswith("Every pass reads ") for words in report.verdicts)


def test_the_quality_of_a_chosen_format_is_said():
    assert f"nf4 instead of bfloat16: {QUALITY['nf4']} (measured on a 1.5B model)." in planned(format="nf4").verdicts


def test_the_qualities_are_those_of_the_measured_perplexities():
    bf16, int8, nf4 = 29.503, 29.518, 30.254
    assert {
        "int8": f"perplexity {100 * (int8 / bf16 - 1):+.2f} %",
        "nf4": f"perplexity {100 * (nf4 / bf16 - 1):+.1f} %",
    } == QUALITY


def test_whether_int8_keys_and_values_change_anything_is_said():
    question = {"target": "llama-3.3-70b", "draft": "none", "format": "nf4", "context_tokens": 32768}
    told = {}
    for kv_cache, kv_format in (("host", "exact"), ("host", "int8"), ("device", "int8")):
        report = planned("rtx-4090", **question, kv_cache=kv_cache, kv_format=kv_format, device_bytes=20 * GB)
        notes = [note for note in report.notes if "keys and values" in note]
        told[kv_cache, kv_format] = report.main.to_record()["kv_cache"]["format"], notes
    assert told == {
        ("host", "exact"): ("exact", []),
        ("host", "int8"): ("int8", ["keys and values that travel are int8, with which the text may differ"]),
        ("device", "int8"): ("exact", ["no keys and values travel, so that --kv-format int8 does nothing"]),
    }


def test_assumptions_are_noted():
    report = planned()
    notes, waiting = report.notes, format_bytes(report.main.placement.host_bytes)
    assert notes[0] == "speeds are those of a text of 2048 tokens"
    assert any(f"host memory is assumed to hold the {waiting}" in note for note in notes)
    assert any("a quantized one is accepted a little less often" in note for note in notes)
    slow = {"target": "llama-2-70b", "temperature": 0.6, "draft_format": "stored"}
    assert any(note.endswith("keeps memory for, 1024 nodes") for note in planned("rtx-4090", **slow).notes)
    assert not any("1024 nodes" in note for note in planned("rtx-4090", **slow, tree="1024x17").notes)
    plain = planned(plan_machine(), target="qwen2.5-7b", draft="none").notes
    assert len(plain) == 1
