"""Stories of the engine and the settings: death and restart, failed loads, settings, tree, theme."""

from dataclasses import replace
from functools import partial

import pytest

from profiles.errors import BadInputError
from tests.support.chat_fakes import LOADED, endless, polite
from tests.support.chat_stories import tell, telling
from tests.support.screen_text import screen_text
from tui.chat.engine.messages import Answer, Failed, LoadModel, LoadRefused, StopLoad
from tui.chat.models import FitEstimate, ListedModel
from tui.chat.settings.file import RememberedSettings, read_settings
from tui.chat.settings.settings import ChatSettings
from tui.chat.widgets.picker import ModelPicker


def remembered(tmp_path):
    return read_settings(tmp_path / "settings.toml")[0]


def test_a_killed_engine_is_told_and_started_again_with_one_key(tmp_path):
    async def story():
        async with telling(tmp_path, script=endless) as teller:
            await teller.ask("Tell.", is_awaited=False)
            await teller.until(lambda: teller.contents == ["Tell.", "Once upon "])
            teller.engine.die()
            await teller.until(lambda: teller.chat.notice.display, "the notice")
            assert "killed" in teller.chat.notice.sentence
            assert [each.state for each in teller.dialogue.messages()] == ["complete", "failed"]
            teller.engine.script = polite
            await teller.press("f6", "enter")
            await teller.until(lambda: teller.dialogue.state.phase == "ready", "the second load")
            assert teller.engine.num_starts == 2
            assert teller.num_requests("LoadModel") == 2
            assert not teller.chat.notice.display
            await teller.press("ctrl+r")
            await teller.until(lambda: teller.contents == ["Tell.", "Hello there."])

    tell(story)


def test_an_engine_that_hangs_is_started_anew_and_its_answer_kept(tmp_path):
    def hanging(request):
        return endless(request) if isinstance(request, Answer) else []

    async def story():
        async with telling(tmp_path) as teller:
            teller.engine.script = hanging
            await teller.ask("Tell.", is_awaited=False)
            await teller.until(lambda: teller.contents == ["Tell.", "Once upon "])
            await teller.command("/restart")
            await teller.until(lambda: teller.engine.num_starts == 2 and teller.num_requests("LoadModel") == 2)
            assert [each.state for each in teller.dialogue.messages()] == ["complete", "stopped"]
            assert not teller.dialogue.is_answering and not teller.chat.notice.display
            teller.engine.script = polite
            teller.engine.say(LOADED)
            await teller.until(lambda: teller.dialogue.state.phase == "ready", "the second load")
            await teller.ask("Go on.")
            assert teller.contents == ["Tell.", "Once upon ", "Go on.", "Hello there."]

    tell(story)


def test_an_engine_that_cannot_be_started_is_told(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:

            async def refuse():
                raise OSError(12, "Cannot allocate memory")

            teller.engine.start = refuse
            await teller.command("/restart")
            await teller.until(lambda: "Cannot allocate memory" in teller.chat.notice.sentence)

    tell(story)


@pytest.mark.parametrize("kind", ["memory", "input", "fault"])
def test_a_load_that_fails_is_told_with_what_can_be_done(tmp_path, kind):
    def failing(request):
        return [Failed("/models/\x1b[31mgone is missing", kind)] if isinstance(request, LoadModel) else []

    async def story():
        async with telling(tmp_path, script=failing) as teller:
            await teller.until(lambda: teller.chat.notice.display)
            assert teller.chat.notice.sentence == "/models/gone is missing"
            assert len(teller.chat.notice.query("Button")) == 3
            await teller.press("escape")
            await teller.until(lambda: not teller.chat.notice.display)
            await teller.type("Hello?")
            await teller.press("enter")
            await teller.until(lambda: teller.chat.prompt.text == "Hello?")

    tell(story)


def test_the_model_that_was_loaded_is_remembered(tmp_path):
    async def story():
        settings = RememberedSettings(
            ChatSettings(), path=tmp_path / "settings.toml", overrides={"target": "/models/tiny"}
        )
        async with telling(tmp_path, settings=settings) as teller:
            await teller.until(lambda: teller.dialogue.state.model == LOADED)
            await teller.until(lambda: remembered(tmp_path).recent_targets == ("/models/tiny",))

    tell(story)


def models_on_a_shelf(recent):
    return [ListedModel(f"/models/{name}", name, f"/models/{name}", 10) for name in ("one", "two")]


async def estimates_of(folders, config):
    for folder in folders:
        yield FitEstimate(folder, "streams", 0.5, f"streams with {config.draft}")


PICKER = partial(ModelPicker, find=models_on_a_shelf, estimate=estimates_of)


def test_a_model_is_chosen_and_loaded_or_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("tui.chat.actions.refuse_no_model", lambda name: None)  # there are none where the shelf says

    async def story():
        async with telling(tmp_path, picker=PICKER) as teller:
            await teller.ask("One?")
            await teller.press("f4")
            await teller.until(lambda: teller.app.screen is not teller.screen)
            await teller.press("escape")
            await teller.until(lambda: teller.app.screen is teller.screen)
            assert teller.num_requests("LoadModel") == 1
            for number, (way, name) in enumerate((("f4", "two"), ("/model", "one"), ("/model /models/two", "two")), 2):
                await teller.ask_for(way)
                if way in ("f4", "/model"):
                    await teller.until(lambda: teller.app.screen is not teller.screen)
                    await teller.type(name)
                    await teller.press("enter")
                await teller.until(lambda n=number: teller.num_requests("LoadModel") == n)
                assert teller.engine.requests[-1].config.target == f"/models/{name}"
                await teller.until(lambda: teller.dialogue.state.phase == "ready")
                assert remembered(tmp_path).target == f"/models/{name}"
            assert teller.contents == ["One?", "Hello there."]

    tell(story)


def refusing(request):
    """A script: no model but the one at /models/tiny can be loaded."""
    if isinstance(request, LoadModel) and request.config.target != "/models/tiny":
        return [LoadRefused(f"no such model: {request.config.target}", "input", LOADED)]
    return endless(request)


def test_a_model_that_cannot_be_loaded_leaves_the_one_that_is_and_is_not_remembered(tmp_path):
    """A typo once unloaded the model that worked, became the default and stayed among the recent ones."""

    async def story():
        settings = RememberedSettings(ChatSettings(target="/models/tiny"), path=tmp_path / "settings.toml")
        async with telling(tmp_path, script=refusing, settings=settings) as teller:
            await teller.until(lambda: remembered(tmp_path).recent_targets == ("/models/tiny",))
            await teller.ask("Tell.", is_awaited=False)
            await teller.command("/model /models/tinny")
            await teller.hears("/models/tinny is no folder")
            assert teller.dialogue.is_answering and teller.num_requests("LoadModel") == 1
            for way in ("/model owner/typo", "/set model owner/typo"):
                await teller.command(way)
                await teller.until(lambda: "no such model: owner/typo" in teller.chat.notice.sentence)
                assert "tiny stays open" in teller.chat.notice.sentence
                await teller.until(lambda: teller.dialogue.state.phase == "ready")
                await teller.press("escape")
                assert remembered(tmp_path).target == "/models/tiny"
                assert remembered(tmp_path).recent_targets == ("/models/tiny",)
                assert settings.config().target == "/models/tiny"
            await teller.ask("Go on.", is_awaited=False)
            settings.forget_recent("/models/tiny")
            assert remembered(tmp_path).recent_targets == ()

    tell(story)


def test_what_the_command_line_says_is_shown_and_can_be_changed_and_is_not_remembered(tmp_path):
    """/set temperature 0.7 once did nothing where the command line said 0 and 0.7 was remembered."""

    async def story():
        settings = RememberedSettings(
            ChatSettings(temperature=0.7),
            path=tmp_path / "settings.toml",
            overrides={"temperature": 0.0, "target": "/models/tiny", "draft": "none", "context_tokens": 2048},
        )
        async with telling(tmp_path, settings=settings) as teller:
            await teller.until(lambda: remembered(tmp_path).recent_targets == ("/models/tiny",))
            assert (remembered(tmp_path).target, remembered(tmp_path).draft) == ("", ChatSettings().draft)
            await teller.command("/set")
            await teller.until(lambda: teller.app.screen is not teller.screen)
            fields = {
                name: teller.app.screen.query_one(f"#field-{name}").value for name in ("target", "context_tokens")
            }
            assert fields == {"target": "/models/tiny", "context_tokens": "2048"}
            await teller.press("escape")
            await teller.command("/set temperature 0.7")
            await teller.hears("temperature is 0.7")
            assert settings.params().temperature == 0.7
            await teller.press("f5")
            await teller.until(lambda: teller.app.screen is not teller.screen)
            await teller.press("ctrl+u", *"0.5", "ctrl+s")
            await teller.until(lambda: remembered(tmp_path).temperature == 0.5)
            assert remembered(tmp_path).draft == ChatSettings().draft
            assert (settings.config().draft, settings.config().context_tokens) == ("none", 2048)

    tell(story)


def test_loading_is_stopped_with_escape(tmp_path):
    def slow(request):
        return [] if isinstance(request, LoadModel) else stopping(request)

    def stopping(request):
        return [Failed("loading was stopped", "stopped")] if isinstance(request, StopLoad) else polite(request)

    async def story():
        async with telling(tmp_path, script=slow, is_loaded=False) as teller:
            await teller.until(lambda: teller.num_requests("LoadModel") == 1)
            await teller.type("Early?")
            await teller.press("enter")
            await teller.until(lambda: teller.dialogue.waiting)
            await teller.press("escape")
            await teller.until(lambda: teller.chat.prompt.text == "Early?")
            assert teller.num_requests("StopLoad") == 0
            await teller.press("escape")
            await teller.until(lambda: "loading was stopped" in teller.chat.notice.sentence)
            assert teller.dialogue.state.phase == "no model"

    tell(story)


def test_the_settings_form_keeps_what_was_changed(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            for way, value in (("f5", "0.25"), ("/set", "0.5")):
                await teller.ask_for(way)
                await teller.until(lambda: teller.app.screen is not teller.screen)
                await teller.press("ctrl+u")
                await teller.type(value)
                await teller.press("ctrl+s")
                await teller.until(lambda kept=float(value): remembered(tmp_path).temperature == kept)
                await teller.hears(f"temperature is {value}")

    tell(story)


def test_what_is_sampled_with_is_the_models_own_until_a_person_chooses(tmp_path):
    def with_own(request):
        own = replace(LOADED, own_settings={"temperature": 0.6})
        return [own] if isinstance(request, LoadModel) else polite(request)

    async def story():
        async with telling(tmp_path, script=with_own) as teller:
            await teller.command("/set temperature")
            await teller.hears("temperature is auto: 0.6, the model's own")
            await teller.press("f5")
            await teller.until(lambda: "Now auto: 0.6, the model's own." in " ".join(screen_text(teller.app).split()))
            await teller.press("escape")
            await teller.command("/set temperature 0.7")
            await teller.hears("temperature is 0.7")
            await teller.command("Hello?")
            await teller.until(lambda: isinstance(teller.engine.requests[-1], Answer))
            prompt = teller.engine.requests[-1].prompt
            assert prompt.params.temperature == 0.7
            assert prompt.unchosen == {"top_p", "top_k", "min_p", "repetition_penalty", "stop"}

    tell(story)


def test_the_machine_panel_comes_and_is_remembered(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            for way, is_shown in (("f2", True), ("/stats", False), ("/stats", True), ("f2", False)):
                await teller.ask_for(way)
                await teller.until(lambda shown=is_shown: teller.chat.panel.display is shown)
                assert remembered(tmp_path).show_panel is is_shown

    tell(story)


def test_help_opens(tmp_path):
    async def story():
        async with telling(tmp_path, size=(100, 60)) as teller:
            for way in ("f1", "/help"):
                await teller.ask_for(way)
                await teller.until(lambda: "Answers" in screen_text(teller.app))
                await teller.press("end")
                await teller.until(lambda: " Ctrl+C " in screen_text(teller.app))
                keys = screen_text(teller.app).partition("Keys")[2]
                assert all(f" {key} " in keys for key in ("Enter", "Shift+Enter, Ctrl+J", "F6", "Tab", "Ctrl+C")), keys
                assert " Ctrl+N " not in keys
                await teller.press("escape")
                await teller.until(lambda: teller.app.screen is teller.screen)
            await teller.command("/help theme")
            await teller.until(lambda: "/theme [THEME]" in screen_text(teller.app))
            await teller.press("escape")
            await teller.command("/help no-such")
            await teller.hears("there is no command /no-such")

    tell(story)


def test_the_palette_runs_commands(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.press("ctrl+p")
            await teller.until(lambda: teller.app.screen is not teller.screen)
            await teller.type("machine panel")
            await teller.until(lambda: "Machine panel" in screen_text(teller.app), "the hit")
            await teller.press("enter")
            await teller.until(lambda: teller.chat.panel.display)

    tell(story)


def test_a_theme_from_the_list_is_remembered(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.command("/theme")
            await teller.until(lambda: teller.app.screen is not teller.screen)
            await teller.type("gruvbox")
            await teller.until(lambda: "gruvbox" in screen_text(teller.app))
            await teller.press("enter")
            await teller.until(lambda: remembered(tmp_path).theme == "gruvbox")

    tell(story)


def test_a_setting_is_changed_and_remembered_unless_it_makes_no_sense(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            for line, words in (("/set top_p 7", "top_p is 7"), ("/set colour red", "colour")):
                await teller.command(line)
                await teller.hears(words)
                assert teller.services_settings == ChatSettings(seed=1)
            await teller.command("/set top-p 0.5")
            await teller.until(lambda: remembered(tmp_path).top_p == 0.5)
            await teller.ask("One?")
            assert teller.engine.requests[-1].prompt.params.top_p == 0.5
            await teller.command("/set top_p")
            await teller.hears("top_p is 0.5")

    tell(story)


def test_a_tree_asks_for_another_load_and_gets_it(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("One?")
            await teller.command("/tree 8x4")
            await teller.until(lambda: teller.chat.notice.display)
            assert teller.chat.notice.sentence == "tree will hold once the model is loaded again"
            await teller.press("f6", "enter")
            await teller.until(lambda: teller.num_requests("LoadModel") == 2)
            assert teller.engine.requests[-1].config.tree == "8x4"
            assert teller.contents == ["One?", "Hello there."]

    tell(story)


def test_a_theme_is_chosen_and_remembered(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.command("/theme nord")
            await teller.until(lambda: teller.app.theme == "nord")
            assert remembered(tmp_path).theme == "nord"
            await teller.command("/theme plaid")
            await teller.hears("there is no theme plaid")

    tell(story)


def test_settings_that_cannot_be_written_hold_all_the_same(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:

            def refuse(settings, **options):
                remember(settings, **options)
                raise BadInputError("the disk is full")

            remember = teller.chat.services.settings.replace
            teller.chat.services.settings.replace = refuse
            await teller.command("/set top_k 3")
            await teller.hears("the disk is full")
            assert teller.services_settings.top_k == 3

    tell(story)


def test_a_download_is_asked_for_before_it_begins(tmp_path):
    """93 MB were once fetched because somebody looked at the program."""

    async def story():
        is_missing = [True]
        async with telling(tmp_path, is_loaded=False, is_demo_missing=lambda: is_missing[0]) as teller:
            await teller.until(lambda: "Download it (93 MB)" in screen_text(teller.app))
            assert teller.engine.requests == [] and "F4 chooses one" in screen_text(teller.app)
            await teller.type("Hi?")
            await teller.press("enter")
            await teller.until(lambda: teller.chat.prompt.text == "Hi?", "what cannot be sent comes back")
            await teller.press("f6", "enter")
            await teller.until(lambda: teller.num_requests("LoadModel") == 1)
            await teller.until(lambda: teller.dialogue.state.phase == "ready")
            assert not teller.chat.notice.display

    tell(story)
