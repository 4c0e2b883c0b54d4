"""What an observation derives from its measurements."""

from dataclasses import replace

from offload.layer_streamer import PassStatistics
from runtime.planner.round_observation import RoundObservation

OBSERVATION = RoundObservation(
    num_pass_tokens=9,
    num_nodes=8,
    num_emitted=3,
    draft_seconds=0.5,
    verify_seconds=2.0,
    draft_steps=((1, 0.125), (3, 0.25)),
    statistics=PassStatistics(
        seconds=1.75,
        wait_seconds=1.0,
        link_busy_seconds=1.5,
        bytes_streamed=1000,
        num_layers=4,
        num_streamed_layers=3,
        compute_seconds=0.75,
    ),
    parents=(-1, 0, 0, 1, 1, 2, 3, 3),
    path=(0, 1, 4),
)


def test_overhead_is_what_neither_the_pass_nor_the_draft_steps_took() -> None:
    assert OBSERVATION.overhead_seconds == 0.25 + 0.125
    assert replace(OBSERVATION, verify_seconds=1.0).overhead_seconds == 0.0  # clocks overlap by a hair


def test_the_event_says_what_the_consumer_counts() -> None:
    event = OBSERVATION.to_event()
    assert (event.num_nodes, event.num_accepted, event.bytes_streamed) == (8, 3, 1000)
    assert (event.seconds, event.draft_seconds, event.verify_seconds) == (1.75, 0.5, 2.0)
    assert event.link_busy_seconds == 1.5
    assert (event.parents, event.path) == ((-1, 0, 0, 1, 1, 2, 3, 3), (0, 1, 4))
