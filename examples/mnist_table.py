"""The table of a comparison: a line per method, and below it, in words, what did not train."""

import statistics

from mnist_outcome import BASELINE, why_untrained
from mnist_report import Row
from mnist_requirements import demo_extra

with demo_extra():
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

# Heading, key in the results, factor to the heading's unit, format.
_COLUMNS = (
    ("seconds\nto\n{target:g} %", "seconds_to_target", 1.0, "{:.1f}"),
    ("kB a step\nsent by\na rank", "wire_bytes_per_step", 1e-3, "{:,.0f}"),
    ("ms\na step", "step_time_median_ms", 1.0, "{:.0f}"),
)
# A method that sends less than this share of its mean at the end has warmed up.
_MUCH_LESS = 0.9


def print_table(console: Console, runs: list[Row], failed: dict[str, str]) -> None:
    """Print one line per method; of several seeds the mean and the range."""
    title = headline(runs) if runs else None
    table = Table(title=title, title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", no_wrap=True)
    table.add_column("% final\ntest\naccuracy", justify="right", no_wrap=True)
    target = runs[0]["target_accuracy_percent"] if runs else 0
    for heading, _, _, _ in _COLUMNS:
        table.add_column(heading.format(target=target), justify="right", no_wrap=True)
        table.add_column("ratio", justify="right", no_wrap=True)
    methods = by_method(runs)
    baseline = methods.get(BASELINE, [])
    for method, its_runs in methods.items():
        accuracies = values(its_runs, "final_test_accuracy_percent")
        cells = [_spread(accuracies, "{:.2f}", len(its_runs))]
        for _, key, scale, form in _COLUMNS:
            figures = values(its_runs, key)
            cells.append(_spread([scale * figure for figure in figures], form, len(its_runs)))
            cells.append(_ratio(figures, values(baseline, key)))
        untrained = count_untrained(its_runs)
        if untrained:
            cells[0] += "\ndid not\ntrain"
            if len(its_runs) > 1:
                cells[0] += f":\n{untrained} of {len(its_runs)}"
        table.add_row(method, *cells, style="red" if untrained else "")
    for method in failed:
        table.add_row(method, "failed", style="red")
    faults = [f"{method} failed: {reason}" for method, reason in failed.items()]
    faults += _untrained(runs)
    remarks = [_warmup_remark(method, its_runs) for method, its_runs in methods.items()]
    lines = [Text(fault, style="red") for fault in faults]
    lines += [Text(remark, style="default") for remark in remarks if remark]
    table.caption = Text("\n").join(lines) if lines else None
    table.caption_justify = "left"
    console.print(table)


def headline(runs: list[Row]) -> str:
    """Return what was compared: data, network, ranks and link."""
    run = runs[0]
    shaped = run["link_rate"] != "unshaped"
    link = f"links of {_spell_rate(run['link_rate'])}" if shaped else "an unshaped loopback"
    return f"{run['data_name']}, a CNN under DDP: {run['world_size']} ranks over {link}"


def by_method(runs: list[Row]) -> dict[str, list[Row]]:
    """Return each method's runs, in the order of the methods."""
    methods: dict[str, list[Row]] = {}
    for run in runs:
        methods.setdefault(run["codec"], []).append(run)
    return methods


def values(runs: list[Row], key: str) -> list[float]:
    """Return the figures of those runs that have one."""
    return [run[key] for run in runs if run[key] is not None]


def count_untrained(runs: list[Row]) -> int:
    """Return how many runs did not train."""
    return sum(why_untrained(run, runs) is not None for run in runs)


def _warmup_remark(method: str, runs: list[Row]) -> str:
    """Say what a method sends at the end, if its mean is that of a warm-up to a good part."""
    mean = statistics.fmean(values(runs, "wire_bytes_per_step"))
    at_end = statistics.fmean(values(runs, "wire_bytes_per_step_at_end"))
    if at_end > _MUCH_LESS * mean:
        return ""
    return f"{method} sends more while it warms up: at the end it is {at_end / 1e3:,.0f} kB a step."


def _untrained(runs: list[Row]) -> list[str]:
    sentences = []
    for run in runs:
        reason = why_untrained(run, runs)
        if reason is not None:
            sentences.append(f"{run['codec']} (seed {run['seed']}) did not train: {reason}.")
    return sentences


def _spread(figures: list[float], form: str, num_runs: int) -> str:
    if not figures:
        return "-"
    lines = [form.format(statistics.fmean(figures))]
    low, high = form.format(min(figures)), form.format(max(figures))
    if low != high:
        lines.append(f"{low}-{high}")
    if len(figures) < num_runs:
        lines.append(f"{len(figures)} of {num_runs}")
    return "\n".join(lines)


def _ratio(figures: list[float], baseline: list[float]) -> str:
    if not figures or not baseline:
        return "-"
    return f"{statistics.fmean(figures) / statistics.fmean(baseline):.3f}"


def _spell_rate(rate: str) -> str:
    for short, unit in (("gbit", "Gbit/s"), ("mbit", "Mbit/s"), ("kbit", "kbit/s")):
        if rate.endswith(short):
            return f"{rate.removesuffix(short)} {unit}"
    return rate
