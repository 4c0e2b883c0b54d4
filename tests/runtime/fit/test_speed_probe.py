import torch

from runtime.fit.device_speed import Basis
from runtime.fit.speed_probe import measure_speed


def test_every_format_is_timed_with_the_products_that_a_session_runs():
    speed = measure_speed(torch.device("cpu"), side=256)
    assert set(speed.target_weights_per_second) == {"bfloat16", "float16", "float32", "int8", "nf4"}
    assert set(speed.draft_weights_per_second) == {"stored", "int8", "nf4"}
    rates = [*speed.target_weights_per_second.values(), *speed.draft_weights_per_second.values(), speed.flops]
    assert min(rates) > 1e5 and speed.memory_bytes_per_second > 1e6
    assert (speed.basis, speed.compute_item_bytes) == (Basis.MEASURED, 4)
    assert speed.source.startswith("products of one 256 x 256 matrix: ")
