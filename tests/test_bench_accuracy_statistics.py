"""What bench/accuracy.py concludes from runs: intervals, bytes to the target, learning rates."""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn", reason="scikit-learn has the digits, and brings scipy")
sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
from accuracy_statistics import (
    Interval,
    bytes_to_target,
    interval,
    largest_working,
    paired_difference,
    summarize,
    try_learning_rates,
)
from accuracy_tables import print_accuracy
from accuracy_training import Job
from plot import draw

JOB = Job("digits", "sgd", 2, "int8", 0.1, seed=3, steps=40, batch_size_per_rank=16)

Row = dict[str, Any]


def run_row(codec: str, seed: int, accuracy: float | None, **others: Any) -> Row:
    """Return the row of a run with everything but its accuracy made up."""
    row: Row = {
        "benchmark": "accuracy",
        **dataclasses.asdict(dataclasses.replace(JOB, codec=codec, seed=seed)),
        "diverged": accuracy is None,
        "divergence": "made up" if accuracy is None else None,
        "final_accuracy_percent": accuracy,
        "best_accuracy_percent": accuracy,
        "wire_bytes_per_step": 1000.0,
        "wire_bytes_per_step_after_warmup": 500.0,
        "ratio_after_warmup": 4.0,
        "steps_taken": 40,
        **{"torch": "2", "commit": "1"},
    }
    return row | others


def curve_row(codec: str, seed: int, step: int, accuracy: float) -> Row:
    job = dataclasses.asdict(dataclasses.replace(JOB, codec=codec, seed=seed))
    figures = {"step": step, "wire_bytes": 10 * step, "accuracy_percent": accuracy}
    return {"benchmark": "accuracy_curve", **job, **figures, "torch": "2", "commit": "1"}


def test_intervals_are_students() -> None:
    # Standard deviation 1, three values: 4.30265 is the 97.5 % quantile with 2 degrees of freedom.
    found = interval([1.0, 2.0, 3.0])
    assert found is not None
    assert found.half_width is not None
    assert found.mean == 2
    assert found.half_width == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
    assert interval([5.0]) == Interval(5.0, None)
    assert interval([]) is None


def test_differences_are_of_the_same_seed() -> None:
    # The seeds differ by much more than the codecs: 1, 2 and 3 worse, whatever the seed.
    found = paired_difference({0: 9.0, 1: 48.0, 2: 87.0, 9: 1.0}, {2: 90.0, 1: 50.0, 0: 10.0})
    assert found is not None
    assert found.half_width is not None
    assert found.mean == -2
    assert found.half_width == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
    assert found.has_zero
    assert not Interval(-2.0, 1.9).has_zero
    assert not Interval(-2.0, None).has_zero


def test_the_target_is_reached_at_the_first_evaluation_as_good() -> None:
    curve = [curve_row("int8", 0, step, value) for step, value in ((3, 97), (1, 90), (2, 96))]
    assert bytes_to_target(curve, 95.5) == 20
    assert bytes_to_target(curve, 97) == 30
    assert bytes_to_target(curve, 98) is None
    losses: list[Row] = [{"task": "text", "step": 1, "wire_bytes": 10, "loss_nats": None}]
    losses.append(losses[0] | {"step": 2, "wire_bytes": 20, "loss_nats": 1.4})
    assert bytes_to_target(losses, 1.5) == 20


def test_summaries() -> None:
    runs = [run_row("fp32", seed, value) for seed, value in enumerate((98.0, 98.2, 98.4))]
    runs += [run_row("int8", seed, value) for seed, value in enumerate((97.0, 97.2, None))]
    # fp32's mean less 0.2: the target is 98.
    curves = [curve_row("fp32", seed, step, 96.0 + step) for seed in range(3) for step in (1, 2)]
    curves += [curve_row("int8", 0, 1, 98.5), curve_row("int8", 1, 1, 97.2)]
    fp32, int8 = summarize(runs, curves)
    assert (fp32.codec, fp32.runs, fp32.diverged, fp32.reached) == ("fp32", 3, 0, 3)
    assert fp32.wire_bytes_to_target == 20
    assert fp32.difference is None
    assert (int8.codec, int8.runs, int8.diverged, int8.reached) == ("int8", 3, 1, 1)
    assert int8.wire_bytes_to_target is None
    assert int8.difference is not None
    assert int8.difference.mean == pytest.approx(-1)
    assert int8.final is not None
    assert int8.final.mean == pytest.approx(97.1)
    print_accuracy([*curves, *runs])
    assert len(draw([*curves, *runs]).axes) == 2


def test_the_largest_learning_rate_that_works() -> None:
    # fp32's best is 98, so that 97 is still good.
    finals: dict[str, dict[float, list[float | None]]] = {
        "fp32": {0.1: [98.0, 98.0], 0.4: [97.5, 97.5], 0.2: [97.9, 97.9], 0.8: [99.0, None]},
        "int8": {0.1: [98.0, 98.0], 0.2: [97.0, 97.2], 0.4: [96.0, 97.0], 0.8: [None, None]},
        "sign": {0.1: [90.0, 98.0], 0.2: [98.0, None]},
    }
    rows = [
        run_row(codec, seed, value, learning_rate=rate, benchmark="accuracy_learning_rate")
        for codec, by_rate in finals.items()
        for rate, values in by_rate.items()
        for seed, value in enumerate(values)
    ]
    tried = try_learning_rates(rows)
    assert {codec: largest_working(by_rate) for codec, by_rate in tried.items()} == {
        "fp32": 0.4,
        "int8": 0.2,
        "sign": None,
    }
    assert tried["sign"][0.2].diverged == 1
    print_accuracy(rows)
    assert len(draw(rows).axes) == 1
