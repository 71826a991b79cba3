"""The figures of bench/accuracy.py: the quality of a model over the bytes that it took."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from accuracy_statistics import (
    GROUP_KEYS,
    REFERENCE,
    SWEEP_KEYS,
    Interval,
    groups,
    interval,
    metric_of,
    try_learning_rates,
)
from plot_style import GREY, Row, distinct, method_styles, select

_COLUMNS, _PANEL_HEIGHT, _AROUND_HEIGHT = 3, 2.7, 0.9  # inches
_LEGEND_HEIGHT, _LEGEND_CHARACTERS = 0.17, 110  # of a line
# An error of zero has no place on a logarithmic axis: less than one of 10,000 test images.
_LEAST_ERROR_PERCENT = 0.01

Styles = dict[str, tuple[str, str]]


def _height(rows: list[Row], keys: Sequence[str]) -> float:
    lines = math.ceil(len(groups(rows, keys)) / _COLUMNS)
    codecs = distinct(rows, "codec")
    legend = math.ceil(len(codecs) / _legend_columns(codecs)) * _LEGEND_HEIGHT
    return lines * _PANEL_HEIGHT + _AROUND_HEIGHT + legend


def _legend_columns(codecs: list[str]) -> int:
    """Return how many names fit side by side: those with options are long."""
    return max(1, _LEGEND_CHARACTERS // (max(len(codec) for codec in codecs) + 7))


def curves_height(rows: list[Row]) -> float:
    """Return the height of the figure of curves, and of that of final figures, in inches."""
    return _height(rows, GROUP_KEYS)


def rates_height(rows: list[Row]) -> float:
    """Return the height of the figure of learning rates in inches."""
    return _height(rows, SWEEP_KEYS)


def draw_curves(figure: SubFigure, rows: list[Row]) -> None:
    """Draw a panel for each comparison: quality over the bytes sent so far, a line for a codec."""
    title = "While training: mean and range over the seeds, against what a rank has sent"
    _draw_panels(figure, rows, GROUP_KEYS, title, _draw_curves_of)


def draw_finals(figure: SubFigure, rows: list[Row]) -> None:
    """Draw the final figures with their confidence intervals over the bytes of a step."""
    title = "At the end: mean and 95 % confidence interval, against what a rank sends in a step"
    _draw_panels(figure, rows, GROUP_KEYS, title, _draw_finals_of)


def draw_rates(figure: SubFigure, rows: list[Row]) -> None:
    """Draw the final figures over the learning rate, up to where training diverges."""
    title = "At each learning rate: mean of the seeds; left out where any of them diverged"
    _draw_panels(figure, rows, SWEEP_KEYS, title, _draw_rates_of)


def _draw_panels(
    figure: SubFigure,
    rows: list[Row],
    keys: Sequence[str],
    title: str,
    draw_panel: Callable[[Axes, list[Row], Styles], None],
) -> None:
    found = groups(rows, keys)
    styles = _styles(distinct(rows, "codec"))
    lines, columns = math.ceil(len(found) / _COLUMNS), min(_COLUMNS, len(found))
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    figure.suptitle(title, fontsize=10)
    varying = [key for key in keys if len(distinct(rows, key)) > 1]
    for panel, group in zip(axes, found, strict=False):
        draw_panel(panel, group, styles)
        panel.set_title(_panel_title(group[0], varying), loc="left")
        _label_quality(panel, group)
    for panel in axes[len(found) :]:
        panel.set_axis_off()
    handles = [
        Line2D([], [], color=color, marker=marker, markersize=4, label=codec)
        for codec, (color, marker) in styles.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=_legend_columns(list(styles)))


def _styles(codecs: list[str]) -> Styles:
    """Return colours and markers: fp32 looks like plain DDP in the other figures."""
    looks = method_styles(["none" if codec == REFERENCE else codec for codec in codecs])
    return {codec: looks["none" if codec == REFERENCE else codec] for codec in codecs}


def _draw_curves_of(panel: Axes, rows: list[Row], styles: Styles) -> None:
    for codec in distinct(rows, "codec"):
        own = select(rows, codec=codec)
        x, middle, low, high = [], [], [], []
        seeds = len(distinct(own, "seed"))
        for step in sorted(distinct(own, "step")):
            values = _qualities(select(own, step=step))
            if len(values) < seeds:
                break  # a run diverged: from here on the mean would be of others
            x.append(float(np.mean([row["wire_bytes"] for row in select(own, step=step)])) / 1e6)
            middle.append(float(np.mean(values)))
            low.append(min(values))
            high.append(max(values))
        color, marker = styles[codec]
        panel.plot(x, middle, color=color, marker=marker, markersize=2.5, linewidth=1.2)
        panel.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    panel.set_xscale("log")
    panel.set_xlabel("MB sent by a rank (logarithmic)")


def _draw_finals_of(panel: Axes, rows: list[Row], styles: Styles) -> None:
    for codec in distinct(rows, "codec"):
        own = select(rows, codec=codec)
        found = interval(_final_qualities(own))
        x = float(np.mean([row["wire_bytes_per_step"] for row in own])) / 1e3
        color, marker = styles[codec]
        diverged = sum(row["diverged"] for row in own)
        if found is not None:
            panel.errorbar(
                *(x, found.mean, _whiskers(found)),
                color=color,
                marker=marker,
                markersize=5,
                elinewidth=0.8,
            )
        if diverged:
            panel.annotate(
                f"{diverged} of {len(own)} diverged",
                *((x, 1 if found is None else found.mean),),
                xycoords="data" if found is not None else ("data", "axes fraction"),
                color=color,
                fontsize=6,
            )
    panel.set_xscale("log")
    _label_ticks(panel)
    panel.set_xlabel("kB per step and rank (logarithmic)")


def _whiskers(found: Interval) -> list[list[float]] | None:
    """Return the half widths, which on a logarithmic axis must not reach zero."""
    if found.half_width is None:
        return None
    return [[min(found.half_width, 0.9 * found.mean)], [found.half_width]]


def _draw_rates_of(panel: Axes, rows: list[Row], styles: Styles) -> None:
    for codec, by_rate in try_learning_rates(rows).items():
        stable = [rate for rate, trained in by_rate.items() if not trained.diverged]
        own = select(rows, codec=codec)
        means = [np.mean(_final_qualities(select(own, learning_rate=rate))) for rate in stable]
        color, marker = styles[codec]
        panel.plot(stable, means, color=color, marker=marker, markersize=3.5, linewidth=1.2)
    rates = distinct(rows, "learning_rate")
    panel.set_xlim(min(rates) / 1.2, max(rates) * 1.2)
    panel.set_xscale("log")
    _label_ticks(panel)
    panel.set_xlabel("peak learning rate (logarithmic)")


def _label_ticks(panel: Axes) -> None:
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter(NullFormatter())


def _qualities(rows: list[Row]) -> list[float]:
    """Return what the axis shows of rows: the error instead of the accuracy, or the loss.

    Near 99 % a logarithmic axis of the error shows what one of the accuracy hides.
    """
    metric = metric_of(rows)
    values = [row[metric.name] for row in rows if row[metric.name] is not None]
    if metric.is_accuracy:
        return [max(100 - value, _LEAST_ERROR_PERCENT) for value in values]
    return [float(value) for value in values]


def _final_qualities(runs: list[Row]) -> list[float]:
    metric = metric_of(runs)
    finals = [{**row, metric.name: row[f"final_{metric.name}"]} for row in runs]
    return _qualities([row for row in finals if not row["diverged"]]) if finals else []


def _label_quality(panel: Axes, rows: list[Row]) -> None:
    panel.set_yscale("log")
    panel.set_ylabel("test error, %" if metric_of(rows).is_accuracy else "held-out loss, nats")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.grid(visible=True, axis="x", color="#F0F0F0")
    panel.tick_params(colors=GREY, labelcolor="black")


def _panel_title(row: Row, varying: list[str]) -> str:
    title = f"{row['task']}, {row['optimizer']}, {row['world_size']} ranks"
    names = {
        "learning_rate": "learning rate {:g}",
        "steps": "{} steps",
        "batch_size_per_rank": "{} samples each",
        "amp": "bf16 autocast: {}",
    }
    extra = [form.format(row[key]) for key, form in names.items() if key in varying]
    return "\n".join([title, ", ".join(extra)] if extra else [title])
