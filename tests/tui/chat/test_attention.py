"""The title says what is done, the bell that it is over; both are the terminal's own again in the end."""

from tests.support.chat_fakes import FIGURES, ROUND, endless, of_answer
from tests.support.chat_stories import tell, telling
from tui.chat.attention import BELL, GIVE_TITLE_BACK, KEEP_TITLE, LONG_SECONDS, Attention
from tui.chat.engine.state import EngineState
from tui.chat.settings.file import RememberedSettings
from tui.chat.settings.settings import ChatSettings

READY, READING, WRITING = EngineState(phase="ready"), EngineState(phase="prefill"), EngineState(phase="verifying")


class Desk:
    """A terminal that keeps what it is told, and a person who may look elsewhere."""

    def __init__(self, wanted="title"):
        self.wanted, self.is_watched, self.now, self.written = wanted, True, 0.0, []
        self.attention = Attention(
            self.written.append,
            wanted=lambda: self.wanted,
            is_watched=lambda: self.is_watched,
            clock=lambda: self.now,
        )

    def titles(self, *states):
        self.written.clear()
        for state in states:
            self.attention.show(state, "Foxes")
            self.now += 2
        return [each.removeprefix(KEEP_TITLE)[4:-1] for each in self.written if "]2;" in each]

    def answers(self, seconds, **ending):
        self.attention.show(READING, "Foxes")
        self.now += seconds
        self.written.clear()
        self.attention.show(READY, "Foxes")
        self.attention.end_answer(is_failed=ending.get("is_failed", False))
        return self.titles(READY), self.written


def test_the_title_says_what_is_done_and_is_kept_once():
    desk = Desk()
    assert desk.titles(READY, READING, READING, WRITING, READY) == [
        "Foxes - Overstory",
        "● reading - Foxes",
        "● writing - Foxes",
        "Foxes - Overstory",
    ]
    assert desk.written[0].startswith(KEEP_TITLE) and not any(KEEP_TITLE in each for each in desk.written[1:])
    assert desk.attention.farewell() == GIVE_TITLE_BACK and desk.attention.farewell() == ""


def test_what_a_title_holds_is_no_escape():
    desk = Desk()
    desk.attention.show(READY, "a\x07b\x1b]2;x\x07c\n" + "long " * 40)
    (title,) = desk.written
    assert title.count("\x07") == 1 and title.count("\x1b") == 2 and len(title) < 100


def test_an_end_is_told_where_nobody_watches_or_after_a_long_time_until_somebody_comes():
    desk = Desk()
    assert desk.answers(5)[0] == []
    desk.is_watched = False
    assert desk.answers(5)[0] == ["✓ Foxes"]
    assert desk.attention.notice_person() and not desk.attention.notice_person()
    assert desk.titles(READY) == ["Foxes - Overstory"]
    desk.is_watched = True
    assert desk.answers(LONG_SECONDS, is_failed=True)[0] == ["✗ Foxes"]


def test_the_bell_rings_where_it_is_wanted_and_nothing_is_told_where_that_is():
    desk = Desk("bell")
    desk.is_watched = False
    desk.attention.show(READING, "Foxes")
    desk.attention.end_answer(is_failed=False)
    assert BELL in desk.written
    desk.wanted = "off"
    desk.written.clear()
    desk.attention.show(READY, "Foxes")
    assert desk.written == [GIVE_TITLE_BACK]
    assert desk.answers(LONG_SECONDS) == ([], []) and desk.attention.farewell() == ""


def test_a_program_that_has_the_terminal_meanwhile_is_left_alone():
    desk = Desk("bell")
    desk.attention.is_paused, desk.is_watched = True, False
    desk.answers(LONG_SECONDS)
    assert desk.written == []
    desk.attention.is_paused = False
    assert desk.titles(READY) == ["✓ Foxes"]


def test_the_app_shows_rate_and_end_in_the_title_and_gives_it_back(tmp_path):
    async def story():
        settings = RememberedSettings(ChatSettings(seed=1, when_done="bell"), path=tmp_path / "settings.toml")
        written = []
        async with telling(tmp_path, script=endless, settings=settings, environment={"TERM": "xterm"}) as teller:
            teller.app._driver.write = written.append
            await teller.ask("About foxes", is_awaited=False)
            await teller.until(lambda: any("● " in each and "About foxes" in each for each in written), "the title")
            teller.app.app_focus = False
            answer_id = teller.dialogue.answer.answer_id
            teller.engine.say(*of_answer(answer_id, ROUND, FIGURES))
            teller.engine.die()
            await teller.until(lambda: any("✗ About foxes" in each for each in written), "the mark")
            assert BELL in written
            await teller.press("x")
            await teller.until(lambda: "About foxes - Overstory" in written[-1], "the title without the mark")
            assert teller.app.farewell() == GIVE_TITLE_BACK
            teller.app.app_focus = True

    tell(story)
