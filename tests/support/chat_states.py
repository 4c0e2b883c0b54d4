"""Engine states at typical moments, made as the app makes them: from reports."""

from offload.pass_statistics import PassStatistics
from runtime.events import LevelDrafted, LoadProgress, PrefillProgress, Round
from tui.chat.engine.messages import Loaded, Loading, OfAnswer, PassRunning, SessionFigures
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
    memory={"embeddings": 467_000_000, "ring": 187_000_000, "resident layers": 1_446_000_000},
    predicted_seconds_per_token=0.5,
    sentences=("20 layers wait in host memory.",),
    resident_layers=(0, 3, 7, 10, 14, 17, 21, 24),
)
PARENTS = (-1, 0, 0, 0, 1, 1, 2, 4, 4, 7)
"""Ten nodes on five levels."""
FIGURES = SessionFigures(num_context_tokens=773, predicted_seconds_per_token=0.1, process_bytes=3_400_000_000)


def round_done(*, link_busy_seconds: float = 0.45, bytes_streamed: int = 900_000_000, **changes) -> Round:
    """A round of 0.5 s that brought four tokens, three of them drafted."""
    statistics = PassStatistics(
        seconds=0.39,
        wait_seconds=0.1,
        link_busy_seconds=link_busy_seconds,
        bytes_streamed=bytes_streamed,
        num_layers=28,
        num_streamed_layers=20,
        compute_seconds=0.29,
    )
    values = {"parents": PARENTS, "path": (0, 1, 4, 7), "draft_seconds": 0.1, "verify_seconds": 0.4}
    return Round(pass_statistics=statistics, num_pass_tokens=10, **(values | changes))


def loading_report(what: str, num_done_bytes: int, num_bytes: int, seconds: float) -> Loading:
    """A report of a load."""
    return Loading(LoadProgress(what, num_done_bytes, num_bytes), seconds)


def folded(*reports, begun: EngineState | None = None) -> EngineState:
    """The state after these reports, or events of an answer."""
    state = EngineState() if begun is None else begun
    for report in reports:
        state = with_report(state, report if isinstance(report, Loading | Loaded) else OfAnswer(1, report))
    return state


def loading() -> EngineState:
    """A load that is half done, at 0.5 GB/s."""
    return folded(
        loading_report("opening the files", 0, 0, 0.5),
        loading_report("reading layers", 100_000_000, 3_000_000_000, 1.0),
        loading_report("reading layers", 1_500_000_000, 3_000_000_000, 3.8),
        begun=begin_load(),
    )


def ready() -> EngineState:
    """A model without an answer yet."""
    return folded(LOADED)


def prefilling() -> EngineState:
    """The second of three chunks of a prompt."""
    return folded(PrefillProgress(256, 700), begun=begin_answer(ready()))


def drafting() -> EngineState:
    """Eight rounds are over, and the next tree has three levels."""
    return folded(*eight_rounds(), FIGURES, LevelDrafted(3, 12), begun=begin_answer(ready()))


def verifying() -> EngineState:
    """Eight rounds are over, and the pass of the next is at layer 16."""
    return folded(PassRunning(16, 28, (18, 19)), begun=drafting())


def eight_rounds() -> list[Round]:
    """Rounds that bring one to five tokens."""
    return [round_done(path=(0, 1, 4, 7, 9)[:num_emitted]) for num_emitted in (5, 2, 5, 3, 5, 4, 1, 4)]
