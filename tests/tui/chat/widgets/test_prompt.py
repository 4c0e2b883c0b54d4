"""Stories of writing: lines, growth, history, completions, and controls that are shown, not executed."""

from textual.app import App

from tests.support.screen_text import STYLES
from tests.support.widget_screens import run
from tui.chat.commands.slash import Completion
from tui.chat.widgets.prompt import PromptArea
from tui.terminal_text import show_escapes_in_place


class Desk(App):
    CSS_PATH = STYLES

    def __init__(self):
        super().__init__()
        self.sent = []

        self.area = PromptArea()

    def compose(self):
        yield self.area.completions
        yield self.area

    def on_mount(self):
        self.area.focus()

    def on_prompt_area_sent(self, message):
        self.sent.append(message.text)


def write(story, *, size=(40, 20)):
    app = Desk()
    run(app, lambda pilot: story(app, pilot), size=size)


def test_enter_sends_and_ctrl_j_begins_a_line():
    async def story(app, pilot):
        await pilot.press("a", "ctrl+j", "b", "shift+enter", "c", "enter", "d")
        await pilot.pause()
        assert app.sent == ["a\nb\nc"]
        assert app.area.text == "d"

    write(story)


def test_keys_that_come_together_keep_their_order():
    """Enter once overtook the letters before it, which were lost."""

    async def story(app, pilot):
        from textual import events

        for key in ("a", "b", "enter", "c"):
            app.post_message(events.Key(key, key if len(key) == 1 else "\r"))
        await pilot.pause()
        await pilot.pause()
        assert app.sent == ["ab"]
        assert app.area.text == "c"

    write(story)


def test_a_backspace_takes_the_letter_before_it_however_fast_one_types():
    """It once took the letter that came with it."""

    async def story(app, pilot):
        from textual import events

        await pilot.press("k")
        for key, character in (
            ("backspace", "\x7f"),
            ("l", "l"),
            ("left", None),
            ("m", "m"),
            ("end", None),
            ("n", "n"),
        ):
            app.post_message(events.Key(key, character))
        await pilot.pause()
        assert app.area.text == "mln"

    write(story)


def test_nothing_is_sent_that_says_nothing():
    async def story(app, pilot):
        await pilot.press("space", "ctrl+j", "enter")
        assert app.sent == []

    write(story)


def test_it_grows_with_its_lines_up_to_a_limit():
    async def story(app, pilot):
        heights = [app.area.size.height]
        for _ in range(8):
            await pilot.press("ctrl+j")
            await pilot.pause()
            heights.append(app.area.size.height)
        assert heights == [1, 2, 3, 4, 5, 6, 7, 8, 8]

    write(story)


def test_up_and_down_bring_earlier_prompts_back_at_the_edges():
    async def story(app, pilot):
        app.area.set_history(["one", "two\nlines"])
        await pilot.press("x", "up")
        assert app.area.text == "two\nlines"
        await pilot.press("up")  # within the prompt
        assert app.area.text == "two\nlines"
        await pilot.press("up")
        assert app.area.text == "one"
        await pilot.press("down", "down", "down")
        assert app.area.text == "x"

    write(story)


def test_a_wrapped_line_is_walked_through_before_history():
    async def story(app, pilot):
        app.area.set_history(["old"])
        app.area.put("word " * 20)
        await pilot.pause()
        await pilot.press("up")
        assert app.area.text == "word " * 20

    write(story)


def test_arrows_choose_a_completion_and_tab_takes_it():
    async def story(app, pilot):
        completions = [Completion("/new", "/new"), Completion("/next", "/next")]
        app.area.completions.show(completions)
        await pilot.press("down", "tab")
        assert app.area.text == "/next"

    write(story)


def test_enter_takes_what_is_chosen_or_needed_and_sends_it():
    async def story(app, pilot):
        completions = app.area.completions

        async def sends(typed, *shown, keys=(), about=None):
            app.area.put(typed)
            completions.show(shown, typed if about is None else about)
            await pilot.press(*keys, "enter")
            completions.show(())
            return app.sent[-1] if app.sent else None

        regenerate = Completion("/regenerate", "/regenerate", is_needed=True)
        assert await sends("/regen", regenerate) == "/regenerate"
        assert await sends("/re", regenerate, about="/r") == "/re"  # the list is still about what was typed before
        warmer = Completion("/set temperature 0.6", "0.6")
        assert await sends("/set temperature 0", warmer) == "/set temperature 0"
        next_one = Completion("/set temperature 0.7", "0.7")
        assert await sends("/set temperature 0", warmer, next_one, keys=["down"]) == "/set temperature 0.7"
        folder = Completion("/import models/", "models/", is_needed=True)
        before = list(app.sent)
        await sends("/import mo", folder)
        assert (app.sent, app.area.text) == (before, "/import models/")

    write(story)


def test_what_is_being_written_waits_while_something_else_is_shown():
    async def story(app, pilot):
        app.area.set_history(["one"])
        await pilot.press(*"draft")
        app.area.show_beside("one")
        assert (app.area.text, app.area.written, app.area.changed) == ("one", "draft", "")
        await pilot.press("x")
        app.area.set_history(["one", "two"])  # as another answer does
        assert (app.area.written, app.area.changed) == ("draft", "onex")
        await pilot.press("enter")
        assert (app.sent, app.area.text) == (["onex"], "draft")
        app.area.show_beside("two")
        await pilot.press("y")
        app.area.show_written()
        assert app.area.text == "draft"
        await pilot.press("up")
        assert app.area.text == "twoy"  # nothing that was typed is lost
        await pilot.press("enter")
        assert app.area.text == "draft"

    write(story)


def test_a_command_that_cannot_be_obeyed_comes_back_beside_what_was_written_meanwhile():
    async def story(app, pilot):
        app.area.put("draft")
        app.area.give_back("/regenrate")
        assert (app.area.text, app.area.written) == ("/regenrate", "draft")
        app.area.show_written()
        app.area.give_back("a prompt")
        assert app.area.text == "a prompt\ndraft"

    write(story)


def test_pasted_controls_are_drawn_as_signs_of_the_same_width():
    hostile = "a\x1b]52;c;x\x07\x9b2J\u202e\x7f"
    shown = show_escapes_in_place(hostile)
    assert len(shown) == len(hostile)
    assert shown.isprintable()

    async def story(app, pilot):
        app.area.put(hostile)
        await pilot.pause()
        drawn = "".join(segment.text for segment in app.area.render_line(0))
        assert shown in drawn
        assert "\x1b" not in drawn
        await pilot.press("enter")
        assert app.sent == [hostile]

    write(story)


def test_a_prompt_that_is_sent_is_the_newest_and_kept_once():
    async def story(app, pilot):
        app.area.set_history(["one"])
        for sent in ("two", "two"):
            await pilot.press("up", "down", *sent, "enter")
        await pilot.press("x", "up")
        assert app.area.text == "two"
        await pilot.press("up", "up")
        assert app.area.text == "one"
        await pilot.press("down", "down", "down")
        assert app.area.text == "x"

    write(story)


def test_without_earlier_prompts_up_and_down_change_nothing():
    async def story(app, pilot):
        await pilot.press("x", "up", "down", "down")
        assert app.area.text == "x"

    write(story)
