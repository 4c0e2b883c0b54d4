"""Words that were typed and not sent are never lost: they stay with their conversation, also when the app is killed."""

from textual import events

from tests.support.chat_fakes import endless
from tests.support.chat_stories import tell, telling
from tui.chat.drafts import DraftKeeper
from tui.chat.store.drafts import Draft


async def write(teller, text):
    teller.app.post_message(events.Paste(text))
    await teller.until(lambda: teller.chat.prompt.text.endswith(text), "the paste")


def test_an_unsent_draft_stays_with_its_conversation(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("About foxes")
            await write(teller, "and the badgers")
            await teller.press("ctrl+n")
            await teller.until(lambda: teller.contents == [] and teller.chat.prompt.text == "")
            await write(teller, "something new")
            await teller.press("f3", "enter")
            await teller.until(lambda: teller.chat.prompt.text == "and the badgers", "the first draft")
            await teller.press("ctrl+n")
            await teller.until(lambda: teller.chat.prompt.text == "something new", "the second draft")
            await teller.press("enter")
            await teller.until(lambda: teller.contents == ["something new", "Hello there."])
            await teller.press("ctrl+n")
            await teller.until(lambda: teller.contents == [] and teller.chat.prompt.text == "")

    tell(story)


def test_a_draft_is_there_after_the_next_start_and_in_a_conversation_that_was_deleted(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("About foxes")
            await write(teller, "and the badgers")
            await teller.press("ctrl+q")
        async with telling(tmp_path, conversation_id=1) as teller:
            assert teller.chat.prompt.text == "and the badgers"
            await teller.press("f3", "delete")
            await teller.until(lambda: teller.contents == [] and teller.chat.prompt.text == "")
            await teller.press("ctrl+z")
            await teller.until(lambda: teller.chat.prompt.text == "and the badgers")

    tell(story)


def test_a_draft_is_saved_a_moment_after_it_was_typed(tmp_path):
    """A killed app has no later moment: what the store holds then is what comes back."""

    async def story():
        async with telling(tmp_path) as teller:
            await teller.press(*"half")
            await teller.until(lambda: teller.store.draft(None) == Draft(text="half"), "the save")
            await teller.press("up", *" a prompt")
            await teller.until(lambda: teller.store.draft(None) == Draft(text="half a prompt"), "the save")

    tell(story)


def test_an_earlier_prompt_that_is_changed_and_a_draft_are_kept_beside_each_other(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("About foxes")
            await write(teller, "draft")
            await teller.press("ctrl+o")
            await teller.until(lambda: teller.chat.prompt.text == "About foxes")
            await write(teller, " and owls")
            await teller.press("ctrl+n")
            await teller.until(lambda: teller.contents == [] and teller.chat.prompt.text == "")
            await teller.press("f3", "enter")
            await teller.until(lambda: teller.chat.prompt.text == "About foxes and owls")
            await teller.press("enter")
            await teller.until(lambda: teller.contents == ["About foxes and owls", "Hello there."])
            await teller.until(lambda: teller.chat.prompt.text == "draft")
            await teller.press("ctrl+o", "x", "escape")
            await teller.until(lambda: teller.chat.prompt.text == "draft")
            await teller.press("up")
            assert teller.chat.prompt.text == "About foxes and owlsx"

    tell(story)


def test_prompts_that_wait_are_kept_as_a_draft(tmp_path):
    async def story():
        async with telling(tmp_path, script=endless) as teller:
            await teller.ask("About foxes", is_awaited=False)
            for text in ("Two?", "Three?"):
                await teller.type(text)
                await teller.press("enter")
            await teller.until(lambda: len(teller.dialogue.waiting) == 2)
            await teller.until(lambda: teller.store.draft(1).text == "Two?\nThree?", "the save")
            await teller.press("ctrl+n")
            await teller.until(lambda: teller.contents == [])
            await teller.press("f3", "enter")
            await teller.until(lambda: teller.chat.prompt.text == "Two?\nThree?")

    tell(story)


def test_a_draft_of_a_purged_conversation_goes_to_the_next_one(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("About foxes")
            keeper = teller.chat.drafts
            assert isinstance(keeper, DraftKeeper) and keeper.is_saved
            teller.store.delete_conversation(1)
            teller.store.purge_conversation(1)
            await write(teller, "draft")
            await teller.until(lambda: teller.store.draft(None).text == "draft", "the save")
            await teller.press("ctrl+n")
            await teller.until(lambda: teller.chat.prompt.text == "draft")

    tell(story)
