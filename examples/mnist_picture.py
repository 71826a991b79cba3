"""The picture of a comparison: learning over time and over traffic, a line per method.

python examples/mnist_picture.py demo.json --output demo.png     # of a run with --json
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from mnist_outcome import BASELINE
from mnist_report import Row
from mnist_requirements import demo_extra
from mnist_table import by_method, count_untrained, headline, print_table, values

with demo_extra():
    import numpy as np
    import numpy.typing as npt
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.ticker import LogLocator, NullFormatter
    from rich.console import Console

Floats = npt.NDArray[np.float64]

LABELS = {
    BASELINE: "uncompressed (plain DDP)",
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
_COUNTED_BY = {
    "interface": "counted by the network interface",
    "fastcomm": "counted by fastcomm",
    "computed": "computed",
}
_TICKS_PERCENT = (50, 70, 80, 90, 95, 97, 98, 99, 99.5, 99.8, 100)
# Guessing costs 2.3 nats; much more is a run that does not train, and dwarfs the others.
_HIGHEST_LOSS = 10.0
_SPARE_STYLES = (("#56B4E9", "X"), ("#999999", "*"), ("#F0E442", "h"), ("#7F4F24", "<"))


def draw_picture(runs: list[Row], rows: list[Row], output: Path) -> None:
    """Draw accuracy and loss over seconds and over bytes, a line per method."""
    figure = Figure(figsize=(11, 7.4), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    spare = iter(_SPARE_STYLES * len(runs))
    for method, its_runs in by_method(runs).items():
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
    _set_axes(axes, rows, runs)
    handles, labels = axes[0][0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    # As the legend's title, because a suptitle would be drawn over the legend.
    legend.set_title(headline(runs), prop=FontProperties(weight="bold", size=14))
    figure.align_ylabels()
    figure.supxlabel(_footnote(runs), fontsize=8.5, color="#444444")
    figure.savefig(output, dpi=150)


def _legend(method: str, runs: list[Row]) -> str:
    step_ms = statistics.fmean(values(runs, "step_time_median_ms"))
    kilobytes = statistics.fmean(values(runs, "wire_bytes_per_step")) / 1e3
    label = f"{LABELS.get(method, method)}: {step_ms:.0f} ms and {kilobytes:,.0f} kB a step"
    untrained = count_untrained(runs)
    if not untrained:
        return label
    seeds = f" with {untrained} of {len(runs)} seeds" if len(runs) > 1 else ""
    return f"{label}; did not train{seeds}"


def _set_axes(axes: Any, rows: list[Row], runs: list[Row]) -> None:
    accuracy, loss = axes[0][0], axes[1][0]
    # The distance to 100 % on a logarithmic axis gives the last percents room.
    accuracy.set_yscale("function", functions=(_from_percent, _to_percent))
    accuracies = [row["test_accuracy_percent"] for row in rows]
    lowest = max((tick for tick in _TICKS_PERCENT if tick <= min(accuracies)), default=50)
    if min(values(runs, "final_test_accuracy_percent")) < lowest:
        lowest = 0
    highest = min(tick for tick in _TICKS_PERCENT if tick >= max(accuracies))
    ticks = sorted({lowest, *(tick for tick in _TICKS_PERCENT if lowest <= tick <= highest)})
    accuracy.set_yticks(ticks, [f"{tick:g} %" for tick in ticks])
    accuracy.set_ylim(lowest, 100 - 0.9 * (100 - highest))
    accuracy.set_ylabel("test accuracy")
    _set_loss_axis(loss, rows)
    axes[1][0].set_xlim(left=0)
    axes[1][0].set_xlabel("training time, seconds")
    axes[1][1].set_xlabel("sent per rank, MB")
    axes[1][1].set_xscale("log")
    axes[1][1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[1][1].xaxis.set_major_formatter("{x:g}")
    axes[1][1].xaxis.set_minor_formatter(NullFormatter())
    for panel in axes.flat:
        panel.grid(True, color="#dddddd", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)


def _set_loss_axis(loss: Any, rows: list[Row]) -> None:
    loss.set_ylabel("training loss (cross-entropy)")
    if all(row["loss"] is None for row in rows):
        loss.set_yticks([])  # there is nothing to take a logarithm of
        return
    loss.set_yscale("log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_major_formatter("{x:g}")
    loss.yaxis.set_minor_formatter(NullFormatter())
    lowest_loss, highest_loss = loss.get_ylim()
    if lowest_loss < _HIGHEST_LOSS < highest_loss:
        loss.set_ylim(top=_HIGHEST_LOSS)


def _from_percent(percent: Floats) -> Floats:
    return -np.log(np.maximum(100 - percent, 1e-3))


def _to_percent(position: Floats) -> Floats:
    return 100 - np.exp(-position)


def _over_seeds(rows: list[Row], key: str) -> tuple[Floats, Floats, Floats]:
    """Mean, lowest and highest value over the seeds, for each step with an evaluation.

    Of the seeds that came as far as that; a loss that is not finite is drawn as a gap.
    """
    by_step: dict[int, list[float]] = {}
    for row in rows:
        value = row[key]
        by_step.setdefault(row["step"], []).append(np.nan if value is None else value)
    of_steps = [by_step[step] for step in sorted(by_step)]
    return (
        np.array([np.mean(of_step) for of_step in of_steps]),
        np.array([np.min(of_step) for of_step in of_steps]),
        np.array([np.max(of_step) for of_step in of_steps]),
    )


def _footnote(runs: list[Row]) -> str:
    run = runs[0]
    seeds = sorted({run["seed"] for run in runs})
    named = f"seed {seeds[0]}" if len(seeds) == 1 else f"mean and range of {len(seeds)} seeds"
    sources = {_COUNTED_BY[run["wire_bytes_counted_by"]] for run in runs}
    return (
        f"{run['machine']}; PyTorch {run['torch_version']}; "
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
