"""HTML that holds nothing but what the page says: well formed, without scripts, links or anything from elsewhere."""

import re
from html.parser import HTMLParser

import pytest

from tui.report.html_page import round_up, to_html
from tui.report.page import Chart, Facts, Page, Section, Table

HOSTILE = '</td><script>alert(1)</script><img src=x onerror="a()">&amp;\u202e\x1b[2J\x00"\'\ud800'
VOID = {"meta", "line", "rect"}


class Elements(HTMLParser):
    """Collects elements, attributes and text; fails where an element is closed that is not open."""

    def __init__(self, text):
        super().__init__()
        self.names, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def page(text="text"):
    chart = Chart(text, [1.0, 3.0, 0.0, 2.5], [(0, text), (4, "end")], text)
    parts = (text, Facts([(text, text)]), Table((text, "b"), [(text, text)]), chart)
    return Page(text, text, (Section(text, parts),))


def test_what_a_page_says_stays_text():
    found = Elements(to_html(page(HOSTILE)))
    assert not {"script", "img", "a", "link", "iframe", "object"} & set(found.names)
    assert not [name for name, _ in found.attributes if name.startswith("on") or name in ("src", "href")]
    assert "".join(found.texts).count("<script>alert(1)</script>") == 13  # as text, wherever it was put
    written = to_html(page(HOSTILE))
    assert not set(written) & set("\u202e\x1b\x00\ud800")
    written.encode()


def test_nothing_comes_from_elsewhere_and_both_schemes_are_there():
    written = to_html(page())
    assert not re.search(r"https?:|url\(|@import|<script", written)
    assert "default-src 'none'" in written
    assert "prefers-color-scheme: dark" in written and "@media print" in written
    assert Elements(written).names.count("html") == 1


def test_columns_are_as_high_as_their_values():
    written = to_html(page())
    heights = [float(height) for height in re.findall(r'<rect [^>]*height="([0-9.]+)"', written)]
    whole = 190 - 10 - 24
    assert [round(height / whole, 2) for height in heights] == [0.33, 1.0, 0.83]  # the top is 3; nothing has no column
    assert 'text-anchor="end">3</text>' in written


def test_a_scale_with_a_top_of_its_own_is_not_stretched():
    chart = Chart("t", [0.5], [], "share", top=1.0)
    (height,) = re.findall(r'<rect [^>]*height="([0-9.]+)"', to_html(Page("t", "", (Section("s", (chart,)),))))
    assert float(height) == (190 - 10 - 24) / 2


def test_scales_end_at_round_numbers():
    for value, top in ((0.0, 1), (0.3, 0.3), (1.0, 1), (1.1, 2), (4.2, 5), (9.0, 10), (120, 200), (float("nan"), 1)):
        assert round_up(value) == pytest.approx(top)


def test_figures_stand_at_the_right():
    table = Table(("name", "n"), [("a", "1")])
    written = to_html(Page("t", "", (Section("s", (table,)),)))
    assert "<th>name</th><th class=figure>n</th>" in written and "<td>a</td><td class=figure>1</td>" in written
