"""Stopping an answer, writing on from where one ends, and what the next question finds in the caches."""

import threading
from collections.abc import Iterator

import pytest

from offload.errors import PassCancelledError
from runtime.config import SamplingParams
from runtime.engine.loading import OpenSession
from runtime.engine.session import format_prompt
from runtime.errors import PromptTooLongError
from runtime.events import Event, Finished, LevelDrafted, PrefillProgress, Round, TextDelta
from runtime.prompts.prompt_file import Message, PromptRequest
from tests.support.model_factory import build_tokenizer
from tests.support.session_factory import answer, open_tiny, request, save_tiny_folder

SEED = 37


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSession]:
    folder = save_tiny_folder(tmp_path_factory.mktemp("model") / "target", seed=SEED)
    with open_tiny(folder, draft=folder, tree="8x8", num_residents=1, context_tokens=512) as opened:
        yield opened


def chat(
    *texts: str, is_continued: bool = False, max_new_tokens: int = 24, banned_tokens: tuple[int, ...] = ()
) -> PromptRequest:
    """A conversation whose turns alternate, the user's first."""
    roles = ["user", "assistant"] * len(texts)
    messages = tuple(Message(role, text) for role, text in zip(roles, texts, strict=False))
    params = SamplingParams(max_new_tokens=max_new_tokens, banned_tokens=banned_tokens)
    return PromptRequest(id="1", messages=messages, params=params, is_continued=is_continued)


def plain_letters_only() -> tuple[int, ...]:
    """Bans all tokens whose text could be read as other tokens, as a random model would write them."""
    tokenizer = build_tokenizer()
    strings = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return tuple(index for index, string in enumerate(strings) if len(string) > 1 or string in "thieao ")


def stopped_at(opened: OpenSession, kind: type[Event], asked: PromptRequest) -> tuple[list[Event], Finished]:
    """Everything that follows when the answer is stopped as its second event of `kind` is shown."""
    events: list[Event] = []
    for event in opened.session.generate(asked):
        events.append(event)
        if [isinstance(seen, kind) for seen in events].count(True) == 2:
            opened.session.stop()
    finished = events[-1]
    assert isinstance(finished, Finished)
    return events, finished


def assert_next_answer_is_whole(opened: OpenSession, expected: list[int]) -> None:
    assert answer(opened, request())[1] == expected


@pytest.mark.parametrize("kind", [LevelDrafted, Round, TextDelta])
def test_a_stop_between_passes_ends_the_answer_and_keeps_what_came(opened: OpenSession, kind: type[Event]) -> None:
    whole = answer(opened, request())[1]
    events, finished = stopped_at(opened, kind, request())
    assert finished.finish_reason == "stopped"
    came = [token for event in events if isinstance(event, Round) for token in event.token_ids]
    assert whole[: len(came)] == came and len(came) < len(whole)
    assert finished.statistics.new_tokens == len(came)
    assert finished.text == "".join(event.text for event in events if isinstance(event, TextDelta))
    assert_next_answer_is_whole(opened, whole)


def test_a_stop_in_the_middle_of_a_pass_ends_it_after_the_layer(opened: OpenSession) -> None:
    whole = answer(opened, request())[1]
    target, computed = opened.session.engine.target, []
    hooks = [
        layer.register_forward_hook(lambda *_, index=index: computed.append(index))
        for index, layer in enumerate(target.parts.layers)
    ]
    hooks.append(target.parts.layers[0].register_forward_hook(lambda *_: opened.session.stop()))
    *_, finished = opened.session.generate(request())
    for hook in hooks:
        hook.remove()
    assert isinstance(finished, Finished)
    assert (finished.finish_reason, finished.text, computed) == ("stopped", "", [0])
    assert finished.statistics.rounds == 0
    assert finished.statistics.prefill_seconds > 0 == finished.statistics.decode_seconds
    assert_next_answer_is_whole(opened, whole)


def test_a_stop_while_the_draft_reads_the_prompt_waits_for_no_more_than_a_pass(opened: OpenSession) -> None:
    whole = answer(opened, request())[1]
    drafter = opened.session.engine.drafter
    assert drafter is not None
    hook = drafter.model.parts.layers[0].register_forward_hook(lambda *_: opened.session.stop())
    events = list(opened.session.generate(request("the cat " * 60)))
    hook.remove()
    finished = events[-1]
    assert isinstance(finished, Finished) and finished.finish_reason == "stopped"
    assert not [event for event in events if isinstance(event, Round)]
    assert_next_answer_is_whole(opened, whole)


def test_a_stop_comes_from_any_thread(opened: OpenSession) -> None:
    whole = answer(opened, request())[1]

    def stop_from_a_thread(*_: object) -> None:
        thread = threading.Thread(target=opened.session.stop)
        thread.start()
        thread.join()

    hook = opened.session.engine.target.parts.layers[0].register_forward_hook(stop_from_a_thread)
    *_, finished = opened.session.generate(request())
    hook.remove()
    assert isinstance(finished, Finished) and finished.finish_reason == "stopped"
    assert_next_answer_is_whole(opened, whole)


def test_a_stop_after_the_end_of_an_answer_does_not_touch_the_next(opened: OpenSession) -> None:
    whole = answer(opened, request())[1]
    opened.session.stop()
    assert_next_answer_is_whole(opened, whole)


def test_a_cancellation_that_nobody_asked_the_session_for_is_an_error(opened: OpenSession) -> None:
    hook = opened.session.engine.target.parts.layers[0].register_forward_hook(lambda *_: opened.streamer.cancel())
    with pytest.raises(PassCancelledError):
        list(opened.session.generate(request()))
    hook.remove()


def test_the_second_turn_computes_only_what_is_new(opened: OpenSession) -> None:
    first = chat("the cat and the dog", max_new_tokens=30, banned_tokens=plain_letters_only())
    finished, _ = answer(opened, first)
    sizes: list[int] = []
    target = opened.session.engine.target
    hook = target.parts.layers[0].register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[1]))
    second = chat("the cat and the dog", finished.text, "and the hen")
    promised = opened.session.prefill_start(second)
    num_prompt = len(format_prompt(opened.session._tokenizer, second))
    answer(opened, second)
    hook.remove()
    num_kept = len(format_prompt(opened.session._tokenizer, first)) + 30
    assert num_kept - 1 <= promised.num_done_tokens <= num_kept  # the last token may not have been in a pass yet
    assert promised.num_prompt_tokens == num_prompt
    assert sizes[0] == num_prompt - promised.num_done_tokens + 8 - 1  # a tree of 8 nodes rides along, its root known


def test_an_answer_is_written_on_where_it_was_stopped(opened: OpenSession) -> None:
    banned = plain_letters_only()
    whole, _ = answer(opened, chat("the cat", banned_tokens=banned))
    half, _ = answer(opened, chat("the cat", banned_tokens=banned, max_new_tokens=10))
    continued = chat("the cat", half.text, is_continued=True, banned_tokens=banned, max_new_tokens=14)
    rest, _ = answer(opened, continued)
    assert half.text + rest.text == whole.text and len(half.text) == 10


def test_a_continued_prompt_is_open_at_its_end(opened: OpenSession) -> None:
    tokenizer = opened.session._tokenizer
    ids = format_prompt(tokenizer, chat("the cat", "the dog", is_continued=True))
    assert build_tokenizer().decode(ids) == "<|user|>the cat</s><|assistant|>the dog"


def test_nothing_to_write_on_from_is_an_answer_that_begins(opened: OpenSession) -> None:
    tokenizer = opened.session._tokenizer
    begun = format_prompt(tokenizer, chat("the cat"))
    assert format_prompt(tokenizer, chat("the cat", " ", is_continued=True)) == begun


def test_a_prompt_without_room_for_an_answer_is_told_from_other_options(opened: OpenSession) -> None:
    with pytest.raises(PromptTooLongError, match="the context holds 512"):
        list(opened.session.generate(request("the cat " * 200)))


def test_a_stop_while_a_long_prompt_is_read_keeps_what_was_read(opened: OpenSession) -> None:
    opened.session.engine.set_text([1])
    asked = request("the cat " * 60)
    for event in opened.session.generate(asked):
        if isinstance(event, PrefillProgress):
            num_done = event.num_done_tokens
            opened.session.stop()
    assert opened.session.engine.num_committed == num_done == 256
