"""A text that arrives in pieces becomes the same blocks as the whole, and what has settled is not parsed again."""

import random

import pytest

from tui.chat.markdown import blocks, parser
from tui.chat.markdown.blocks import MAX_DEPTH, Code, Document, Item, Paragraph, Quote, Table


def outline(body):
    """What is in each block, as plain values."""
    found = []
    for block in body.blocks:
        match block:
            case Paragraph():
                found.append((block.level, block.content.plain, sorted(block.content.spans)))
            case Code():
                lines = [*block.lines]
                while lines and not lines[-1].strip():
                    lines.pop()
                found.append((block.language if lines else "", lines))
            case Table():
                rows = [block.header, *block.rows]
                found.append(("table", block.alignments, [[cell.plain for cell in row] for row in rows]))
            case Quote():
                found.append(("quote", outline(block.body)))
            case Item():
                found.append(("item", block.number, block.is_first, outline(block.body)))
            case _:
                found.append(type(block).__name__)
    return found


LINES = [
    *("text and **bold**", "- item", "-", "* star", "  - nested", "    deep", "   three", "1. one", "2. two", "- "),
    *("> quote", "> - quoted item", ">", "> > deep", "```python", "```", "x = 1", "    code", "# Head", "#tag"),
    *("---", "===", "| a | b |", "|---|---|", "| 1 | 2 |", "1 | 2", "\\[", "a \\\\ b", "\\]", "$$", "~~~", "  ```js"),
    *("  ```", "  | c | d |", "  |---|---|", "<br>", "\ttab", "-\ttab item", "", "", "", "   "),
]


def test_pieces_become_the_same_blocks_as_the_whole():
    for seed in range(400):
        source = random.Random(seed)
        text = "\n".join(source.choice(LINES) for _ in range(source.randint(1, 14)))
        document, position = Document(), 0
        while position < len(text):
            length = source.choice([1, 1, 2, 3, 8, 30])
            document.append(text[position : position + length])
            position += length
        assert document.source == text
        assert outline(document.body) == outline(Document(text).body), repr(text)


def test_items_are_counted_from_the_first():
    (*items,) = Document("3. a\n3. b\n\n7) c\n- d").body.blocks
    assert [(item.number, item.is_first) for item in items] == [(3, True), (4, False), (7, True), (None, True)]


def test_no_cell_is_left_out():
    (table,) = Document("| a | b |\n|:-:|--:|\n| 1 | 2 | 3 |\n| 4 |\n| x\\|y | a<br>b |").body.blocks
    assert table.alignments == ["center", "right"]
    assert [[cell.plain for cell in row] for row in table.rows] == [["1", "2", "3"], ["4", ""], ["x|y", "a\nb"]]


def test_a_link_that_is_defined_below_is_one_in_the_end():
    document = Document("[a] and [b][a]\n\n[a]: http://x.y/")
    document.end()
    (paragraph,) = document.body.blocks
    assert paragraph.content.plain == "a and b" and len(paragraph.content.spans) == 2


def test_what_is_nested_too_deeply_stands_there_as_written():
    document = Document("> " * (MAX_DEPTH + 400) + "x")
    (block,), depth = document.body.blocks, 0
    while isinstance(block, Quote):
        (block,) = block.body.blocks
        depth += 1
    assert depth == MAX_DEPTH and block.content.plain.endswith("> x")


def test_code_is_what_was_written():
    (code, item) = Document("```py x\n  a\n\n\tb\n```\n- c\n  ~~~\n  d\n   e\n  ~~~").body.blocks
    assert (code.language, code.lines) == ("py", ["  a", "", "\tb"])
    (_, inner) = item.body.blocks
    assert inner.lines == ["d", " e"]
    assert [block.lines[0] for block in Document("```\na\n```\n> - ```\n>   b\n").body.code_blocks()] == ["a", "b"]


def test_a_text_that_breaks_the_parser_is_shown_as_written(monkeypatch):
    def fail(*arguments):
        raise IndexError("a mark that is not there")

    monkeypatch.setattr(parser.SafeMarkdownIt, "parse_blocks", fail)
    document = Document("- a\n")
    document.append("- b")
    (paragraph,) = document.body.blocks
    assert paragraph.content.plain == "- a\n- b" and document.source == "- a\n- b"


GROWING = {
    "list": ("", "1. an *item*\n"),
    "table": ("| a | b |\n|---|---|\n", "| 1 | two words |\n"),
    "code": ("```python\n", "x = [1, 2]\n"),
    "quote": ("", "> - an *item*\n"),
    "nested": ("1. first\n", "   - an *item*\n"),
    "code in a list": ("- ```\n", "  x\n"),
    "table in a quote": ("> | a |\n> |---|\n", "> | x |\n"),
}


@pytest.mark.parametrize("kind", GROWING)
def test_what_has_settled_is_not_parsed_again(kind, monkeypatch):
    parsed = []
    parse_blocks, content_of = parser.SafeMarkdownIt.parse_blocks, blocks.inline_content

    def count_blocks(self, lines, references):
        parsed.extend(lines)
        return parse_blocks(self, lines, references)

    def count_text(text, references=None):
        parsed.append(text)
        return content_of(text, references)

    monkeypatch.setattr(parser.SafeMarkdownIt, "parse_blocks", count_blocks)
    monkeypatch.setattr(blocks, "inline_content", count_text)
    begin, more = GROWING[kind]
    document = Document(begin)
    work = []
    for _ in range(60):
        del parsed[:]
        document.append(more[:5])
        document.append(more[5:])
        work.append(len(parsed))
    assert max(work[40:]) <= max(work[5:20]) <= 20
