"""A rank is killed, leaves, or fails: the others raise an error that names it, and end."""

import contextlib
import gc
import os
import signal

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastcomm
from faulty_ranks import (
    Outcome,
    Report,
    faulty_ranks,
    threads_and_sockets,
)
from faulty_work import (
    LONG,
    check_clean_end,
    check_exchange_error,
    check_peer_error,
    interrupt_when_it_waits,
    reduce_for_ever,
    train_for_ever,
)
from training import mlp

# --- a rank that ends --------------------------------------------------------------------------


@pytest.mark.parametrize("num_ranks", [2, 3, 5])
@pytest.mark.parametrize("algorithm", ["ring", "gather", "scatter_gather"])
def test_killed_rank_is_named_by_all_others_before_any_timeout(
    algorithm: str, num_ranks: int
) -> None:
    with faulty_ranks(num_ranks, LONG) as ranks:
        ranks.start(reduce_for_ever, 4_000_000, algorithm, "fp32")
        ranks.wait_for(1, "step 3")
        ranks.send_signal(1, signal.SIGKILL)
        for rank in set(range(num_ranks)) - {1}:
            check_exchange_error(ranks.outcome(rank), f"rank {rank}, step ", "rank 1 has ended")


def test_backward_raises_that_a_rank_was_killed() -> None:
    with faulty_ranks(3, LONG) as ranks:
        ranks.start(train_for_ever)
        ranks.wait_for(0, "step 2")
        ranks.send_signal(0, signal.SIGKILL)
        for rank in (1, 2):
            check_peer_error(ranks.outcome(rank), f"rank {rank}, step ", "rank 0 has ended")


def leave_after_three_steps(report: Report) -> None:
    tensor = torch.ones(1000)
    for _ in range(3 if dist.get_rank() == 1 else 4):
        fastcomm.all_reduce(tensor)


def test_rank_that_leaves_early_is_named_by_those_that_go_on() -> None:
    with faulty_ranks(3, LONG) as ranks:
        ranks.start(leave_after_three_steps)
        for rank in (0, 2):
            check_peer_error(ranks.outcome(rank), "step 3", "rank 1 has ended")
        check_clean_end(ranks.outcome(1))


def end_after_the_last_step(report: Report) -> None:
    for algorithm in ("ring", "gather", "scatter_gather"):
        for num_elements in (1000, 1_000_000):
            tensor = torch.ones(num_elements)
            fastcomm.all_reduce(tensor, codec="fp32", algorithm=algorithm)
            assert torch.equal(tensor, torch.full((num_elements,), float(dist.get_world_size())))
    os._exit(0)  # at once, without a farewell


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_rank_that_ends_after_its_last_step_disturbs_nobody(num_ranks: int) -> None:
    for _ in range(5):
        with faulty_ranks(num_ranks, LONG) as ranks:
            ranks.start(end_after_the_last_step)
            outcomes = [ranks.outcome(rank) for rank in range(num_ranks)]
        assert outcomes == [Outcome(0)] * num_ranks


def die_before_the_handshake(report: Report) -> None:
    model = DistributedDataParallel(mlp())
    state = fastcomm.register(model)
    dist.barrier()
    if dist.get_rank() == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    assert state._sync.group is not None
    state._sync.group.check_agreement({"codec": "int8"})


def test_rank_that_dies_before_it_compares_settings_is_named_by_all_others() -> None:
    with faulty_ranks(3, LONG) as ranks:
        ranks.start(die_before_the_handshake)
        for rank in (0, 1):
            check_peer_error(ranks.outcome(rank), "rank 2 has ended")


def fail_on_one_rank(report: Report) -> None:
    tensor = torch.ones(4_000_000)
    fastcomm.all_reduce(tensor)
    if dist.get_rank() == 1:
        raise KeyError("a mistake of the user")
    fastcomm.all_reduce(tensor)


def test_rank_that_raises_an_error_of_its_own_is_named_by_all_others() -> None:
    with faulty_ranks(3, LONG) as ranks:
        ranks.start(fail_on_one_rank)
        for rank in (0, 2):
            check_peer_error(ranks.outcome(rank), "rank 1 has ended")
        outcome = ranks.outcome(1)
        assert outcome.error == "KeyError"
        check_clean_end(outcome)


def make_a_mistake(gradient: torch.Tensor) -> torch.Tensor:
    raise ArithmeticError("a mistake of the user")


def add_a_mistake(module: nn.Module, args: object, output: torch.Tensor) -> None:
    # It runs when the layers behind have handed over their gradients.
    output.register_hook(make_a_mistake)  # type: ignore[no-untyped-call]  # a stub


def fail_in_backward() -> None:
    layers = nn.Sequential(*(nn.Linear(128, 128) for _ in range(4)))
    model = DistributedDataParallel(layers, bucket_cap_mb=0.05)
    fastcomm.register(model, "int8")
    for _ in range(2):
        model(torch.ones(8, 128)).mean().backward()
    if dist.get_rank() == 0:
        layers[1].register_forward_hook(add_a_mistake)
    else:
        dist.barrier()  # rank 0 has let go of its model
    model(torch.ones(8, 128)).mean().backward()


def let_go_after_an_error(report: Report) -> None:
    with contextlib.suppress(ArithmeticError):
        fail_in_backward()
    gc.collect()
    assert not [thread for thread in threads_and_sockets() if thread.startswith("fastcomm")]
    dist.barrier()


def test_rank_that_fails_in_backward_lets_go_of_its_model_although_others_are_busy() -> None:
    with faulty_ranks(2, LONG) as ranks:
        ranks.start(let_go_after_an_error)
        assert ranks.outcome(0) == Outcome(0)
        check_peer_error(ranks.outcome(1), "rank 0 has ended")


@pytest.mark.parametrize("who", ["one", "all"])
def test_interrupted_ranks_end_cleanly(who: str) -> None:
    with faulty_ranks(2, LONG) as ranks:
        ranks.start(train_for_ever)
        for rank in range(2):
            ranks.wait_for(rank, "step 2")
        for rank in range(2 if who == "all" else 1):
            ranks.send_signal(rank, signal.SIGINT)
        errors = set()
        for rank in range(2):
            outcome = ranks.outcome(rank)
            check_clean_end(outcome)
            errors.add(outcome.error)
        assert "KeyboardInterrupt" in errors
        assert errors <= {"KeyboardInterrupt", "PeerError"}


def interrupt_while_another_rank_is_busy(report: Report) -> None:
    tensor = torch.ones(1000)
    fastcomm.all_reduce(tensor)
    if dist.get_rank() == 0:
        signal.pause()
    interrupt_when_it_waits()
    fastcomm.all_reduce(tensor)


def test_wait_for_a_busy_rank_can_be_interrupted() -> None:
    with faulty_ranks(2, LONG) as ranks:
        ranks.start(interrupt_while_another_rank_is_busy)
        outcome = ranks.outcome(1)
        assert outcome.error == "KeyboardInterrupt", outcome
        check_clean_end(outcome)


# --- ranks that are out of step ----------------------------------------------------------------


def differ_on_one_rank(report: Report) -> None:
    fastcomm.all_reduce(torch.ones(50_000), algorithm="ring")
    num_elements = 60_000 if dist.get_rank() == 3 else 50_000
    fastcomm.all_reduce(torch.ones(num_elements), algorithm="ring")


def test_difference_of_one_rank_is_the_same_error_on_all() -> None:
    with faulty_ranks(6, LONG) as ranks:
        ranks.start(differ_on_one_rank)
        for rank in range(6):
            outcome = ranks.outcome(rank)
            assert outcome.error == "MismatchError", outcome
            assert "rank 3: step 1" in outcome.message
            assert "60000 elements" in outcome.message
            assert "50000 elements" in outcome.message
            check_clean_end(outcome)


def go_on_after_a_failure(report: Report) -> None:
    tensor = torch.ones(50_000)
    fastcomm.all_reduce(tensor)
    for _ in range(2):
        with pytest.raises(fastcomm.MismatchError, match="elements"):
            fastcomm.all_reduce(torch.ones(100 + dist.get_rank()))
    # What failed was the connection, not the ranks: they connect again.
    group = dist.new_group()
    fastcomm.all_reduce(tensor.fill_(1), group=group, codec="fp32")
    assert torch.equal(tensor, torch.full((50_000,), 3.0))


def test_ranks_can_connect_again_after_a_failure() -> None:
    with faulty_ranks(3, LONG) as ranks:
        ranks.start(go_on_after_a_failure)
        for rank in range(3):
            assert ranks.outcome(rank) == Outcome(0)
