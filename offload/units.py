"""Bytes, pages and links: as people write them, and back.

The one place that reads "3.2GB" or "25GB/s,10us" and that prints bytes. Decimal units are powers of 1000 (K, KB, M, MB,
G, GB, T, TB), binary units powers of 1024 (KiB, MiB, GiB, TiB), a bare number is bytes; upper and lower case are the
same, and a lone B is bytes.
"""

import math
import re
from dataclasses import dataclass

from profiles.errors import BadInputError

PAGE_BYTES = 4096
"""Slabs are allocated in whole pages of this size."""
_SECONDS_PER_UNIT = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zµ]*)", re.ASCII)


_BYTES_PER_UNIT = {"": 1, "b": 1} | {
    f"{letter}{ending}": base**power
    for power, letter in enumerate("kmgt", start=1)
    for ending, base in (("", 1000), ("b", 1000), ("ib", 1024))
}


@dataclass(frozen=True, slots=True)
class LinkSpeed:
    """How fast a link is: a copy of n bytes occupies it for latency_seconds + n / bytes_per_second."""

    bytes_per_second: float
    """Bandwidth, above 0."""
    latency_seconds: float = 0.0
    """Fixed cost of every copy, during which the link carries nothing else."""

    def copy_seconds(self, num_bytes: int, num_copies: int = 1) -> float:
        """Return the seconds for which `num_bytes`, in one copy or several, occupy the link."""
        return num_copies * self.latency_seconds + num_bytes / self.bytes_per_second


def round_up_to_page(num_bytes: int) -> int:
    """Return the smallest multiple of PAGE_BYTES that is at least `num_bytes`."""
    return -(-num_bytes // PAGE_BYTES) * PAGE_BYTES


def parse_bytes(text: str) -> int:
    """Read a size: "3.2GB" (decimal), "3.2GiB" (binary), "3.2G" (decimal) or "3200000000".

    Raises BadInputError if the text is not a size, or is negative.
    """
    quantity = _parse_quantity(text, _BYTES_PER_UNIT)
    if quantity is None:
        raise BadInputError(f"'{text}' is not a size: write a number and a unit, as in 3.2GB, 800MiB or 4096.")
    return round(quantity)


def parse_link(text: str) -> LinkSpeed:
    """Read a link: "25GB/s" or "25GB/s,10us", bytes per second and, optionally, the latency of each copy.

    Raises BadInputError if the text is not a link, or its bandwidth is 0.
    """
    bandwidth_text, comma, latency_text = text.partition(",")
    rate_text, slash, per = bandwidth_text.strip().lower().rpartition("/")
    bytes_per_second = _parse_quantity(rate_text, _BYTES_PER_UNIT) if slash and per.strip() == "s" else None
    latency_seconds = _parse_quantity(latency_text, _SECONDS_PER_UNIT) if comma else 0.0
    if not bytes_per_second or latency_seconds is None:
        raise BadInputError(
            f"'{text}' is not a link: write a bandwidth above 0 and perhaps a latency, as in 25GB/s or 25GB/s,10us."
        )
    return LinkSpeed(bytes_per_second=bytes_per_second, latency_seconds=latency_seconds)


def format_bytes(num_bytes: float) -> str:
    """Write bytes for a person, in decimal units with three figures: 2617000000 -> "2.62 GB"."""
    sign, size = ("-", -num_bytes) if num_bytes < 0 else ("", num_bytes)
    unit_index = 0
    while round(size, 1 if size >= 10 else 2) >= 1000 and unit_index < 4:
        size /= 1000
        unit_index += 1
    if unit_index == 0:
        return f"{sign}{size:.0f} B"
    num_decimals = 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{sign}{size:.{num_decimals}f} {'KMGT'[unit_index - 1]}B"


def format_link(link: LinkSpeed) -> str:
    """Write a link for a person, in the form that `parse_link` reads: "25.0GB/s,10us"."""
    rate = format_bytes(link.bytes_per_second).replace(" ", "") + "/s"
    return rate if link.latency_seconds == 0 else f"{rate},{link.latency_seconds * 1e6:g}us"


def _parse_quantity(text: str, units: dict[str, float] | dict[str, int]) -> float | None:
    """Return the number times its unit; None if the text is not one, has an unknown unit, or overflows."""
    match = _QUANTITY.fullmatch(text.strip().lower())
    if match is None or match[2] not in units:
        return None
    quantity = float(match[1]) * units[match[2]]
    return quantity if math.isfinite(quantity) else None
