"""Sizes and links as people write them."""

import pytest

from offload.units import PAGE_BYTES, LinkSpeed, format_bytes, format_link, parse_bytes, parse_link, round_up_to_page
from profiles.errors import BadInputError


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("3.2GB", 3_200_000_000),
        ("3.2G", 3_200_000_000),
        ("3.2gb", 3_200_000_000),
        (" 3.2 GB ", 3_200_000_000),
        ("3GiB", 3 * 2**30),
        ("0.5GiB", 2**29),
        ("800MiB", 800 * 2**20),
        ("1.5k", 1500),
        (".5K", 500),
        ("7KiB", 7168),
        ("2TB", 2 * 10**12),
        ("2tib", 2 * 2**40),
        ("9007199254740992", 2**53),
    ],
)
def test_sizes_are_read_in_decimal_and_binary_units(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "3,2GB", "1e9", "3 G B", "3PB", "nan", "inf", "0x10", "9" * 400, "٣GB"]
)
def test_what_is_not_a_size_is_refused_with_the_text_itself(text: str) -> None:
    with pytest.raises(BadInputError, match="is not a size: write a number and a unit") as caught:
        parse_bytes(text)
    assert f"'{text}'" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("25GB/s", LinkSpeed(25e9)),
        ("1.5GiB/s", LinkSpeed(1.5 * 2**30)),
        ("25GB/s,10us", LinkSpeed(25e9, 10 * 1e-6)),
        ("25GB/s,10µs", LinkSpeed(25e9, 10 * 1e-6)),
        ("25 gb/s , 1ms", LinkSpeed(25e9, 1e-3)),
        ("300MB/s,0.5s", LinkSpeed(300e6, 0.5)),
        ("300MB/S,0s", LinkSpeed(300e6, 0.0)),
    ],
)
def test_links_are_a_bandwidth_and_an_optional_latency(text: str, link: LinkSpeed) -> None:
    assert parse_link(text) == link


@pytest.mark.parametrize(
    "text",
    ["", "25GB", "25GB/min", "0GB/s", "/s", "25GB/s,", "25GB/s,10", "25GB/s,10us,3", "fast", "25GB/s/s", "-1GB/s"],
)
def test_what_is_not_a_link_is_refused(text: str) -> None:
    with pytest.raises(BadInputError, match="is not a link"):
        parse_link(text)


def test_a_copy_occupies_the_link_for_latency_plus_transfer() -> None:
    assert LinkSpeed(bytes_per_second=1000.0, latency_seconds=0.5).copy_seconds(2000) == 2.5


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 KB"),
        (9994, "9.99 KB"),
        (9999, "10.0 KB"),
        (99_960, "100 KB"),
        (999_999, "1.00 MB"),
        (2_617_000_000, "2.62 GB"),
        (3_087_467_144, "3.09 GB"),
        (140_000_000_000, "140 GB"),
        (5e15, "5000 TB"),
        (-2_000_000, "-2.00 MB"),
    ],
)
def test_sizes_are_printed_with_three_figures(num_bytes: float, text: str) -> None:
    assert format_bytes(num_bytes) == text


def test_printed_links_can_be_read_again() -> None:
    assert format_link(LinkSpeed(25e9, 10e-6)) == "25.0GB/s,10us"
    assert parse_link(format_link(LinkSpeed(25e9))) == LinkSpeed(25e9)


def test_sizes_are_rounded_up_to_whole_pages() -> None:
    sizes = (0, 1, PAGE_BYTES, PAGE_BYTES + 1)
    assert [round_up_to_page(size) for size in sizes] == [0, PAGE_BYTES, PAGE_BYTES, 2 * PAGE_BYTES]
