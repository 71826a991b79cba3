"""The line that says that fastcomm is on: once, on rank 0, by the logger ``fastcomm``.

It comes when the second step is over: DDP has arranged its buckets then, and the bytes are those of
every step that follows, but for a warm-up.
"""

from __future__ import annotations

import logging

from fastcomm.stats import Stats, described_bytes

NUM_STEPS_BEFORE = 2

_logger = logging.getLogger("fastcomm")


def announce(codec: str, world_size: int, stats: Stats, warmup_steps_left: int) -> None:
    """Log what a step sends.

    Args:
        codec: its name.
        world_size: how many ranks there are.
        stats: after the step that is told about.
        warmup_steps_left: how many steps are still to send more than others will.
    """
    if world_size == 1:
        _logger.info("fastcomm is on, but there is only one rank: nothing is sent")
        return
    warmup = f"; the warm-up takes {warmup_steps_left} more steps" if warmup_steps_left > 0 else ""
    _logger.info(
        "fastcomm is on: %s among %d ranks, each of which sends %s in a step instead of %s, "
        "%.3g times fewer%s",
        codec,
        world_size,
        described_bytes(stats.last_step_wire_bytes),
        described_bytes(stats.last_step_raw_bytes),
        stats.last_step_ratio,
        warmup,
    )
