"""Rows of the model picker as exact text, and stories key by key with a source whose estimates come when it is let."""

import asyncio

import pytest
from textual.widgets import Input

from profiles.errors import BadInputError
from runtime.config import EngineConfig
from tests.support.screen_text import screen_rows, screen_text
from tests.support.widget_screens import WidgetApp, resize, run, until
from tui.chat.models import FitEstimate, ListedModel
from tui.chat.widgets.picker import (
    ModelPicker,
    fit_words,
    matching_models,
    model_row,
    model_sentence,
)

MODELS = (
    ListedModel("/m/q", "Qwen/Qwen2.5-Coder-1.5B-Instruct", "/m/q", 3_090_000_000, is_recent=True),
    ListedModel("", "demo model", "/m/demo", 270_000_000),
    ListedModel("owner/hub-only", "owner/hub-only"),
    ListedModel("/m/large", "meta/Llama-70B", "/m/large", 141_000_000_000),
)
FITS = (
    FitEstimate("/m/q", "streams", 0.22, "streams 2.62 GB in every pass, about 0.22 s/token"),
    FitEstimate("/m/demo", "resident", 1 / 12, "stays in memory whole (900 MB), about 12 tokens/s"),
    FitEstimate("/m/large", "does not fit", None, "one layer needs 4.2 GB of device memory, 2 GB are free"),
)


class FakeSource:
    def __init__(self, *, trouble=None):
        self.asked = []
        self.closed = 0
        self.gate = asyncio.Event()
        self._trouble = trouble

    def find(self, recent):
        if self._trouble is not None:
            raise self._trouble
        return MODELS

    async def estimate(self, folders, config):
        self.asked.append((tuple(folders), config.draft))
        try:
            yield FITS[0]
            await self.gate.wait()
            for fit in FITS[1:]:
                yield fit
        finally:
            self.closed += 1


def picker_of(source, *, draft="substitute"):
    return ModelPicker(EngineConfig(draft=draft), (), find=source.find, estimate=source.estimate)


class Told:
    """What a picker showed and returned after some keys, and what its source was asked."""

    def __init__(self, source, rows, results):
        self.source, self.rows, self.results = source, rows, results


async def told(pilot, *keys, source=None, draft="substitute", open_gate=False):
    """Open a picker in the app that runs, press the keys, read the screen, and close it if it is still open."""
    source, results = FakeSource() if source is None else source, []
    picker = picker_of(source, draft=draft)
    await pilot.app.push_screen(picker, results.append)
    await pilot.pause()
    if open_gate:
        source.gate.set()
    await pilot.press(*keys)
    await pilot.pause()
    await pilot.pause()
    found = Told(source, screen_rows(pilot.app), list(results))
    if picker.is_attached:
        picker.dismiss(None)
    await pilot.pause()
    await pilot.app.workers.wait_for_complete()
    return found


def in_an_app(story, *, size=(80, 24)):
    run(WidgetApp(), story, size=size)


def test_estimates_arrive_while_it_is_open():
    async def story(pilot):
        first = await told(pilot)
        assert first.rows[4] == " │ Qwen/Qwen2.5-Coder-1.5B-Instruct         3.09 GB  streams, 4.5 tok/s       │"
        assert first.rows[5] == " │ demo model                                270 MB  …                        │"
        assert first.rows[6] == " │ owner/hub-only                                                             │"
        assert first.source.asked == [(("/m/q", "/m/demo", "/m/large"), "substitute")]
        later = await told(pilot, open_gate=True)
        assert later.rows[5] == " │ demo model                                270 MB  in memory, 12.0 tok/s    │"
        assert later.rows[7] == " │ meta/Llama-70B                            141 GB  does not fit             │"
        last = await told(pilot, "down", "down", "down", open_gate=True)
        sentence = "meta/Llama-70B: one layer needs 4.2 GB of device memory, 2 GB are free"
        assert any(sentence in row for row in last.rows)

    in_an_app(story)


CHOICES = [
    (("enter",), ("/m/q", "substitute")),
    (("down", "enter"), ("", "substitute")),
    ((*"llama", "enter"), ("/m/large", "substitute")),
    ((*"./a b", "enter"), ("./a b", "substitute")),
    ((*"llama", "down", "enter"), ("llama", "substitute")),
    (("tab", "down", "enter"), ("", "substitute")),
    (("tab", "tab", "right", "enter"), ("/m/q", "none")),
    (("tab", "tab", "left", "enter"), ("/m/q", "auto")),
    (("tab", "tab", "left", "left", *"x/y", "enter"), ("/m/q", "x/y")),
    (("escape",), None),
]


def test_what_the_keys_choose():
    async def story(pilot):
        for keys, choice in CHOICES:
            found = await told(pilot, *keys)
            assert (keys, found.results) == (keys, [choice])
            assert found.source.closed == len(found.source.asked)  # estimates end with the screen
        unnamed = await told(pilot, "tab", "tab", "left", "left", "enter")
        assert unnamed.results == []

    in_an_app(story)


def test_another_draft_is_estimated_anew():
    async def story(pilot):
        found = await told(pilot, "tab", "tab", "right")
        assert [draft for _, draft in found.source.asked] == ["substitute", "none"]
        assert found.source.closed == 2
        assert any("streams, 4.5 tok/s" in row for row in found.rows)

    in_an_app(story)


def test_a_draft_that_was_chosen_before_is_there_and_the_filter_has_the_focus():
    async def story(pilot):
        assert (await told(pilot, "enter", draft="owner/draft")).results == [("/m/q", "owner/draft")]
        rows = (await told(pilot, *"llama", draft="owner/draft")).rows
        assert any("find    llama" in row for row in rows)

    in_an_app(story)


def test_an_estimate_does_not_move_the_highlight():
    async def story(pilot):
        source, results = FakeSource(), []
        await pilot.app.push_screen(picker_of(source), results.append)
        await pilot.press("down", "down", "down")
        source.gate.set()
        await pilot.pause()
        await pilot.pause()
        await pilot.press("enter")
        assert results == [("/m/large", "substitute")]

    in_an_app(story)


def test_trouble_with_the_list_is_told_and_a_name_can_be_typed():
    async def story(pilot):
        found = await told(pilot, source=FakeSource(trouble=BadInputError("the cache is gone")))
        words = " ".join(row.strip(" │") for row in found.rows)
        assert "the models cannot be listed: the cache is gone; no model here; type a folder or a hub name" in words
        typed = await told(pilot, *"a/b", "enter", source=FakeSource(trouble=OSError("gone")))
        assert typed.results == [("a/b", "substitute")]

    in_an_app(story)


def test_it_fits_every_terminal():
    async def story(pilot):
        for size in ((80, 24), (50, 14), (40, 10), (120, 40)):
            await resize(pilot, *size)
            rows = (await told(pilot)).rows
            assert any("Enter load" in row for row in rows), size
            assert any("Qwen" in row for row in rows), size

    in_an_app(story)


def test_the_highlight_is_seen_without_colour(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    app = WidgetApp(screen=picker_of(FakeSource()))

    async def story(pilot):
        await pilot.pause()
        names = ("option-list--option", "option-list--option-highlighted")
        plain, highlighted = (app.screen.query_one("#model-list").get_visual_style(name) for name in names)
        assert highlighted.underline and not plain.underline, "as it is drawn: Textual leaves reverse out of parts"
        assert "Qwen" in screen_text(app)

    run(app, story)


SMALL = ListedModel("/m/small", "owner/Small-135M", "/m/small", 270_000_000)
LARGE = ListedModel("/m/large", "owner/Large-70B", "/m/large", 141_000_000_000)
STREAMS = FitEstimate("/m/large", "streams", 1.24, "streams 120 GB in every pass, about 1.24 s/token")


@pytest.mark.parametrize(
    ("typed", "targets"),
    [
        ("", ["/m/small", "/m/large"]),
        ("large", ["/m/large", "large"]),
        ("OWNER 70b", ["/m/large", "OWNER 70b"]),
        ("owner/Large-70B", ["/m/large"]),
        ("/m/small", ["/m/small"]),
        ("./elsewhere", ["./elsewhere"]),
        ("  ", ["/m/small", "/m/large"]),
    ],
)
def test_typing_filters_and_may_name_another(typed, targets):
    assert [model.target for model in matching_models((SMALL, LARGE), typed)] == targets


@pytest.mark.parametrize(
    ("model", "fit", "row"),
    [
        (LARGE, "streams, 1.2 s/token", "owner/Large-70B             141 GB  streams, 1.2 s/token    "),
        (SMALL, "…", "owner/Small-135M            270 MB  …                       "),
        (SMALL, "", "owner/Small-135M            270 MB                          "),
        (
            *(ListedModel("x/y", "x/y", is_recent=True), ""),
            "x/y (recent)                                                ",
        ),
    ],
)
def test_rows(model, fit, row):
    assert model_row(model, fit, width=60) == row


def test_a_narrow_row_is_the_name():
    assert model_row(LARGE, "streams", width=30) == "owner/Large-70B"
    assert model_row(LARGE, "streams", width=8) == "owner/L…"


@pytest.mark.parametrize(
    ("fit", "seconds", "words"),
    [
        ("resident", 1 / 12, "in memory, 12.0 tok/s"),
        ("streams", 0.6, "streams, 1.7 tok/s"),
        ("streams", 4.0, "streams, 4.0 s/token"),
        ("does not fit", None, "does not fit"),
        ("unusable", None, "unusable"),
    ],
)
def test_fits_in_a_few_words(fit, seconds, words):
    assert fit_words(FitEstimate("f", fit, seconds, "s")) == words
    assert len(words) <= 24


def test_a_sentence_says_what_is_known():
    assert model_sentence(LARGE, {"/m/large": STREAMS}) == f"owner/Large-70B: {STREAMS.sentence}"
    assert "looking how it would fit" in model_sentence(SMALL, {"/m/small": None})
    assert model_sentence(ListedModel("a/b", "a/b"), {}).startswith("a/b: Enter loads it")


def test_a_name_cannot_move_the_cursor():
    evil = ListedModel("\x1b[2J/x", "\x1b]0;t\x07evil\nrow", "/m/evil", 5)
    row = model_row(evil, "", width=60)
    assert row.startswith("evil row ") and "\x1b" not in row
    assert "\x1b" not in model_sentence(evil, {})


BASE = ListedModel("/m/base", "owner/Base-7B", "/m/base", 14_000_000_000, has_chat_template=False)


def test_a_model_without_chat_template_says_so_before_it_is_loaded():
    assert model_row(BASE, "", width=60).startswith("owner/Base-7B (base) ")
    words = model_sentence(BASE, {"/m/base": STREAMS})
    assert words == f"owner/Base-7B: no chat template: writes on from your text; {STREAMS.sentence}"


def test_the_demo_model_says_that_it_is_downloaded():
    demo = ListedModel("", "SmolLM2 (demo, 93 MB to download)")
    assert model_sentence(demo, {}) == "SmolLM2 (demo, 93 MB to download): Enter downloads it once and loads it"


def test_models_of_a_typed_folder_are_listed_once():
    found = matching_models((SMALL, LARGE), "/m", below=(SMALL, BASE))
    assert [model.target for model in found] == ["/m/small", "/m/large", "/m/base", "/m"]


def make_folder(folder):
    folder.mkdir()
    (folder / "config.json").touch()
    (folder / "model.safetensors").touch()


def test_a_folder_that_is_typed_shows_its_models_and_a_path_is_completed(tmp_path):
    for name in ("alpha", "beta"):
        make_folder(tmp_path / name)

    async def story(pilot):
        source, results = FakeSource(), []
        picker = picker_of(source)
        await pilot.app.push_screen(picker, results.append)
        field = picker.query_one("#model-filter", Input)
        field.value = f"{tmp_path}/al"
        await until(pilot, lambda: any(" alpha " in row for row in screen_rows(pilot.app)))
        await until(pilot, lambda: field._suggestion == f"{tmp_path}/alpha/")
        field.cursor_position = len(field.value)
        await pilot.press("right")
        assert field.value == f"{tmp_path}/alpha/"
        field.value = str(tmp_path)
        await until(pilot, lambda: any(" beta " in row for row in screen_rows(pilot.app)))
        await pilot.press("down", "enter")
        assert results == [(f"{tmp_path}/beta", "substitute")]
        source.gate.set()

    in_an_app(story)


def test_delete_takes_a_recent_model_off_the_list_and_a_character_out_of_a_text():
    async def story(pilot):
        source, forgotten = FakeSource(), []
        picker = picker_of(source)
        picker.forget = forgotten.append
        await pilot.app.push_screen(picker)
        await pilot.press(*"Qw", "left", "left", "delete")
        assert picker.query_one("#model-filter", Input).value == "w" and forgotten == []
        await pilot.press("delete")
        await pilot.pause()
        await pilot.press("delete")
        await until(pilot, lambda: forgotten == ["/m/q"])
        await pilot.press("down", "delete")
        assert forgotten == ["/m/q"], "others are not recent"
        source.gate.set()

    in_an_app(story)
