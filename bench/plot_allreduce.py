"""The figure of bench/allreduce.py: bus bandwidth over the size of the bucket."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from plot_style import GREY, Row, distinct, method_label, method_styles, select
from tables import rate_text

_PANEL_HEIGHT, _AROUND_HEIGHT = 2.6, 0.9  # inches
_DASHED = (0, (3, 2))


def allreduce_height(rows: list[Row]) -> float:
    """Return the height of the figure in inches."""
    return len(distinct(rows, "rate_bits_per_second")) * _PANEL_HEIGHT + _AROUND_HEIGHT


def draw_allreduce(figure: SubFigure, rows: list[Row]) -> None:
    """Draw a panel for each rate (rows) and number of ranks (columns)."""
    rates = sorted(distinct(rows, "rate_bits_per_second"), key=lambda rate: rate or float("inf"))
    worlds = sorted(distinct(rows, "world_size"))
    styles = method_styles(distinct(rows, "method"))
    figure.suptitle(
        "All-reduce of one float32 bucket: bus bandwidth in bytes of gradients", fontsize=10
    )
    axes = figure.subplots(len(rates), len(worlds), squeeze=False, sharex=True, sharey="row")
    for line, rate in enumerate(rates):
        for column, world_size in enumerate(worlds):
            panel = axes[line, column]
            chosen = select(rows, rate_bits_per_second=rate, world_size=world_size)
            _draw_methods(panel, chosen, styles)
            panel.set_title(f"{world_size} ranks, {rate_text(rate)}", loc="left")
            panel.tick_params("x", labelbottom=line == len(rates) - 1)
        axes[line, 0].set_ylabel("busbw, MB/s (logarithmic)")
    for panel in axes[-1]:
        panel.set_xlabel("size of the bucket (logarithmic)")
    handles = [
        Line2D([], [], color=color, marker=marker, markersize=4, label=method_label(method))
        for method, (color, marker) in styles.items()
    ]
    label = "ideal: the method's bytes at the link's rate"
    handles.append(Line2D([], [], color=GREY, linewidth=1, linestyle=_DASHED, label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=5)


def _draw_methods(panel: Axes, rows: list[Row], styles: dict[str, tuple[str, str]]) -> None:
    for method in distinct(rows, "method"):
        color, marker = styles[method]
        chosen = sorted(select(rows, method=method), key=lambda row: row["size_bytes"])
        sizes = np.array([row["size_bytes"] for row in chosen])
        busbw = np.array([row["busbw_bytes_per_second"] / 1e6 for row in chosen])
        panel.plot(sizes, busbw, color=color, marker=marker, markersize=3.5, linewidth=1.3)
        if all(row["fraction_of_ideal"] for row in chosen):
            ideal = busbw / [row["fraction_of_ideal"] for row in chosen]
            panel.plot(sizes, ideal, color=color, linewidth=0.9, linestyle=_DASHED, zorder=1.5)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    ticks = sorted(distinct(rows, "size_bytes"))
    panel.xaxis.set_major_locator(FixedLocator([float(size) for size in ticks]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticklabels([_size_name(size) for size in ticks])
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_locator(NullLocator())


def _size_name(size_bytes: int) -> str:
    for unit, name in ((2**30, "G"), (2**20, "M"), (2**10, "K")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:g}{name}"
    return str(size_bytes)
