"""Engine states at typical moments, made as the app makes them: from reports."""

from tui.chat.engine.messages import Drafting, Loaded, Loading, PassRunning, Prefilling, RoundDone
from tui.chat.engine.state import EngineState, begin_answer, begin_load, with_report

LOADED = Loaded(
    target="Qwen2.5-Coder-1.5B-Instruct",
    draft="substitute",
    device="cuda:0",
    context_tokens=4096,
    num_layers=28,
    num_resident_layers=8,
    num_ring_slots=2,
    bytes_per_pass=1_870_000_000,
    memory={"embeddings": 467_000_000, "ring": 187_000_000},
    predicted_seconds_per_token=0.5,
    sentences=("20 layers wait in host memory.",),
    resident_layers=(0, 3, 7, 10, 14, 17, 21, 24),
)
PARENTS = (-1, 0, 0, 0, 1, 1, 2, 4, 4, 7)
"""Ten nodes on five levels."""


def round_done(**changes) -> RoundDone:
    """A round of 0.5 s that brought four tokens, three of them drafted."""
    values = {
        "answer_id": 1,
        "num_emitted": 4,
        "parents": PARENTS,
        "path": (0, 1, 4, 7),
        "draft_seconds": 0.1,
        "verify_seconds": 0.4,
        "link_busy_seconds": 0.45,
        "bytes_streamed": 900_000_000,
        "num_context_tokens": 812,
        "predicted_seconds_per_token": 0.1,
        "process_bytes": 3_400_000_000,
        "device_bytes": 2_100_000_000,
    }
    return RoundDone(**(values | changes))


def folded(*reports, begun: EngineState | None = None) -> EngineState:
    """The state after these reports."""
    state = EngineState() if begun is None else begun
    for report in reports:
        state = with_report(state, report)
    return state


def loading() -> EngineState:
    """A load that is half done, at 0.5 GB/s."""
    return folded(
        Loading("opening the files", 0, 0, 0.5),
        Loading("reading layers", 100_000_000, 3_000_000_000, 1.0),
        Loading("reading layers", 1_500_000_000, 3_000_000_000, 3.8),
        begun=begin_load(),
    )


def ready() -> EngineState:
    """A model without an answer yet."""
    return folded(LOADED)


def prefilling() -> EngineState:
    """The second of three chunks of a prompt."""
    return folded(Prefilling(1, 256, 700), begun=begin_answer(ready()))


def drafting() -> EngineState:
    """Eight rounds are over, and the next tree has three levels."""
    return folded(*rounds(8), Drafting(1, 3, 12), begun=begin_answer(ready()))


def verifying() -> EngineState:
    """Eight rounds are over, and the pass of the next is at layer 16."""
    return folded(PassRunning(1, 16, 28, (18, 19)), begun=drafting())


def rounds(number: int) -> list[RoundDone]:
    """Rounds that bring one to seven tokens."""
    return [round_done(num_emitted=1 + 3 * index % 7, num_context_tokens=500 + 39 * index) for index in range(number)]
