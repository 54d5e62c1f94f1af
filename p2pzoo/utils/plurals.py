"""Counts in messages: "1 band", "2 bands"."""

from __future__ import annotations


def format_count(number: int, noun: str) -> str:
    """A number with its noun, whose plural ends in s.

    >>> format_count(1, "band"), format_count(0, "band")
    ('1 band', '0 bands')
    """
    return f"{number} {noun}{'s' * (number != 1)}"
