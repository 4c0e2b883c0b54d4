"""Stories of the model picker, key by key, with a source whose estimates come when the story lets them."""

import asyncio

import pytest

from profiles.errors import BadInputError
from tests.support.widget_screens import WidgetApp, run, screen_rows, screen_text
from tui.chat.fit_estimates import FitEstimate
from tui.chat.widgets.model_list import ListedModel
from tui.chat.widgets.model_picker import ModelChoice, ModelPicker

MODELS = (
    ListedModel("/m/q", "Qwen/Qwen2.5-Coder-1.5B-Instruct", 3_090_000_000, is_recent=True),
    ListedModel("", "demo model", 270_000_000),
    ListedModel("owner/hub-only", "owner/hub-only"),
    ListedModel("/m/large", "meta/Llama-70B", 141_000_000_000),
)
FITS = (
    FitEstimate("/m/q", "streams", 0.22, "streams 2.62 GB in every pass, about 0.22 s/token"),
    FitEstimate("", "resident", 1 / 12, "stays in memory whole (900 MB), about 12 tokens/s"),
    FitEstimate("/m/large", "does not fit", None, "one layer needs 4.2 GB of device memory, 2 GB are free"),
)


class FakeSource:
    def __init__(self, *, trouble=None):
        self.asked = []
        self.closed = 0
        self.gate = asyncio.Event()
        self._trouble = trouble

    async def models(self):
        if self._trouble is not None:
            raise self._trouble
        return MODELS

    async def estimates(self, targets, *, draft):
        self.asked.append((tuple(targets), draft))
        try:
            yield FITS[0]
            await self.gate.wait()
            for fit in FITS[1:]:
                yield fit
        finally:
            self.closed += 1


def played(*keys, source=None, draft="substitute", open_gate=False, size=(80, 24)):
    """The screen's rows after the keys, what the picker returned, and the source."""
    source = FakeSource() if source is None else source
    app, rows = WidgetApp(screen=ModelPicker(source, draft=draft)), []

    async def story(pilot):
        await pilot.pause()
        if open_gate:
            source.gate.set()
        await pilot.press(*keys)
        await pilot.pause()
        await pilot.pause()
        rows.extend(screen_rows(app))

    run(app, story, size=size)
    return rows, app.results, source


def test_estimates_arrive_while_it_is_open():
    rows, _, source = played()
    assert rows[4] == " │ Qwen/Qwen2.5-Coder-1.5B-Instruct         3.09 GB  streams, 4.5 tok/s       │"
    assert rows[5] == " │ demo model                                270 MB  …                        │"
    assert rows[6] == " │ owner/hub-only                                                             │"
    assert source.asked == [(("/m/q", "", "/m/large"), "substitute")]
    rows, _, _ = played(open_gate=True)
    assert rows[5] == " │ demo model                                270 MB  resident, 12.0 tok/s     │"
    assert rows[7] == " │ meta/Llama-70B                            141 GB  does not fit             │"


def test_the_highlighted_model_is_told_about_in_full():
    rows, _, _ = played("down", "down", "down", open_gate=True)
    assert any("meta/Llama-70B: one layer needs 4.2 GB of device memory, 2 GB are free" in row for row in rows)


@pytest.mark.parametrize(
    ("keys", "choice"),
    [
        (("enter",), ModelChoice("/m/q", "substitute")),
        (("down", "enter"), ModelChoice("", "substitute")),
        ((*"llama", "enter"), ModelChoice("/m/large", "substitute")),
        ((*"./a b", "enter"), ModelChoice("./a b", "substitute")),
        ((*"llama", "down", "enter"), ModelChoice("llama", "substitute")),
        (("tab", "down", "enter"), ModelChoice("", "substitute")),
        (("tab", "tab", "right", "enter"), ModelChoice("/m/q", "none")),
        (("tab", "tab", "left", *"x/y", "enter"), ModelChoice("/m/q", "x/y")),
        (("escape",), None),
    ],
    ids=str,
)
def test_what_the_keys_choose(keys, choice):
    _, results, _ = played(*keys)
    assert results == [choice]


def test_another_draft_must_be_named():
    _, results, _ = played("tab", "tab", "left", "enter")
    assert results == []


def test_another_draft_is_estimated_anew():
    rows, _, source = played("tab", "tab", "right")
    assert [draft for _, draft in source.asked] == ["substitute", "none"]
    assert source.closed == 2
    assert any("streams, 4.5 tok/s" in row for row in rows)


def test_the_filter_has_the_focus_at_first_whatever_the_draft():
    rows, _, _ = played(*"llama", draft="owner/draft")
    assert any("find    llama" in row for row in rows)


def test_a_draft_that_was_chosen_before_is_there():
    _, results, _ = played("enter", draft="owner/draft")
    assert results == [ModelChoice("/m/q", "owner/draft")]


def test_estimates_end_with_the_screen():
    _, _, source = played("escape")
    assert source.closed == 1


def test_an_estimate_does_not_move_the_highlight():
    source = FakeSource()
    app = WidgetApp(screen=ModelPicker(source))

    async def story(pilot):
        await pilot.pause()
        await pilot.press("down", "down", "down")
        source.gate.set()
        await pilot.pause()
        await pilot.pause()
        await pilot.press("enter")

    run(app, story)
    assert app.results == [ModelChoice("/m/large", "substitute")]


def test_trouble_with_the_list_is_told_and_a_name_can_be_typed():
    source = FakeSource(trouble=BadInputError("the cache is gone"))
    rows, results, _ = played(source=source)
    told = " ".join(row.strip(" │") for row in rows)
    assert "the models cannot be listed: the cache is gone; no model here; type a folder or a hub name" in told
    _, results, _ = played(*"a/b", "enter", source=FakeSource(trouble=OSError("gone")))
    assert results == [ModelChoice("a/b", "substitute")]


@pytest.mark.parametrize("size", [(80, 24), (50, 14), (120, 40)])
def test_it_fits_every_terminal(size):
    rows, _, _ = played(size=size)
    assert any("Esc back" in row for row in rows)
    assert any("Qwen" in row for row in rows)


def test_the_highlight_is_seen_without_colour(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    app = WidgetApp(screen=ModelPicker(FakeSource()))

    async def story(pilot):
        await pilot.pause()
        highlighted = app.screen.query_one("#model-list").get_component_styles("option-list--option-highlighted")
        assert highlighted.text_style.reverse
        assert "Qwen" in screen_text(app)

    run(app, story)
