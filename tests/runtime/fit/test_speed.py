import numpy as np
import pytest

from profiles.builtin_profiles import builtin_machine
from runtime.fit.machine import COPY_SLOWDOWN, FLOPS_SHARE, MEMORY_SHARE, NARROW_BYTES, Basis, speed_of_data_sheet
from tests.support.plan_fakes import LLAMA_3_8B, LLAMA_3_70B
from tests.support.published_pairs import published_pair

L40, PAIR = builtin_machine("l40"), published_pair("llama-3-70b-8b")


def test_the_share_of_memory_bandwidth_is_that_of_the_published_draft_step():
    embeddings = LLAMA_3_8B.vocab_size * LLAMA_3_8B.hidden_size
    read_bytes = 2 * (LLAMA_3_8B.num_parameters - embeddings)
    rate = read_bytes / PAIR.draft_step_seconds.value
    assert pytest.approx(rate / L40.memory_bytes_per_second.value) == MEMORY_SHARE
    assert 0.69 < MEMORY_SHARE < 0.70


def test_the_slowdown_of_copies_is_that_of_the_published_passes():
    """Straight from the published seconds of 1,024 nodes and the link's rate."""
    link_seconds = LLAMA_3_70B.formats[0].total_bytes / L40.link_bytes_per_second.value
    weights = LLAMA_3_70B.num_layers * LLAMA_3_70B.num_layer_parameters
    computing = 2 * weights * 1024 / (FLOPS_SHARE * L40.flops_per_second.value)
    slowdown = (PAIR.verify_seconds_by_size[1024] - link_seconds) / computing
    assert pytest.approx(slowdown) == COPY_SLOWDOWN
    assert 0.26 < COPY_SLOWDOWN < 0.28


def test_the_least_share_of_operations_that_the_docstring_names():
    weights = LLAMA_3_70B.num_layers * LLAMA_3_70B.num_layer_parameters
    least = 2 * weights * 1024 / PAIR.verify_seconds_by_size[1024] / L40.flops_per_second.value
    assert 0.13 < least < 0.14


def test_a_quantized_weight_is_read_written_wide_and_read_again_but_for_an_nf4_draft_s():
    speed = speed_of_data_sheet(memory_bytes_per_second=1e12, flops=1e14)
    reached = MEMORY_SHARE * 1e12
    assert speed.target_weights_per_second["bfloat16"] == pytest.approx(reached / 2)
    assert speed.target_weights_per_second["int8"] == pytest.approx(reached / (1 + 2 + 2))
    assert speed.target_weights_per_second["nf4"] == pytest.approx(reached / (NARROW_BYTES["nf4"] + 4))
    assert speed.draft_weights_per_second["nf4"] == pytest.approx(reached / 0.56)
    assert speed.flops == pytest.approx(FLOPS_SHARE * 1e14)
    assert speed.basis is Basis.DATA_SHEET
    assert "1000 GB/s and 100 TFLOPS (data sheet) times 0.69" in speed.source


def test_bytes_of_an_nf4_weight_are_those_of_large_layers():
    layer = LLAMA_3_70B.formats[2].layer_bytes[0] / LLAMA_3_70B.num_layer_parameters
    assert np.isclose(layer, NARROW_BYTES["nf4"], rtol=0.01)
