"""What stands in an error's sentence can be printed anywhere."""

from profiles.errors import quote


def test_quoted_values_are_short_and_printable() -> None:
    assert len(quote("x" * 10_000)) <= 80
    assert len(quote(10**400)) <= 80
    assert quote("a\x1b[31m\n") == repr("a\x1b[31m\n")
