"""Shows a comparison of methods: the table, and the picture of learning over time and traffic.

    python examples/mnist_picture.py demo.json --output demo.png     # of a run with --json
"""

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
from mnist_report import Row
from rich.console import Console
from rich.table import Table

matplotlib.use("Agg")  # a file, no window
from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

BASELINE = "none"
LABELS = {
    "none": "uncompressed (plain DDP)",
    "fp16-hook": "fp16 (PyTorch's hook)",
    "bf16-hook": "bf16 (PyTorch's hook)",
    "powersgd": "PowerSGD (PyTorch's hook)",
}
# Okabe and Ito's palette, which colour-blind people can tell apart; markers tell it twice.
_STYLES = {
    "none": ("#000000", "o"),
    "fp16-hook": ("#E69F00", "s"),
    "int8": ("#0072B2", "^"),
    "int4": ("#009E73", "D"),
    "topk:0.01": ("#D55E00", "v"),
    "powersgd": ("#CC79A7", "P"),
}
_SPARE_STYLES = (("#56B4E9", "X"), ("#999999", "*"), ("#F0E442", "h"), ("#7F4F24", "<"))


def print_table(console: Console, runs: list[Row], failed: dict[str, str]) -> None:
    """Print one line per method; of several seeds the mean and the range."""
    table = Table(title=_headline(runs) if runs else None, title_style="bold")
    for heading in (
        "method",
        "best accuracy\n%",
        "time to 99 %\ns",
        "ratio",
        "sent per step\nand rank, kB",
        "ratio",
        "step time\nms",
        "ratio",
    ):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    by_method = _by_method(runs)
    baseline = by_method.get(BASELINE, [])
    for method, its_runs in by_method.items():
        cells = [_spread(_values(its_runs, "best_test_accuracy_percent"), "{:.2f}")]
        for key, scale, form in (
            ("seconds_to_target", 1, "{:.1f}"),
            ("wire_bytes_per_step", 1e-3, "{:.1f}"),
            ("step_time_median_ms", 1, "{:.0f}"),
        ):
            cells.append(_spread([scale * value for value in _values(its_runs, key)], form))
            cells.append(_ratio(_values(its_runs, key), _values(baseline, key)))
        table.add_row(LABELS.get(method, method), *cells)
    for method in failed:
        table.add_row(LABELS.get(method, method), "failed", style="red")
    console.print(table)
    if runs:
        counts = sorted({run["wire_bytes_counted_by"] for run in runs})
        console.print(f"bytes: {' / '.join(counts)}; ratios: to uncompressed", highlight=False)
    for method, reason in failed.items():
        console.print(f"{method} failed: {reason}", style="red", markup=False, highlight=False)


def draw_picture(runs: list[Row], rows: list[Row], output: Path) -> None:
    """Draw accuracy and loss over seconds and over bytes, a line per method."""
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7.4), sharex="col", sharey="row")
    spare = iter(_SPARE_STYLES * 9)
    for method in _by_method(runs):
        color, marker = _STYLES.get(method) or next(spare)
        its_rows = [row for row in rows if row["codec"] == method]
        for vertical, key in enumerate(("test_accuracy_percent", "loss")):
            for horizontal, (across, scale) in enumerate(
                (("seconds_training", 1.0), ("wire_bytes", 1e-6))
            ):
                x, _, _ = _over_seeds(its_rows, across)
                y, low, high = _over_seeds(its_rows, key)
                panel = axes[vertical][horizontal]
                label = LABELS.get(method, method)
                panel.plot(scale * x, y, color=color, marker=marker, markersize=5, label=label)
                panel.fill_between(scale * x, low, high, color=color, alpha=0.2, linewidth=0)
    _set_axes(axes, rows)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=3, frameon=False, bbox_to_anchor=(0.5, 0.925))
    figure.suptitle(_headline(runs), fontweight="bold", y=0.985)
    figure.text(0.5, 0.005, _footnote(runs), ha="center", va="bottom", fontsize=8, color="#444444")
    figure.tight_layout(rect=(0, 0.03, 1, 0.87))
    figure.savefig(output, dpi=150)
    pyplot.close(figure)
