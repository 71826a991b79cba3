"""What all figures share: colours that the colour-blind can tell apart, rows and their origin."""

from __future__ import annotations

from typing import Any, TypeAlias

from matplotlib.figure import SubFigure

Row: TypeAlias = dict[str, Any]  # of a benchmark's JSON

# Okabe and Ito, "Color Universal Design", 2008.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
DARK, GREY = "#222222", "#8A8A8A"

# How methods of synchronization look in every figure: colour and marker.
_METHOD_STYLES = {
    "none": (DARK, "o"),
    "gloo": (DARK, "o"),
    "fp16": (GREY, "v"),
    "bf16": (PURPLE, "^"),
    "int8": (BLUE, "s"),
    "int4": (ORANGE, "D"),
    "topk:0.01": (GREEN, "P"),
}
_OTHER_METHOD_STYLES = [
    ("#D55E00", "X"),  # these two also of Okabe and Ito
    ("#56B4E9", "<"),
    ("#B8860B", ">"),
    ("#6A3D9A", "h"),
    ("#7F0000", "*"),
]


def method_styles(methods: list[str]) -> dict[str, tuple[str, str]]:
    """Return the colour and the marker of each method."""
    others = [method for method in methods if method not in _METHOD_STYLES]
    styles = {
        method: _OTHER_METHOD_STYLES[index % len(_OTHER_METHOD_STYLES)]
        for index, method in enumerate(others)
    }
    return {method: (_METHOD_STYLES | styles)[method] for method in methods}


def method_label(method: str) -> str:
    """Return the name of a method in a legend."""
    names = {"none": "plain DDP", "gloo": "gloo float32", "fp16": "fp16 hook", "bf16": "bf16 hook"}
    return names.get(method, method)


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
