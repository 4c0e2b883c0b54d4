"""Every term must occur somewhere, in any script, within words too; whatever is typed is a query."""

import pytest
from hypothesis import given, strategies

from tui.chat.store.search import MAX_HITS, MAX_TERMS, SNIPPET_LENGTH, make_snippet, search_terms
from tui.chat.store.store import ConversationStore


@pytest.fixture
def store():
    with ConversationStore(None) as store:
        yield store


def say(store, *texts, title="untitled"):
    conversation = store.create_conversation(title=title)
    for text in texts:
        store.append_prompt(conversation.id, text)


def found(store, query):
    return [hit.snippet for hit in store.search(query)]


@pytest.mark.parametrize(
    ("query", "terms"),
    [
        ("two  words", ("two", "words")),
        ('"one phrase" more', ("one phrase", "more")),
        ('an "open quote', ("an", "open", "quote")),
        ('a"b c', ('a"b', "c")),
        ('""" " "', ()),
        ("a b a", ("a", "b")),
        (" ".join(map(str, range(5000))), tuple(map(str, range(MAX_TERMS)))),
        ("  \n\t", ()),
        ("", ()),
        ("a\ud800\0", ("a\ufffd\ufffd",)),
    ],
)
def test_terms_stand_between_spaces_or_quotes(query, terms):
    assert search_terms(query) == terms


def test_every_term_must_occur(store):
    both = "the ring streams layers"
    say(store, both, "the ring", "layers of snow")
    assert found(store, "layers ring") == [both]
    assert found(store, '"ring layers"') == []
    assert found(store, '"ring streams"') == [both]


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("class EngineConfig:", "config"),
        ("snake_case_name", "case_n"),
        ("f(x) -> y[0]", "y[0]"),
        ("ÜBERBLICK", "überblick"),
        ("这个模型比设备大", "模型比"),
        ("这个模型比设备大", "模型"),
        ("Straße", "AßE"),
        ("Ö", "ö"),
        ("100% of a_b\\c", "0% a_b \\c"),
        ('say "hello" twice', 'lo"'),
    ],
)
def test_any_part_of_any_text_is_found(store, text, query):
    say(store, text)
    say(store, "something else altogether")
    assert found(store, query) == [text]


QUERIES = (
    *("AND", "a AND", "NOT x", "NEAR(a b, 2)", "content:x", "{a b}:x", "^abc", "abc*", "*", "(", ")", "'", "%", "_"),
    *('"', '""', '"""', '"abc', 'abc"', "\\", "-abc", "a+b", "\0", "\ud800", "😀", ";DROP TABLE messages"),
    *("x" * 10_000, " ".join(map(str, range(5000))), " ".join(f"word{number}" for number in range(5000))),
)


def test_whatever_is_typed_is_a_query(store):
    say(store, "nothing of that kind")

    def search(query):
        assert found(store, f"zzz {query}") == []
        store.search(query)

    for query in QUERIES:
        search(query)
    given(query=strategies.text(max_size=40))(search)()


def test_signs_mean_nothing_but_themselves(store):
    message = "NOT a* AND (b)"
    say(store, message)
    say(store, "plain abc")
    for query in ("NOT", "a*", "AND (b", "not AND"):
        assert found(store, query) == [message]


def test_each_conversation_is_found_once_titles_first_then_the_newest_messages(store):
    say(store, "a ring", "two rings", "three", title="older ring")
    say(store, "no such word", title="newer RING")
    say(store, "my ring", title="early")
    say(store, "a ring of mine", title="late")
    assert [(hit.title, hit.snippet) for hit in store.search("ring")] == [
        ("newer RING", "newer RING"),
        ("older ring", "two rings"),
        ("late", "a ring of mine"),
        ("early", "my ring"),
    ]


def test_many_messages_of_one_conversation_hide_no_other(store):
    say(store, "a ring", title="rare")
    say(store, *["another ring"] * (MAX_HITS + 1), title="often")
    assert [hit.title for hit in store.search("ring")] == ["often", "rare"]


def test_a_hit_shows_where_the_terms_stand(store):
    say(store, "The ring holds two\n\nlayers of the  ring.")
    (hit,) = store.search("RING layers")
    assert hit.snippet == "The ring holds two layers of the ring."
    assert [hit.snippet[start:end] for start, end in hit.matches] == ["ring", "layers", "ring"]


def test_an_answer_is_found_while_it_is_written(store):
    conversation = store.create_conversation()
    message = store.begin_answer(conversation.id, model="m")
    store.append_text(message.id, "a gol")
    store.append_text(message.id, "den ring")
    assert found(store, "golden") == ["a golden ring"]
    store.finish_answer(message.id, state="stopped")
    assert found(store, "golden") == ["a golden ring"]


@pytest.mark.parametrize(
    ("text", "terms", "snippet", "marked"),
    [
        ("short", ["or"], "short", ["or"]),
        ("x" * 200, ["y"], "x" * SNIPPET_LENGTH + "…", []),
        ("a" * 50 + " needle " + "b" * 100, ["needle"], "…" + "a" * 23 + " needle " + "b" * 49 + "…", ["needle"]),
        ("\x1b[2J\x9b1mring\x07", ["ring"], "␛[2J␛[1mring␇", ["ring"]),
        ("one\ntwo", ["one two"], "one two", ["one two"]),
        ("ring rings", ["ring", "rings"], "ring rings", ["ring", "rings"]),
        ("  \n needle " + " " * 1000, ["needle"], "needle", ["needle"]),
        ("", ["x"], "", []),
    ],
)
def test_a_snippet_begins_shortly_before_the_first_match(text, terms, snippet, marked):
    shown, matches = make_snippet(text, terms)
    assert shown == snippet and [shown[start:end] for start, end in matches] == marked
    assert len(shown) <= SNIPPET_LENGTH + 2
