"""Stories of answers: stop, write anew, change the prompt, go on, copy, by key and by command."""

import pytest

from tests.support.chat_fakes import answer_reports, endless
from tests.support.chat_stories import tell, telling
from tui.chat.engine.messages import Answer, StopAnswer

CODE = "Here:\n\n```python\ndef f():\n    return 1\n```\n\nand\n\n```sh\nls\n```\n"


def with_code(request):
    return answer_reports(request.answer_id, [CODE]) if isinstance(request, Answer) else endless(request)


def test_escape_stops_an_answer_and_keeps_what_came(tmp_path):
    async def story():
        async with telling(tmp_path, script=endless) as teller:
            await teller.ask("Tell.", is_awaited=False)
            await teller.until(lambda: teller.contents == ["Tell.", "Once upon "], "the first text")
            await teller.press("escape")
            await teller.until(lambda: not teller.dialogue.is_answering)
            assert isinstance(teller.engine.requests[-1], StopAnswer)
            assert [each.state for each in teller.dialogue.messages()] == ["complete", "stopped"]

    tell(story)


def test_a_prompt_waits_and_escape_takes_it_back(tmp_path):
    async def story():
        async with telling(tmp_path, script=endless) as teller:
            await teller.ask("One?", is_awaited=False)
            await teller.type("Two?")
            await teller.press("enter")
            await teller.until(lambda: teller.dialogue.queued == "Two?")
            assert teller.chat.query_one("#queued").display
            await teller.press("escape")
            await teller.until(lambda: not teller.dialogue.is_answering)
            assert teller.chat.prompt.text == "Two?"
            assert not teller.chat.query_one("#queued").display

    tell(story)


@pytest.mark.parametrize("way", ["ctrl+r", "/regenerate"])
def test_an_answer_is_written_anew(tmp_path, way):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("One?")
            await (teller.command(way) if way.startswith("/") else teller.press(way))
            await teller.until(lambda: teller.num_requests("Answer") == 2 and not teller.dialogue.is_answering)
            assert teller.engine.requests[-1].params["seed"] == 2
            assert teller.contents == ["One?", "Hello there."]

    tell(story)


def test_regenerating_a_greedy_answer_says_that_it_will_be_the_same(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("One?")
            await teller.command("/set temperature 0")
            await teller.press("ctrl+r")
            await teller.hears("will be the same")

    tell(story)


@pytest.mark.parametrize("way", ["ctrl+o", "/edit"])
def test_the_last_prompt_is_changed_and_sent_again(tmp_path, way):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("One?")
            await (teller.command(way) if way.startswith("/") else teller.press(way))
            await teller.until(lambda: teller.chat.prompt.text == "One?")
            await teller.ask(" Or two?")
            assert teller.contents == ["One? Or two?", "Hello there."]

    tell(story)


@pytest.mark.parametrize("way", ["regenerate", "edit"])
def test_what_was_dropped_for_another_answer_comes_back(tmp_path, way):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.command("/undo")
            await teller.ask("One?")
            await teller.command(f"/{way}")
            if way == "edit":
                await teller.until(lambda: teller.chat.prompt.text == "One?")
                await teller.ask(" Two?")
            await teller.until(lambda: teller.num_requests("Answer") == 2 and not teller.dialogue.is_answering)
            now = teller.contents
            await teller.command("/undo")
            await teller.until(lambda: teller.contents == ["One?", "Hello there."])
            assert now == ["One? Two?" if way == "edit" else "One?", "Hello there."]
            assert len(teller.chat.view.query("AnswerTurn")) == 1

    tell(story)


def test_escape_leaves_the_last_prompt_as_it_was(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("One?")
            await teller.press("ctrl+o")
            await teller.press("escape")
            await teller.until(lambda: teller.chat.prompt.text == "")
            await teller.ask("Two?")
            assert teller.contents == ["One?", "Hello there.", "Two?", "Hello there."]

    tell(story)


@pytest.mark.parametrize("way", ["ctrl+g", "/continue"])
def test_an_answer_goes_on(tmp_path, way):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("One?")
            await (teller.command(way) if way.startswith("/") else teller.press(way))
            await teller.until(lambda: teller.num_requests("Answer") == 2 and not teller.dialogue.is_answering)
            assert teller.engine.requests[-1].is_continued
            assert teller.contents == ["One?", "Hello there.Hello there."]
            assert "Hello there.Hello there." in teller.chat.view.newest_answer_text()

    tell(story)


def test_the_oldest_turns_are_left_out_on_request(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("One?")
            await teller.ask("Two?")
            await teller.command("/trim")
            await teller.until(lambda: teller.dialogue.first_kept_id() > 0)
            await teller.ask("Three?")
            assert teller.engine.requests[-1].messages[0]["content"] == "Two?"
            assert len(teller.chat.view.query(".-left-out")) == 2
            await teller.command("/untrim")
            await teller.until(lambda: not teller.chat.view.query(".-left-out"))
            await teller.ask("Four?")
            assert teller.engine.requests[-1].messages[0]["content"] == "One?"

    tell(story)


def test_code_blocks_are_copied_the_last_one_first(tmp_path):
    async def story():
        async with telling(tmp_path, script=with_code) as teller:
            await teller.press("f9")
            await teller.hears("there is no code block to copy")
            await teller.ask("Code?")
            await teller.until(lambda: len(teller.chat.query("CodeBlock")) == 2)
            copied = []
            for _ in range(3):
                await teller.press("f9")
                copied.append(teller.app.clipboard)
            assert copied == ["ls", "def f():\n    return 1", "ls"]

    tell(story)


def test_a_click_copies_one_code_block(tmp_path):
    async def story():
        async with telling(tmp_path, script=with_code) as teller:
            await teller.ask("Code?")
            await teller.until(lambda: len(teller.chat.query("CodeBlock")) == 2)
            await teller.pilot.click(teller.chat.query("CopyLabel").first())
            await teller.until(lambda: teller.app.clipboard == "def f():\n    return 1")

    tell(story)


@pytest.mark.parametrize("way", ["f8", "/copy"])
def test_the_last_answer_is_copied(tmp_path, way):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.press("f8")
            await teller.hears("there is no answer to copy yet")
            await teller.ask("One?")
            await (teller.command(way) if way.startswith("/") else teller.press(way))
            await teller.until(lambda: teller.app.clipboard == "Hello there.")

    tell(story)
