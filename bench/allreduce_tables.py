"""The results of bench/allreduce.py as tables for people."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
from rich.text import Text

from tables import console, empty_table, number_text, rate_text

Row = dict[str, Any]

# Sizes below this have latencies that hide the slope.
_SMALLEST_FITTED_BYTES = 10**6


def print_crash(method: str, failure: str) -> None:
    """Say that a method failed, and how."""
    console.print(Text(f"CRASH of {method}: {failure}", "bold red"), soft_wrap=True)


def print_table(rows: list[Row]) -> None:
    """Print the rows of one number of ranks and one network."""
    if not rows:
        return
    table = empty_table(
        f"{rows[0]['world_size']} ranks, {rate_text(rows[0]['rate_bits_per_second'])}",
        ["size", "count", "codec"],
        [
            *("time\nms", "spread\n%", "x gloo\n", "algbw\nMB/s", "busbw\nMB/s", "wire\nMB"),
            *("ideal\nms", "of\nideal", "encode\nms", "decode\nms"),
            *("relative\nerror", "identical\n"),
        ],
    )
    ordered = sorted(rows, key=lambda row: row["size_bytes"])
    for _, same_size in groupby(ordered, key=lambda row: row["size_bytes"]):
        for index, row in enumerate(same_size):
            table.add_row(
                str(row["size_bytes"]) if index == 0 else "",
                str(row["num_elements"]) if index == 0 else "",
                row["method"],
                number_text(row["seconds_median"], ".2f", 1e3),
                number_text(row["spread_ratio"], ".0f", 100),
                number_text(row["speedup_over_gloo"], ".2f"),
                number_text(row["algbw_bytes_per_second"], ".1f", 1e-6),
                number_text(row["busbw_bytes_per_second"], ".1f", 1e-6),
                number_text(row["wire_bytes"], ".3f", 1e-6),
                number_text(row["ideal_seconds"], ".2f", 1e3),
                number_text(row["fraction_of_ideal"], ".2f"),
                number_text(row["seconds_encode"], ".2f", 1e3),
                number_text(row["seconds_decode"], ".2f", 1e3),
                number_text(row["relative_error"], ".1e"),
                Text("yes") if row["identical"] else Text("NO", "bold red"),
            )
        table.add_section()
    console.print(table)


def linear_fit(sizes: list[int], seconds: list[float]) -> tuple[float, float, float]:
    """Return (seconds at size 0, seconds per byte, R²) of the least-squares line."""
    slope, start = np.polyfit(sizes, seconds, 1)
    residual = np.asarray(seconds) - (start + slope * np.asarray(sizes))
    total = np.asarray(seconds) - np.mean(seconds)
    return float(start), float(slope), float(1 - (residual @ residual) / (total @ total))


def print_scaling(rows: list[Row]) -> None:
    """Print how time grows with the size, and the bandwidth with the number of ranks."""
    table = empty_table(
        "Time over size, from 1 MB on: a straight line?",
        ["ranks", "network", "codec"],
        ["start ms", "GB/s of gradients", "R²"],
    )
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
            rate_text(rate or None),
            method,
            f"{start * 1e3:.1f}",
            f"{1e-9 / slope:.3f}",
            f"{r_squared:.5f}",
        )
    if table.row_count:
        console.print(table)
    _print_busbw_over_ranks(rows)


def _print_busbw_over_ranks(rows: list[Row]) -> None:
    """Print the bus bandwidth of the largest size, for each number of ranks over the fewest."""
    largest = max((row["size_bytes"] for row in rows), default=0)
    worlds = sorted({row["world_size"] for row in rows})
    if len(worlds) < 2:
        return
    table = empty_table(
        f"busbw of {largest} bytes, over that of {worlds[0]} ranks",
        ["network", "codec"],
        [f"{world} ranks" for world in worlds],
    )
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
            rate_text(rate or None),
            method,
            *("" if r is None else f"{r / first:.2f}" for r in ratios),
        )
    console.print(table)
