"""The rows of bench/ddp.py, what follows from them, and their tables for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tables import console, empty_table, note, number_text, rate_text

# Communication, or computation, below this fraction of a step is too little to speak of hiding it.
_NEGLIGIBLE = 0.01


@dataclass(frozen=True)
class DdpRow:
    """One method's steps with one model at one rate; without figures if it failed.

    Attributes:
        backward_seconds: how long the backward pass of given gradients sleeps; None: it computes.
        seconds_step_median: a step of the slowest rank: the backward pass with its synchronization,
            for a model that computes also the forward pass and the optimizer.
        spread_ratio: interquartile range of the steps over their median.
        seconds_compute: the same step without synchronization (``no_sync``).
        seconds_communication: the synchronization with nothing to hide behind.
        hidden_ratio: the share of the communication that is hidden behind the computation; at most
            compute / communication can be.
        speedup_over_none: median over the repetitions of plain DDP's time / this method's.
        wire_bytes_per_step: sent by a rank; for PyTorch's methods what a ring all-reduce has to.
        ideal_wire_seconds: what these bytes take at the link's rate.
        ratio_to_bound: step / max(compute, ideal wire seconds): 1 is perfect.
        seconds_encode: spent by this rank in a step, on fastcomm's threads; likewise decode, wait.
        relative_error: norm of the last step's gradients - exact average, over that of the average;
            earlier steps had left nothing out. 1 would be no better than gradients of zero.
        identical: whether all ranks held the same bits.
        failure: how a rank ended, if one failed.
    """

    model: str
    method: str
    world_size: int
    rate_bits_per_second: int | None
    gradient_bytes: int
    backward_seconds: float | None
    failure: str | None = None
    repetitions: int | None = None
    seconds_step_median: float | None = None
    seconds_step_min: float | None = None
    spread_ratio: float | None = None
    seconds_compute: float | None = None
    seconds_communication: float | None = None
    hidden_ratio: float | None = None
    speedup_over_none: float | None = None
    wire_bytes_per_step: int | None = None
    ideal_wire_seconds: float | None = None
    ratio_to_bound: float | None = None
    seconds_encode: float | None = None
    seconds_decode: float | None = None
    seconds_wait: float | None = None
    relative_error: float | None = None
    identical: bool | None = None
    benchmark: str = "ddp"


@dataclass(frozen=True)
class MemoryRow:
    """The peak memory that one codec's hook adds to plain DDP; None where it cannot be measured.

    Attributes:
        extra_peak_bytes: peak resident memory of the largest rank over all steps, minus the same
            without a hook; the first step has one bucket for the whole model.
        extra_steady_bytes: the same for the steps after DDP has rebuilt its buckets.
    """

    model: str
    method: str
    world_size: int
    gradient_bytes: int
    plain_peak_bytes: int | None = None
    extra_peak_bytes: int | None = None
    extra_steady_bytes: int | None = None
    extra_peak_ratio: float | None = None
    extra_steady_ratio: float | None = None
    failure: str | None = None
    benchmark: str = "memory"


def is_wrong(row: DdpRow) -> bool:
    """Return whether a row's gradients cannot be right."""
    return row.identical is False or (row.relative_error or 0.0) >= 1


def hidden_ratio(step: float, compute: float, communication: float) -> float | None:
    """Return the share of communication that is hidden behind computation, from seconds.

    None if one of the two is negligible.
    """
    if min(compute, communication) < _NEGLIGIBLE * step:
        return None
    return min(1.0, max(0.0, 1 - (step - compute) / communication))


def when_it_pays(speedups: Sequence[tuple[float | None, float]]) -> str:
    """Say at which rates a method is faster than plain DDP.

    Args:
        speedups: for each measured rate in bits per second (None: unshaped, faster than all) how
            many times as fast as plain DDP the method is. Between two rates, its logarithm is
            taken to be linear in that of the rate.
    """
    points = sorted(speedups, key=lambda point: math.inf if point[0] is None else point[0])
    pays = [speedup > 1 for _, speedup in points]
    if all(pays):
        unshaped = ", unshaped too" if points[-1][0] is None else ""
        return f"pays at every measured rate{unshaped}"
    if not any(pays):
        return "does not pay at any measured rate"
    last = pays.index(False) - 1
    if last < 0 or any(pays[last + 1 :]):
        rates = [rate_text(rate) for (rate, _), paid in zip(points, pays, strict=True) if paid]
        return f"pays at {', '.join(rates)} only"
    (below, gain), (above, loss) = points[last : last + 2]
    assert below is not None
    if above is None:
        return f"pays up to {rate_text(below)}, but not unshaped"
    share = math.log(gain) / (math.log(gain) - math.log(loss))
    return f"pays below {rate_text(below * (above / below) ** share)}"


def print_steps(rows: list[DdpRow]) -> None:
    """Print the rows of one model at one rate, and below the table what failed."""
    first = rows[0]
    compute = next((row.seconds_compute for row in rows if row.seconds_compute), None)
    title = (
        f"{first.model}, {first.gradient_bytes / 1e6:.4g} MB of gradients, "
        f"{first.world_size} ranks, {rate_text(first.rate_bits_per_second)}"
        + (f"; compute alone {compute * 1e3:.1f} ms" if compute else "")
    )
    columns = (
        *(
            "step\nms",
            "min\nms",
            "spread\n%",
            "comm.\nalone ms",
            "hidden\n%",
            "times as fast\nas none",
        ),
        *("wire\nMB", "ideal\nwire ms", "step /\nbound", "relative\nerror", "\ncorrect"),
    )
    table = empty_table(title, ["\nmethod"], columns)
    for row in rows:
        if row.failure is not None:
            table.add_row(row.method, "[bold red]failed[/]")
            continue
        table.add_row(
            row.method,
            number_text(row.seconds_step_median, ".1f", 1e3),
            number_text(row.seconds_step_min, ".1f", 1e3),
            number_text(row.spread_ratio, ".0f", 100),
            number_text(row.seconds_communication, ".1f", 1e3),
            number_text(row.hidden_ratio, ".0f", 100),
            number_text(row.speedup_over_none, ".2f"),
            number_text(row.wire_bytes_per_step, ".2f", 1e-6),
            number_text(row.ideal_wire_seconds, ".1f", 1e3),
            number_text(row.ratio_to_bound, ".2f"),
            number_text(row.relative_error, ".1e"),
            "[bold red]WRONG[/]" if is_wrong(row) else "yes",
        )
    console.print(table)
    for row in rows:
        if row.failure is not None:
            console.print(f"{row.method} failed: {row.failure}", markup=False, soft_wrap=True)


def print_memory(rows: list[MemoryRow]) -> None:
    """Print the rows of one model."""
    first = rows[0]
    table = empty_table(
        f"{first.model}, {first.gradient_bytes / 1e6:.4g} MB of gradients, "
        f"{first.world_size} ranks",
        ["\nmethod"],
        (
            *("peak beyond\nplain DDP's, MB", "/ gradient\nbytes"),
            *("after the first\nsteps, MB", "/ gradient\nbytes"),
        ),
    )
    for row in rows:
        if row.failure is not None:
            table.add_row(row.method, "[bold red]failed[/]")
            continue
        table.add_row(
            row.method,
            number_text(row.extra_peak_bytes, ".1f", 1e-6),
            number_text(row.extra_peak_ratio, ".2f"),
            number_text(row.extra_steady_bytes, ".1f", 1e-6),
            number_text(row.extra_steady_ratio, ".2f"),
        )
    console.print(table)
    for row in rows:
        if row.failure is not None:
            console.print(f"{row.method} failed: {row.failure}", markup=False, soft_wrap=True)


def print_when_it_pays(rows: list[DdpRow]) -> None:
    """Print for each model and method at which rates it beats plain DDP on this machine."""
    speedups: dict[tuple[str, str], list[tuple[float | None, float]]] = {}
    for row in rows:
        if row.speedup_over_none is not None and row.method != "none":
            point = (row.rate_bits_per_second, row.speedup_over_none)
            speedups.setdefault((row.model, row.method), []).append(point)
    if speedups:
        note("\n[bold]Against plain DDP, on this machine[/]")
    for (model, method), points in speedups.items():
        note(f"{model}, {method}: {when_it_pays(points)}")
