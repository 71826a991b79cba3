"""The tables of bench/accuracy.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accuracy_statistics import (
    REFERENCE,
    SWEEP_KEYS,
    Interval,
    Summary,
    Trained,
    fp32_target,
    groups,
    largest_working,
    metric_of,
    summarize,
    try_learning_rates,
)
from accuracy_tasks import Metric
from plot_style import select
from tables import console, empty_table, note, number_text

Row = dict[str, Any]


def print_accuracy(rows: Sequence[Row]) -> None:
    """Print a table for each comparison in the rows, and the learning rates of sweeps."""
    runs = select(list(rows), benchmark="accuracy")
    curves = select(list(rows), benchmark="accuracy_curve")
    for group in groups(runs):
        _print_group(group, _curves_of(group, curves))
    _print_divergences(runs)
    sweep = [row for row in rows if row["benchmark"] == "accuracy_learning_rate"]
    for group in groups(sweep, SWEEP_KEYS):
        settings = {key: group[0][key] for key in SWEEP_KEYS}
        print_learning_rates([*group, *_not_yet_in(group, select(runs, **settings))])


def _curves_of(group: Sequence[Row], curves: list[Row]) -> list[Row]:
    return select(curves, **{key: group[0][key] for key in (*SWEEP_KEYS, "learning_rate")})


def _not_yet_in(group: Sequence[Row], runs: Sequence[Row]) -> list[Row]:
    """Return the runs that a sweep found already there."""
    keys = ("codec", "learning_rate", "seed")
    there = {tuple(row[key] for key in keys) for row in group}
    return [row for row in runs if tuple(row[key] for key in keys) not in there]


def describe_group(row: Row, with_learning_rate: bool = True) -> str:
    """Say what the runs of a group have in common."""
    return (
        f"{row['task']}, {row['optimizer']}, {row['world_size']} ranks x "
        f"{row['batch_size_per_rank']} samples, {row['steps']} steps"
        + (f", learning rate {row['learning_rate']:g}" if with_learning_rate else "")
        + (", bf16 autocast" if row["amp"] else "")
    )


def seeds_text(runs: Sequence[Row]) -> str:
    """Return the number of seeds in words."""
    seeds = len({row["seed"] for row in runs})
    return "1 seed" if seeds == 1 else f"{seeds} seeds"


def _print_group(runs: Sequence[Row], curves: Sequence[Row]) -> None:
    metric, target = metric_of(runs), fp32_target(runs)
    title = f"{describe_group(runs[0])}, {seeds_text(runs)}: {metric.label}"
    target_text = "target" if target is None else f"{target:.{_digits(metric)}f}"
    columns = (
        *("final\n± 95 %", "best\n± 95 %", "final - fp32's\n± 95 %", "kB per\nstep"),
        *("after warm-up\nkB", "\nratio", f"MB to\n{target_text}", "runs\ndiverged"),
    )
    table = empty_table(title, ["\ncodec"], columns)
    for summary in summarize(runs, curves):
        table.add_row(*_cells(summary, metric))
    console.print(table)


def _cells(summary: Summary, metric: Metric) -> list[str]:
    reached = f"{summary.reached} of {summary.runs}" if summary.reached else "not reached"
    return [
        summary.codec,
        _interval_text(summary.final, metric),
        _interval_text(summary.best, metric),
        _difference_text(summary.difference, metric),
        number_text(summary.wire_bytes_per_step, ".1f", 1e-3),
        number_text(summary.wire_bytes_per_step_after_warmup, ".1f", 1e-3),
        number_text(summary.ratio_after_warmup, ".2f"),
        number_text(summary.wire_bytes_to_target, ".4g", 1e-6) or reached,
        _diverged_text(summary.diverged, summary.runs),
    ]


def _digits(metric: Metric) -> int:
    return 2 if metric.is_accuracy else 4


def _interval_text(value: Interval | None, metric: Metric, sign: str = "") -> str:
    if value is None:
        return "-"
    form = f".{_digits(metric)}f"
    mean = format(value.mean, sign + form)
    return mean if value.half_width is None else f"{mean} ± {format(value.half_width, form)}"


def _difference_text(value: Interval | None, metric: Metric) -> str:
    """Return the difference; red where it is for the worse, and chance does not explain it."""
    text = "" if value is None else _interval_text(value, metric, "+")
    if value is None or value.half_width is None or value.has_zero:
        return text
    is_worse = (value.mean < 0) == metric.is_accuracy
    return f"[red]{text}[/]" if is_worse else text


def _diverged_text(diverged: int, runs: int) -> str:
    return f"[bold red]{diverged} of {runs}[/]" if diverged else f"0 of {runs}"


def _print_divergences(runs: Sequence[Row]) -> None:
    for row in runs:
        if row["diverged"]:
            console.print(
                f"{row['codec']} ({describe_group(row)}), seed {row['seed']}, diverged after "
                f"{row['steps_taken']} steps: {row['divergence']}",
                markup=False,
                soft_wrap=True,
            )


def print_learning_rates(runs: Sequence[Row]) -> None:
    """Print how each codec trained at each learning rate, and the largest that works."""
    metric = metric_of(runs)
    tried = try_learning_rates(runs)
    rates = sorted({row["learning_rate"] for row in runs})
    largest = largest_working(tried.get(REFERENCE, {}))
    title = (
        f"{describe_group(runs[0], with_learning_rate=False)}, {seeds_text(runs)}: "
        f"{metric.label}, at each learning rate"
    )
    numbers = [
        "largest\nthat works",
        "diverged at\nhalf fp32's",
        *(f"\n{rate:g}" for rate in rates),
    ]
    table = empty_table(title, ["\ncodec"], numbers)
    for codec, by_rate in tried.items():
        own = largest_working(by_rate)
        half = by_rate.get(largest / 2) if largest is not None else None
        table.add_row(
            codec,
            "[bold red]none[/]" if own is None else f"{own:g}",
            "not tried" if half is None else _diverged_text(half.diverged, half.runs),
            *(_trained_text(by_rate.get(rate), metric) for rate in rates),
        )
    console.print(table)
    note(
        "A learning rate works if no run diverged and the mean is within "
        f"{metric.workable_margin:g} of fp32's best; others are red."
    )


def _trained_text(trained: Trained | None, metric: Metric) -> str:
    if trained is None:
        return ""
    text = "-" if trained.final is None else f"{trained.final.mean:.{_digits(metric)}f}"
    if trained.diverged:
        text = f"{trained.diverged} of {trained.runs} div."
    return text if trained.works else f"[red]{text}[/]"
