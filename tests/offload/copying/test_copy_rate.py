import pytest
import torch

from offload.copying.copy_rate import measure_copy_rate


def test_the_rate_is_bytes_over_the_time_of_all_copies():
    times = iter([10.0, 12.0])
    assert measure_copy_rate(torch.device("cpu"), num_bytes=1000, clock=lambda: next(times)) == 8 * 1000 / 2.0


def test_the_device_has_finished_before_either_look_at_the_clock():
    """A clock read while copies are still queued measures how fast they are queued."""
    events = []
    times = iter([0.0, 1.0])

    def clock():
        events.append("clock")
        return next(times)

    measure_copy_rate(
        torch.device("meta"), num_bytes=64, clock=clock, synchronize=lambda device: events.append(device.type)
    )
    assert events == ["meta", "clock", "meta", "clock"]


def test_a_clock_that_stands_still_is_no_division_by_zero():
    assert measure_copy_rate(torch.device("cpu"), num_bytes=8, clock=lambda: 1.0) == 8 * 8 / 1e-9


@pytest.mark.skipif(torch.accelerator.is_available(), reason="with an accelerator, memory can be pinned")
def test_pinning_without_an_accelerator_is_an_error_of_torch():
    with pytest.raises(RuntimeError):
        measure_copy_rate(torch.device("cpu"), is_pinned=True, num_bytes=8)
