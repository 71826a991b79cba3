"""The figure of bench/ddp.py: the time of a training step over the rate of the link."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from plot_style import GREY, Row, distinct, method_label, method_styles, select

_PANEL_HEIGHT, _AROUND_HEIGHT = 3.1, 0.9  # inches
_DASHED, _DOTTED = (0, (3, 2)), (0, (1, 1.5))
# Where the unshaped point stands: so many times the highest rate.
_UNSHAPED_STEP = 4


def ddp_height(rows: list[Row]) -> float:
    """Return the height of the figure in inches."""
    lines, _ = _grid(len(distinct(rows, "model")))
    return lines * _PANEL_HEIGHT + _AROUND_HEIGHT


def _grid(num_models: int) -> tuple[int, int]:
    """Return the number of lines and columns of panels."""
    columns = 2 if num_models in (2, 4) else min(3, num_models)
    return math.ceil(num_models / columns), columns


def draw_ddp(figure: SubFigure, rows: list[Row]) -> None:
    """Draw a panel for each model: a line for each method, and what bounds it."""
    rows = [row for row in rows if row["failure"] is None]
    if not rows:
        figure.suptitle("Training steps under DDP: every method failed", fontsize=10)
        return
    models, methods = distinct(rows, "model"), distinct(rows, "method")
    styles = method_styles(methods)
    lines, columns = _grid(len(models))
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    figure.suptitle(
        f"A training step under DDP, {rows[0]['world_size']} ranks, against the rate of the link",
        fontsize=10,
    )
    for panel, model in zip(axes, models, strict=False):
        _draw_model(panel, select(rows, model=model), styles)
    for panel in axes[len(models) :]:
        panel.set_axis_off()
    for panel in axes[::columns]:
        panel.set_ylabel("milliseconds per step (logarithmic)")
    handles = [
        Line2D([], [], color=color, marker=marker, markersize=4, label=method_label(method))
        for method, (color, marker) in styles.items()
    ]
    for label, style in (
        ("the method's bytes at the link's rate", _DASHED),
        ("computation alone", _DOTTED),
    ):
        handles.append(Line2D([], [], color=GREY, linewidth=1, linestyle=style, label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)


def _draw_model(panel: Axes, rows: list[Row], styles: dict[str, tuple[str, str]]) -> None:
    rates = sorted({row["rate_bits_per_second"] for row in rows} - {None})
    has_unshaped = any(row["rate_bits_per_second"] is None for row in rows)
    unshaped = rates[-1] * _UNSHAPED_STEP if rates else 1e9
    for method in distinct(rows, "method"):
        color, marker = styles[method]
        chosen = sorted(
            select(rows, method=method), key=lambda row: row["rate_bits_per_second"] or math.inf
        )
        x = np.array([row["rate_bits_per_second"] or unshaped for row in chosen])
        milliseconds = np.array([row["seconds_step_median"] * 1e3 for row in chosen])
        # Whiskers are the interquartile range; logarithmic axes have no place below zero.
        whiskers = milliseconds * [min(row["spread_ratio"] / 2, 0.9) for row in chosen]
        shaped = np.array([row["rate_bits_per_second"] is not None for row in chosen])
        for part, style in ((shaped, "-"), (~shaped, "none")):
            panel.errorbar(
                x[part],
                milliseconds[part],
                whiskers[part],
                color=color,
                marker=marker,
                markersize=4,
                linestyle=style,
                linewidth=1.3,
                elinewidth=0.6,
            )
        _draw_ideal(panel, chosen[0], rates, color)
    compute = [row["seconds_compute"] * 1e3 for row in rows if row["seconds_compute"] is not None]
    if compute:
        panel.axhline(float(np.median(compute)), color=GREY, linewidth=1, linestyle=_DOTTED)
    if rates and has_unshaped:
        panel.axvline(math.sqrt(rates[-1] * unshaped), color="#C8C8C8", linewidth=0.8)
    _label_axes(panel, rates, unshaped if has_unshaped else None)
    panel.set_title(_title(rows[0]), loc="left")


def _draw_ideal(panel: Axes, row: Row, rates: list[int], color: str) -> None:
    """Draw the wire seconds of a method, whose bytes are those of any of its rows.

    The ideal is max(wire seconds, computation), so that the line ends where computation takes over.
    """
    if len(rates) < 2 or row["wire_bytes_per_step"] is None:
        return
    x = np.geomspace(rates[0], rates[-1], 400)
    seconds = row["wire_bytes_per_step"] * 8 / x
    above = seconds >= (row["seconds_compute"] or 0.0)
    panel.plot(
        x[above], seconds[above] * 1e3, color=color, linewidth=1, linestyle=_DASHED, zorder=1.5
    )


def _label_axes(panel: Axes, rates: list[int], unshaped: float | None) -> None:
    panel.set_xscale("log")
    panel.set_yscale("log")
    ticks = [float(rate) for rate in rates]
    names = [f"{rate / 1e9:.3g}" for rate in rates]
    if unshaped is not None:
        ticks.append(unshaped)
        names.append("unshaped")
    panel.xaxis.set_major_locator(FixedLocator(ticks))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticklabels(names)
    panel.set_xlabel("Gbit/s for each rank (logarithmic)")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_locator(NullLocator())


def _title(row: Row) -> str:
    if row["backward_seconds"] is None:
        backward = "trained on the CPU"
    elif row["backward_seconds"] == 0:
        backward = "synchronization alone"
    else:
        backward = f"backward {row['backward_seconds'] * 1e3:.3g} ms"
    return f"{row['model']}\n{row['gradient_bytes'] / 1e6:.3g} MB of gradients, {backward}"
