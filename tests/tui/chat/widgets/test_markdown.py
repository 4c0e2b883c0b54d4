"""What a model writes is shown as text wherever a terminal, or HTML, would act on it; what grows costs little."""

import asyncio

import pytest
from textual.app import App
from textual.color import Color
from textual.geometry import Offset
from textual.selection import Selection

from tests.support.screen_text import STYLES, places_of, screen_rows, screen_text
from tui.chat.themes import THEMES
from tui.chat.widgets.markdown import AnswerMarkdown

HOSTILE = {
    "clipboard": "a \x1b]52;c;ZXZpbA==\x07 b",
    "title": "# \x1b]0;title\x07 b",
    "cursor": "- \x1b[2J\x1b[1;1H b",
    "c1": "| a |\n|---|\n| \x9b2J |",
    "code": "```\n\x1b[31mred\n```",
    "inline": "`\x1b[31mred` and **\x1b[5m**",
    "entity": "&#x1b;[31m and &#155;2J and &#x202e;",
    "entity in a cell": "| a |\n|---|\n| &#x1b;[31m |",
    "formula": "$$\n\x1b[31m\n$$ and \\(\x1b[2J\\)",
    "image": "![&#x1b;[2J](a)",
    "link": "[\x1b[31mred](http://x.y/\x1b[2J)",
    "language": "```py\x1b[31m\n1\n```",
}


class Page(App):
    CSS_PATH = STYLES

    def __init__(self, text=""):
        super().__init__()
        self.markdown = AnswerMarkdown(text)
        self.wanted = []
        self.links = []
        self.opened = []

    def compose(self):
        yield self.markdown

    def on_answer_markdown_copy_wanted(self, message):
        self.wanted.append(message.block)

    def on_answer_markdown_link_clicked(self, message):
        self.links.append(message.href)

    def open_url(self, url, *, new_tab=True):
        self.opened.append(url)


def read(story, text="", *, size=(60, 20)):
    async def run():
        app = Page(text)
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await story(app, pilot)

    asyncio.run(run())


def is_safe(text):
    return all(character.isprintable() or character == "\n" for character in text)


def test_nothing_that_a_terminal_obeys_reaches_the_screen_whole_or_in_pieces():
    async def story(app, pilot):
        for name, text in HOSTILE.items():
            app.markdown.update(text)
            await pilot.pause()
            assert screen_text(app).strip() and is_safe(screen_text(app)), name
            app.markdown.update("")
            for index in range(0, len(text), 3):
                app.markdown.append(text[index : index + 3])
            await pilot.pause()
            assert screen_text(app).strip() and is_safe(screen_text(app)), name

    read(story)


def test_html_is_shown_as_text():
    async def story(app, pilot):
        shown = screen_text(app)
        assert "<think>why</think>" in shown
        assert "<script>x</script>" in shown

    read(story, "<think>why</think>\n\na <script>x</script> b\n")


def test_a_code_block_has_its_language_its_number_of_lines_and_a_word_that_copies_it():
    async def story(app, pilot):
        first, second = app.markdown.code_blocks
        assert (first.language, first.code) == ("python", "x = 1")
        assert (second.language, second.code) == ("", "plain\n\n\tx")
        assert "python · 1 line " in screen_text(app) and "text · 3 lines " in screen_text(app)
        await pilot.click(offset=places_of(app, "copy")[1])
        assert app.wanted == [second]

    read(story, "```python title=x\nx = 1\n```\n\n```\nplain\n\n\tx\n```\n")


def test_the_language_is_named_from_the_first_line_on():
    """The label read `p` and then `text` until the answer ended."""

    async def story(app, pilot):
        shown = set()
        for piece in ("``", "`p", "yth", "on", "\n", "x", " = 1\n", "y = 2\n"):
            app.markdown.append(piece)
            await pilot.pause()
            shown |= {row.split("·")[0].strip() for row in screen_rows(app) if "line" in row}
        assert shown == {"", "python"}

    read(story)


def test_a_block_that_was_copied_is_marked():
    async def story(app, pilot):
        def backgrounds():
            return [str(next(iter(strip)).style.bgcolor) for strip in app.screen._compositor.render_strips()[:5]]

        before = backgrounds()
        _, second = app.markdown.code_blocks
        app.markdown.mark(second.block)
        await pilot.pause()
        marked = [y for y, (old, new) in enumerate(zip(before, backgrounds(), strict=True)) if old != new]
        assert marked == [3]

    read(story, "```\na\n```\n\n```\nb\n```\n")


def test_long_lines_of_code_are_marked_where_they_are_cut_and_can_be_wrapped():
    line = "x = " + " + ".join(map(str, range(40)))

    async def story(app, pilot):
        cut = screen_rows(app)[1]
        assert cut.endswith("…") and "39" not in screen_text(app) and "wrap" in screen_rows(app)[0]
        app.markdown.wrap_code(True)
        await pilot.pause()
        shown = "".join(row.strip().removeprefix("↪ ") for row in screen_rows(app)[1:])
        assert shown.replace(" ", "") == line.replace(" ", "") and "unwrap" in screen_rows(app)[0]

    read(story, f"```python\n{line}\n```")


@pytest.mark.parametrize("theme", ["ansi-dark", "ansi-light"])
def test_code_is_drawn_in_sixteen_colours(theme):
    async def story(app, pilot):
        app.theme = theme
        await pilot.pause()
        await pilot.pause()
        assert app.native_ansi_color and "x = 'a' # b" in screen_text(app)

    read(story, "```python\nx = 'a' # b\n@f\ndef __init__(): 'doc'\n```")


def test_a_link_is_handed_on_and_not_opened():
    async def story(app, pilot):
        await pilot.click(offset=(1, 0))
        await pilot.pause()
        assert (app.links, app.opened) == (["http://x.y/"], [])

    read(story, "[abc](http://x.y/)")


SELECTABLE = """\
Some words that are wrapped on a screen of forty columns, **bold** ones too.

1. first
2. second
   - inner

> quoted

```python
def f():
\treturn 1
```
"""


def test_what_is_selected_is_the_text_as_it_was_written():
    async def story(app, pilot):
        text, _ = app.markdown.get_selection(Selection(None, None))
        assert text == (
            "Some words that are wrapped on a screen of forty columns, bold ones too.\n\n"
            "1. first\n2. second\n   - inner\n\n> quoted\n\ndef f():\n\treturn 1"
        )
        part, _ = app.markdown.get_selection(Selection(Offset(5, 0), Offset(16, 1)))
        assert part.startswith("words that are") and part.endswith("columns")

    read(story, SELECTABLE, size=(40, 24))


def test_what_is_selected_is_drawn_so():
    async def story(app, pilot):
        def colours():
            return [segment.style.bgcolor for segment in app.screen._compositor.render_strips()[0]]

        before = colours()
        app.screen.selections = {app.markdown: Selection(Offset(2, 0), Offset(5, 0))}
        await pilot.pause()
        await pilot.pause()
        assert colours() != before

    read(story, "some words")


@pytest.mark.parametrize("kind", ["list", "table", "code", "quote", "nested"])
def test_what_grows_is_drawn_with_the_same_work_however_long_it_is(kind):
    """Every key waited for up to 0.6 s, since the whole of an open list was parsed and drawn 30 times a second."""
    begin, more = {
        "list": ("", "- an *item*\n"),
        "table": ("| a | b |\n|---|---|\n", "| 1 | two words |\n"),
        "code": ("```python\n", "x = [1, 2]\n"),
        "quote": ("", "> - an *item*\n"),
        "nested": ("1. first\n", "   - an *item*\n"),
    }[kind]

    async def story(app, pilot):
        drawn = []
        draw_line = app.markdown._draw_line
        app.markdown._draw_line = lambda line, *others: drawn.append(line) or draw_line(line, *others)
        app.markdown.append(begin)
        work = []
        for _ in range(90):
            del drawn[:]
            app.markdown.append(more)
            await pilot.pause()
            work.append(len(drawn))
        assert len(app.screen.query("*")) < 5
        assert max(work[60:]) <= max(work[20:40]) <= 30

    read(story, size=(60, 12))


EVERYTHING = """\
# Title

Text **bold** *slanted* ~~struck~~ `code` [link](http://x.y/)

1. one

- two

> three

| a | b |
|---|---|
| 1 | 2 |

---

```python
x = "0123456789012345678901234567890123456789012345678901234567890123456789"
```
"""


@pytest.mark.parametrize("theme", ["textual-dark", "textual-light", *(theme.name for theme in THEMES)])
def test_all_of_it_can_be_read_in_every_theme(theme):
    """A rule and the language of code were white on white, and code had no ground of its own."""

    async def story(app, pilot):
        for each in THEMES:
            app.register_theme(each)
        app.theme = theme
        await pilot.pause()
        await pilot.pause()
        seen = [
            segment for strip in app.screen._compositor.render_strips() for segment in strip if segment.text.strip()
        ]
        assert "…" in "".join(segment.text for segment in seen)
        for text, style, _ in seen:
            ground, ink = (Color.from_rich_color(each) for each in (style.bgcolor, style.color))
            assert abs(ground.brightness - ink.brightness) > 0.2, text
        assert len({segment.style.bgcolor for segment in seen}) >= 3

    read(story, EVERYTHING, size=(60, 30))
