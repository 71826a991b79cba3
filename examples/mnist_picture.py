"""Shows a comparison of methods: the table, and the picture of learning over time and traffic.

python examples/mnist_picture.py demo.json --output demo.png     # of a run with --json
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import LogLocator, NullFormatter
from rich import box
from rich.console import Console
from rich.table import Table

from mnist_report import Row

Floats = npt.NDArray[np.float64]

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
# Heading, key in the results, factor to the heading's unit, format.
_COLUMNS = (
    ("seconds\nto\n99 %", "seconds_to_target", 1.0, "{:.1f}"),
    ("kB a step\nsent by\na rank", "wire_bytes_per_step", 1e-3, "{:,.0f}"),
    ("ms\na step", "step_time_median_ms", 1.0, "{:.0f}"),
)
_COUNTED_BY = {
    "interface": "counted by the network interface",
    "fastcomm": "counted by fastcomm",
    "computed": "computed",
}
_TICKS_PERCENT = (50, 70, 80, 90, 95, 97, 98, 99, 99.5, 99.8, 100)
_SPARE_STYLES = (("#56B4E9", "X"), ("#999999", "*"), ("#F0E442", "h"), ("#7F4F24", "<"))


def print_table(console: Console, runs: list[Row], failed: dict[str, str]) -> None:
    """Print one line per method; of several seeds the mean and the range."""
    title = _headline(runs) if runs else None
    table = Table(title=title, title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", no_wrap=True)
    table.add_column("% best\ntest\naccuracy", justify="right", no_wrap=True)
    for heading, _, _, _ in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("ratio", justify="right", no_wrap=True)
    by_method = _by_method(runs)
    baseline = by_method.get(BASELINE, [])
    for method, its_runs in by_method.items():
        cells = [_spread(_values(its_runs, "best_test_accuracy_percent"), "{:.2f}", len(its_runs))]
        for _, key, scale, form in _COLUMNS:
            values = _values(its_runs, key)
            cells.append(_spread([scale * value for value in values], form, len(its_runs)))
            cells.append(_ratio(values, _values(baseline, key)))
        table.add_row(method, *cells)
    for method in failed:
        table.add_row(method, "failed", style="red")
    console.print(table)
    for method, reason in failed.items():
        console.print(f"{method} failed: {reason}", style="red", markup=False, highlight=False)


def draw_picture(runs: list[Row], rows: list[Row], output: Path) -> None:
    """Draw accuracy and loss over seconds and over bytes, a line per method."""
    figure = Figure(figsize=(11, 7.4), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    spare = iter(_SPARE_STYLES * len(runs))
    for method, its_runs in _by_method(runs).items():
        color, marker = _STYLES.get(method) or next(spare)
        its_rows = [row for row in rows if row["codec"] == method]
        seconds, _, _ = _over_seeds(its_rows, "seconds_training")
        sent_bytes, _, _ = _over_seeds(its_rows, "wire_bytes")
        for panels, key in zip(axes, ("test_accuracy_percent", "loss"), strict=True):
            mean, low, high = _over_seeds(its_rows, key)
            for panel, x in zip(panels, (seconds, sent_bytes / 1e6), strict=True):
                (line,) = panel.plot(x, mean, color=color, marker=marker, markersize=5)
                line.set_markevery(max(1, len(x) // 10))
                line.set_label(_legend(method, its_runs))
                panel.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    _set_axes(axes, rows)
    handles, labels = axes[0][0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    # As the legend's title, because a suptitle would be drawn over the legend.
    legend.set_title(_headline(runs), prop=FontProperties(weight="bold", size=14))
    figure.align_ylabels()
    figure.supxlabel(_footnote(runs), fontsize=8.5, color="#444444")
    figure.savefig(output, dpi=150)


def _legend(method: str, runs: list[Row]) -> str:
    step_ms = statistics.fmean(_values(runs, "step_time_median_ms"))
    kilobytes = statistics.fmean(_values(runs, "wire_bytes_per_step")) / 1e3
    return f"{LABELS.get(method, method)}: {step_ms:.0f} ms and {kilobytes:,.0f} kB a step"


def _set_axes(axes: Any, rows: list[Row]) -> None:
    accuracy, loss = axes[0][0], axes[1][0]
    # The distance to 100 % on a logarithmic axis gives the last percents room.
    accuracy.set_yscale("function", functions=(_from_percent, _to_percent))
    accuracies = [row["test_accuracy_percent"] for row in rows]
    lowest = max((tick for tick in _TICKS_PERCENT if tick <= min(accuracies)), default=50)
    highest = min(tick for tick in _TICKS_PERCENT if tick >= max(accuracies))
    ticks = [tick for tick in _TICKS_PERCENT if lowest <= tick <= highest]
    accuracy.set_yticks(ticks, [f"{tick:g} %" for tick in ticks])
    accuracy.set_ylim(lowest, 100 - 0.9 * (100 - highest))
    accuracy.set_ylabel("test accuracy")
    loss.set_yscale("log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_major_formatter("{x:g}")
    loss.yaxis.set_minor_formatter(NullFormatter())
    loss.set_ylabel("training loss (cross-entropy)")
    axes[1][0].set_xlim(left=0)
    axes[1][0].set_xlabel("training time, seconds")
    axes[1][1].set_xlabel("sent per rank, MB")
    axes[1][1].set_xscale("log")
    axes[1][1].xaxis.set_major_formatter("{x:g}")
    for panel in axes.flat:
        panel.grid(True, color="#dddddd", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)


def _from_percent(percent: Floats) -> Floats:
    return -np.log(np.maximum(100 - percent, 1e-3))


def _to_percent(position: Floats) -> Floats:
    return 100 - np.exp(-position)


def _over_seeds(rows: list[Row], key: str) -> tuple[Floats, Floats, Floats]:
    """Mean, lowest and highest value over the seeds, for each step with an evaluation."""
    by_step: dict[int, list[float]] = {}
    for row in rows:
        by_step.setdefault(row["step"], []).append(row[key])
    values = np.array([by_step[step] for step in sorted(by_step)])
    return values.mean(axis=1), values.min(axis=1), values.max(axis=1)


def _by_method(runs: list[Row]) -> dict[str, list[Row]]:
    methods: dict[str, list[Row]] = {}
    for run in runs:
        methods.setdefault(run["codec"], []).append(run)
    return methods


def _values(runs: list[Row], key: str) -> list[float]:
    return [run[key] for run in runs if run[key] is not None]


def _spread(values: list[float], form: str, num_runs: int) -> str:
    if not values:
        return "-"
    lines = [form.format(statistics.fmean(values))]
    low, high = form.format(min(values)), form.format(max(values))
    if low != high:
        lines.append(f"{low}-{high}")
    if len(values) < num_runs:
        lines.append(f"{len(values)} of {num_runs}")
    return "\n".join(lines)


def _ratio(values: list[float], baseline: list[float]) -> str:
    if not values or not baseline:
        return "-"
    return f"{statistics.fmean(values) / statistics.fmean(baseline):.3f}"


def _headline(runs: list[Row]) -> str:
    run = runs[0]
    shaped = run["link_rate"] != "unshaped"
    link = f"links of {_spell_rate(run['link_rate'])}" if shaped else "an unshaped loopback"
    return f"MNIST CNN under DDP: {run['world_size']} ranks over {link}"


def _spell_rate(rate: str) -> str:
    for short, unit in (("gbit", "Gbit/s"), ("mbit", "Mbit/s"), ("kbit", "kbit/s")):
        if rate.endswith(short):
            return f"{rate.removesuffix(short)} {unit}"
    return rate


def _footnote(runs: list[Row]) -> str:
    run = runs[0]
    seeds = sorted({run["seed"] for run in runs})
    named = f"seed {seeds[0]}" if len(seeds) == 1 else f"mean and range of {len(seeds)} seeds"
    sources = {_COUNTED_BY[run["wire_bytes_counted_by"]] for run in runs}
    return (
        f"{run['machine']}; PyTorch {run['torch_version']}; {run['data_name']}, "
        f"{run['batch_size_per_rank']} samples per rank and step, {named}; "
        f"bytes {' or '.join(sorted(sources))}"
    )


def main() -> None:
    """Draw the picture of a comparison whose results were kept with --json."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("results", type=Path, help="the JSON file")
    parser.add_argument("--output", type=Path, default=Path("demo.png"))
    arguments = parser.parse_args()
    content = json.loads(arguments.results.read_text())
    print_table(Console(), content["runs"], {})
    draw_picture(content["runs"], content["rows"], arguments.output)


if __name__ == "__main__":
    main()
