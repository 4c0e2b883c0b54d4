import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from offload.errors import BudgetError
from profiles.builtin_profiles import builtin_pairs
from runtime.errors import OptionError
from runtime.fit.machine import Basis, reference_machine
from runtime.fit.plan import PlacedPlan, _Planning, make_plan, planned_acceptance
from runtime.fit.plan_question import resolve_question
from runtime.fit.plan_report import PlanOption
from runtime.fit.request import PlanRequest
from runtime.speculation.acceptance import builtin_acceptance
from tests.support.fit_needs import GB, layers_of
from tests.support.plan_fakes import device_speed, link_of, plan_machine, planned, processor
from tests.support.profile_factory import PAIR
from tests.support.published_pairs import published_pair

SEQUOIA = published_pair("llama-3-70b-8b")


def option(report, format_name):
    return report.others[format_name]


def test_the_published_plain_pass_on_the_l40():
    """5.5 s a pass published, and DeepSpeed's 5.7 s/token: nothing resident, as in both."""
    report = planned(device_bytes=0, draft="none")
    assert report.main.seconds_per_token == pytest.approx(SEQUOIA.verify_seconds_by_size[1], rel=0.02)
    assert report.main.tree.bound == "link"


@pytest.mark.parametrize("format_name", ["bfloat16", "fp8", "Q4_K_M"])
def test_the_hybrid_that_most_people_would_run_has_a_plan_on_every_card(format_name):
    """With a draft that is one too; states and rows of 256 nodes and more beside two layers are what 8 GB hold."""
    target = "qwen3.6-27b" if format_name == "bfloat16" else f"qwen3.6-27b:{format_name}"
    seconds = []
    for device_gb in (8, 12, 16, 24):
        report = planned("rtx-4090", target=target, device_bytes=device_gb * GB)
        seconds.append(report.main.seconds_per_token)
    assert all(more < 1.001 * less for less, more in pairwise(seconds)) and seconds[0] < 0.3


def test_the_published_round_on_the_l40():
    """768 x 18 took 6.0 to 6.2 s, nothing resident, with the draft in bf16 as all published ones are."""
    report = planned(device_bytes=0, tree="768x18", draft_format="stored")
    assert 6.0 <= report.main.tree.round_seconds <= 6.2
    assert report.main.tree.expected_tokens == pytest.approx(8.3377, abs=1e-3)  # of the reference implementation


def test_the_published_speed_on_the_l40():
    """0.60 s/token published; ours keeps 19 layers resident but expects 8.4 tokens where MT-Bench gave 11.7."""
    published = next(row for row in SEQUOIA.published if row.system == "Sequoia" and row.temperature == 0.0)
    asked = {"draft_format": "stored", "tree": "static"}  # as published
    assert planned(**asked).main.seconds_per_token == pytest.approx(published.seconds_per_token, rel=0.1)
    nothing_resident = planned(device_bytes=0, **asked).main.seconds_per_token
    assert nothing_resident == pytest.approx(published.seconds_per_token, rel=0.25)


def test_the_published_speeds_on_the_rtx_4090():
    """0.57 s/token, and 4.54 without speculation, where 11 layers stay: Llama-2-70B with its 7B at 0.6.

    Their texts were short. Memory that is kept here for CUDA's context, widened chunks and long prompts would hold one
    more layer, which with a draft of 13 GB is one of a few: hence 15 % with it.
    """
    asked = {"target": "llama-2-70b", "temperature": 0.6, "draft_format": "stored", "context_tokens": 512}
    report = planned("rtx-4090", **asked, tree="static")
    assert report.main.seconds_per_token == pytest.approx(0.57, rel=0.16)
    assert report.plain.seconds_per_token == pytest.approx(4.54, rel=0.03)
    assert report.plain.placement.num_resident_layers in (10, 11)


def test_every_part_adds_up():
    main = planned(tree="static").main
    placed = main.placement
    assert placed.device_bytes <= placed.device_budget_bytes
    assert sum(layers_of(placed)) == 80
    assert main.part_seconds["link"] <= main.tree.round_seconds
    assert main.tree.seconds_per_token == main.ranking.seconds_per_token.min()


def test_the_other_formats_are_planned_too():
    report = planned()
    assert list(report.others) == ["int8", "nf4"]
    assert report.main.seconds_per_token > option(report, "int8").seconds_per_token
    assert planned(format="int8").main.seconds_per_token == option(report, "int8").seconds_per_token


def test_the_draft_is_held_in_the_way_that_plans_best():
    options = [planned(draft_format=held).main for held in ("stored", "int8", "nf4")]
    best = min(options, key=lambda one: one.seconds_per_token)
    assert planned().main.draft_held == best.draft_held
    assert planned().main.seconds_per_token == best.seconds_per_token


@pytest.mark.parametrize("context_tokens", [4096, 8192, 16384])
def test_a_70b_in_nf4_on_24_gb_has_its_draft_in_nf4(context_tokens):
    """8B as stored leaves no layer resident at 4k and does not fit at 8k; nothing is launched to find that out."""
    found = planned("rtx-4090", target="llama-3.3-70b", format="nf4", context_tokens=context_tokens, host_bytes=64 * GB)
    assert (found.main.draft_held, found.main.format_name) == ("nf4", "nf4")
    assert found.main.placement.num_resident_layers >= 11


def test_without_a_fused_kernel_a_draft_is_widened_only_where_it_would_not_fit():
    card = replace(reference_machine("rtx-4090"), has_fused_nf4=False)
    held = {
        target: planned(card, target=target, context_tokens=32768).main.draft_held
        for target in ("llama-3.1-8b", "llama-3.3-70b")
    }
    assert held == {"llama-3.1-8b": "stored", "llama-3.3-70b": "nf4"}


def test_a_processor_s_draft_is_held_as_was_measured_there():
    for fastest in ("stored", "int8", "nf4"):
        machine = processor(speed=device_speed(compute_item_bytes=4, fastest_draft=fastest))
        assert planned(machine, target="qwen2.5-1.5b", draft="qwen2.5-0.5b").main.draft_held == fastest
        substitute = planned(machine, target="qwen2.5-1.5b", draft="substitute").main.draft_held
        assert substitute == ("int8" if fastest == "stored" else fastest)  # as stored it would be the target itself


def test_more_of_the_machine_is_never_worse():
    report = planned()
    assert list(report.what_ifs) == ["1.00 GB more device memory", "PCIe 5.0 instead of 4.0"]
    more_memory, faster_link = report.what_ifs.values()
    assert more_memory <= report.main.seconds_per_token
    assert report.saved_share(faster_link) == pytest.approx(1 - faster_link / report.main.seconds_per_token, abs=1e-8)
    assert report.saved_share(faster_link) > 0.3


def test_a_budget_grows_with_the_memory():
    report = planned(device_bytes=24 * GB)
    more = report.what_ifs["1.00 GB more device memory"]
    assert more == planned(device_bytes=25 * GB).main.seconds_per_token


def test_the_least_device_memory_asks_for_no_more():
    assert list(planned(device_bytes=0).what_ifs) == ["PCIe 5.0 instead of 4.0"]


def test_a_disk_that_bounds_makes_host_memory_the_advice():
    report = planned("rtx-4090", target="qwen2.5-32b", host_bytes=32 * GB)
    assert report.main.bound == "disk" and report.main.placement.disk_bytes > 0
    change, seconds = list(report.what_ifs.items())[2]
    assert change.endswith("more host memory (no disk)") and report.saved_share(seconds) > 0.4


def test_nothing_is_to_be_bought_where_nothing_streams():
    report = planned("l40", target="llama-3-8b", draft="none")
    assert not report.main.streams and report.what_ifs == {}
    assert report.plain is report.main and report.main.acceptance is None


def test_a_users_tree_is_priced_beside_the_best():
    report = planned(tree="32x6")
    assert (report.main.tree.num_nodes, report.main.tree.num_levels) == (32, 6)
    assert report.main.ranking.best.seconds_per_token < report.main.seconds_per_token


def test_a_tree_that_needs_fewer_levels_than_it_is_given_is_still_priced():
    assert planned(tree="64x60").main.tree.num_nodes == 64


def test_a_tree_that_cannot_be_is_refused():
    with pytest.raises(OptionError, match="no tree of 2 levels has so many nodes"):
        planned(tree="1000x2")


def test_a_draft_that_cannot_fit_is_one_sentence_with_the_nearest_that_does():
    with pytest.raises(BudgetError) as caught:
        planned("rtx-4060-ti-16gb", target="qwen2.5-32b", draft="substitute")
    words = str(caught.value)
    assert words.startswith("Qwen2.5-32B in bfloat16 with draft substitute (nf4) does not fit RTX 4060 Ti 16 GB: ")
    assert "or --draft none) is the nearest that fits" in words


def test_a_target_that_cannot_fit_is_refused_too():
    with pytest.raises(BudgetError, match="does not fit"):
        planned(device_bytes=10**8, draft="none")


def test_a_plan_is_refused_where_a_session_would_be():
    """A session keeps memory for the largest tree that it considers, or for the user's: 0.7 GB less do for 64 nodes."""
    question = {"target": "llama-3-70b", "draft": "llama-3.2-1b", "draft_format": "nf4", "kv_cache": "device"}
    wide = planned("rtx-4090", **question).main
    assert wide.max_nodes == 1024
    least = wide.placement.fixed_bytes + wide.placement.ring_bytes
    with pytest.raises(BudgetError, match="does not fit"):
        planned("rtx-4090", device_bytes=least - 10**8, **question)
    assert planned("rtx-4090", device_bytes=least - 10**8, **question, tree="64x10").main.max_nodes == 64


def test_int8_halves_what_keys_and_values_add_to_a_pass():
    """The 70B in NF4 with 32k tokens on a 4090: 8.4 GB beside the weights become 4.4, 2,112 of 4,096 bytes a token."""
    question = {"target": "llama-3.3-70b", "format": "nf4", "context_tokens": 32768, "host_bytes": 60 * GB}
    question["tree"] = "static"
    exact, narrow = (planned("rtx-4090", **question, kv_format=kv_format) for kv_format in ("exact", "int8"))
    moved, moved_narrow = (report.main.placement.travelling_bytes for report in (exact, narrow))
    assert len(exact.main.placement.residency.travelling) == len(narrow.main.placement.residency.travelling) == 61
    assert moved_narrow == moved * 2112 / 4096
    assert (moved / GB, moved_narrow / GB) == pytest.approx((8.44, 4.35), abs=0.01)
    saved_seconds = exact.main.part_seconds["link"] - narrow.main.part_seconds["link"]
    trees = exact.main.tree.num_nodes, narrow.main.tree.num_nodes
    assert saved_seconds > 0.5 * (moved - moved_narrow) / 26e9 and narrow.main.seconds_per_token < (
        exact.main.seconds_per_token
    ), trees


def test_a_disk_of_unknown_speed_stops_only_what_needs_it():
    machine = plan_machine(disk=None)
    with pytest.raises(BudgetError, match="give --disk"):
        planned(machine, draft="none")
    report = planned(machine, target="qwen2.5-14b", draft="none")
    assert isinstance(report.main, PlanOption) and report.main.placement.disk_bytes == 0


def test_another_format_that_does_not_run_is_kept_as_a_sentence():
    report = planned(plan_machine(disk=None), draft="none", format="nf4", host_bytes=30 * GB)
    refused = [name for name, one in report.others.items() if isinstance(one, BudgetError)]
    assert refused == ["bfloat16", "int8"]
    assert "--disk" in str(report.others["bfloat16"])


def test_a_processor_streams_from_disk():
    report = planned(processor(), target="qwen2.5-14b", draft="qwen2.5-0.5b", device_bytes=16 * GB)
    assert report.main.is_read_directly
    assert report.main.part_seconds["link"] == 0.0 < report.main.part_seconds["disk"]
    assert report.main.bound in ("disk", "compute", "draft")
    assert list(report.what_ifs) == ["1.00 GB more memory", "a disk twice as fast"]


def test_the_papers_search_and_cost_are_there():
    ours = planned(device_bytes=0, draft_format="stored", tree="static")
    papers = planned(device_bytes=0, draft_format="stored", search="dp", cost="paper")
    assert papers.main.tree.expected_tokens == pytest.approx(
        papers.main.ranking.best.expected_tokens
    ) and papers.main.seconds_per_token == pytest.approx(ours.main.seconds_per_token, rel=0.05)
    assert papers.main.seconds_per_token > ours.main.seconds_per_token  # nothing overlaps in it


def test_a_plan_is_made_in_well_under_three_seconds():
    planned()
    began = time.process_time()
    planned()
    assert time.process_time() - began < 2


def test_a_profile_of_a_few_positions_is_believed_in_costs_alone():
    """One position that was accepted is no draft that is always right."""
    question = resolve_question(PlanRequest(target="qwen2.5-1.5b", draft="qwen2.5-0.5b", draft_format="int8"))
    greedy, warm = PAIR.acceptance
    rough = tuple(replace(table, by_rank=(1.0, 0.0), num_positions=(1, 1)) for table in (greedy, warm))

    def basis_of(profile):
        return make_plan(question, processor(), {"int8": profile}).main.acceptance.basis

    assert basis_of(PAIR) is Basis.MEASURED
    assert basis_of(replace(PAIR, acceptance=rough)) is Basis.PUBLISHED  # as for any pair of this name


def test_a_published_pair_has_the_gain_of_context_carried_over_and_says_so():
    """Nobody measured it with this pair; a session grows such trees all the same, and nothing is known of others."""
    by_itself, static = planned(), planned(tree="static")
    assert by_itself.main.tree.is_dynamic and not static.main.tree.is_dynamic
    assert by_itself.main.tree.seconds_per_token < static.main.tree.seconds_per_token
    assert planned(tree="dynamic").main.tree == by_itself.main.tree
    (line,) = [line for line in by_itself.basis_lines if line[0] == "trees"]
    assert line[1] is Basis.CARRIED_OVER and "Qwen2.5-Coder-1.5B/0.5B" in line[2]
    assert not [line for line in static.basis_lines if line[0] == "trees"]
    shaped = planned(tree="dynamic:256x20").main.tree
    assert (shaped.num_nodes, shaped.num_levels, shaped.is_dynamic) == (256, 20, True)
    substitute = planned("rtx-4090", target="llama-3-8b", draft="substitute", device_bytes=14 * GB).main
    assert not substitute.tree.is_dynamic


def test_a_profile_that_saw_single_positions_carries_nothing_over():
    question = resolve_question(PlanRequest(target="qwen2.5-1.5b", draft="qwen2.5-0.5b", draft_format="int8"))
    groups = ((0.3, 0.2), (0.95, 0.02))
    seen = tuple(replace(table, by_confidence=groups, spread=0.5) for table in PAIR.acceptance)
    without, with_positions = (
        make_plan(question, processor(), {"int8": pair}).main for pair in (PAIR, replace(PAIR, acceptance=seen))
    )
    assert (without.is_gain_measured, with_positions.is_gain_measured) == (False, True)


def accepted(held="stored", **fields):
    return planned_acceptance(resolve_question(PlanRequest(**fields)), held)


def test_a_published_pair_has_its_own_vector_sorted():
    found = accepted()
    published = builtin_pairs()["llama-3-70b-8b"].acceptance[0].by_rank
    assert found.basis is Basis.PUBLISHED and found.source.startswith("Llama-3-70B-Instruct / 8B-Instruct: ")
    assert (np.diff(found.probabilities) <= 0).all()
    assert found.probabilities.sum() == pytest.approx(sum(published))


@pytest.mark.parametrize(
    ("temperature", "first", "words"), [(0.2, 0.818, "temperature 0"), (0.9, 0.792, "temperature 1")]
)
def test_the_nearest_temperature_counts(temperature, first, words):
    found = accepted(target="qwen2.5-coder-1.5b", draft="qwen2.5-coder-0.5b", temperature=temperature)
    assert found.probabilities[0] == pytest.approx(first)
    assert words in found.source


def test_an_unknown_pair_is_an_assumption():
    found = accepted(target="qwen2.5-72b")
    assert found.basis is Basis.ASSUMED and "nothing is known of this pair" in found.source
    known = builtin_acceptance(substitute_held=None)
    num_doublings = np.log2(72.7e9 / 1.544e9 / 3.1)  # a draft so much smaller than the one that is known is kept less
    assert found.probabilities[0] == pytest.approx(known[0] - 0.03 * num_doublings, abs=1e-3)
    assert found.probabilities.sum() <= 1
    near = accepted(target="qwen2.5-3b", draft="qwen2.5-1.5b")
    np.testing.assert_allclose(near.probabilities, known)


@pytest.mark.parametrize("held", ["int8", "nf4"])
def test_a_substitute_is_accepted_as_it_is_held(held):
    found = accepted(held, draft="substitute")
    np.testing.assert_array_equal(found.probabilities, builtin_acceptance(substitute_held=held))
    assert found.basis is Basis.ASSUMED


def test_a_model_that_stays_in_memory_gets_a_substitute_only_where_it_is_asked_for():
    """As a session decides: see LoadPlan."""
    whole, asked = planned(target="llama-3.2-3b", draft="auto"), planned(target="llama-3.2-3b", draft="substitute")
    streamed = planned(target="llama-3.2-3b", draft="auto", device_bytes=5 * 10**9)
    assert [report.question.draft_name for report in (whole, asked, streamed)] == ["none", "substitute", "substitute"]
    assert not whole.main.streams and streamed.main.streams


def test_a_70b_that_is_packed_moves_a_quarter_less_or_more_of_it_stays():
    """An L40 with 150 GB of host memory: 99 GB a pass in 4.0 s become 64 GB in 2.9 s, and host memory holds as much."""
    stored, packed = (planned(draft="none", host_bytes=150 * GB, pack=pack).main for pack in ("off", "auto"))
    assert packed.is_packed and not stored.is_packed
    assert packed.placement.streamed_bytes == pytest.approx(64.2e9, rel=0.01)
    assert stored.placement.streamed_bytes == pytest.approx(99.3e9, rel=0.01)
    assert (stored.seconds_per_token, packed.seconds_per_token) == pytest.approx((4.03, 2.89), rel=0.01)
    assert packed.bound == "link" and packed.part_seconds["compute"] < packed.part_seconds["link"]


def test_a_pair_in_trees_is_packed_too():
    stored, packed = (planned(host_bytes=150 * GB, pack=pack).main for pack in ("off", "auto"))
    assert packed.is_packed and packed.seconds_per_token < 0.85 * stored.seconds_per_token


def test_packing_keeps_a_70b_from_the_disk():
    """24 GB of device memory and 90 GB of host memory for layers: 8.8 s a pass, bound by the disk, become 3.8."""
    stored, packed = (planned("rtx-4090", draft="none", host_bytes=90 * GB, pack=pack).main for pack in ("off", "auto"))
    assert stored.placement.disk_bytes > 5 * GB and stored.bound == "disk"
    assert packed.placement.disk_bytes == 0 and packed.bound == "link"
    assert packed.seconds_per_token < 0.5 * stored.seconds_per_token


def test_the_other_choice_of_packing_stands_beside_the_plan():
    reports = {pack: planned(draft="none", host_bytes=150 * GB, pack=pack) for pack in ("off", "on")}
    for pack, other in (("off", "on"), ("on", "off")):
        assert reports[pack].other_packing.seconds_per_token == reports[other].main.seconds_per_token
        record = reports[pack].to_record()
        assert record["plan"]["is_packed"] is (pack == "on") is not record["other_packing"]["is_packed"]


def test_other_formats_are_never_packed():
    report = planned(draft="none", format="int8", pack="on")
    assert not report.main.is_packed and report.other_packing is None
    assert all(not other.is_packed for other in planned(draft="none", pack="on").others.values())


def slow_unpacking(stored_rate, packed_rate, **fields):
    rates = dict.fromkeys(("float16", "float32", "int8", "nf4"), 5e9) | {"bfloat16": stored_rate, "packed": packed_rate}
    return processor(speed=device_speed(compute_item_bytes=4, target_weights_per_second=rates, flops=1e12), **fields)


@pytest.mark.parametrize(
    ("case", "is_packed"),
    [
        ({"fields": {}, "rate": 1.3e9}, False),
        ({"fields": {"is_link_emulated": True, "link": link_of(0.5e9)}, "rate": 1.3e9}, True),
        ({"fields": {"is_link_emulated": True, "link": link_of(20e9)}, "rate": 1.3e9}, False),
        ({"fields": {"is_link_emulated": True, "link": link_of(0.5e9)}, "rate": 0.2e9}, False),
    ],
    ids=["all in memory", "a slow link", "a fast link", "a processor that unpacks slower than the link carries"],
)
def test_auto_packs_where_the_link_bounds_a_pass_and_unpacking_does_not(case, is_packed):
    """A model of 8B on a processor with 32 GB; unpacking at a quarter of the rate of a copy, or less."""
    machine = slow_unpacking(4.5e9, case["rate"], **case["fields"])
    assert planned(machine, target="llama-3-8b", draft="none", pack="auto").main.is_packed is is_packed


def test_auto_packs_where_a_processors_memory_then_holds_the_model():
    """8B in bfloat16 are 16 GB: with 16 GB of memory 3 GB of it stream from a slow disk in every pass."""
    machine = slow_unpacking(4.5e9, 1.3e9, host_free_bytes=16 * GB, disk=link_of(0.3e9))
    report = planned(machine, target="llama-3-8b", draft="none", pack="auto")
    assert report.main.is_packed and not report.main.streams
    assert report.other_packing.placement.disk_bytes > 0


def test_many_prompts_share_each_pass_and_its_nodes():
    """Beside one at a time they bring several times the tokens: a pass over the link is the same for all of them."""
    alone, together = (planned(context_tokens=1024, num_prompts=number) for number in (1, 16))
    assert alone.all_tokens_per_second == pytest.approx(1 / alone.main.seconds_per_token)
    assert together.main.tree.num_nodes <= together.main.max_nodes == 64
    assert 5 < together.all_tokens_per_second / alone.all_tokens_per_second < 16
    assert together.main.placement.cached_bytes > 8 * alone.main.placement.cached_bytes
    assert not together.main.placement.residency.travelling
    assert together.to_record()["num_prompts"] == 16
    plain = planned(context_tokens=1024, num_prompts=16, draft="none")
    assert plain.main.tree.num_nodes == 1
    assert plain.all_tokens_per_second < together.all_tokens_per_second


def test_more_prompts_than_memory_holds_are_refused_in_a_sentence():
    with pytest.raises(BudgetError, match="does not fit"):
        planned(context_tokens=8192, num_prompts=256)
    with pytest.raises(OptionError, match="it must be from 1 to 1024"):
        PlanRequest(num_prompts=0)


def test_what_lies_already_is_priced_like_a_plan_of_it_by_how_many_texts_there_are():
    machine = reference_machine("l40")
    for number, draft in ((1, "llama-3-8b"), (8, "llama-3-8b"), (8, "none")):
        asked = PlanRequest(draft=draft, draft_format="int8", context_tokens=1024, num_prompts=number, pack="off")
        question, whole = resolve_question(asked), make_plan(resolve_question(asked), machine).main
        held = whole.draft_held
        need = _Planning(question, machine, {})._place("bfloat16", held)[0]
        placed = PlacedPlan.of(question, machine, need, whole.placement, held=held, profile=None)
        assert placed.option(number).tree == whole.tree
        if number > 1:
            assert placed.option(1).seconds_per_token <= whole.seconds_per_token
        costs, target_seconds, reading_seconds = placed.reading()
        assert costs.round_seconds(1, 0.0)[0] <= whole.tree.round_seconds
        assert 0 < target_seconds(16, 0) < target_seconds(4096, 0)
        assert (reading_seconds is None) == (draft == "none")
