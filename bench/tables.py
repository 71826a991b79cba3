"""What the tables of all benchmarks share."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

# Wide enough for every table: what a narrow terminal wraps can still be read, what is cut can not.
console = Console(width=max(Console().width, 150), highlight=False)


def note(text: str) -> None:
    """Print a line of explanation."""
    console.print(text, soft_wrap=True)


def empty_table(title: str, names: Sequence[str], numbers: Sequence[str]) -> Table:
    """Return a table without rows; the columns of numbers come last."""
    table = Table(title=f"\n{title}", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name in names:
        table.add_column(name, no_wrap=True)
    for number in numbers:
        table.add_column(number, justify="right", no_wrap=True)
    return table


def number_text(value: float | None, form: str, factor: float = 1) -> str:
    """Return a number for people, nothing for None."""
    return "" if value is None else format(value * factor, form)


def rate_text(bits_per_second: float | None) -> str:
    """Return a rate for people; None: unshaped."""
    if bits_per_second is None:
        return "unshaped"
    if bits_per_second >= 1e9:
        return f"{bits_per_second / 1e9:.3g} Gbit/s"
    return f"{bits_per_second / 1e6:.3g} Mbit/s"
