"""Bursts become a steady flow: nothing lost, order kept, never more than one burst behind."""

import random

import pytest
import regex

from tui.chat.widgets.text_smoothing import (
    LONGEST_SPREAD_SECONDS,
    SAME_BURST_SECONDS,
    SPREAD,
    TextSmoother,
    whole_length,
)

PIECES = [
    "a",
    "word ",
    "\n",
    "e\u0301",
    "\U0001f469\u200d\U0001f680",
    "\U0001f1eb\U0001f1f7",
    "\u65e5\u672c",
    "\x1b[0m",
]
FRAME_SECONDS = 1 / 30


def shown_by(smoother, bursts, *, end):
    """(time, text) of every frame up to `end`, with the bursts pushed when they are due."""
    frames, waiting, number = [], list(bursts), 0
    while number * FRAME_SECONDS <= end:
        now = number * FRAME_SECONDS
        while waiting and waiting[0][0] <= now:
            time, text = waiting.pop(0)
            smoother.push(text, now=time)
        frames.append((now, smoother.take(now)))
        number += 1
    return frames


def random_bursts(seed):
    random_source = random.Random(seed)
    time, bursts = 0.0, []
    for _ in range(random_source.randint(1, 12)):
        time += random_source.choice([0.01, 0.1, 0.7, 1.5, 3.0]) * random_source.uniform(0.5, 1.5)
        text = "".join(random_source.choices(PIECES, k=random_source.randint(1, 12)))
        # A burst may end inside a character, as a token may.
        bursts.append((time, text[: random_source.randint(1, len(text))]))
    return bursts


def test_nothing_is_lost_and_order_is_kept():
    for seed in range(60):
        bursts, smoother = random_bursts(seed), TextSmoother()
        frames = shown_by(smoother, bursts, end=bursts[-1][0] * random.Random(seed).uniform(0.5, 1.5))
        pushed = [text for time, text in bursts if time <= frames[-1][0]]
        shown = "".join(text for _, text in frames)
        assert "".join(pushed)[: len(shown)] == shown and smoother.num_waiting == len("".join(pushed)) - len(shown)


def test_no_cut_splits_a_character():
    for seed in range(60):
        bursts, smoother = random_bursts(seed), TextSmoother()
        whole, arrived = "".join(text for _, text in bursts), 0
        for time, text in bursts:
            smoother.push(text, now=time)
            arrived += len(text)
            for share in (0.0, 0.2, 0.5, 0.8):
                smoother.take(time + share)
                cut = arrived - smoother.num_waiting
                assert cut in {0, *(seen.end() for seen in regex.finditer(r"\X", whole[:arrived]))}


def test_the_screen_is_never_more_than_one_burst_behind():
    for seed in range(60):
        random_source = random.Random(seed)
        smoother, earlier, shown, time = TextSmoother(), "", "", 0.0
        for _ in range(12):
            text = "".join(random_source.choices(PIECES, k=8))
            smoother.push(text, now=time)
            shown += smoother.take(time)
            assert shown == (earlier + text)[: len(shown)]
            assert len(shown) >= len(earlier)
            earlier += text
            shown += smoother.take(time + random_source.uniform(0, 0.5))
            time += random_source.uniform(2 * SAME_BURST_SECONDS, 3)


def test_regular_bursts_flow_evenly_and_are_gone_before_the_next():
    interval, text = 1.5, "x" * 60
    bursts = [(interval * number, text) for number in range(6)]
    frames = shown_by(TextSmoother(), bursts, end=interval * 6 - FRAME_SECONDS)
    steady = [len(piece) for time, piece in frames if time >= 2 * interval]
    expected = len(text) * FRAME_SECONDS / (SPREAD * interval)
    assert max(steady) <= expected + 1
    longest_silence = max(len(run) for run in "".join("." if count == 0 else "x" for count in steady).split("x"))
    assert longest_silence * FRAME_SECONDS <= (1 - SPREAD) * interval + 2 * FRAME_SECONDS
    for number in range(2, 6):
        before = sum(len(piece) for time, piece in frames if time < interval * (number + 1) - 2 * FRAME_SECONDS)
        assert before == len(text) * (number + 1)


def test_the_first_burst_is_shown_at_once_when_nothing_is_known():
    smoother = TextSmoother()
    smoother.push("The first words", now=10.0)
    assert smoother.take(10.0) == "The first words"


def test_the_next_answer_starts_with_the_rate_of_the_last():
    smoother = TextSmoother(expected_seconds=2.0)
    smoother.push("x" * 90, now=10.0)
    assert len(smoother.take(10.9)) == pytest.approx(45, abs=1)
    assert smoother.expected_seconds == 2.0


def test_one_slow_round_does_not_slow_the_following():
    smoother = TextSmoother()
    for time in (0.0, 1.0, 2.0, 3.0, 12.0):
        smoother.push("x", now=time)
    assert smoother.expected_seconds == 1.0


def test_pieces_of_one_round_are_one_burst():
    smoother = TextSmoother()
    for number in range(3):
        smoother.push("abc", now=2.0 * number)
        smoother.push("def", now=2.0 * number + SAME_BURST_SECONDS / 2)
    assert smoother.expected_seconds == 2.0


def test_a_very_slow_link_holds_no_text_for_long():
    smoother = TextSmoother(expected_seconds=60.0)
    smoother.push("x" * 100, now=0.0)
    assert len(smoother.take(LONGEST_SPREAD_SECONDS)) == 100


def test_a_clock_that_steps_back_takes_nothing_twice():
    smoother = TextSmoother(expected_seconds=1.0)
    smoother.push("abcdefghij", now=5.0)
    first = smoother.take(5.5)
    assert smoother.take(4.0) == ""
    assert first + smoother.take(7.0) == "abcdefghij"


WHOLE = [
    "a",
    "e\u0301",
    "e\u0301\u0323",
    "\u2764\ufe0f",
    "\U0001f44d\U0001f3fd",
    "\U0001f469\u200d\U0001f680",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f1eb\U0001f1f7",
    "\U0001f3f4\U000e0067\U000e0062\U000e007f",
    "1\ufe0f\u20e3",
    "\u1112\u1161\u11ab",
    "\uac00\u11a8",
    "\u0915\u093f",
    "\r\n",
    "\u65e5",
]


def test_one_character_is_cut_only_at_its_ends():
    for character in WHOLE:
        text = "x" + character + "y"
        cuts = {whole_length(text, num_due) for num_due in range(1, len(text))}
        assert cuts == {1, 1 + len(character)}, ascii(character)


def test_two_flags_are_cut_between_them():
    flags = "\U0001f1eb\U0001f1f7\U0001f1e9\U0001f1ea"
    assert [whole_length(flags, num_due) for num_due in range(5)] == [0, 2, 2, 4, 4]


@pytest.mark.parametrize(
    ("text", "num_whole"),
    [
        ("", 0),
        ("abc", 3),
        ("ab\U0001f469\u200d", 2),
        ("\U0001f469\u200d", 0),
        ("ab\U0001f1eb", 2),
        ("ab\U0001f1eb\U0001f1f7", 4),
        ("\u200d", 0),
    ],
    ids=ascii,
)
def test_what_the_next_piece_may_join_is_not_whole(text, num_whole):
    assert whole_length(text, len(text)) == num_whole
