"""The results of bench/allreduce.py as tables for people."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

Row = dict[str, Any]

_console = Console(width=max(Console().width, 150), highlight=False)
# Sizes below this have latencies that hide the slope.
_SMALLEST_FITTED_BYTES = 10**6


def note(text: str) -> None:
    """Print a line of explanation."""
    _console.print(text, soft_wrap=True)


def print_crash(method: str, failure: str) -> None:
    """Say that a method failed, and how."""
    _console.print(Text(f"CRASH of {method}: {failure}", "bold red"), soft_wrap=True)


def rate_name(bits_per_second: int | None) -> str:
    """Return "1 Gbit/s", "100 Mbit/s" or "unshaped"."""
    if bits_per_second is None:
        return "unshaped"
    if bits_per_second >= 10**9:
        return f"{bits_per_second / 1e9:g} Gbit/s"
    return f"{bits_per_second / 1e6:g} Mbit/s"


def _number(value: float | None, form: str, scale: float = 1) -> str:
    return "" if value is None else format(value * scale, form)


def print_table(rows: list[Row]) -> None:
    """Print the rows of one number of ranks and one network."""
    if not rows:
        return
    table = Table(
        title=f"{rows[0]['world_size']} ranks, {rate_name(rows[0]['rate_bits_per_second'])}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
    )
    for name in ("size", "count", "codec"):
        table.add_column(name, justify="left" if name == "codec" else "right", no_wrap=True)
    for name in (
        *("time\nms", "spread\n%", "x gloo\n", "algbw\nMB/s", "busbw\nMB/s", "wire\nMB"),
        *("ideal\nms", "of\nideal", "encode\nms", "decode\nms", "relative\nerror", "identical\n"),
    ):
        table.add_column(name, justify="right", no_wrap=True)
    ordered = sorted(rows, key=lambda row: row["size_bytes"])
    for _, same_size in groupby(ordered, key=lambda row: row["size_bytes"]):
        for index, row in enumerate(same_size):
            table.add_row(
                str(row["size_bytes"]) if index == 0 else "",
                str(row["num_elements"]) if index == 0 else "",
                row["method"],
                _number(row["seconds_median"], ".2f", 1e3),
                _number(row["spread_ratio"], ".0f", 100),
                _number(row["speedup_over_gloo"], ".2f"),
                _number(row["algbw_bytes_per_second"], ".1f", 1e-6),
                _number(row["busbw_bytes_per_second"], ".1f", 1e-6),
                _number(row["wire_bytes"], ".3f", 1e-6),
                _number(row["ideal_seconds"], ".2f", 1e3),
                _number(row["fraction_of_ideal"], ".2f"),
                _number(row["seconds_encode"], ".2f", 1e3),
                _number(row["seconds_decode"], ".2f", 1e3),
                _number(row["relative_error"], ".1e"),
                Text("yes") if row["identical"] else Text("NO", "bold red"),
            )
        table.add_section()
    _console.print(table)


def linear_fit(sizes: list[int], seconds: list[float]) -> tuple[float, float, float]:
    """Return (seconds at size 0, seconds per byte, R²) of the least-squares line."""
    slope, start = np.polyfit(sizes, seconds, 1)
    residual = np.asarray(seconds) - (start + slope * np.asarray(sizes))
    total = np.asarray(seconds) - np.mean(seconds)
    return float(start), float(slope), float(1 - (residual @ residual) / (total @ total))


def print_scaling(rows: list[Row]) -> None:
    """Print how time grows with the size, and the bandwidth with the number of ranks."""
    table = Table(
        title="\nTime over size, from 1 MB on: a straight line?",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
    )
    for name in ("ranks", "network", "codec", "start ms", "GB/s of gradients", "R²"):
        table.add_column(name, justify="left" if name in ("network", "codec") else "right")
    for world_size, rate, method in sorted(
        {(r["world_size"], r["rate_bits_per_second"] or 0, r["method"]) for r in rows}
    ):
        points = [
            (row["size_bytes"], row["seconds_median"])
            for row in rows
            if (row["world_size"], row["rate_bits_per_second"] or 0, row["method"])
            == (world_size, rate, method)
            and row["size_bytes"] >= _SMALLEST_FITTED_BYTES
        ]
        if len(points) < 3:
            continue
        start, slope, r_squared = linear_fit([p[0] for p in points], [p[1] for p in points])
        table.add_row(
            str(world_size),
            rate_name(rate or None),
            method,
            f"{start * 1e3:.1f}",
            f"{1e-9 / slope:.3f}",
            f"{r_squared:.5f}",
        )
    if table.row_count:
        _console.print(table)
    _print_busbw_over_ranks(rows)


def _print_busbw_over_ranks(rows: list[Row]) -> None:
    """Print the bus bandwidth of the largest size, for each number of ranks over the fewest."""
    largest = max((row["size_bytes"] for row in rows), default=0)
    worlds = sorted({row["world_size"] for row in rows})
    if len(worlds) < 2:
        return
    table = Table(
        title=f"\nbusbw of {largest} bytes, over that of {worlds[0]} ranks",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
    )
    for name in ("network", "codec", *(f"{world} ranks" for world in worlds)):
        table.add_column(name, justify="left" if name in ("network", "codec") else "right")
    busbw = {
        (r["rate_bits_per_second"] or 0, r["method"], r["world_size"]): r["busbw_bytes_per_second"]
        for r in rows
        if r["size_bytes"] == largest
    }
    for rate, method in dict.fromkeys((rate, method) for rate, method, _ in busbw):
        first = busbw.get((rate, method, worlds[0]))
        if first is None:
            continue
        ratios = [busbw.get((rate, method, world)) for world in worlds]
        table.add_row(
            rate_name(rate or None),
            method,
            *("" if r is None else f"{r / first:.2f}" for r in ratios),
        )
    _console.print(table)
