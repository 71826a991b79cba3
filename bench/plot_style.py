"""What all figures share: colours that the colour-blind can tell apart, rows and their origin."""

from __future__ import annotations

from typing import Any, TypeAlias

from matplotlib.figure import SubFigure

Row: TypeAlias = dict[str, Any]  # of a benchmark's JSON

# Okabe and Ito, "Color Universal Design", 2008.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
DARK, GREY = "#222222", "#8A8A8A"


def distinct(rows: list[Row], key: str) -> list[Any]:
    """Return the values of ``key``, each once, in the order of the rows."""
    return list(dict.fromkeys(row[key] for row in rows))


def select(rows: list[Row], **values: object) -> list[Row]:
    """Return the rows that have these values."""
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def thread_count(number: int) -> str:
    """Return the number of threads in words."""
    return f"{number} thread" if number == 1 else f"{number} threads"


def draw_footer(figure: SubFigure, rows: list[Row]) -> None:
    """Write down which machine and which commit the rows come from."""
    sources = dict.fromkeys(
        f"{row.get('cpu_model', row.get('machine', 'unknown machine'))}, "
        f"{row.get('cores', '?')} cores · torch {row['torch']} · "
        f"fastcomm {row['commit'][:10]}{'-dirty' * row['commit'].endswith('-dirty')} · "
        f"{row.get('date', '')[:10]}"
        for row in rows
    )
    figure.text(0.01, 0.5, "\n".join(sources), fontsize=6, color=GREY, va="center")
