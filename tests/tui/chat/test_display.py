"""The screen in its main states, as text; a small terminal says so; nothing is lost between engine and screen."""

import pytest
from textual.widgets._toast import Toast, ToastRack

from runtime.events import LevelDrafted, PrefillProgress, TextDelta
from tests.support.chat_fakes import FIGURES, FINISHED, LOADED, ROUND, STOPPED, of_answer
from tests.support.chat_states import loading_report
from tests.support.chat_stories import tell, telling
from tests.support.screen_text import assert_snapshot, screen_text
from tests.support.widget_screens import resize
from tui.chat.changes import Trouble
from tui.chat.engine.messages import Answer, Failed, LoadModel, PassRunning
from tui.chat.settings.file import RememberedSettings
from tui.chat.settings.settings import ChatSettings
from tui.chat.widgets.tools import ToolsScreen

ANSWER = """\
Foxes sleep curled up.

| animal | sleeps |
|---|---|
| fox | 10 h |
| owl | 12 h |

```python
def hours(animal):
    return {"fox": 10, "owl": 12}[animal]
```
"""


def silent(request):
    return [LOADED] if isinstance(request, LoadModel) else []


def never_loaded(request):
    return []


async def _loading(teller):
    teller.engine.say(
        loading_report("reading layers", 100_000_000, 3_000_000_000, 1.0),
        loading_report("reading layers", 1_500_000_000, 3_000_000_000, 3.8),
    )
    await teller.until(lambda: teller.dialogue.state.load.latest.progress.num_done_bytes == 1_500_000_000)


async def _ready(teller):
    await teller.until(lambda: teller.dialogue.state.phase == "ready")


async def _prefill(teller):
    await teller.ask("How long do foxes sleep?", is_awaited=False)
    teller.engine.say(*of_answer(1, PrefillProgress(256, 700)))
    await teller.until(lambda: teller.dialogue.state.prefill.num_prompt_tokens == 700)


async def _drafting(teller):
    await teller.ask("How long do foxes sleep?", is_awaited=False)
    teller.engine.say(*of_answer(1, PrefillProgress(12, 12), ROUND, FIGURES, LevelDrafted(2, 6)))
    await teller.until(lambda: teller.dialogue.state.phase == "drafting")


async def _verifying(teller):
    await _drafting(teller)
    teller.engine.say(*of_answer(1, TextDelta("Foxes sleep"), PassRunning(3, 6, (2, 4))))
    await teller.until(lambda: teller.dialogue.state.phase == "verifying")
    await teller.until(lambda: "Foxes sleep" in teller.chat.view.newest_answer_text())


async def _answered(teller):
    await teller.ask("How long do foxes sleep?", is_awaited=False)
    teller.engine.say(*of_answer(1, ROUND, FIGURES, TextDelta(ANSWER), FINISHED))
    await teller.until(lambda: not teller.dialogue.is_answering)
    await teller.until(lambda: teller.chat.view.newest_answer_text() == ANSWER)


async def _stopped(teller):
    await _verifying(teller)
    teller.engine.say(*of_answer(1, STOPPED))
    await teller.until(lambda: teller.dialogue.state.phase == "stopped")


async def _context_full(teller):
    await teller.ask("How long do foxes sleep?", is_awaited=False)
    teller.engine.say(*of_answer(1, Failed("the prompt has 5000 tokens; the context holds 4096", "context")))
    await teller.until(lambda: teller.chat.notice.display)


async def _dead(teller):
    await _verifying(teller)
    teller.engine.die()
    await teller.until(lambda: teller.chat.notice.display)


async def _machine(teller):
    await _answered(teller)
    await teller.press("f2")
    await teller.until(lambda: teller.chat.panel.display)


async def _completing(teller):
    await teller.type("/re")
    await teller.until(lambda: teller.chat.completions.display)


STATES = {
    "loading": _loading,
    "ready": _ready,
    "prefill": _prefill,
    "drafting": _drafting,
    "verifying": _verifying,
    "answered": _answered,
    "stopped": _stopped,
    "context-full": _context_full,
    "dead": _dead,
    "machine": _machine,
    "completing": _completing,
}


@pytest.mark.parametrize("state", STATES)
def test_states_look_as_they_did(tmp_path, state):
    async def story():
        script = never_loaded if state == "loading" else silent
        async with telling(tmp_path, script=script, size=(80, 24), is_loaded=state != "loading") as teller:
            teller.chat.prompt.cursor_blink = False
            await STATES[state](teller)
            for columns, rows in ((80, 24), (120, 32)):
                await resize(teller.pilot, columns, rows)
                for _ in range(3):
                    await teller.pilot.pause()
                assert_snapshot(teller.app, f"{state}-{columns}x{rows}")

    tell(story)


def test_a_terminal_that_is_too_small_says_so_and_comes_back(tmp_path):
    async def story():
        async with telling(tmp_path, size=(80, 24)) as teller:
            await teller.type("kept")
            await resize(teller.pilot, 30, 8)
            await teller.until(lambda: "the chat needs 40 x 10" in screen_text(teller.app))
            await resize(teller.pilot, 80, 24)
            await teller.until(lambda: "kept" in screen_text(teller.app))

    tell(story)


def test_the_smallest_terminal_that_is_large_enough_shows_all_parts(tmp_path):
    async def story():
        async with telling(tmp_path, size=(40, 10)) as teller:
            await teller.ask("Hi?")
            await teller.until(lambda: "Hello there." in screen_text(teller.app))
            for words in ("Hi?  #1", "● ready", "6.0 tok/s", "ctx 1%", "^q Quit"):
                assert words in screen_text(teller.app), words

    tell(story)


@pytest.mark.parametrize("size", [(80, 24), (40, 10)])
def test_what_is_said_in_passing_lies_over_the_conversation_alone(tmp_path, size):
    """Toasts once lay over prompt, notice and status for 5 s, several at a time."""

    async def story():
        async with telling(tmp_path, size=size, has_toasts=True) as teller:
            await teller.ask("Hi?")
            for words in ("first", "a second sentence, which is long enough to need more than one row " * 3):
                teller.chat.say(words)
            await teller.until(lambda: [each for each in teller.screen.query(Toast) if each.region.height])
            await teller.until(lambda: len(teller.screen.query(Toast)) == 1, "one at a time")
            (toast,) = teller.screen.query(Toast)
            rack = teller.screen.query_one(ToastRack)
            assert rack.region.bottom <= teller.chat.prompt.region.y
            assert toast.region.right == size[0] and rack.region.y == 0
            await teller.chat.notice.show("gone", ())
            await teller.chat.show_trouble(Trouble("fault", "gone"))
            await teller.until(lambda: not teller.screen.query(Toast), "room for the notice")

    tell(story)


def test_what_is_said_in_passing_covers_no_dialogs_first_rows(tmp_path):
    """At 40x10 it lay over the title of a dialog and what was chosen in it."""

    async def story():
        async with telling(tmp_path, size=(40, 10), has_toasts=True) as teller:
            await teller.command("/tools")
            await teller.until(lambda: isinstance(teller.app.screen, ToolsScreen))
            teller.chat.say("said in passing")
            await teller.until(lambda: [each for each in teller.app.screen.query(Toast) if each.region.height])
            region = teller.app.screen.query(Toast).first().region
            assert region.bottom == 10 and region.y >= 6

    tell(story)


def test_a_sentence_stands_for_two_seconds_and_a_long_one_for_as_long_as_it_is_read(tmp_path):
    async def story():
        async with telling(tmp_path, has_toasts=True) as teller:
            teller.chat.say("answer copied (12 characters)")
            await teller.until(lambda: [each.timeout for each in teller.app._notifications] == [2.0])
            teller.chat.say("x" * 120)
            await teller.until(lambda: [each.timeout for each in teller.app._notifications] == [6.0])

    tell(story)


def test_an_error_is_told_once(tmp_path):
    """The same sentence once stood in caption, notice and status."""
    sentence = "the prompt has 5000 tokens; the context holds 4096"

    async def story():
        async with telling(tmp_path, script=silent) as teller:
            await _context_full(teller)
            await teller.until(lambda: sentence in screen_text(teller.app))
            assert screen_text(teller.app).count(sentence) == 1
            assert "no answer: the context is full" in screen_text(teller.app)
            await teller.press("escape")
            await teller.until(lambda: f"no answer: {sentence}" in screen_text(teller.app), "the caption tells it now")
            assert screen_text(teller.app).count(sentence) == 1

    tell(story)


def test_the_model_is_named_while_it_loads_and_at_rest(tmp_path):
    async def story():
        settings = RememberedSettings(ChatSettings(target=str(tmp_path / "Llama-70B")))
        async with telling(tmp_path, script=never_loaded, is_loaded=False, settings=settings) as teller:
            await teller.until(lambda: "loading Llama-70B" in screen_text(teller.app))
            teller.engine.say(LOADED)
            await teller.until(lambda: "● ready" in screen_text(teller.app))
            assert "tiny" in screen_text(teller.app).splitlines()[-2]

    tell(story)


def test_what_the_user_must_know_first_is_shown(tmp_path):
    async def story():
        async with telling(tmp_path, notices=("settings.toml was set aside", "the database was set aside")) as teller:
            await teller.until(lambda: teller.chat.notice.display)
            assert teller.chat.notice.sentence == "settings.toml was set aside · the database was set aside"
            await teller.until(lambda: teller.dialogue.state.phase == "ready")
            assert teller.chat.notice.display
            await teller.press("escape")
            await teller.until(lambda: not teller.chat.notice.display)

    tell(story)


def test_a_conversation_is_opened_at_the_start(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("About foxes")
        async with telling(tmp_path, conversation_id=1) as teller:
            assert teller.contents == ["About foxes", "Hello there."]
            await teller.press("up")
            await teller.until(lambda: teller.chat.prompt.text == "About foxes")
            await teller.press("enter")
            await teller.until(lambda: teller.num_requests("Answer") == 1)
            assert isinstance(teller.engine.requests[-1], Answer)
            assert len(teller.engine.requests[-1].prompt.messages) == 3

    tell(story)


def test_a_conversation_that_another_window_removed_is_told(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            for way in ("ctrl+r", "f3", "/clear", "prompt"):
                await teller.begin_anew()
                await teller.ask("One?")
                teller.store.delete_conversation(teller.dialogue.conversation_id)
                teller.store.purge_deleted(older_than_seconds=-1)
                if way == "prompt":
                    await teller.type("Two?")
                    await teller.press("enter")
                    await teller.until(lambda: teller.chat.prompt.text == "Two?")
                    teller.chat.prompt.put("")
                else:
                    await teller.ask_for(way)
                if way in ("ctrl+r", "/clear"):
                    await teller.until(lambda: teller.said)
                await teller.press("ctrl+n")
                await teller.press("escape")
                await teller.ask("Three?")
                assert teller.contents == ["Three?", "Hello there."], way

    tell(story)


def test_something_unexpected_is_told_and_the_chat_goes_on(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            taken = teller.dialogue.take

            def fail_once(report):
                teller.dialogue.take = taken
                raise ZeroDivisionError("by zero")

            teller.dialogue.take = fail_once
            teller.engine.say(*of_answer(77, LevelDrafted(0, 1)))
            await teller.until(lambda: "unexpected ZeroDivisionError" in teller.chat.notice.sentence)
            await teller.press("escape")
            await teller.ask("One?")
            assert teller.contents == ["One?", "Hello there."]

    tell(story)


def test_what_comes_with_one_round_is_shown_once(tmp_path):
    """The status line was drawn six times a round, which took a quarter of the time that keys wait for."""

    async def story():
        async with telling(tmp_path, script=silent) as teller:
            await _drafting(teller)
            shown, show = [], teller.chat.status.show
            teller.chat.status.show = lambda state, *words, **more: shown.append(state) or show(state, *words, **more)
            levels = [LevelDrafted(level, 4) for level in range(9)]
            teller.engine.say(*of_answer(1, *levels, PassRunning(3, 6, (2, 4)), TextDelta("Foxes")))
            await teller.until(lambda: teller.dialogue.state.phase == "verifying")
            assert 1 <= len(shown) <= 2 and shown[-1] is teller.dialogue.state

    tell(story)


@pytest.mark.parametrize("size", [(40, 10), (80, 24)])
def test_what_is_being_edited_is_said_at_the_prompt_until_it_is_left_or_sent(tmp_path, size):
    """Nothing told a prompt that takes the place of another one from the next one."""

    async def story():
        async with telling(tmp_path, size=size) as teller:
            await teller.ask("Hi?")
            await teller.press("alt+up", "e")
            await teller.until(lambda: "editing the answer (Esc leaves)" in screen_text(teller.app))
            await teller.press("escape")
            await teller.until(lambda: "editing" not in screen_text(teller.app))
            await teller.command("/edit")
            await teller.until(lambda: "editing your prompt (Esc leaves)" in screen_text(teller.app))
            await teller.ask(" Again?")
            assert "editing" not in screen_text(teller.app)

    tell(story)


def test_a_long_draft_leaves_room_for_what_stands_over_the_prompt_in_a_low_terminal(tmp_path):
    """Its last rows were cut off where a turn was selected with guesses shown, and so was what was being written."""

    async def story():
        async with telling(tmp_path, size=(40, 10)) as teller:
            await teller.ask("Hi?")
            await teller.type("words " * 60 + "end")
            await teller.press("f7", "alt+up")
            await teller.until(lambda: "again" in screen_text(teller.app))
            rows = screen_text(teller.app).split("\n")
            assert "guessed · its own" in rows[3] and "e edit" in rows[2]
            assert "end" in rows[6] and rows[7].startswith(" ╰") and "ready" in rows[8]

    tell(story)


def test_a_notice_leaves_room_for_the_prompt_in_a_low_terminal(tmp_path):
    async def story():
        async with telling(tmp_path, size=(40, 10)) as teller:
            await teller.chat.show_trouble(Trouble("memory", "a long sentence about memory, and what to do " * 4))
            await teller.until(lambda: teller.chat.notice.display)
            await teller.type("still here")
            await teller.until(lambda: "still here" in screen_text(teller.app))
            assert "Dismiss"[:3] in screen_text(teller.app) and "● ready" in screen_text(teller.app)

    tell(story)
