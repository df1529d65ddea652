"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Return the lines of a table with an empty one after it; columns from number ``left`` on are right-aligned."""
    rule = ["---" if place < left else "---:" for place in range(len(heads))]
    lines = [list(heads), rule, *(list(row) for row in rows)]
    return [
        *(f"|{'|'.join(cells)}|" if cells is rule else f"| {' | '.join(cells)} |" for cells in lines),
        "",
    ]


def seconds(value: float) -> str:
    """Return seconds with three digits that count."""
    if value >= 100:
        return f"{value:.0f} s"
    return f"{value:.1f} s" if value >= 10 else f"{value:.3f} s"


def both(row: dict[str, float]) -> str:
    """Return seconds by the clock, and in brackets in processor time."""
    return f"{seconds(row['seconds'])} ({seconds(row['processor'])})"
