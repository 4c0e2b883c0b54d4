from dataclasses import replace

import pytest

from runtime.fit.advice import advise
from runtime.fit.machine import free_bytes_for
from runtime.fit.place import place
from tests.support.fit_needs import GB, machine, round_need, with_free_host

FIXED = GB + 4001 * 10**6
"""Of `round_need()`: embeddings and the cache of 4001 tokens."""


def words(need, found):
    return [change.words for change in advise(need, found).changes]


def test_what_fits_needs_no_change():
    report = advise(round_need(), machine(host=60 * GB))
    assert report.placement.runs_well and report.changes == ()
    assert report.sentence == "fits: every layer stays in memory (45.0 GB of 60.0 GB)"


def test_layers_in_host_memory_are_said():
    report = advise(round_need(), machine(host=36 * GB, device=FIXED + 12 * GB))
    assert report.sentence == (
        "fits: 1 of 10 layers stay on the device (17.0 GB of 17.0 GB) and 36.0 GB wait in host memory"
    )


def test_the_nearest_format_is_named_with_what_the_others_lack():
    report = advise(round_need(), machine(host=11 * GB, device=FIXED + 8 * GB))
    assert report.placement.can_run and not report.placement.runs_well
    assert report.sentence == (
        "bfloat16 would need 44.0 GB of host memory, int8 18.0 GB; you have 15.0 GB, "
        "so nf4 (5.00 GB) is the nearest that fits; as it is, every pass reads 32.0 GB from disk"
    )
    assert [change.kind for change in report.changes] == ["format", "memory"]
    assert words(round_need(), machine(host=15 * GB, device=FIXED + 8 * GB))[:2] == ["int8 (18.0 GB)", "nf4 (5.00 GB)"]


def test_a_format_fits_at_exactly_its_bytes():
    """int8 keeps two layers on the device beside its ring, so 16 GB wait in host memory, beside its stages."""
    need, device = round_need(), FIXED + 8 * GB
    as_int8 = need.in_format("int8")
    exact = machine(host=0, device=device)
    exact = replace(exact, host_free_bytes=free_bytes_for(16 * GB, is_pinned=True) + as_int8.stage_bytes)
    assert words(need, exact)[0] == "int8 (18.0 GB)"
    assert words(need, replace(exact, host_free_bytes=exact.host_free_bytes - 1))[0] == "nf4 (5.00 GB)"


def test_on_a_cpu_all_memory_is_one():
    report = advise(round_need(), machine(host=30 * GB))
    assert report.sentence == (
        "bfloat16 would need 45.0 GB of memory; you have 30.0 GB, so int8 (25.0 GB) is the nearest that fits; "
        "as it is, every pass reads 24.0 GB from disk"
    )


def test_a_shorter_context_is_nearer_than_another_format():
    found = machine(host=43 * GB)
    assert words(round_need(), found)[:2] == ["--context 1792", "int8 (25.0 GB)"]
    assert place(round_need(context_tokens=1792), found).runs_well
    assert not place(round_need(context_tokens=1792 + 256), found).runs_well


def test_a_context_of_less_than_512_is_not_proposed():
    assert "--context 512" in words(round_need(), machine(host=41 * GB + 513 * 10**6))
    assert not any("--context" in text for text in words(round_need(), machine(host=41 * GB + 513 * 10**6 - 1)))


def test_a_draft_that_is_too_large_may_be_smaller_or_none():
    need = round_need(draft_gb=6, context_tokens=600)
    found = machine(host=40 * GB, device=8 * GB + GB + 700 * 10**6 + 2_500 * 10**6)
    report = advise(need, found)
    assert not report.placement.can_run
    assert [change.words for change in report.changes[:3]] == [
        "int8 (11.7 GB)",
        "nf4 (9.70 GB)",
        "a draft of at most 2.50 GB (or --draft none)",
    ]
    for megabytes, can_run in ((2_500, True), (2_501, False)):
        smaller = replace(need, draft=replace(need.draft, num_bytes=megabytes * 10**6))
        assert place(smaller, found).can_run == can_run


def test_where_no_draft_fits_only_none_is_proposed():
    need = round_need(draft_gb=50, context_tokens=600)
    found = machine(host=40 * GB, device=8 * GB + GB + 601 * 10**6)
    report = advise(need, found)
    assert report.sentence == (
        "bfloat16 would need 59.7 GB of device memory; you have 9.60 GB, so --draft none is the nearest that fits"
    )
    assert report.changes[0].kind == "draft"


def test_changes_are_combined_where_none_alone_is_enough():
    need = round_need(draft_gb=50)
    report = advise(need, machine(host=9 * GB, device=FIXED + 3 * GB))
    assert report.changes[0].words == "nf4 with --draft none"
    assert report.changes[0].kind == "combined" and report.changes[0].placement.runs_well
    short = advise(need, machine(host=9 * GB, device=GB + 513 * 10**6 + 2 * GB))
    assert short.changes[0].words == "nf4 with --draft none and --context 512"


def test_a_change_that_only_lets_it_run_says_what_a_pass_costs_and_the_better_one_follows():
    need = round_need(draft_gb=50)
    report = advise(need, machine(host=10 * GB, device=FIXED + 8 * GB))
    assert report.sentence.endswith(
        "so --draft none is the nearest that fits (every pass would then read 32.0 GB from disk)"
    )
    assert report.changes[1].words == "nf4 with --draft none" and report.changes[1].placement.runs_well


@pytest.mark.parametrize(
    ("found", "unit"),
    [
        (machine(host=3 * GB), "memory"),
        (machine(host=15 * GB, device=FIXED + 8 * GB), "host memory"),
        (machine(host=50 * GB, device=2 * GB), "device memory"),
        (machine(host=0, device=0), "device memory"),
    ],
)
def test_the_memory_that_is_missing_would_be_enough(found, unit):
    need = round_need()
    change = advise(need, found).changes[-1]
    assert change.kind == "memory" and change.words.endswith(f"more {unit}")
    assert change.placement.can_run and (change.placement.runs_well or not advise(need, found).placement.can_run)


def test_one_megabyte_less_than_what_is_missing_would_not_be_enough():
    need, found = round_need(), machine(host=38 * GB)
    text = advise(need, found).changes[-1].words
    more = round(float(text.split()[0]) * GB)
    assert advise(need, with_free_host(found, more)).placement.runs_well
    assert not advise(need, with_free_host(found, more - 10**8)).placement.runs_well


def test_where_only_more_memory_helps_that_is_said():
    report = advise(round_need(), machine(host=2 * GB))
    assert [change.kind for change in report.changes] == ["memory"]
    assert report.sentence == (
        "bfloat16 would need 13.0 GB of memory; you have 2.00 GB, so it takes 11.4 GB more memory "
        "(every pass would then read 40.0 GB from disk)"
    )


def test_a_budget_that_is_too_small_is_the_first_thing_to_change():
    found = machine(host=60 * GB, budget=6 * GB)
    report = advise(round_need(), found)
    assert report.sentence == (
        "bfloat16 would need 13.0 GB of memory; the budget is 6.00 GB, so --device-memory 13.1GB is the nearest that "
        "fits (every pass would then read 40.0 GB from disk)"
    )
    assert words(round_need(), machine(host=60 * GB, budget=20 * GB))[0] == "leaving out --device-memory"


def test_a_budget_of_more_than_there_is_is_left_out():
    report = advise(round_need(), machine(host=20 * GB, budget=44 * GB))
    assert report.changes[0].words == "leaving out --device-memory" and not report.placement.can_run


def test_a_disk_that_is_too_small_is_named():
    need = round_need(file_gb=41)
    report = advise(need, machine(host=60 * GB, disk=15 * GB))
    assert report.sentence == (
        "bfloat16 would need 41.0 GB of disk, int8 62.0 GB; you have 15.0 GB, so nf4 (11.0 GB) is the nearest that fits"
    )
    assert report.changes[-1].words == "26.0 GB more free disk"


def test_a_shortage_of_a_few_bytes_is_not_printed_as_none():
    report = advise(round_need(), machine(host=FIXED + 40 * GB - 3))
    assert "you have 45.0 GB (3 bytes less)" in report.sentence


def test_an_emulated_link_lacks_host_memory():
    report = advise(round_need(), machine(host=40 * GB, link=True))
    assert "bfloat16 would need 40.0 GB of host memory" in report.sentence
    assert report.changes[-1].kind == "memory" and report.changes[-1].placement.runs_well
