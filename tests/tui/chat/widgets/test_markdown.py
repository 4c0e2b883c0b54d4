"""What a model writes is shown as text wherever a terminal, or HTML, would act on it."""

import asyncio

from textual.app import App
from textual.widgets import Markdown

from tests.support.screen_text import STYLES, screen_text
from tui.chat.widgets.markdown import AnswerMarkdown, CodeBlock, SafeMarkdownIt

HOSTILE = {
    "clipboard": "a \x1b]52;c;ZXZpbA==\x07 b",
    "title": "# \x1b]0;title\x07 b",
    "cursor": "- \x1b[2J\x1b[1;1H b",
    "c1": "| a |\n|---|\n| \x9b2J |",
    "code": "```\n\x1b[31mred\n```",
    "inline": "`\x1b[31mred` and **\x1b[5m**",
    "entity": "&#x1b;[31m and &#155;2J and &#x202e;",
    "link": "[\x1b[31mred](http://x.y/\x1b[2J)",
    "language": "```py\x1b[31m\n1\n```",
}


class Page(App):
    CSS_PATH = STYLES

    def __init__(self, text=""):
        super().__init__()
        self.markdown = AnswerMarkdown(text)
        self.wanted = []
        self.opened = []

    def compose(self):
        yield self.markdown

    def on_code_block_copy_wanted(self, message):
        self.wanted.append(message.block)

    def open_url(self, url, *, new_tab=True):
        self.opened.append(url)


def read(story, text=""):
    async def run():
        app = Page(text)
        async with app.run_test(size=(60, 20)) as pilot:
            await pilot.pause()
            await story(app, pilot)

    asyncio.run(run())


def is_safe(text):
    return all(character.isprintable() or character == "\n" for character in text)


def test_nothing_that_a_terminal_obeys_reaches_the_screen_whole_or_in_pieces():
    async def story(app, pilot):
        for name, text in HOSTILE.items():
            await app.markdown.update(text)
            await pilot.pause()
            assert app.markdown.children and is_safe(screen_text(app)), name
            await app.markdown.update("")
            stream = Markdown.get_stream(app.markdown)
            for index in range(0, len(text), 3):
                await stream.write(text[index : index + 3])
            await stream.stop()
            await pilot.pause()
            assert app.markdown.children and is_safe(screen_text(app)), name

    read(story)


def test_html_is_shown_as_text():
    async def story(app, pilot):
        shown = screen_text(app)
        assert "<think>why</think>" in shown
        assert "<script>x</script>" in shown

    read(story, "<think>why</think>\n\na <script>x</script> b\n")


def test_a_code_block_has_its_language_and_a_word_that_copies_it():
    async def story(app, pilot):
        first, second = app.markdown.query(CodeBlock)
        assert (first.language, first.code) == ("python", "x = 1")
        assert (second.language, second.code) == ("", "plain")
        await pilot.click(second.query_one("CopyLabel"))
        assert app.wanted == [second]

    read(story, "```python title=x\nx = 1\n```\n\n```\nplain\n```\n")


def test_a_code_block_that_grows_keeps_its_line_on_top():
    async def story(app, pilot):
        stream = Markdown.get_stream(app.markdown)
        for piece in ("```py\nx", " = 1\n", "y = 2\n", "```\n", "after\n"):
            await stream.write(piece)
            await pilot.pause()
        await stream.stop()
        await pilot.pause()
        (block,) = app.markdown.query(CodeBlock)
        assert block.code == "x = 1\ny = 2"
        assert len(block.query("CopyLabel")) == 1
        assert "after" in screen_text(app)

    read(story)


def test_a_language_that_nobody_knows_is_plain():
    assert CodeBlock.highlight("x = 1", "no-such-language").plain == "x = 1"
    assert CodeBlock.highlight("x = 1", "").plain == "x = 1"


def test_a_link_is_not_opened():
    async def story(app, pilot):
        await app.markdown.query("MarkdownParagraph").first().action_link("http://x.y/")
        await pilot.pause()
        assert app.opened == []

    read(story, "[a](http://x.y/)")


def test_the_parser_shows_signs():
    (opened, inline, closed) = SafeMarkdownIt().parse("a\x1b[2J")
    assert inline.content == "a␛[2J"
    assert (opened.type, closed.type) == ("paragraph_open", "paragraph_close")
