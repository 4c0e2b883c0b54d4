"""The machine panel on a real screen, as text."""

from tests.support.chat_states import ready, verifying
from tests.support.widget_screens import WidgetApp, run, screen_rows, screen_text
from tui.chat.machine.machine_panel import MachinePanel, SectionView


def test_the_bottom_panel_has_two_columns():
    panel = MachinePanel(placement="bottom")

    async def story(pilot):
        panel.show(verifying())
        await pilot.pause()
        rows = screen_rows(pilot.app)
        assert rows[0].startswith("┏━ Machine ━")
        assert rows[1] == "┃ Layers 16/28, 20 streamed              Tree 10 nodes, 5 levels, 3 accepted   ┃"
        assert rows[2] == "┃ █░░█░░░█░░█░░░█░◆█▒▒░█░░█░░░           ●━●━●━● ·                             ┃"
        assert len(rows[11]) == 80 and rows[11].startswith("┗")

    run(WidgetApp(panel), story)


def test_the_side_panel_has_one():
    panel = MachinePanel(placement="side")

    async def story(pilot):
        panel.show(verifying())
        await pilot.pause()
        text = screen_text(pilot.app)
        assert "│ │ ╰─○" in text and "Acceptance by depth" in text and "embeddings" in text
        assert max(map(len, screen_rows(pilot.app))) == 42

    run(WidgetApp(panel), story, size=(80, 40))


def test_it_can_be_scrolled_with_the_keys():
    panel = MachinePanel(placement="bottom")

    async def story(pilot):
        panel.show(verifying())
        panel.focus()
        await pilot.pause()
        assert "embeddings" not in screen_text(pilot.app)
        await pilot.press("end")
        await pilot.pause()
        assert "embeddings" in screen_text(pilot.app)

    run(WidgetApp(panel), story)


def test_a_hidden_panel_draws_nothing_until_it_is_shown():
    panel = MachinePanel(placement="side")

    async def story(pilot):
        panel.display = False
        await pilot.pause()
        panel.show(verifying())
        assert all(
            section.tooltip is None or "streamed" not in str(section.content) for section in panel.query(SectionView)
        )
        panel.display = True
        await pilot.pause()
        await pilot.pause()
        assert "Layers 16/28, 20 streamed" in screen_text(pilot.app)

    run(WidgetApp(panel), story)


def test_only_sections_that_change_are_drawn_again():
    panel = MachinePanel(placement="side")

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
    panel = MachinePanel(placement="side")

    async def story(pilot):
        panel.show(verifying())
        panel.place("bottom")
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
