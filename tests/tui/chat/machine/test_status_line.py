"""The status line on a real screen, as text."""

import pytest

from tests.support.chat_states import loading, ready, verifying
from tests.support.widget_screens import WidgetApp, run, screen_rows
from tui.chat.engine.engine_state import EngineState
from tui.chat.machine.status_line import StatusLine, piece_at, status_rows


def shown(state, *, width, num_rows=1):
    line, rows = StatusLine(num_rows=num_rows), []

    async def story(pilot):
        line.show(state)
        await pilot.pause()
        rows.extend(screen_rows(pilot.app)[:num_rows])

    run(WidgetApp(line), story, size=(width, 6))
    return rows


@pytest.mark.parametrize(
    ("state", "width", "num_rows", "rows"),
    [
        (EngineState(), 80, 1, [" ○ no model: /model"]),
        (loading(), 80, 1, [" loading ━━━━──── 1.50 GB/3.00 GB  500 MB/s  3 s left"]),
        (verifying(), 80, 1, [" verifying ━━━━╸─── 16/28 layers         7.2 tok/s  3.6/pass  link 90%  ctx 19%"]),
        (verifying(), 44, 1, [" verifying ━━━━╸─── 16/28 layers"]),
        (verifying(), 20, 1, [" verifying ━━━━╸──…"]),
        (
            *(verifying(), 82, 2),
            [
                " verifying ━━━━╸─── 16/28 layers         Qwen2.5-Coder-1.5B-Instruct + substitute",
                " 7.2 tok/s  3.6 tok/pass  link 90%  dev 2.10 GB  host 3.40 GB  context 773/4096",
            ],
        ),
        (ready(), 30, 2, [" ● ready  Qwen2.5-Coder-1.5B…", " dev 654 MB  context 0/4096"]),
    ],
)
def test_rows(state, width, num_rows, rows):
    assert shown(state, width=width, num_rows=num_rows) == rows


def test_a_wider_terminal_shows_more():
    line = StatusLine()

    async def story(pilot):
        line.show(verifying())
        await pilot.pause()
        narrow = screen_rows(pilot.app)[0]
        await pilot.resize_terminal(130, 10)
        await pilot.pause()
        wide = screen_rows(pilot.app)[0]
        assert "host" not in narrow and "host 3.40 GB  context 773/4096" in wide
        line.num_rows = 2
        await pilot.pause()
        assert "Qwen2.5" in screen_rows(pilot.app)[0]

    run(WidgetApp(line), story)


def test_only_a_change_redraws():
    line = StatusLine()

    async def story(pilot):
        line.show(verifying())
        await pilot.pause()
        drawn = []
        line.refresh = lambda *_, **__: drawn.append(1)
        line.show(verifying())
        assert drawn == []
        line.show(ready())
        assert drawn == [1]

    run(WidgetApp(line), story)


def test_the_figure_under_the_pointer_explains_itself():
    line = StatusLine()

    async def story(pilot):
        line.show(verifying())
        await pilot.pause()
        await pilot.hover(line, offset=(42, 0))
        await pilot.pause()
        assert line.tooltip.startswith("Tokens per second over the last rounds")
        await pilot.hover(line, offset=(3, 0))
        assert line.tooltip.startswith("One pass of the target")

    run(WidgetApp(line), story)


def test_gaps_explain_nothing():
    rows = status_rows(verifying(), width=78, num_rows=1)
    assert piece_at(rows, column=34, row=0) is None
    assert piece_at(rows, column=500, row=0) is piece_at(rows, column=0, row=7) is None


def test_a_models_name_cannot_move_the_cursor():
    state = EngineState(phase="ready", model=type(ready().model)(**_fields(ready().model)))
    rows = status_rows(state, width=78, num_rows=2)
    assert not any("\x1b" in piece.text + piece.tooltip for row in rows for piece in row)


def _fields(loaded):
    return {name: getattr(loaded, name) for name in loaded.__slots__} | {
        "target": "\x1b[2Jevil",
        "draft": "\x1b]0;x\x07",
    }
