"""How a user sees that fastcomm is on, and what it sends: a log line, statistics, their texts."""

import json
import logging

from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks
from training import backward, mlp


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.texts.append(record.getMessage())


def logged(codec: str, num_steps: int) -> list[str]:
    lines, logger = Lines(), logging.getLogger("fastcomm")
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    try:
        model = DistributedDataParallel(mlp())
        fastcomm.register(model, codec)
        for step in range(num_steps):
            backward(model, step)
    finally:
        logger.removeHandler(lines)
        logger.setLevel(logging.NOTSET)
    return lines.texts


def test_rank_0_logs_once_what_is_sent() -> None:
    (line,), none = ranks.run(2, logged, "int4", 6)
    assert none == []
    assert "fastcomm is on: int4 among 2 ranks" in line
    assert "kB in a step instead of" in line
    assert "warm-up" not in line
    (line,), none = ranks.run(2, logged, "topk:0.01", 6)
    assert "the warm-up takes 98 more steps" in line
    assert ranks.run(1, logged, "int4", 6)[0] == [
        "fastcomm is on, but there is only one rank: nothing is sent"
    ]


def stats_around_a_warm_up() -> None:
    model = DistributedDataParallel(mlp())
    state = fastcomm.register(model, "topk:0.01", warmup_steps=4)
    assert state.stats.ratio == state.stats.last_step_ratio == 1.0
    backward(model, 0)
    first = state.stats
    assert first.wire_bytes == first.last_step_wire_bytes
    before = first
    for step in range(1, 7):
        before = state.stats
        backward(model, step)
    after = state.stats
    assert after.last_step_wire_bytes == after.wire_bytes - before.wire_bytes
    assert after.last_step_raw_bytes == after.raw_bytes - before.raw_bytes
    assert after.last_step_ratio > 1.2 * after.ratio, (
        "the warm-up is in the ratio of all steps only"
    )
    as_dict = json.loads(json.dumps(after.as_dict()))
    assert as_dict["steps"] == 7
    assert as_dict["ratio"] == after.ratio
    assert as_dict["last_step_ratio"] == after.last_step_ratio
    assert as_dict["last_step_wire_bytes"] == after.last_step_wire_bytes
    for text in (repr(after), repr(state)):
        assert f"ratio {after.last_step_ratio:.4g}" in text
        assert "7 steps" in text
    assert repr(state).startswith("<HookState topk:0.01: rank ")


def test_stats_tell_the_last_step_from_all_of_them() -> None:
    ranks.run(2, stats_around_a_warm_up)
