"""Formulas stay as they were written, and nothing that a terminal obeys comes through."""

import pytest

from tui.chat.markdown.parser import SafeMarkdownIt, inline_content

KEPT = [
    r"\(a_1 * b_2 * c\) and \[x\] and \, \; \! \: \\ \{ \} \% \& \" \^",
    r"$a_1 * b * c$ and $$x_1 * y * z$$",
    r"C:\Users\me\docs and \alpha\beta",
    "it costs $5 and $6",
    r"$f(x) = \$5 * x * y$",
]


@pytest.mark.parametrize("text", KEPT)
def test_a_formula_and_its_backslashes_are_kept(text):
    r"""`\(`, `\,` and `\\` lost their backslash."""
    assert inline_content(text).plain == text


def test_a_backslash_that_markdown_means_is_not_shown():
    content = inline_content(r"\*not slanted\* snake\_case 1\. \# \`x\`")
    assert content.plain == "*not slanted* snake_case 1. # `x`" and not content.spans


def test_dollars_of_money_take_no_bold_type_away():
    content = inline_content("from $5 to **many** $")
    assert content.plain == "from $5 to many $"
    assert [content.plain[span.start : span.end] for span in content.spans] == ["many"]


BLOCKS = {
    "\\[\n- a \\\\\n= b\n\\]\nafter": ["formula_block", "paragraph_open"],
    "text\n$$\n# a\n$$": ["paragraph_open", "formula_block"],
    "\\begin{align*}\na &= b \\\\\n- c\n\\end{align*}": ["formula_block"],
    "\\[ x \\]": ["formula_block"],
    "\\[ x \\] where x": ["paragraph_open"],
    "$$ is a lot\n\n- b": ["paragraph_open", "bullet_list_open"],
    "$$\nstill arriv": ["formula_block"],
    "- $$\n  - a\n  $$": ["bullet_list_open"],
}


@pytest.mark.parametrize("text", BLOCKS, ids=ascii)
def test_a_formula_over_several_lines_is_one_block(text):
    tokens = SafeMarkdownIt().parse_blocks(text.split("\n"), {})
    assert [token.type for token in tokens if token.level == 0 and token.map and token.nesting >= 0] == BLOCKS[text]


def test_the_parser_shows_signs():
    (opened, inline, closed) = SafeMarkdownIt().parse("a\x1b[2J")
    assert inline.content == "a␛[2J"
    assert (opened.type, closed.type) == ("paragraph_open", "paragraph_close")
    assert inline_content("&#x202e;").plain == "⟨U+202E⟩"


def test_inline_marks_become_styles():
    content = inline_content("a **b** *c* ~~d~~ `e` [f](http://g/) ![h](i)  \nj")
    assert content.plain == "a b c d e f image: h\nj"
    styles = {content.plain[span.start : span.end]: span.style for span in content.spans}
    assert {name: styles[name] for name in "bcde"} == {"b": ".strong", "c": ".em", "d": ".s", "e": ".code_inline"}
    assert styles["f"].meta["@click"] == "link('http://g/')"


@pytest.mark.parametrize("text", ["[" * 3000, "*a" * 2000, "`a" * 2000, r"\(" * 2000, "$a" * 2000, "http://a.b/" * 300])
def test_marks_without_an_end_are_text(text):
    assert inline_content(text).plain.strip("*")
