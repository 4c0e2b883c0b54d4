"""What is said in the README's pictures: one conversation with a 70B model on a machine with one card. Values only."""

from collections.abc import Sequence
from dataclasses import replace

from runtime.engine.demo_model import DEMO_MODEL_NAME
from runtime.events import Finished, LevelDrafted, LoadProgress, PrefillProgress, Round, TextDelta
from tests.support.chat_fakes import FINISHED, ROUND
from tui.chat.engine.messages import (
    AnswerEvent,
    Loaded,
    Loading,
    OfAnswer,
    PassRunning,
    Report,
    SessionFigures,
)
from tui.chat.models import FitEstimate, ListedModel

GB = 1_000_000_000
_RESIDENT = tuple(range(0, 80, 5))
LOADED = Loaded(
    target="Llama-3.3-70B-Instruct",
    draft="Llama-3.2-1B-Instruct",
    device="cuda:0",
    context_tokens=8192,
    num_layers=80,
    num_resident_layers=len(_RESIDENT),
    num_ring_slots=3,
    bytes_per_pass=27 * GB,
    memory={"resident layers": 7 * GB, "ring": GB, "draft": 3 * GB, "caches": 2 * GB, "embeddings": 2 * GB},
    predicted_seconds_per_token=0.19,
    sentences=(),
    resident_layers=_RESIDENT,
)

PROMPT = "Which animals sleep the longest? A short table, and a function that looks it up."
OTHER_ANSWERS = {
    "Why do owls turn their heads instead of their eyes?": "An owl's eyes are tubes, fixed in the skull.",
    "Write a limerick about a GPU that is too small.": "A card with too little RAM / met a model as big as a dam",
    "Plan a week of dinners for four": "Monday: soup. Tuesday: an owl-shaped pizza for the children.",
}
PIECES = (
    "Sleep varies more than a factor of ten",
    " between mammals, and **size** is a good predictor:\n\n",
    "| animal | hours a day | why |\n|---|---|---|\n",
    "| brown bat | 19.9 | saves energy between hunts |\n| koala | 14.5 | leaves are hard to digest |\n",
    "| owl | 11 | hunts at night |\n| giraffe | 1.9 | a long neck is slow to lift |\n\n",
    "```python\nHOURS = {'brown bat': 19.9, 'koala': 14.5, 'owl': 11, 'giraffe': 1.9}\n\n",
    'def hours_of_sleep(animal: str) -> float:\n    """Hours a day; raises KeyError for an animal',
    ' that is not in the table."""\n    return HOURS[animal.lower()]\n```\n',
    "\nCaptive animals sleep longer than wild ones.\n",
)
"""The answer, as the rounds bring it."""

_PARENTS = (-1, 0, 0, 0, 1, 1, 2, 4, 4, 5, 7, 7, 10, 10, 12, 13, 14)
_PATHS = ((0, 1, 4, 7, 10, 12, 14), (0, 1, 4, 7, 10), (0, 2, 6), (0, 1, 4, 7, 10, 12, 14, 16), (0, 1, 5, 9))


def loading() -> Sequence[Report]:
    """A load that is two thirds done."""
    return (
        Loading(LoadProgress("reading layers", 2 * GB, 40 * GB), 1.0),
        Loading(LoadProgress("reading layers", 26 * GB, 40 * GB), 9.0),
    )


def reports_of_answer(answer_id: int, prompt: str, *, is_whole: bool) -> Sequence[Report]:
    """The answer to a prompt, whole or with the last round's pass under way."""
    return [OfAnswer(answer_id, event) for event in events_of_answer(prompt, is_whole=is_whole)]


def events_of_answer(prompt: str, *, is_whole: bool) -> Sequence[AnswerEvent]:
    """What happens meanwhile."""
    pieces = (OTHER_ANSWERS[prompt],) if prompt in OTHER_ANSWERS else PIECES if is_whole else PIECES[:-1]
    events: list[AnswerEvent] = [PrefillProgress(31, 31)]
    for index, piece in enumerate(pieces):
        figures = SessionFigures(31 + 6 * (index + 1), predicted_seconds_per_token=0.19, process_bytes=31 * GB)
        events += [_round(index), figures, TextDelta(piece)]
    if is_whole:
        return [*events, _finished()]
    return [*events, LevelDrafted(6, 4), PassRunning(47, 80, (47, 48, 49))]


def _round(index: int) -> Round:
    passed = replace(ROUND.pass_statistics, link_busy_seconds=1.06, bytes_streamed=27 * GB)
    path = _PATHS[index % len(_PATHS)]
    seconds = 1.02 + 0.02 * (index % 3)
    return Round(_PARENTS, path, 0.09, seconds, pass_statistics=passed, num_pass_tokens=len(_PARENTS))


def _finished() -> Finished:
    costs = replace(
        FINISHED.statistics,
        prompt_tokens=31,
        new_tokens=142,
        rounds=27,
        prefill_seconds=1.4,
        decode_seconds=21.0,
        decode_tokens=100,
        link_busy_seconds=0.96 * 21,
    )
    return Finished("stop", "", costs)


MODELS = (
    ListedModel("/models/llama", "Llama-3.3-70B-Instruct (4-bit)", "/models/llama", 40 * GB, is_recent=True),
    ListedModel("/models/qwen", "Qwen2.5-Coder-32B-Instruct", "/models/qwen", 65 * GB, is_recent=True),
    ListedModel("/models/gemma", "gemma-3-12b-it", "/models/gemma", 24 * GB),
    ListedModel("/models/small", "Qwen2.5-Coder-1.5B-Instruct", "/models/small", 3 * GB),
    ListedModel("/models/mistral", "Mistral-Large-Instruct-2411", "/models/mistral", 245 * GB),
    ListedModel("", f"{DEMO_MODEL_NAME} (demo, 93 MB to download)"),
)
ESTIMATES = {
    estimate.folder: estimate
    for estimate in (
        FitEstimate("/models/llama", "streams", 0.19, "streams 27.0 GB in every pass, about 0.19 s/token"),
        FitEstimate("/models/qwen", "streams", 0.34, "streams 49.0 GB in every pass, about 0.34 s/token"),
        FitEstimate("/models/gemma", "streams", 0.05, "streams 8.2 GB in every pass, about 0.05 s/token"),
        FitEstimate("/models/small", "resident", 0.008, "stays in memory whole (3.4 GB), about 125 tokens/s"),
        FitEstimate("/models/mistral", "does not fit", None, "needs 245 GB of host memory and finds 62 GB"),
    )
}
"""What the planner says of each on that machine."""
