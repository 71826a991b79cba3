"""Ranks that agreed at first and then do different things get an error that shows both sides."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks
from test_distributed_errors import DESTROY, PREAMBLE, TRAIN, caught
from training import backward, mlp


def reduce_known_sizes_in_another_order() -> str:
    for size in (64, 50_000):
        fastcomm.all_reduce(torch.ones(size))
    size = 64 if dist.get_rank() == 0 else 50_000
    return caught(fastcomm.MismatchError, lambda: fastcomm.all_reduce(torch.ones(size)))


def reduce_a_new_size() -> str:
    fastcomm.all_reduce(torch.ones(64))
    size = 64 if dist.get_rank() == 0 else 50_000
    return caught(fastcomm.MismatchError, lambda: fastcomm.all_reduce(torch.ones(size)))


def reduce_with_a_new_codec() -> str:
    fastcomm.all_reduce(torch.ones(5000))
    codec = "int8" if dist.get_rank() == 0 else "int4"
    return caught(
        fastcomm.MismatchError, lambda: fastcomm.all_reduce(torch.ones(5000), codec=codec)
    )


def reduce_with_another_rotation() -> str:
    fastcomm.all_reduce(torch.ones(5000), codec="sign:seed=1")
    codec = "sign:seed=1" if dist.get_rank() == 0 else "sign:seed=2"
    return caught(
        fastcomm.MismatchError, lambda: fastcomm.all_reduce(torch.ones(5000), codec=codec)
    )


def reduce_by_another_algorithm() -> str:
    fastcomm.all_reduce(torch.ones(5000), algorithm="ring")
    algorithm = "ring" if dist.get_rank() == 0 else "scatter_gather"
    return caught(
        fastcomm.MismatchError, lambda: fastcomm.all_reduce(torch.ones(5000), algorithm=algorithm)
    )


@pytest.mark.parametrize(
    ("function", "texts"),
    [
        (reduce_known_sizes_in_another_order, ("64 elements", "50000 elements")),
        (reduce_a_new_size, ("64 elements", "50000 elements")),
        (reduce_with_a_new_codec, ("int8", "int4")),
        (reduce_with_another_rotation, ("sign seed=1", "sign seed=2")),
        (reduce_by_another_algorithm, (", ring", ", scatter_gather")),
    ],
)
def test_all_reduce_calls_that_differ_later_raise_on_both_ranks(
    function: Any, texts: tuple[str, str]
) -> None:
    for rank, message in enumerate(ranks.run(2, function)):
        assert message.startswith(f"rank {rank}, step "), message
        assert all(text in message for text in texts), message
        assert "make the same calls" in message


def flush_on_one_rank() -> str:
    model = DistributedDataParallel(mlp(width=300))
    state = fastcomm.register(model, "int4")
    backward(model, 0)
    if dist.get_rank() == 0:
        state.flush()
    return caught(fastcomm.MismatchError, lambda: backward(model, 1))


def test_flush_on_one_rank_only_raises_on_both() -> None:
    for message in ranks.run(2, flush_on_one_rank):
        assert "fp32" in message
        assert "int4" in message


def skip_a_step() -> str:
    model = DistributedDataParallel(mlp(width=300))
    state = fastcomm.register(model, "int4")
    backward(model, 0)
    state.load_state_dict(state.state_dict() | {"step": 41 if dist.get_rank() == 1 else 1})
    return caught(fastcomm.MismatchError, lambda: backward(model, 1))


def test_rank_at_another_step_is_named_with_both_steps() -> None:
    for message in ranks.run(2, skip_a_step):
        assert "rank 0: step 1," in message
        assert "rank 1: step 41," in message


def fail_while_an_earlier_exchange_is_under_way(algorithm: str) -> str:
    # Rank 2 comes to the first exchange when the second one has failed on the others.
    rank, first = dist.get_rank(), torch.ones(50_000)
    fastcomm.all_reduce(first.clone(), codec="fp32")

    def start_first() -> fastcomm.Work | None:
        return fastcomm.all_reduce(first, async_op=True, codec="fp32", algorithm=algorithm)

    def fail_second() -> str:
        second = torch.ones(100 + rank)
        return caught(fastcomm.MismatchError, lambda: fastcomm.all_reduce(second))

    if rank != 2:
        work = start_first()
        message = fail_second()
        dist.barrier()
    else:
        dist.barrier()
        work = start_first()
        message = fail_second()
    assert work is not None
    work.wait()
    assert torch.equal(first, torch.full((50_000,), 3.0))
    assert caught(fastcomm.MismatchError, lambda: fastcomm.all_reduce(first))
    return message


@pytest.mark.parametrize("algorithm", ["ring", "gather", "scatter_gather"])
def test_exchange_that_fails_leaves_an_earlier_one_alone(algorithm: str) -> None:
    for message in ranks.run(3, fail_while_an_earlier_exchange_is_under_way, algorithm):
        assert "step 2, bucket 0" in message
        assert "elements" in message


DIE_WITH_WORK_IN_FLIGHT = """
if dist.get_rank() == 0:
    fastcomm.all_reduce(torch.ones(5000), async_op=True)
    raise SystemExit("rank 0 gives up")
dist.monitored_barrier()
"""


def test_rank_that_fails_with_work_in_flight_ends_although_nobody_answers(tmp_path: Path) -> None:
    script = PREAMBLE + "fastcomm.all_reduce(torch.ones(5000))\n" + DIE_WITH_WORK_IN_FLIGHT
    ended = ranks.run_script(script, tmp_path, num_ranks=2)
    assert ended.returncode != 0
    assert "rank 0 gives up" in ended.stderr


REGISTER_TWICE = """
for register in (lambda: fastcomm.register(model),
                 lambda: fastcomm.register(DistributedDataParallel(torch.nn.Linear(3, 3)),
                                           process_group=dist.new_group())):
    try:
        register()
    except fastcomm.ArgumentError as error:
        print("caught:", error, flush=True)
try:
    fastcomm.compress_hook(state, (torch.ones(3), torch.ones(3))).wait()
except fastcomm.ArgumentError as error:
    print("caught:", error, flush=True)
"""


def test_register_and_hook_refuse_what_ddp_would_misuse(tmp_path: Path) -> None:
    ended = ranks.run_script(PREAMBLE + TRAIN + REGISTER_TWICE + DESTROY, tmp_path, num_ranks=2)
    assert ended.returncode == 0, ended.stderr
    for text in ("has a communication hook already", "replicas would diverge", "GradBucket"):
        assert ended.stdout.count(text) == 2, ended.stdout
