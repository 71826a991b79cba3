"""The figure of the codecs: how close they come to the speed of memory."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.ticker import FixedLocator, NullLocator

from plot_style import BLUE, DARK, GREEN, ORANGE, PURPLE, Row, distinct, select, thread_count

OPERATIONS = {"encode": (BLUE, "o"), "hop": (ORANGE, "s"), "decode": (GREEN, "^")}
_BAR_WIDTH = 0.27
_ISA_HEIGHT, _ROOFLINE_HEIGHT = 1.7, 2.8  # inches


def codecs_height(rows: list[Row]) -> float:
    """Return the height of the figure in inches."""
    return _ISA_HEIGHT * len(distinct(rows, "isa")) + _ROOFLINE_HEIGHT


def draw_codecs(figure: SubFigure, rows: list[Row]) -> None:
    """Draw bars for each instruction set (rows) and number of threads (columns), then rooflines."""
    isas, threads = distinct(rows, "isa"), sorted(distinct(rows, "threads"))
    axes = figure.subplots(
        len(isas) + 1,
        len(threads),
        squeeze=False,
        sharey="row",
        height_ratios=[_ISA_HEIGHT] * len(isas) + [_ROOFLINE_HEIGHT],
    )
    dtype, num_elements = rows[0]["dtype"], rows[0]["num_elements"]
    figure.suptitle(
        f"Memory traffic of the codecs, {num_elements / 1e6:g} M elements of {dtype}", fontsize=10
    )
    highest = max(1.0, *(row["ratio_to_add"] for row in rows), *map(_copy_to_add, rows))
    for column, number in enumerate(threads):
        for line, isa in enumerate(isas):
            panel = axes[line, column]
            _draw_bars(panel, select(rows, isa=isa, threads=number))
            panel.set_ylim(0, 1.08 * highest)
            panel.set_title(f"{isa}, {thread_count(number)}", loc="left")
            panel.tick_params("x", labelbottom=line == len(isas) - 1)
        _draw_roofline(axes[-1, column], select(rows, isa=isas[-1], threads=number))
        axes[-1, column].set_title(f"{isas[-1]}, {thread_count(number)}", loc="left")
    for panel in axes[:-1, 0]:
        panel.set_ylabel("byte rate / (b += a)")
    axes[-1, 0].set_ylabel("memory traffic, GB/s")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def _copy_to_add(row: Row) -> float:
    """Return the byte rate of the streaming copy, in those of b += a."""
    return float(row["stream_copy_bytes_per_second"] / row["add_bytes_per_second"])


def _draw_bars(panel: Axes, rows: list[Row]) -> None:
    """Draw the fraction of the byte rate of b += a; whiskers: the interquartile range."""
    codecs = distinct(rows, "codec")
    for index, (operation, (color, _)) in enumerate(OPERATIONS.items()):
        chosen = select(rows, operation=operation)
        ratios = np.array([row["ratio_to_add"] for row in chosen])
        panel.bar(
            np.arange(len(chosen)) + (index - 1) * _BAR_WIDTH,
            ratios,
            _BAR_WIDTH,
            yerr=ratios * [row["spread_ratio"] / 2 for row in chosen],
            color=color,
            ecolor=DARK,
            error_kw={"elinewidth": 0.6},
            label=operation,
        )
    panel.axhline(1, color=DARK, linewidth=1, label="b += a")
    copy = float(np.median([_copy_to_add(row) for row in rows]))
    panel.axhline(copy, color=PURPLE, linewidth=1.2, linestyle="--", label="streaming copy")
    panel.set_xticks(range(len(codecs)), codecs, rotation=35, ha="right", rotation_mode="anchor")
    panel.set_xlim(-0.6, len(codecs) - 0.4)


def _draw_roofline(panel: Axes, rows: list[Row]) -> None:
    """Draw byte rates against the size of a payload; hollow: a codec without its rotation."""
    for operation, (color, marker) in OPERATIONS.items():
        for row in select(rows, operation=operation):
            is_hollow = "(unrotated)" in row["codec"]
            panel.plot(
                row["wire_bits_per_element"],
                row["bytes_per_second"] / 1e9,
                marker=marker,
                markersize=5,
                color=color,
                markerfacecolor="white" if is_hollow else color,
                linestyle="none",
            )
    for key, color, style in (("add", DARK, "-"), ("stream_copy", PURPLE, "--")):
        rate = float(np.median([row[f"{key}_bytes_per_second"] for row in rows]))
        panel.axhline(rate / 1e9, color=color, linewidth=1.2, linestyle=style)
    names: dict[float, list[str]] = {}
    for row in select(rows, operation="encode"):
        if "(unrotated)" not in row["codec"]:
            names.setdefault(round(row["wire_bits_per_element"], 2), []).append(row["codec"])
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_locator(FixedLocator(list(names)))
    panel.xaxis.set_minor_locator(NullLocator())
    labels = [f"{bits:g}: {', '.join(codecs)}" for bits, codecs in names.items()]
    panel.set_xticklabels(labels, rotation=35, ha="right", rotation_mode="anchor")
    panel.set_ylim(bottom=0)
    panel.set_xlabel("bits per element on the wire (logarithmic)")
