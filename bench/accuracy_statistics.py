"""What follows from the runs of bench/accuracy.py: intervals, differences, learning rates."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import t as student  # type: ignore[import-untyped]

from accuracy_tasks import RECIPES, Metric

Row = dict[str, Any]

REFERENCE = "fp32"
_CONFIDENCE = 0.95
# What a comparison of codecs holds fixed.
GROUP_KEYS = (
    *("task", "optimizer", "world_size", "learning_rate"),
    *("steps", "batch_size_per_rank", "amp"),
)
SWEEP_KEYS = tuple(key for key in GROUP_KEYS if key != "learning_rate")


@dataclass(frozen=True)
class Interval:
    """A mean and the half width of its 95 % confidence interval; None for a single value."""

    mean: float
    half_width: float | None

    @property
    def has_zero(self) -> bool:
        """Whether zero lies within: of a difference, whether chance explains it."""
        return self.half_width is not None and abs(self.mean) <= self.half_width


def interval(values: Sequence[float]) -> Interval | None:
    """Return the mean with Student's interval; None without values."""
    if not values:
        return None
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Interval(mean, None)
    quantile = float(student.ppf((1 + _CONFIDENCE) / 2, len(values) - 1))
    return Interval(mean, quantile * statistics.stdev(values) / math.sqrt(len(values)))


def paired_difference(values: dict[int, float], references: dict[int, float]) -> Interval | None:
    """Return values - references of the seeds that both have.

    A seed has the same initial weights and data for both, so that most of what differs between
    seeds cancels.
    """
    return interval(
        [value - references[seed] for seed, value in values.items() if seed in references]
    )


@dataclass(frozen=True)
class Summary:
    """The runs of one codec in one group, over all seeds.

    Attributes:
        diverged: how many of the runs did; figures of quality are those of the others.
        reached: how many runs reached the target.
        wire_bytes_to_target: mean over the runs, if all reached it.
    """

    codec: str
    runs: int
    diverged: int
    final: Interval | None
    best: Interval | None
    difference: Interval | None
    wire_bytes_per_step: float
    wire_bytes_per_step_after_warmup: float
    ratio_after_warmup: float | None
    reached: int
    wire_bytes_to_target: float | None


def groups(rows: Sequence[Row], keys: Sequence[str] = GROUP_KEYS) -> list[list[Row]]:
    """Return the rows that are to be compared with each other, in the order of the rows."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(found.values())


def metric_of(rows: Sequence[Row]) -> Metric:
    """Return what the rows of one task are judged by."""
    return RECIPES[rows[0]["task"]].metric


def fp32_target(runs: Sequence[Row]) -> float | None:
    """Return what a run has to reach: fp32's mean, less a margin; None without fp32."""
    metric = metric_of(runs)
    finals = _finals([row for row in runs if row["codec"] == REFERENCE], metric)
    if not finals:
        return None
    return metric.worse_by(statistics.fmean(finals.values()), metric.target_margin)


def bytes_to_target(curve: Sequence[Row], target: float) -> int | None:
    """Return what a rank has sent at the first evaluation that is as good as the target."""
    metric = metric_of(curve)
    for row in sorted(curve, key=lambda row: int(row["step"])):
        if row[metric.name] is not None and metric.is_as_good(row[metric.name], target):
            return int(row["wire_bytes"])
    return None


def summarize(runs: Sequence[Row], curves: Sequence[Row]) -> list[Summary]:
    """Summarize each codec of a group, in the order of the rows."""
    metric, target = metric_of(runs), fp32_target(runs)
    references = _finals([row for row in runs if row["codec"] == REFERENCE], metric)
    summaries = []
    for codec in dict.fromkeys(row["codec"] for row in runs):
        own = [row for row in runs if row["codec"] == codec]
        learned = [row for row in own if not row["diverged"]]
        finals = _finals(own, metric)
        needed = []
        for row in own if target is not None else []:
            curve = [c for c in curves if (c["codec"], c["seed"]) == (codec, row["seed"])]
            reached = bytes_to_target(curve, target) if curve and target is not None else None
            needed += [] if reached is None else [reached]
        ratios = [row["ratio_after_warmup"] for row in own if row["ratio_after_warmup"]]
        summaries.append(
            Summary(
                codec=codec,
                runs=len(own),
                diverged=len(own) - len(learned),
                final=interval(list(finals.values())),
                best=interval([row[f"best_{metric.name}"] for row in learned]),
                difference=None if codec == REFERENCE else paired_difference(finals, references),
                wire_bytes_per_step=_mean(own, "wire_bytes_per_step"),
                wire_bytes_per_step_after_warmup=_mean(own, "wire_bytes_per_step_after_warmup"),
                ratio_after_warmup=statistics.fmean(ratios) if ratios else None,
                reached=len(needed),
                wire_bytes_to_target=statistics.fmean(needed) if len(needed) == len(own) else None,
            )
        )
    return summaries


@dataclass(frozen=True)
class Trained:
    """How one codec trained at one learning rate.

    Attributes:
        works: no run diverged, and the mean is nearly as good as fp32 at its best learning rate.
    """

    diverged: int
    runs: int
    final: Interval | None
    works: bool


def try_learning_rates(runs: Sequence[Row]) -> dict[str, dict[float, Trained]]:
    """Return by codec and learning rate how the runs of a sweep ended."""
    metric = metric_of(runs)
    means: dict[str, dict[float, list[Row]]] = {}
    for row in runs:
        means.setdefault(row["codec"], {}).setdefault(row["learning_rate"], []).append(row)
    choose = max if metric.is_accuracy else min
    reference = [
        statistics.fmean(_finals(own, metric).values())
        for own in means.get(REFERENCE, {}).values()
        if not any(row["diverged"] for row in own)
    ]
    least = metric.worse_by(choose(reference), metric.workable_margin) if reference else None
    found: dict[str, dict[float, Trained]] = {}
    for codec, by_rate in means.items():
        for rate, own in sorted(by_rate.items()):
            final = interval(list(_finals(own, metric).values()))
            diverged = sum(row["diverged"] for row in own)
            good = final is not None and least is not None and metric.is_as_good(final.mean, least)
            found.setdefault(codec, {})[rate] = Trained(
                diverged, len(own), final, good and not diverged
            )
    return found


def largest_working(by_rate: dict[float, Trained]) -> float | None:
    """Return the largest of the learning rates that works."""
    return max((rate for rate, trained in by_rate.items() if trained.works), default=None)


def _finals(runs: Sequence[Row], metric: Metric) -> dict[int, float]:
    """Return the final metric by seed, of the runs that did not diverge."""
    return {row["seed"]: row[f"final_{metric.name}"] for row in runs if not row["diverged"]}


def _mean(rows: Sequence[Row], key: str) -> float:
    return statistics.fmean(row[key] for row in rows)
