"""The sections of the machine panel as exact text, and the panel on a real screen."""

from dataclasses import replace

import pytest

from tests.support.chat_states import FIGURES, LOADED, eight_rounds, folded, ready, round_done, verifying
from tests.support.screen_text import screen_rows, screen_text
from tests.support.widget_screens import WidgetApp, run, until
from tui.chat.engine.messages import PassRunning
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


def all_text(panel):
    return " ".join(str(section.content) for section in panel.query(SectionView))


def text(section):
    return "\n".join([section.title, *section.rows]).rstrip()


def test_layers_while_a_pass_runs():
    assert text(layers_section(verifying(), 36)) == (
        "28 layers, computing 17\n"
        "█░░█░░░█░░█░░░█░◆█▒▒░█░░█░░░\n"
        "█ on the device  ░ from memory\n"
        "▒ arriving  ◆ computing\n"
        "in flight: layers 18, 19\n"
        "1.87 GB stream in for every pass"
    )


def test_layers_between_passes_have_no_current_one():
    section = layers_section(ready(), 36)
    assert section.title == "28 layers"
    assert "◆" not in section.rows[0]
    assert section.rows[-2:] == ("in flight: none", "1.87 GB stream in for every pass")


@pytest.mark.parametrize(
    ("device", "num_disk_layers", "words"),
    [
        ("cpu", 20, "█ in memory  ░ from disk  ▒ arriving"),
        ("cuda:0", 20, "█ on the device  ░ from disk  ▒ arriving"),
        ("cpu", 0, "█ in memory  ░ over the link  ▒ arriving"),
        ("cuda:0", 5, "█ on the device  ░ from memory or disk"),
    ],
)
def test_the_legend_says_where_this_machine_has_them(device, num_disk_layers, words):
    assert layers_section(folded(replace(LOADED, device=device, num_disk_layers=num_disk_layers)), 40).rows[1] == words


def test_one_layer_in_flight_is_one_layer():
    assert "in flight: layer 18" in layers_section(folded(PassRunning(16, 28, (18,)), begun=verifying()), 40).rows


def test_layers_that_all_fit_stream_nothing():
    resident = replace(LOADED, num_resident_layers=28, resident_layers=tuple(range(28)), bytes_per_pass=0)
    assert text(layers_section(folded(resident), 36)) == (
        "28 layers\n████████████████████████████\n█ on the device  ◆ computing"
    )


def test_speed_measured_against_predicted():
    state = folded(*[round_done(path=tuple(range(number))) for number in (1, 2, 4, 8)], FIGURES, begun=ready())
    assert text(speed_section(state, 30)) == (
        "Speed (tokens per second)\n"
        "now         7.5 ██████████▌   \n"
        "expected   10.0 ██████████████\n"
        "lately      7.5           ▁▂▄█\n"
        "per pass    3.8           ▁▂▄█\n"
        "link busy   90%           ▇▇▇▇\n"
        "3.8 tokens per pass (1 withou…\n"
        "guessing ahead 20%, checking…"
    )


def test_nothing_is_said_of_a_link_where_nothing_streams():
    still = folded(round_done(bytes_streamed=0, link_busy_seconds=0.0), begun=ready())
    section = speed_section(still, 40)
    assert "link" not in text(section).lower() + section.tooltip.lower()
    assert section.rows[-2:] == ("4.0 tokens per pass (1 without drafts)", "guessing ahead 20%, checking 80%")


def test_without_a_draft_a_pass_brings_one_token():
    plain = folded(round_done(parents=(-1,), path=(0,), draft_seconds=0.0), begun=ready())
    assert speed_section(plain, 40).rows[-1] == "1 token per pass: no drafts"


def test_speed_says_what_is_not_known():
    assert text(speed_section(EngineState(), 30)).startswith(
        "Speed (tokens per second)\nnow       not known yet\nexpected  not known yet"
    )


def test_the_tree_and_its_acceptance_stand_in_the_same_columns():
    state = folded(round_done(), round_done(path=(0,)), begun=ready())
    assert text(tree_section(state, 36, height=5)) == (
        "Tree of guesses: 10 nodes, 0 kept\n●─○─○─○─○\n│ │ ╰─○\n│ ╰─○\n├─○─○\n╰─○"
    )
    assert text(acceptance_section(state, 36)) == (
        "Guesses kept, by how far ahead\n    █ █\n  ▄ █ █\n  █ █ █ ▁\n  1 2 3 4"
    )
    assert acceptance_section(state, 36).tooltip.endswith("1: 50%, 2: 100%, 3: 100%, 4: 0%.")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (ready(), "Tree of guesses\nnone yet"),
        (
            folded(round_done(parents=(-1,), path=(0,)), begun=ready()),
            "Tree of guesses\nnone: every pass brings one token",
        ),
    ],
)
def test_where_there_is_no_tree_it_says_why_in_one_row(state, words):
    """Empty rows for a tree once pushed the memory out of sight."""
    section = tree_section(state, 36, height=4)
    assert text(section) == words


def test_memory_names_the_largest_first():
    memory = {f"part {number}": number * 1_000_000 for number in range(1, 8)} | {"\x1b[2Jring": 9_000_000}
    section = memory_section(folded(replace(LOADED, memory=memory)), 24)
    assert text(section) == (
        "Memory: 37.0 MB on the…\n"
        "ring             9.00 MB\n"
        "part 7           7.00 MB\n"
        "part 6           6.00 MB\n"
        "part 5           5.00 MB\n"
        "part 4           4.00 MB\n"
        "other            6.00 MB"
    )
    section = memory_section(verifying(), 40)
    assert section.title == "Memory: 2.10 GB on the device"
    assert section.rows[-1] == "engine's process, all of it      3.40 GB"
    assert memory_section(folded(replace(LOADED, device="cpu")), 40).title == "Memory: 2.10 GB"


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

    def heights(state):
        sections = (tree_section(state, 36, height=8), speed_section(state, 36), acceptance_section(state, 36))
        return [len(section.rows) for section in sections]

    states = [folded(*eight_rounds()[:number], begun=ready()) for number in range(1, 9)]
    assert [heights(state) for state in states] == [heights(verifying())] * 8


def test_below_the_conversation_the_panel_has_two_columns():
    panel = MachinePanel()

    async def story(pilot):
        pilot.app.screen.add_class("-narrow")
        await pilot.pause()
        panel.show(verifying())
        await pilot.pause()
        rows = screen_rows(pilot.app)
        assert rows[0].startswith("┏━ Machine ━")
        assert rows[1] == "┃ 28 layers, computing 17                Tree of guesses: 10 nodes, 3 kept     ┃"
        assert rows[2] == "┃ █░░█░░░█░░█░░░█░◆█▒▒░█░░█░░░           ●━●━●━● ·                             ┃"
        assert len(rows[11]) == 80 and rows[11].startswith("┗")

    run(WidgetApp(panel), story)


def test_the_side_panel_has_one():
    panel = MachinePanel()

    async def story(pilot):
        panel.show(verifying())
        await pilot.pause()
        text = screen_text(pilot.app)
        assert "│ │ ╰─○" in text and "Guesses kept, by how far ahead" in text and "embeddings" in text
        assert max(map(len, screen_rows(pilot.app))) == 44

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
            section.tooltip is None or "layers" not in str(section.content) for section in panel.query(SectionView)
        )
        panel.display = True
        panel.show(verifying())
        await pilot.pause()
        await pilot.pause()
        assert "28 layers, computing 17" in screen_text(pilot.app)

    run(WidgetApp(panel), story)


def test_only_sections_that_change_are_drawn_again():
    panel = MachinePanel()

    async def story(pilot):
        panel.show(verifying())
        await until(pilot, lambda: panel.show_vertical_scrollbar and "embeddings" in all_text(panel))
        await pilot.pause()
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
