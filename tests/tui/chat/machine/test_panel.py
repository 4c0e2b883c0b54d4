"""The sections of the machine panel as exact text, and the panel on a real screen."""

from dataclasses import replace

import pytest

from tests.support.chat_states import FIGURES, LOADED, folded, ready, round_done, verifying
from tests.support.screen_text import screen_rows, screen_text
from tests.support.widget_screens import WidgetApp, run, until
from tui.chat.engine.state import EngineState
from tui.chat.machine.panel import (
    MachinePanel,
    SectionView,
    acceptance_section,
    layers_section,
    memory_section,
    speed_section,
    tree_section,
)


def text(section):
    return "\n".join([section.title, *section.rows]).rstrip()


def test_layers_while_a_pass_runs():
    assert text(layers_section(verifying(), 36)) == (
        "Layers 16/28, 20 streamed\n"
        "█░░█░░░█░░█░░░█░◆█▒▒░█░░█░░░\n"
        "█ resident ░ streamed ▒ ring ◆ now\n"
        "ring [18] [19]  1.87 GB a pass"
    )


def test_layers_between_passes_have_no_current_one():
    section = layers_section(ready(), 36)
    assert section.title == "Layers 28, 20 streamed"
    assert "◆" not in section.rows[0]
    assert section.rows[-1] == "ring [  ] [  ]  1.87 GB a pass"


def test_layers_that_all_fit_stream_nothing():
    resident = replace(LOADED, num_resident_layers=28, resident_layers=tuple(range(28)), bytes_per_pass=0)
    assert text(layers_section(folded(resident), 36)) == (
        "Layers 28, 0 streamed\n████████████████████████████\n█ resident ░ streamed ▒ ring ◆ now\nnothing streams"
    )


def test_speed_measured_against_predicted():
    state = folded(*[round_done(path=tuple(range(number))) for number in (1, 2, 4, 8)], FIGURES, begun=ready())
    assert text(speed_section(state, 30)) == (
        "Speed (tok/s)\n"
        "measured    7.5 ██████████▌   \n"
        "predicted  10.0 ██████████████\n"
        "tok/s       7.5           ▁▂▄█\n"
        "tok/pass    3.8           ▁▂▄█\n"
        "link        90%           ▇▇▇▇"
    )


def test_speed_says_what_is_not_known():
    assert text(speed_section(EngineState(), 30)).startswith(
        "Speed (tok/s)\nmeasured  not known yet\npredicted not known yet\n"
    )


def test_the_tree_and_its_acceptance_stand_in_the_same_columns():
    state = folded(round_done(), round_done(path=(0,)), begun=ready())
    assert text(tree_section(state, 36, height=5)) == (
        "Tree 10 nodes, 5 levels, 0 accepted\n●─○─○─○─○\n│ │ ╰─○\n│ ╰─○\n├─○─○\n╰─○"
    )
    assert text(acceptance_section(state, 36)) == (
        "Acceptance by depth, first 50%\n    █ █\n  ▄ █ █\n  █ █ █ ▁\n  1 2 3 4"
    )
    assert acceptance_section(state, 36).tooltip.endswith("1: 50%, 2: 100%, 3: 100%, 4: 0%.")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (ready(), "Tree\nno round yet"),
        (folded(round_done(parents=(-1,), path=(0,)), begun=ready()), "Tree\nno tree: every pass brings one token"),
    ],
)
def test_where_there_is_no_tree_it_says_why(state, words):
    section = tree_section(state, 36, height=4)
    assert text(section) == words
    assert len(section.rows) == 4


def test_memory_names_the_largest_first():
    memory = {f"part {number}": number * 1_000_000 for number in range(1, 8)} | {"\x1b[2Jring": 9_000_000}
    section = memory_section(folded(replace(LOADED, memory=memory)), 24)
    assert text(section) == (
        "Memory: device 37.0 MB\n"
        "ring             9.00 MB\n"
        "part 7           7.00 MB\n"
        "part 6           6.00 MB\n"
        "part 5           5.00 MB\n"
        "part 4           4.00 MB\n"
        "other            6.00 MB"
    )
    assert memory_section(verifying(), 60).title == "Memory: device 2.10 GB, host 3.40 GB"


@pytest.mark.parametrize("width", [1, 5, 12, 20, 36, 80])
@pytest.mark.parametrize("state", [EngineState(), ready(), verifying()], ids=["empty", "ready", "verifying"])
def test_every_section_fits_every_width(state, width):
    sections = [
        *(layers_section(state, width), speed_section(state, width), memory_section(state, width)),
        *(tree_section(state, width, height=4), acceptance_section(state, width)),
    ]
    assert [row for section in sections for row in (section.title, *section.rows) if len(row) > width] == []
    assert all(section.tooltip.endswith(".") for section in sections)


def test_a_section_keeps_its_height_while_an_answer_is_written():
    """Else the panel would jump with every round."""
    before = [tree_section(ready(), 36, height=8), speed_section(ready(), 36), acceptance_section(ready(), 36)]
    after = [
        tree_section(verifying(), 36, height=8),
        speed_section(verifying(), 36),
        acceptance_section(verifying(), 36),
    ]
    assert [len(section.rows) for section in before] == [len(section.rows) for section in after]


def test_below_the_conversation_the_panel_has_two_columns():
    panel = MachinePanel()

    async def story(pilot):
        pilot.app.screen.add_class("-narrow")
        await pilot.pause()
        panel.show(verifying())
        await pilot.pause()
        rows = screen_rows(pilot.app)
        assert rows[0].startswith("┏━ Machine ━")
        assert rows[1] == "┃ Layers 16/28, 20 streamed              Tree 10 nodes, 5 levels, 3 accepted   ┃"
        assert rows[2] == "┃ █░░█░░░█░░█░░░█░◆█▒▒░█░░█░░░           ●━●━●━● ·                             ┃"
        assert len(rows[11]) == 80 and rows[11].startswith("┗")

    run(WidgetApp(panel), story)


def test_the_side_panel_has_one():
    panel = MachinePanel()

    async def story(pilot):
        panel.show(verifying())
        await pilot.pause()
        text = screen_text(pilot.app)
        assert "│ │ ╰─○" in text and "Acceptance by depth" in text and "embeddings" in text
        assert max(map(len, screen_rows(pilot.app))) == 42

    run(WidgetApp(panel), story, size=(80, 40))


def test_it_can_be_scrolled_with_the_keys():
    panel = MachinePanel()

    async def story(pilot):
        pilot.app.screen.add_class("-narrow")
        panel.show(verifying())
        panel.focus()
        await pilot.pause()
        assert "embeddings" not in screen_text(pilot.app)
        await pilot.press("end")
        await until(pilot, lambda: "embeddings" in screen_text(pilot.app))

    run(WidgetApp(panel), story)


def test_a_hidden_panel_draws_nothing_until_it_is_shown():
    panel = MachinePanel()

    async def story(pilot):
        panel.display = False
        await pilot.pause()
        panel.show(verifying())
        assert all(
            section.tooltip is None or "streamed" not in str(section.content) for section in panel.query(SectionView)
        )
        panel.display = True
        panel.show(verifying())
        await pilot.pause()
        await pilot.pause()
        assert "Layers 16/28, 20 streamed" in screen_text(pilot.app)

    run(WidgetApp(panel), story)


def test_only_sections_that_change_are_drawn_again():
    panel = MachinePanel()

    async def story(pilot):
        panel.show(verifying())
        await pilot.pause()
        drawn = []
        for section in panel.query(SectionView):
            section.update = lambda *_, name=section.id, **__: drawn.append(name)
        panel.show(verifying())
        assert drawn == []
        panel.show(ready())
        assert "machine-layers" in drawn and "machine-tree" in drawn

    run(WidgetApp(panel), story)


def test_the_panel_moves_to_the_other_place():
    panel = MachinePanel()

    async def story(pilot):
        panel.show(verifying())
        pilot.app.screen.add_class("-narrow")
        await pilot.pause()
        await pilot.pause()
        assert len(screen_rows(pilot.app)[0]) == 80

    run(WidgetApp(panel), story)


def test_every_section_explains_itself():
    panel = MachinePanel()

    async def story(pilot):
        panel.show(verifying())
        await pilot.pause()
        assert all(str(section.tooltip).endswith(".") for section in panel.query(SectionView))

    run(WidgetApp(panel), story)
