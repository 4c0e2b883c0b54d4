"""What an empty conversation shows, and what pressing one of its prompts asks for."""

from dataclasses import replace

from textual.widgets import Button

from tests.support.chat_fakes import LOADED
from tests.support.chat_stories import tell, telling
from tests.support.screen_text import screen_text
from tests.support.widget_screens import WidgetApp, run, until
from tui.chat.engine.messages import Answer, LoadModel
from tui.chat.widgets.welcome import BEGINNINGS, EXAMPLES, Greeting, Welcome


def test_it_names_the_model_and_offers_prompts():
    welcome = Welcome(Greeting("tiny \x1b[31mis ready.", notes=("A note.",)))

    async def story(pilot):
        text = screen_text(pilot.app)
        assert "tiny is ready." in text and "A note." in text
        assert [prompt for prompt in EXAMPLES if f"› {prompt}" not in text] == []
        welcome.show(Greeting("base is ready.", has_chat_template=False))
        await until(pilot, lambda: f"› {BEGINNINGS[0]}" in screen_text(pilot.app))
        assert "it writes on" in screen_text(pilot.app) and "A note." not in screen_text(pilot.app)
        assert all(button.tooltip for button in welcome.query(Button))

    run(WidgetApp(welcome), story)


def test_it_fits_the_smallest_terminal():
    welcome = Welcome(Greeting("tiny is ready."))

    async def story(pilot):
        assert max(map(len, screen_text(pilot.app).splitlines())) <= 40

    run(WidgetApp(welcome), story, size=(40, 20))


def test_a_prompt_that_is_pressed_is_asked_unless_another_is_being_written(tmp_path):
    async def story():
        async with telling(tmp_path, size=(80, 30)) as teller:
            await teller.until(lambda: "tiny is ready." in screen_text(teller.app))
            await teller.type("mine")
            example = teller.screen.query(".welcome-example")[1]
            await teller.pilot.click(example)
            await teller.hears("send or clear what is written")
            assert teller.chat.prompt.text == "mine" and teller.num_requests("Answer") == 0
            teller.chat.prompt.put("")
            await teller.until(lambda: not example.has_class("-active"))  # until then a click changes nothing
            await teller.pilot.click(example)
            await teller.until(lambda: not teller.dialogue.is_answering and teller.contents != [])
            assert teller.contents == [EXAMPLES[1], "Hello there."]

    tell(story)


def base(request):
    return [replace(LOADED, has_chat_template=False)] if isinstance(request, LoadModel) else []


def test_a_base_model_writes_on_from_the_text(tmp_path):
    """It was once loaded, and then refused each prompt."""

    async def story():
        async with telling(tmp_path, script=base, size=(80, 30)) as teller:
            await teller.until(lambda: "It has no chat template, so it writes on" in screen_text(teller.app))
            await teller.ask("Once upon a time", is_awaited=False)
            (request,) = (each for each in teller.engine.requests if isinstance(each, Answer))
            assert (request.prompt.prompt, request.prompt.messages) == ("Once upon a time", None)

    tell(story)
