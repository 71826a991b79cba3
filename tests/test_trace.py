"""A Chrome trace of what the native threads did."""

import itertools
import json
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks


def traced_steps(folder: Path) -> tuple[str, fastcomm.Stats]:
    model = DistributedDataParallel(nn.Linear(1000, 1000))
    state = fastcomm.register(model, "int8")
    model(torch.randn(4, 1000)).sum().backward()
    before = state.stats
    path = folder / f"rank{dist.get_rank()}.json"
    with state.trace(path):
        model(torch.randn(4, 1000)).sum().backward()
    after = state.stats
    model(torch.randn(4, 1000)).sum().backward()  # not recorded
    recorded = fastcomm.Stats(
        **{key: value - getattr(before, key) for key, value in vars(after).items()}
    )
    return path.read_text(), recorded


def test_a_trace_has_what_the_stats_sum_up(tmp_path: Path) -> None:
    for rank, (text, stats) in enumerate(ranks.run(2, traced_steps, tmp_path)):
        events = [event for event in json.loads(text) if event["ph"] == "X"]
        assert {event["pid"] for event in events} == {rank}
        assert {event["args"]["step"] for event in events} == {1}
        for name in ("encode", "decode", "send", "wait"):
            seconds = sum(event["dur"] for event in events if event["name"] == name) / 1e6
            assert abs(seconds - getattr(stats, f"seconds_{name}")) < 1e-6
        sent = sum(event["args"]["payload_bytes"] for event in events if event["name"] == "send")
        assert sent == stats.wire_bytes
        for event in events:
            assert event["dur"] >= 0
        # Within a lane one thing happens after another.
        for lane in {event["tid"] for event in events}:
            own = sorted((e for e in events if e["tid"] == lane), key=lambda e: e["ts"])
            for earlier, later in itertools.pairwise(own):
                assert earlier["ts"] + earlier["dur"] <= later["ts"] + 1


def traced_process(folder: Path) -> set[int]:
    groups = [dist.new_group([0]), dist.new_group([1])]
    model = DistributedDataParallel(nn.Linear(60, 60), process_group=groups[dist.get_rank()])
    state = fastcomm.register(model, "int8")
    path = folder / f"rank{dist.get_rank()}.json"
    with state.trace(path):
        model(torch.randn(4, 60)).sum().backward()
    return {event["pid"] for event in json.loads(path.read_text())}


def test_trace_of_a_group_has_the_rank_in_the_job(tmp_path: Path) -> None:
    assert ranks.run(2, traced_process, tmp_path) == [{0}, {1}]
