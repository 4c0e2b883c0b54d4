from dataclasses import replace

import numpy as np
import pytest

from offload.residency_plan import ResidencyPlan, Tier
from offload.units import LinkSpeed
from profiles.builtin_profiles import builtin_machine
from runtime.fit.machine import Basis, Link, speed_of_data_sheet
from runtime.fit.reference_costs import (
    LAYER_LAUNCHES,
    draft_seconds,
    launches_per_layer,
    reference_costs,
    widening_rate,
)
from tests.runtime.fit.test_shapes import TINY
from tests.support.plan_fakes import LLAMA_3_8B, LLAMA_3_70B, device_speed, plan_machine
from tests.support.published_pairs import published_pair

L40 = builtin_machine("l40")


def links(link, disk, latency=0.0):
    """The links of a machine, in bytes per second, None where there is none."""
    return {
        "link": None if link is None else Link(LinkSpeed(link, latency), Basis.MEASURED, "x"),
        "disk": None if disk is None else Link(LinkSpeed(disk), Basis.MEASURED, "x"),
    }


MIXED = ResidencyPlan((Tier.RESIDENT, Tier.HOST, Tier.DISK, Tier.HOST), (4000, 4000, 8000, 4000), 3)
LINKS = links(1e6, 5e5, 0.001)


def costs(residency=MIXED, between=LINKS, *, shape=TINY, draft=None, context=0, speed=None, name="float32"):
    return reference_costs(
        shape,
        residency,
        draft,
        format_name=name,
        context_tokens=context,
        machine=plan_machine(**between, speed=speed or device_speed(memory_bytes_per_second=1e30)),
    )


def test_copies_take_bytes_over_the_rate_and_the_latency():
    found = costs()
    assert found.copy_seconds == (None, pytest.approx(0.005), pytest.approx(0.009), pytest.approx(0.005))
    assert found.read_seconds == (None, None, pytest.approx(0.016), None)
    assert (found.num_slots, found.num_stages) == (3, 2)


def test_without_a_link_the_disk_is_the_link():
    residency = ResidencyPlan((Tier.RESIDENT, Tier.DISK), (4000, 4000), 2)
    found = costs(residency, links(None, 5e5))
    assert (found.copy_seconds, found.read_seconds, found.num_stages) == ((None, pytest.approx(0.008)), (), 0)


def test_a_disk_of_unknown_speed_does_where_it_is_not_used():
    on_host = ResidencyPlan((Tier.HOST,) * 4, (4000,) * 4, 2)
    assert costs(on_host, links(1e6, None)).read_seconds == ()


def test_a_pass_reads_its_weights_or_multiplies_whichever_is_longer():
    weights = TINY.num_layers * TINY.num_layer_parameters
    speed = device_speed(target_weights_per_second={"float32": 1000.0}, flops=2000.0 * 50, memory_bytes_per_second=1e30)
    found = costs(speed=speed)
    attention = 4 * TINY.num_layers * TINY.num_heads * TINY.head_dim / speed.flops
    assert found.pass_seconds(1) == pytest.approx(weights / 1000 + attention)
    assert found.pass_seconds(1000) == pytest.approx(2 * weights * 1000 / speed.flops + attention * 1000**2, rel=0.01)


def test_keys_and_values_travel_half_full_and_narrow_ones_are_widened():
    """Read as they travel, written as the device computes them, both at the speed of its memory."""
    sizes = {"layer_bytes": (4000,) * 4, "num_slots": 2, "cache_bytes": (2000,) * 4, "travelling": (1, 3)}
    exact, narrow = (ResidencyPlan((Tier.HOST,) * 4, **sizes, row_bytes=row_bytes) for row_bytes in ((), (1200,) * 4))
    speed = device_speed(memory_bytes_per_second=1e3)
    found, narrower = (costs(one, links(1e6, None), speed=speed) for one in (exact, narrow))
    assert found.copy_seconds == pytest.approx((0.004, 0.005, 0.004, 0.005))
    assert narrower.copy_seconds == pytest.approx((0.004, 0.0046, 0.004, 0.0046))
    assert narrower.pass_seconds(1) - found.pass_seconds(1) == pytest.approx((1200 + 2000) / 1e3)


def test_attention_grows_with_the_context():
    speed = device_speed(flops=1e6, memory_bytes_per_second=1e3)
    more = costs(context=100, speed=speed).pass_seconds(1) - costs(context=0, speed=speed).pass_seconds(1)
    products = 4 * TINY.num_layers * TINY.num_heads * TINY.head_dim * 100
    cache = TINY.cache_bytes_per_token(2) * 100
    assert more == pytest.approx(products / 1e6 + cache / 1e3)


def test_head_and_walk_read_the_head_twice():
    found = costs(speed=device_speed(memory_bytes_per_second=1e3))
    assert found.walk_seconds(64) == pytest.approx(2 * TINY.vocab_size * TINY.hidden_size * TINY.item_bytes / 1e3)


def test_without_a_draft_there_are_no_steps():
    assert costs().draft_step_seconds is None


def test_the_published_draft_step_comes_out():
    """0.025 s for the 8B in bf16 on an L40, which the share of the data sheet was derived from."""
    speed = speed_of_data_sheet(
        memory_bytes_per_second=L40.memory_bytes_per_second.value, flops=L40.flops_per_second.value
    )
    found = costs(draft=(LLAMA_3_8B, "stored"), speed=speed)
    assert found.draft_step_seconds(1) == pytest.approx(0.025, rel=0.01)


def test_the_published_passes_come_out():
    """5.5 to 5.8 s for 1 to 1,024 nodes of the 70B on an L40; one number was fitted to the last of them."""
    speed = speed_of_data_sheet(
        memory_bytes_per_second=L40.memory_bytes_per_second.value, flops=L40.flops_per_second.value
    )
    layers = LLAMA_3_70B.formats[0].layer_bytes
    all_streamed = ResidencyPlan((Tier.HOST,) * 80, layers, 2)
    between = links(L40.link_bytes_per_second.value, None)
    found = costs(all_streamed, between, shape=LLAMA_3_70B, speed=speed, name="bfloat16")
    for num_nodes, seconds in published_pair("llama-3-70b-8b").verify_seconds_by_size.items():
        predicted = found.round_seconds([num_nodes], [0.0])[0]
        assert predicted == pytest.approx(seconds, rel=0.02), num_nodes


def test_what_is_published_quantized_is_multiplied_as_that():
    rates = {"stored": 1e9, "int8": 1e9, "nf4": 1e3}
    slow = device_speed(draft_weights_per_second=rates)
    steps = [
        costs(draft=(replace(TINY, published_as=published), "stored"), speed=slow).draft_step_seconds(1)
        for published in ("nf4", None)
    ]
    assert steps[0] > 1000 * steps[1]


def test_a_quantized_pass_widens_its_weights_and_then_multiplies_them():
    """Both take their time: what is widened is multiplied by as many tokens as any other weight."""
    rates = {"bfloat16": 1e6, "nf4": 2.5e5}
    speed = device_speed(target_weights_per_second=rates, flops=2e6 * 100, memory_bytes_per_second=1e30)
    weights = TINY.num_layers * TINY.num_layer_parameters
    alone = costs(context=0, speed=speed, name="nf4").pass_seconds(1)
    assert alone == pytest.approx(weights / 2.5e5, rel=1e-3)
    many = costs(context=0, speed=speed, name="nf4").pass_seconds(1000)
    dense = costs(context=0, speed=speed, name="bfloat16").pass_seconds(1000)
    assert many - dense == pytest.approx(weights / 2.5e5 - weights / 1e6, rel=0.01)


def test_a_pass_takes_no_less_than_launching_its_kernels():
    speed = device_speed(memory_bytes_per_second=1e30, launch_seconds=1.0)
    assert costs(speed=speed).pass_seconds(1) == TINY.num_layers * LAYER_LAUNCHES
    assert costs(speed=speed, draft=(TINY, "nf4")).draft_step_seconds(1) < 1, "a draft's step is recorded"
    assert launches_per_layer(LLAMA_3_70B, "nf4") == LAYER_LAUNCHES - 7 + 46, "as a test of the product counts them"
    assert launches_per_layer(LLAMA_3_70B, "bfloat16") == LAYER_LAUNCHES


def test_a_fused_draft_is_widened_only_where_more_tokens_than_that_are_multiplied():
    """As bitsandbytes has it for sm_89: matrices of attention beyond 8 tokens, those of the MLP beyond 64."""
    speed = device_speed(
        target_weights_per_second={"bfloat16": 1e6, "nf4": 2e5},
        draft_weights_per_second={"stored": 1e6, "int8": 1e6, "nf4": 4e6},
        flops=1e30,
        memory_bytes_per_second=1e30,
    )
    attention = TINY.num_layers * sum(rows * columns for rows, columns in TINY.matrices[:4])
    rest = TINY.num_layers * TINY.num_layer_parameters - attention
    found = draft_seconds(TINY, "nf4", np.array([1.0, 8.0, 9.0, 64.0, 65.0]), 0, speed)
    narrow, middle, wide = (attention + rest) / 4e6, attention / 2e5 + rest / 4e6, (attention + rest) / 2e5
    assert found == pytest.approx([narrow, narrow, middle, middle, wide])
    assert draft_seconds(TINY, "stored", np.array([1.0, 500.0]), 0, speed) == pytest.approx(
        [(attention + rest) / 1e6] * 2
    )


def test_blocks_that_were_not_measured_count_as_the_format_that_is_as_large():
    speed = device_speed(target_weights_per_second={"bfloat16": 1e6, "int8": 3e5, "nf4": 2e5})
    names = ("Q4_K_M", "nvfp4", "fp8", "Q8_0")
    rates = {name: widening_rate(LLAMA_3_8B.stored_as(name), name, speed) for name in names}
    assert rates == {"Q4_K_M": 2e5, "nvfp4": 2e5, "fp8": 3e5, "Q8_0": 3e5}
    measured = device_speed(target_weights_per_second={"bfloat16": 1e6, "int8": 3e5, "nf4": 2e5, "fp8": 7e5})
    assert widening_rate(TINY.stored_as("fp8"), "fp8", measured) == 7e5


def test_a_draft_in_blocks_is_widened_at_each_step_only_where_it_is_held_so():
    speed = device_speed(
        target_weights_per_second={"bfloat16": 1e6, "int8": 2e5, "nf4": 2e5},
        draft_weights_per_second={"stored": 1e6, "int8": 1e6, "nf4": 4e6},
        flops=1e30,
        memory_bytes_per_second=1e30,
    )
    blocks = TINY.stored_as("Q4_K_M")
    seconds = [draft_seconds(blocks, held, np.array([1.0]), 0, speed)[0] for held in ("stored", "nf4")]
    assert seconds == pytest.approx([TINY.num_decoder_parameters / rate for rate in (2e5, 4e6)])
