"""The figures of fastcomm against other ways to write top-k and int8."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import SubFigure
from matplotlib.ticker import LogLocator, NullLocator

from plot_style import BLUE, GREEN, ORANGE, Row, distinct, select, thread_count

TOPK_HEIGHT = INT8_HEIGHT = 2.4  # inches
_BAR_WIDTH = 0.27
_SELECTIONS = {
    "seconds_median": ("fastcomm, with error feedback", BLUE),
    "seconds_numpy_argpartition": ("numpy.argpartition", GREEN),
    "seconds_torch_topk": ("torch.topk", ORANGE),
}


def draw_topk(figure: SubFigure, rows: list[Row]) -> None:
    """Draw the times of selections, with one panel for each density and number of threads."""
    cases = [(c, t) for t in sorted(distinct(rows, "threads")) for c in distinct(rows, "codec")]
    axes = figure.subplots(1, len(cases), squeeze=False, sharey=True)
    figure.suptitle(
        f"The k largest of {rows[0]['num_elements'] / 1e6:g} M elements, {rows[0]['isa']}",
        fontsize=10,
    )
    for panel, (codec, threads) in zip(axes[0], cases, strict=True):
        chosen = select(rows, codec=codec, threads=threads)
        for index, (key, (label, color)) in enumerate(_SELECTIONS.items()):
            panel.bar(
                np.arange(len(chosen)) + (index - 1) * _BAR_WIDTH,
                [row[key] * 1e3 for row in chosen],
                _BAR_WIDTH,
                color=color,
                label=label,
            )
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_locator(NullLocator())
        panel.set_title(f"{codec}, {thread_count(threads)}", loc="left")
        names = [row["gradient"] for row in chosen]
        panel.set_xticks(range(len(names)), names, rotation=25, ha="right", rotation_mode="anchor")
    axes[0, 0].set_ylabel("milliseconds (logarithmic)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def draw_int8(figure: SubFigure, rows: list[Row]) -> None:
    """Draw the times of int8 encode with error feedback."""
    threads = sorted(distinct(rows, "threads"))
    axes = figure.subplots(1, len(threads), squeeze=False, sharey=True)
    figure.suptitle(
        f"int8 encode with error feedback, {rows[0]['num_elements'] / 1e6:.4g} M elements",
        fontsize=10,
    )
    for panel, number in zip(axes[0], threads, strict=True):
        chosen = select(rows, threads=number)
        names = [f"{row['method']} {row['isa']}".strip() for row in chosen]
        bars = panel.bar(
            names,
            [row["seconds_median"] * 1e3 for row in chosen],
            color=[BLUE if row["method"] == "fastcomm" else ORANGE for row in chosen],
        )
        panel.bar_label(bars, fmt="%.1f")
        panel.set_title(thread_count(number), loc="left")
    axes[0, 0].set_ylabel("milliseconds")
