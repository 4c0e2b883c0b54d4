"""What the engine's process does with each request, on tiny models; and that it ends with its app, whatever happens."""

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from offload import layer_filling
from offload.errors import BudgetError, LinkError
from offload.layer_streamer import LayerStreamer
from profiles.child_process import child_command, child_environment
from runtime.config import EngineConfig, SamplingParams
from runtime.engine.session import Session
from runtime.errors import OptionError, PromptTooLongError
from runtime.events import Finished, PrefillProgress, Round, TextDelta
from runtime.model.generation_config import GenerationConfig
from runtime.model.streamed_model import StreamedModel
from runtime.prompts.prompt_file import Message, PromptRequest
from tests.support.fakes import InstantEngine
from tests.support.numbered_layers import make_layers, run_pass
from tests.support.session_factory import save_tiny_folder
from tui.chat.engine import host as host_module
from tui.chat.engine.host import (
    EngineHost,
    RequestInbox,
    failure_kind,
    own_settings_of,
    pass_running,
    session_figures,
    ticking,
)
from tui.chat.engine.messages import (
    Answer,
    ContextFull,
    CountTokens,
    Failed,
    Loaded,
    Loading,
    LoadModel,
    LoadRefused,
    OfAnswer,
    PassRunning,
    Quit,
    Report,
    SessionFigures,
    SessionNote,
    StillLoading,
    StopAnswer,
    StopLoad,
    TokensCounted,
    from_line,
    to_line,
)

SEED = 37


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model") / "target", seed=SEED)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERSTORY_CACHE", str(tmp_path / "cache"))


def load(folder: Path, **settings: Any) -> LoadModel:
    given = {"draft": str(folder), "draft_format": "stored", "tree": "8x8", "context_tokens": 200, "device": "cpu"}
    return LoadModel(EngineConfig(target=str(folder), lookup="on", **(given | settings)))


def ask(answer_id: int, *texts: str, is_continued: bool = False, **choices: Any) -> Answer:
    """A conversation whose turns alternate, the user's first."""
    roles = ["user", "assistant"] * len(texts)
    messages = tuple(Message(role, text) for role, text in zip(roles, texts, strict=False))
    params = SamplingParams(**({"max_new_tokens": 24} | choices))
    return Answer(answer_id, PromptRequest(id="x", messages=messages, params=params, is_continued=is_continued))


class ScriptedInbox(RequestInbox):
    """Gives out its requests one after the other, and ends."""

    def __init__(self, requests: Sequence[LoadModel | Answer]) -> None:
        super().__init__()
        self._script = list(requests)

    def take(self) -> LoadModel | Answer | None:
        if self._script:
            self._take_in(self._script.pop(0))
        elif self._waiting.empty():
            self._end()
        return super().take()


def serve(*requests: LoadModel | Answer, react: Callable[[RequestInbox, Report], None] | None = None) -> list[Report]:
    """Everything that a host says to these requests; `react` sees each report as it is said."""
    inbox, reports = ScriptedInbox(requests), []

    def say(report: Report) -> None:
        reports.append(from_line(to_line(report)))
        if react is not None:
            react(inbox, report)

    EngineHost(inbox, say).serve()
    return reports


def events_of(reports: Sequence[Report], answer_id: int = 1) -> list[Any]:
    """What happened while an answer was written, but where its passes were."""
    told = [report.event for report in reports if isinstance(report, OfAnswer) and report.answer_id == answer_id]
    return [event for event in told if not isinstance(event, PassRunning)]


def end_of(reports: Sequence[Report], answer_id: int = 1) -> Finished:
    """How an answer ended, with the last report."""
    last = reports[-1]
    assert isinstance(last, OfAnswer) and last.answer_id == answer_id
    assert isinstance(last.event, Finished)
    return last.event


def text_of(reports: Sequence[Report], answer_id: int = 1) -> str:
    return "".join(one.text for one in events_of(reports, answer_id) if isinstance(one, TextDelta))


def has_text(report: Report, answer_id: int = 1) -> bool:
    return bool(text_of([report], answer_id))


def test_an_answer_may_begin_while_layers_are_read_and_the_app_hears_how_far_that_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """The reading is held until the app has heard of it, so that the answer waits for it."""
    may_read, read_ahead = threading.Event(), layer_filling.read_ahead

    def held(*arguments: Any) -> Any:
        may_read.wait(60)
        yield from read_ahead(*arguments)

    def react(inbox: RequestInbox, report: Report) -> None:
        if isinstance(report, StillLoading):
            may_read.set()

    monkeypatch.setattr(layer_filling, "read_ahead", held)
    monkeypatch.setattr(host_module, "LOAD_TICK_SECONDS", 0.01)
    reports = serve(load(folder, device_memory_bytes=0, link="1GB/s"), ask(1, "the cat"), react=react)
    late = [report for report in reports if isinstance(report, StillLoading)]
    assert late[0].progress is not None and late[0].progress.num_done_bytes < late[0].progress.num_bytes
    assert late[-1] == StillLoading(None)
    assert end_of([report for report in reports if isinstance(report, OfAnswer)]).finish_reason == "length"


def test_what_turns_out_while_a_draft_runs_is_told_once_behind_the_answer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device says that it cannot record passes when the first one is to be recorded."""
    notices: list[str] = []

    def react(inbox: RequestInbox, report: Report) -> None:
        if has_text(report):
            notices.append("draft passes are not recorded")

    monkeypatch.setattr(StreamedModel, "notices", property(lambda model: tuple(notices[:1])))
    reports = serve(load(folder, draft="substitute"), ask(1, "the cat"), ask(2, "a dog"), react=react)
    assert [report for report in reports if isinstance(report, SessionNote)] == [
        SessionNote(("draft passes are not recorded",))
    ]


def test_a_model_is_loaded_and_what_it_holds_is_told(folder: Path):
    reports = serve(load(folder, device_memory_bytes=0))
    loadings = [report for report in reports if isinstance(report, Loading)]
    loaded = reports[-1]
    assert isinstance(loaded, Loaded)
    assert (loaded.target, loaded.draft, loaded.device, loaded.context_tokens) == ("target", "target", "cpu", 200)
    assert (loaded.num_layers, loaded.num_resident_layers, loaded.num_ring_slots) == (loaded.num_layers, 0, 2)
    assert loaded.resident_layers == ()
    assert loaded.bytes_per_pass > 0 < loaded.memory["ring of layer slots"]
    assert loaded.sentences[0]
    read = [one.progress.num_done_bytes for one in loadings]
    assert read == sorted(read)
    assert 0 < read[-1] <= loadings[-1].progress.num_bytes
    assert [one.seconds for one in loadings] == sorted(one.seconds for one in loadings)


def test_the_largest_context_that_is_said_to_fit_does(folder: Path):
    loaded = serve(load(folder))[-1]
    assert isinstance(loaded, Loaded)
    sizes, num_bytes = zip(*loaded.larger_contexts, strict=True)
    assert sizes == (256, 512) and 0 < num_bytes[0] < num_bytes[1]  # the model has 512 positions
    largest = serve(load(folder, context_tokens=sizes[-1]))[-1]
    assert isinstance(largest, Loaded)
    assert (largest.context_tokens, largest.larger_contexts) == (512, ())


def test_tokens_are_counted_while_an_answer_is_written(folder: Path):
    """The answer goes on only once the count has come."""
    counted = threading.Event()
    wanted = CountTokens(7, ("the cat", "the cat and the dog"), ask(1, "the cat").prompt)

    def react(inbox: RequestInbox, report: Report) -> None:
        if isinstance(report, TokensCounted):
            counted.set()
        elif isinstance(report, OfAnswer) and isinstance(report.event, Round) and not counted.is_set():
            inbox.count(wanted)
            assert counted.wait(60)

    reports = serve(load(folder), ask(1, "the cat"), react=react)
    (found,) = [report for report in reports if isinstance(report, TokensCounted)]
    assert found.count_id == 7 and found.num_tokens is not None and 0 < found.num_tokens[0] < found.num_tokens[1]
    prefills = [
        each.event for each in reports if isinstance(each, OfAnswer) and isinstance(each.event, PrefillProgress)
    ]
    assert found.num_prompt_tokens == prefills[0].num_prompt_tokens
    assert reports.index(found) < len(reports) - 1


def test_cores_are_left_to_the_app_where_they_compute(folder: Path):
    calls = []
    inbox = ScriptedInbox([load(folder)])
    EngineHost(inbox, lambda report: None, yield_cores=lambda: calls.append(1)).serve()
    assert calls == [1]


def test_an_answer_is_told_from_its_prompt_to_its_end(folder: Path):
    reports = serve(load(folder), ask(1, "the cat"))
    events, finished = events_of(reports), end_of(reports)
    assert [type(event).__name__ for event in events[:2]] == ["PrefillProgress", "LevelDrafted"]
    rounds = [event for event in events if isinstance(event, Round)]
    costs = finished.statistics
    assert (finished.finish_reason, costs.new_tokens) == ("length", 24)
    assert costs.rounds == len(rounds) == 3
    assert sum(one.num_emitted for one in rounds) >= 24
    figures = [after for event, after in pairwise(events) if isinstance(event, Round)]
    assert all(isinstance(after, SessionFigures) for after in figures)
    assert figures[0].num_context_tokens == costs.prompt_tokens + rounds[0].num_emitted
    assert 10**7 < figures[0].process_bytes <= psutil.virtual_memory().total
    assert finished.text == text_of(reports) != ""


def test_the_next_turn_begins_behind_what_the_caches_hold(folder: Path):
    def more(inbox: RequestInbox, report: Report) -> None:
        reports.append(report)
        if isinstance(report, OfAnswer) and report.answer_id == 1 and isinstance(report.event, Finished):
            inbox._take_in(ask(2, "the cat", text_of(reports), "and the hen"))

    reports: list[Report] = []
    serve(load(folder), ask(1, "the cat"), react=more)
    first, second = (events_of(reports, answer_id)[0] for answer_id in (1, 2))
    assert isinstance(first, PrefillProgress) and first.num_done_tokens == 0
    assert first.num_prompt_tokens <= second.num_done_tokens < second.num_prompt_tokens


def test_a_stopped_answer_keeps_what_came_and_can_be_written_on(folder: Path):
    def stop(inbox: RequestInbox, report: Report) -> None:
        if has_text(report):
            inbox._take_in(StopAnswer(1))

    first = serve(load(folder), ask(1, "the cat"), react=stop)
    stopped = end_of(first)
    assert stopped.finish_reason == "stopped" and 0 < stopped.statistics.new_tokens < 24
    continued = ask(2, "the cat", text_of(first), is_continued=True)
    reports = serve(load(folder), ask(1, "the cat"), continued)
    assert text_of(reports).startswith(text_of(first))
    begun = events_of(reports, 2)[0]
    assert begun.num_prompt_tokens > stopped.statistics.prompt_tokens  # the answer is part of the prompt, and open
    assert end_of(reports, 2).text == text_of(reports, 2) != ""


def test_quitting_ends_an_answer_and_the_work(folder: Path):
    def quit_(inbox: RequestInbox, report: Report) -> None:
        if has_text(report):
            inbox.read([to_line(Quit())])

    reports = serve(load(folder), ask(1, "the cat"), ask(2, "never begun"), react=quit_)
    assert end_of(reports).finish_reason == "stopped"


def test_quitting_ends_a_load_between_two_pieces(folder: Path):
    def quit_(inbox: RequestInbox, report: Report) -> None:
        if isinstance(report, Loading) and report.progress.num_done_bytes:
            inbox.read([to_line(Quit())])

    reports = serve(load(folder), react=quit_)
    assert {type(report) for report in reports} == {Loading}


def test_a_load_is_given_up_for_the_next_and_leaves_nothing_behind(folder: Path):
    others = [load(folder, context_tokens=100)]

    def load_another(inbox: RequestInbox, report: Report) -> None:
        if others and isinstance(report, Loading) and report.progress.num_done_bytes:
            inbox._take_in(others.pop())

    reports = serve(load(folder), react=load_another)
    loaded = [report for report in reports if isinstance(report, Loaded)]
    assert [one.context_tokens for one in loaded] == [100]


def test_a_load_closes_the_session_before_it(folder: Path):
    streamers = []
    host: EngineHost

    def say(report: Report) -> None:
        if isinstance(report, Loaded) and host._opened is not None:
            streamers.append(host._opened.streamer)

    host = EngineHost(ScriptedInbox([load(folder, device_memory_bytes=0)] * 2), say)
    host.serve()
    assert len(streamers) == 2 and all(streamer.slots == () for streamer in streamers)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"target": "/no/such/folder"}, "input", "/no/such/folder"),
        ({"target": "no-such/model here"}, "input", "no-such/model here"),
        ({"draft": "/no/such/draft"}, "input", "/no/such/draft"),
        ({"device_memory_bytes": 1000}, "memory", "the budget is"),
    ],
)
def test_a_load_that_cannot_work_is_refused_before_the_session_is_closed(folder, monkeypatch, changes, kind, words):
    """A typo once unloaded the model that worked."""
    really, loads = host_module.load_models, []
    monkeypatch.setattr(host_module, "load_models", lambda *given, **how: loads.append(given) or really(*given, **how))
    reports = serve(load(folder), LoadModel(replace(load(folder).config, **changes)), ask(1, "the cat"))
    (refused,) = [report for report in reports if isinstance(report, LoadRefused)]
    assert (refused.kind, refused.loaded.target, len(loads)) == (kind, "target", 1)
    assert words in refused.sentence and end_of(reports).text


def test_a_session_is_opened_again_where_the_next_fails_only_while_it_is_read(folder, monkeypatch):
    really, loads = host_module.load_models, []

    def fail_second(config, stack, **how):
        loads.append(config.context_tokens)
        if len(loads) == 2:
            raise LinkError("the disk does not answer")
        return really(config, stack, **how)

    monkeypatch.setattr(host_module, "load_models", fail_second)
    reports = serve(load(folder), load(folder, context_tokens=100), ask(1, "the cat"))
    (refused,) = [report for report in reports if isinstance(report, LoadRefused)]
    assert (loads, refused.loaded.context_tokens) == ([200, 100, 200], 200)
    assert "the disk does not answer" in refused.sentence and end_of(reports).text


def test_a_load_that_is_stopped_leaves_what_was_open(folder):
    seen: list[Report] = []

    def stop(inbox: RequestInbox, report: Report) -> None:
        seen.append(report)
        is_wanted = sum(isinstance(each, Loaded) for each in seen) == num_loads_before and not stops
        if is_wanted and isinstance(report, Loading) and report.progress.num_done_bytes:
            stops.append(True)
            inbox._take_in(StopLoad())

    num_loads_before, stops = 0, list[bool]()
    *_, last = serve(load(folder), react=stop)
    assert isinstance(last, Failed) and last.kind == "stopped"
    num_loads_before, stops = 1, []
    seen.clear()
    reports = serve(load(folder), load(folder, context_tokens=100), ask(1, "the cat"), react=stop)
    (refused,) = [report for report in reports if isinstance(report, LoadRefused)]
    assert (refused.kind, refused.loaded.context_tokens) == ("stopped", 200)
    assert end_of(reports).text


def test_what_cannot_be_done_is_told_and_survived(folder: Path):
    cannot = [
        (LoadModel(EngineConfig(target="/no/such/folder")), "input", "/no/such/folder"),
        (load(folder, device_memory_bytes=1000), "memory", "the budget is"),
        (ask(1, "x"), "input", "no model is open"),
    ]
    reports = serve(*(request for request, _, _ in cannot), load(folder))
    failures = [report for report in reports if isinstance(report, Failed)] + events_of(reports)
    assert len(failures) == len(cannot)
    for failed, (_, kind, words) in zip(failures, cannot, strict=True):
        assert failed.kind == kind
        assert words in failed.sentence
    assert isinstance(reports[-1], Loaded)


def test_a_prompt_that_does_not_fit_costs_one_answer_and_what_makes_room_is_told(folder: Path):
    turns = ("the cat " * 30, "and the hen " * 20)
    reports = serve(load(folder), ask(1, *turns * 3, "the cat"), ask(2, "the cat"))
    *_, full, failed = events_of(reports, 1)
    assert isinstance(full, ContextFull) and failed.kind == "context"
    assert full.num_tokens > full.context_tokens == 200
    assert 0 < full.num_left_out < 7 and full.num_left_out % 2 == 0 and full.fits_alone
    assert f"this conversation has {full.num_tokens} tokens" in failed.sentence and "--" not in failed.sentence
    kept = ask(3, *(*turns * 3, "the cat")[full.num_left_out :])
    assert end_of(serve(load(folder), kept), 3).text
    *_, alone, _ = events_of(serve(load(folder), ask(1, "the cat " * 300)))
    assert (alone.num_left_out, alone.fits_alone) == (0, False)
    assert end_of(reports, 2).text


def test_an_answer_that_fills_the_context_tells_what_makes_room(folder: Path):
    reports = serve(load(folder), ask(1, "the cat", "a hen " * 10, "the cat " * 10, max_new_tokens=500))
    *_, full, finished = events_of(reports)
    assert isinstance(full, ContextFull) and finished.finish_reason == "context"
    assert full.num_tokens >= 199 and full.wanted_context_tokens == full.largest_context_tokens == 512


def test_a_fault_of_our_own_is_one_sentence_and_the_process_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(session: Session, request: PromptRequest) -> None:
        raise RuntimeError("a\nb\x1b[2J")

    monkeypatch.setattr(Session, "prefill_start", fail)
    (failed,) = events_of(serve(load(folder), ask(1, "the cat")))
    assert isinstance(failed, Failed) and failed.kind == "fault"
    assert failed.sentence.startswith("unexpected RuntimeError: a b; ask again")
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PromptTooLongError("x"), "context"),
        (OptionError("x"), "input"),
        (BudgetError("x"), "memory"),
        (MemoryError("x"), "memory"),
        (LinkError("x"), "fault"),
        (ValueError("x"), "fault"),
    ],
)
def test_failures_are_told_by_what_can_be_done(error: Exception, kind: str):
    assert failure_kind(error) == kind


def test_what_nobody_chose_is_as_the_models_author_wants_it(tmp_path: Path):
    """The app says what is left to the model, and hears what it took."""
    model = save_tiny_folder(tmp_path / "model", seed=SEED)
    settings = {"eos_token_id": 2, "temperature": 0.6, "top_k": 20, "repetition_penalty": 1.3}
    (model / "generation_config.json").write_text(json.dumps(settings))
    asked = ask(1, "the cat", temperature=0.7, top_k=5)
    asked = replace(asked, prompt=replace(asked.prompt, unchosen=frozenset({"temperature", "repetition_penalty"})))
    reports = serve(load(model, generation="auto"), asked)
    (told,) = [report for report in reports if isinstance(report, Loaded)]
    assert told.own_settings == {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.3}
    assert told.sentences[-1].startswith("the model's own generation settings: temperature 0.6, top-k 20")
    assert end_of(reports).own_settings == {"temperature": 0.6, "repetition_penalty": 1.3}
    assert end_of(serve(load(model), asked)).own_settings == {}, "plain"


def test_the_app_hears_what_is_the_models_own():
    own = GenerationConfig(choice="auto", temperature=0.6, top_p=1.0, no_repeat_ngram_size=3)
    settings, sentences = own_settings_of(own)
    assert settings == {"temperature": 0.6, "top_p": 1.0}
    assert sentences == (
        "the model's own generation settings: temperature 0.6, no 3 tokens in a row twice; "
        "/set generation plain leaves them out",
    )
    assert own_settings_of(GenerationConfig()) == ({}, ())
    refused = GenerationConfig(choice="auto", top_k=9, refused_when_sampling=("typical_p 0.9",))
    assert own_settings_of(refused) == ({"top_k": 9}, ())


def test_after_a_round_the_app_hears_what_the_planner_expects():
    choice = SimpleNamespace(seconds_per_token=0.2)
    engine = SimpleNamespace(text=[1] * 21, planner=SimpleNamespace(choice=choice))
    opened: Any = SimpleNamespace(session=SimpleNamespace(engine=engine))
    figures = session_figures(opened)
    assert (figures.num_context_tokens, figures.predicted_seconds_per_token) == (21, 0.2)
    engine.planner.choice = None
    assert session_figures(opened).predicted_seconds_per_token is None


def test_a_report_counts_the_layers_that_are_done_and_names_those_in_the_ring():
    with LayerStreamer(make_layers([False, True, False, False, False]), InstantEngine(), num_slots=2) as ring:
        opened: Any = SimpleNamespace(streamer=ring)
        reports = [pass_running(opened)]
        run_pass(ring, use=lambda index: reports.append(pass_running(opened)))
        reports.append(pass_running(opened))
    assert reports == [
        None,
        PassRunning(0, 5, (0, 2)),
        PassRunning(1, 5, (2, 3)),
        PassRunning(2, 5, (2, 3)),
        PassRunning(3, 5, (3, 4)),
        PassRunning(4, 5, (0, 4)),
        None,
    ]


def test_it_ticks_in_a_thread_of_its_own_and_is_silent_afterwards():
    heard: queue.SimpleQueue[int] = queue.SimpleQueue()
    with ticking(lambda: heard.put(threading.get_ident()), tick_seconds=0.001):
        assert heard.get() != threading.get_ident()
    assert not any(thread.name == "pass ticker" for thread in threading.enumerate())


def run_process(stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    command = child_command("tui.chat.engine.host")
    return subprocess.run(command, input=stdin, capture_output=True, env=child_environment())


def test_the_process_ends_with_quit_and_with_its_pipe():
    for stdin in (to_line(Quit()), b""):
        finished = run_process(stdin)
        assert (finished.returncode, finished.stdout, finished.stderr) == (0, b"", b"")


def test_the_process_refuses_what_is_no_request():
    finished = run_process(b"hello\n")
    assert (finished.returncode, finished.stdout) == (1, b"")
    assert b"is no message" in finished.stderr


STUCK = """
import threading
from tui.chat.engine import host
host.EngineHost.serve = lambda self: threading.Event().wait()
host.main()
"""


def test_work_that_does_not_look_up_holds_the_end_up_for_a_second_only():
    command = [sys.executable, "-P", "-c", STUCK]
    finished = subprocess.run(command, input=b"", capture_output=True, env=child_environment())
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, b"", b"")


ORPHAN = """
import asyncio
from tui.chat.engine.client import EngineClient
async def start():
    link = EngineClient()
    await link.start()
    print(link.process_id, flush=True)
    await asyncio.Event().wait()
asyncio.run(start())
"""


def test_an_app_that_is_killed_leaves_no_engine_behind():
    command = [sys.executable, "-P", "-c", ORPHAN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=child_environment()) as app:
        assert app.stdout is not None
        engine = psutil.Process(int(app.stdout.readline()))
        app.kill()
        engine.wait()
    assert not engine.is_running()
