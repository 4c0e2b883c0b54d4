"""Stories of turns that are selected by keys: edited, asked again, shown in other versions, copied."""

import pytest

from tests.support.chat_fakes import answer_reports, endless
from tests.support.chat_stories import tell, telling
from tests.support.screen_text import screen_rows, screen_text
from tui.chat.commands.keymap import make_keymap
from tui.chat.engine.messages import Answer


def counting():
    """A script that answers `answer 1`, `answer 2` and so on."""

    def script(request):
        if isinstance(request, Answer):
            return answer_reports(request.answer_id, [f"answer {request.answer_id}"])
        return endless(request)

    return script


def selected(teller):
    """What the turn says that keys are for; None without one."""
    message = teller.dialogue.message(teller.chat.view.selected_id)
    return None if message is None else message.content


def is_shut(teller):
    return not teller.chat.turn_keys.display and teller.chat.prompt.has_focus and selected(teller) is None


def test_keys_go_through_the_turns_and_back_to_a_draft_that_is_untouched(tmp_path):
    async def story():
        async with telling(tmp_path, script=counting()) as teller:
            await teller.ask("One?")
            await teller.ask("Two?")
            await teller.type("draft")
            await teller.press("alt+up")
            assert selected(teller) == "answer 2" and "turn 4/4" in screen_text(teller.app)
            await teller.press("up", "alt+up")
            assert selected(teller) == "answer 1"
            (row,) = [row for row in screen_rows(teller.app) if "▸" in row]  # seen without colours too
            assert row.strip().startswith("█ ▸ tiny")
            await teller.press("up", "up")
            assert selected(teller) == "One?"
            await teller.hears("this is the first turn")
            await teller.press("escape")
            await teller.until(lambda: is_shut(teller))
            assert teller.chat.prompt.text == "draft" and "▸" not in screen_text(teller.app)
            await teller.press("alt+up", "down")  # behind the last one is the prompt
            await teller.until(lambda: is_shut(teller))

    tell(story)


@pytest.mark.parametrize("way", ["alt+up", "/turns"])
def test_without_a_turn_a_sentence_says_so(tmp_path, way):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask_for(way)
            await teller.hears("nothing was said yet; ask something first")
            assert is_shut(teller)

    tell(story)


def test_a_prompt_that_is_edited_begins_a_branch_and_is_answered(tmp_path):
    async def story():
        async with telling(tmp_path, script=counting()) as teller:
            await teller.ask("One?")
            await teller.ask("Two?")
            await teller.type("draft")
            await teller.press("alt+up", "up", "up", "up", "e")
            await teller.until(lambda: teller.chat.prompt.text == "One?" and is_shut(teller))
            await teller.press(*" 1", "enter")
            await teller.until(lambda: teller.contents == ["One? 1", "answer 3"])
            assert teller.chat.prompt.text == "draft"
            assert "‹ 2/2 ›" in screen_text(teller.app)
            await teller.press("alt+up", "up", "left")
            await teller.until(lambda: teller.contents == ["One?", "answer 1", "Two?", "answer 2"])
            assert selected(teller) == "One?" and "version 1/2" in screen_text(teller.app)
            await teller.press("left")
            await teller.hears("this is the first version")
            await teller.press("right")
            await teller.until(lambda: selected(teller) == "One? 1")
            assert teller.contents == ["One? 1", "answer 3"] and teller.chat.prompt.text == "draft"

    tell(story)


def test_an_answer_that_is_edited_is_another_version_and_nothing_is_asked(tmp_path):
    async def story():
        async with telling(tmp_path, script=counting()) as teller:
            await teller.ask("One?")
            await teller.press("alt+up", "enter")
            await teller.until(lambda: teller.chat.prompt.text == "answer 1")
            await teller.press("!", "enter")
            await teller.until(lambda: teller.contents == ["One?", "answer 1!"])
            assert teller.num_requests("Answer") == 1
            shown = screen_text(teller.app)
            assert "‹ 2/2 ›" in shown and "edited" in shown
            await teller.command("/undo")
            await teller.until(lambda: teller.contents == ["One?", "answer 1"])

    tell(story)


def test_an_edit_that_is_left_changes_nothing(tmp_path):
    async def story():
        async with telling(tmp_path, script=counting()) as teller:
            await teller.ask("One?")
            await teller.type("draft")
            await teller.press("alt+up", "up", "e")
            await teller.until(lambda: teller.chat.prompt.text == "One?")
            await teller.press("x", "escape")
            await teller.until(lambda: teller.chat.prompt.text == "draft")
            await teller.hears("the message stays as it was; Up brings your change back")
            assert teller.contents == ["One?", "answer 1"]

    tell(story)


def test_another_answer_is_asked_of_any_turn(tmp_path):
    async def story():
        async with telling(tmp_path, script=counting()) as teller:
            await teller.ask("One?")
            await teller.ask("Two?")
            await teller.press("alt+up", "up", "up", "r")  # of the first answer
            await teller.until(lambda: teller.contents == ["One?", "answer 3"] and is_shut(teller))
            await teller.press("alt+up", "up", "r")  # of its prompt
            await teller.until(lambda: teller.contents == ["One?", "answer 4"])
            assert "‹ 3/3 ›" in screen_text(teller.app)

    tell(story)


def test_a_turn_is_copied_as_it_is_read(tmp_path):
    async def story():
        async with telling(tmp_path, script=counting()) as teller:
            await teller.ask("One?")
            await teller.press("alt+up", "c")
            await teller.hears("turn copied (8 characters)")
            assert teller.app.clipboard == "answer 1" and selected(teller) == "answer 1"
            await teller.press("up", "c")
            await teller.until(lambda: teller.app.clipboard == "One?")

    tell(story)


def test_a_turn_that_says_nothing_is_not_copied(tmp_path):
    async def story():
        def script(request):
            return [] if isinstance(request, Answer) else endless(request)

        async with telling(tmp_path, script=script) as teller:
            await teller.ask("One?", is_awaited=False)
            await teller.press("alt+up", "c")
            await teller.hears("this turn says nothing that could be copied")
            await teller.press("escape")

    tell(story)


def test_help_names_the_keys_of_a_selected_turn(tmp_path):
    async def story():
        async with telling(tmp_path, script=counting()) as teller:
            await teller.press("f1")
            await teller.until(lambda: teller.app.screen is not teller.screen)
            words = [str(each.content) for each in teller.app.screen.query(".help-words")]
            for name in ("turn_edit", "turn_again", "turn_copy", "version_before", "turn_close"):
                assert any(each.endswith(f"({name})") for each in words), name
            await teller.press("escape")

    tell(story)


def test_what_is_typed_besides_belongs_to_the_prompt(tmp_path):
    async def story():
        async with telling(tmp_path, script=counting()) as teller:
            await teller.ask("One?")
            await teller.press("alt+up", "x", "e", "r", "c")
            await teller.until(lambda: teller.chat.prompt.text == "xerc" and is_shut(teller))

    tell(story)


def test_a_selected_turn_stays_in_sight_while_an_answer_is_written(tmp_path):
    async def story():
        async with telling(tmp_path, script=endless, size=(80, 16)) as teller:
            await teller.ask("One?\n" * 20, is_awaited=False)
            await teller.until(lambda: teller.contents[1:] == ["Once upon "], "the first text")
            await teller.press("alt+up", "up")
            await teller.until(lambda: "▸ you" in screen_text(teller.app))
            teller.engine.say(*answer_reports(1, ["time\n\n" * 20], is_ended=False))
            await teller.until(lambda: teller.contents[1].endswith("time\n\n"))
            await teller.pilot.pause(0.2)
            assert "▸ you" in screen_text(teller.app)
            await teller.press("escape")
            await teller.until(lambda: is_shut(teller))
            assert teller.dialogue.is_answering  # which another Esc stops

    tell(story)


def test_the_selection_ends_with_the_conversation(tmp_path):
    async def story():
        async with telling(tmp_path, script=counting()) as teller:
            await teller.ask("One?")
            await teller.press("alt+up", "ctrl+n")
            await teller.until(lambda: teller.contents == [] and is_shut(teller))

    tell(story)


def test_other_keys_may_be_chosen_and_are_named(tmp_path):
    keys = make_keymap({"turns": "f12", "turn_edit": "b"})
    assert keys.problems == ()

    async def story():
        async with telling(tmp_path, script=counting(), keys=keys) as teller:
            await teller.ask("One?")
            await teller.command("/branches")
            await teller.hears("this conversation has one branch; F12, then b at a turn begins another")
            await teller.press("f12")
            assert "b edit" in screen_text(teller.app)
            await teller.press("b")
            await teller.until(lambda: teller.chat.prompt.text == "answer 1")

    tell(story)


def test_branches_are_listed_and_shown_and_the_draft_stays(tmp_path):
    async def story():
        async with telling(tmp_path, script=counting(), size=(40, 10)) as teller:
            await teller.ask("One?")
            await teller.press("alt+up", "up", "e")
            await teller.until(lambda: teller.chat.prompt.text == "One?")
            await teller.press("!", "enter")
            await teller.until(lambda: teller.contents == ["One?!", "answer 2"])
            await teller.command("/branches")
            await teller.until(lambda: teller.app.screen is not teller.screen)
            shown = screen_text(teller.app)
            assert "▸ you: One?!" in shown and "2 branches" in shown and "turn 1 of 2" in shown
            await teller.press("down", "enter")
            await teller.until(lambda: teller.contents == ["One?", "answer 1"])
            await teller.type("more")
            assert teller.chat.prompt.text == "more"

    tell(story)
