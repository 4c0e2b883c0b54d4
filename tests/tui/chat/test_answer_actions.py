"""Stories of answers: stop, write anew, change the prompt, go on, copy, by key and by command."""

from tests.support.chat_fakes import answer_reports, endless, polite
from tests.support.chat_stories import tell, telling
from tests.support.screen_text import screen_text
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


def test_prompts_wait_and_escape_takes_them_back_before_it_stops_the_answer(tmp_path):
    async def story():
        async with telling(tmp_path, script=endless) as teller:
            await teller.ask("One?", is_awaited=False)
            for text in ("Two?", "Three?"):
                await teller.type(text)
                await teller.press("enter")
            await teller.until(lambda: len(teller.dialogue.waiting) == 2)
            shown = screen_text(teller.app)
            assert shown.index("1. waits: Two?") < shown.index("2. waits: Three?")
            for text in ("Three?", "Two?\nThree?"):
                await teller.press("escape")
                await teller.until(lambda taken=text: teller.chat.prompt.text == taken)
                assert teller.dialogue.is_answering
            assert not teller.screen.query_one("#queued").display
            await teller.press("escape")
            await teller.until(lambda: not teller.dialogue.is_answering)
            assert teller.chat.prompt.text == "Two?\nThree?"

    tell(story)


def test_stop_as_a_command_stops_the_answer_and_gives_back_what_waits(tmp_path):
    async def story():
        async with telling(tmp_path, script=endless) as teller:
            await teller.ask("One?", is_awaited=False)
            await teller.type("Two?")
            await teller.press("enter")
            await teller.command("/stop")
            await teller.until(lambda: not teller.dialogue.is_answering)
            assert teller.chat.prompt.text == "Two?"

    tell(story)


def test_an_answer_is_interrupted_to_write_it_anew_or_to_change_its_prompt(tmp_path):
    async def story():
        async with telling(tmp_path, script=endless) as teller:
            await teller.ask("One?", is_awaited=False)
            await teller.until(lambda: teller.contents == ["One?", "Once upon "], "the first text")
            await teller.press("ctrl+r")
            await teller.until(lambda: teller.num_requests("Answer") == 2, "another answer")
            await teller.until(lambda: teller.contents == ["One?", "Once upon "], "its first text")
            await teller.type("draft")
            await teller.press("ctrl+o")
            await teller.until(lambda: teller.chat.prompt.text == "One?" and not teller.dialogue.is_answering)
            teller.engine.script = polite
            await teller.press(*" 2", "enter")
            await teller.until(lambda: teller.contents == ["One? 2", "Hello there."])
            assert teller.chat.prompt.text == "draft"
            teller.chat.prompt.put("")
            for answer in ("Once upon ", "Once upon "):
                await teller.command("/undo")
                await teller.until(lambda kept=answer: teller.contents == ["One?", kept])
            for last in (["One?", "Once upon "], ["One? 2", "Hello there."]):
                await teller.command("/redo")
                await teller.until(lambda wanted=last: teller.contents == wanted)

    tell(story)


def test_an_answer_is_written_anew(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("One?")
            for number, way in enumerate(("ctrl+r", "/regenerate"), start=2):
                await teller.ask_for(way)
                await teller.until(lambda n=number: teller.num_requests("Answer") == n)
                await teller.until(lambda: not teller.dialogue.is_answering)
                assert teller.engine.requests[-1].prompt.params.seed == number
                assert teller.contents == ["One?", "Hello there."]
            await teller.command("/set temperature 0")
            await teller.press("ctrl+r")
            await teller.hears("will be the same")

    tell(story)


def test_the_last_prompt_is_changed_and_sent_again_or_left_as_it_was(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            for way in ("ctrl+o", "/edit"):
                await teller.begin_anew()
                await teller.ask("One?")
                await teller.ask_for(way)
                await teller.until(lambda: teller.chat.prompt.text == "One?")
                await teller.ask(" Or two?")
                assert teller.contents == ["One? Or two?", "Hello there."], way
            await teller.press("ctrl+o")
            await teller.press("escape")
            await teller.until(lambda: teller.chat.prompt.text == "")
            await teller.ask("Three?")
            assert teller.contents == ["One? Or two?", "Hello there.", "Three?", "Hello there."]

    tell(story)


def test_what_was_dropped_for_another_answer_comes_back(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.command("/undo")
            await teller.hears("no conversation is deleted")
            for way, prompt in (("/regenerate", "One?"), ("/edit", "One? Two?")):
                await teller.begin_anew()
                await teller.ask("One?")
                await teller.command(way)
                if way == "/edit":
                    await teller.until(lambda: teller.chat.prompt.text == "One?")
                    await teller.ask(" Two?")
                await teller.until(lambda: teller.num_requests("Answer") == 2 and not teller.dialogue.is_answering)
                now = teller.contents
                await teller.command("/undo")
                await teller.until(lambda: teller.contents == ["One?", "Hello there."])
                assert now == [prompt, "Hello there."]
                assert len(teller.chat.view.query("AnswerTurn")) == 1

    tell(story)


def test_an_answer_goes_on(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("One?")
            for number, way in enumerate(("ctrl+g", "/continue"), start=2):
                await teller.ask_for(way)
                await teller.until(lambda n=number: teller.num_requests("Answer") == n)
                await teller.until(lambda: not teller.dialogue.is_answering)
                assert teller.engine.requests[-1].prompt.is_continued
                assert teller.contents == ["One?", "Hello there." * number]
                assert "Hello there." * number in teller.chat.view.newest_answer_text()

    tell(story)


def test_the_oldest_turns_are_left_out_on_request(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("One?")
            await teller.ask("Two?")
            await teller.command("/trim")
            await teller.until(lambda: any(each.is_left_out for each in teller.dialogue.messages()))
            await teller.ask("Three?")
            assert teller.engine.requests[-1].prompt.messages[0].content == "Two?"
            assert len(teller.chat.view.query(".-left-out")) == 2
            await teller.command("/untrim")
            await teller.until(lambda: not teller.chat.view.query(".-left-out"))
            await teller.ask("Four?")
            assert teller.engine.requests[-1].prompt.messages[0].content == "One?"

    tell(story)


def test_code_blocks_are_copied_the_last_one_first_or_the_one_that_is_clicked(tmp_path):
    async def story():
        async with telling(tmp_path, script=with_code) as teller:
            await teller.press("f9")
            await teller.hears("there is no code block to copy")
            await teller.ask("Code?")
            answer = teller.screen.query("AnswerMarkdown").last()
            await teller.until(lambda: len(answer.code_blocks) == 2)
            copied = []
            for _ in range(3):
                await teller.press("f9")
                copied.append(teller.app.clipboard)
            assert copied == ["ls", "def f():\n    return 1", "ls"]
            await teller.click("copy", nth=0)
            await teller.until(lambda: teller.app.clipboard == "def f():\n    return 1")

    tell(story)


def test_the_last_answer_is_copied(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.press("f8")
            await teller.hears("there is no answer to copy yet")
            await teller.ask("One?")
            for way in ("f8", "/copy"):
                teller.app.copy_to_clipboard("")
                await teller.ask_for(way)
                await teller.until(lambda: teller.app.clipboard == "Hello there.")

    tell(story)
