"""DDP's join(): ranks that run out of data, and go on when they have some again."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks
from ledger import digest
from training import backward, conserving_step, local_gradients, loss_of, mlp, residuals

UNEVEN = [[2, 5], [4, 1], [0, 3], [1, 3, 5], [3, 0, 1]]  # steps of each rank


def flat(of_parameters: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([of_parameters[name].flatten().double() for name in sorted(of_parameters)])


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def of_rank(rank: int, value: Any) -> Any:
    values: list[Any] = [value]
    dist.broadcast_object_list(values, rank)
    return values[0]


# --- gradients --------------------------------------------------------------------------------


def train_uneven(
    num_steps: list[int], hook: str, divide_by_initial_world_size: bool
) -> list[torch.Tensor]:
    """Train two epochs; return the parameters after each."""
    model = DistributedDataParallel(mlp())
    if hook == "allreduce_hook":
        model.register_comm_hook(dist.group.WORLD, allreduce_hook)
    elif hook:
        fastcomm.register(model, hook, warmup_steps=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    found = []
    for epoch in range(2):
        with model.join(divide_by_initial_world_size=divide_by_initial_world_size):
            for step in range(num_steps[(dist.get_rank() + epoch) % len(num_steps)]):
                optimizer.zero_grad()
                loss_of(model, 10 * epoch + step).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    return found


@pytest.mark.parametrize(
    ("plain", "divide_by_initial_world_size"),
    [("", True), ("allreduce_hook", True), ("allreduce_hook", False)],
)
@pytest.mark.parametrize("num_steps", UNEVEN, ids=str)
def test_fp32_trains_uneven_inputs_as_ddp_does(
    num_steps: list[int], plain: str, divide_by_initial_world_size: bool
) -> None:
    """PyTorch's own hooks divide by the world size, too, however many ranks have joined."""
    arguments = (num_steps, plain, divide_by_initial_world_size)
    expected = ranks.run(len(num_steps), train_uneven, *arguments)
    arguments = (num_steps, "fp32", divide_by_initial_world_size)
    found = ranks.run(len(num_steps), train_uneven, *arguments)
    for of_rank_found, of_rank_expected in zip(found, expected, strict=True):
        for parameters, plain_parameters in zip(of_rank_found, of_rank_expected, strict=True):
            torch.testing.assert_close(parameters, plain_parameters, rtol=1e-5, atol=1e-6)


# --- residuals --------------------------------------------------------------------------------


def conserve(num_steps: list[int], options: dict[str, Any], ddp_options: dict[str, Any]) -> None:
    rank, longest = dist.get_rank(), max(range(len(num_steps)), key=lambda r: num_steps[r])
    model = DistributedDataParallel(mlp(width=6001), **ddp_options)
    state = fastcomm.register(model, **{"warmup_steps": 0, **options})
    num_elements = sum(p.numel() for p in model.parameters())
    gradient, delivered = torch.zeros(2, num_elements, dtype=torch.float64)
    digests: list[str] = []
    for epoch in range(2):
        with model.join():
            for step in range(num_steps[rank]):
                gradient += flat(local_gradients(model, 10 * epoch + step))
                averaged = flat(backward(model, 10 * epoch + step))
                delivered += averaged * len(num_steps)
                digests.append(digest(averaged))
        left = sum_over_ranks(flat(residuals(state)))
        given = sum_over_ranks(gradient)
        total = of_rank(longest, delivered)
        magnitude = sum_over_ranks(gradient.abs()) + left.abs()
        # Parameters that no rank's encodings lose anything of are in the sum, too.
        assert left.any()
        error = (total + left - given).abs() / magnitude.max()
        assert error.max() <= 1e-6
        # All ranks that took part in a step of their own got the same.
        for step, expected in enumerate(of_rank(longest, digests)):
            assert step >= len(digests) or digests[step] == expected
        digests.clear()
        assert state.stats.steps == state.state_dict()["step"] == (epoch + 1) * max(num_steps)
    # What a rank had when it joined, and what it left out for the others, is delivered later.
    for step in range(30, 32):
        assert conserving_step(model, state, step) <= 1e-6


@pytest.mark.parametrize("codec", ["int8", "topk:0.05", "sign"])
@pytest.mark.parametrize("num_steps", UNEVEN, ids=str)
def test_nothing_is_lost_while_a_rank_has_joined(num_steps: list[int], codec: str) -> None:
    ranks.run(len(num_steps), conserve, num_steps, {"codec": codec}, {})


@pytest.mark.parametrize(
    "ddp_options",
    [{"bucket_cap_mb": 1}, {"find_unused_parameters": True}, {"static_graph": True}],
    ids=str,
)
def test_nothing_is_lost_with_other_buckets(ddp_options: dict[str, Any]) -> None:
    ranks.run(2, conserve, [1, 4], {"codec": "int4", "warmup_steps": 2}, ddp_options)
    ranks.run(2, conserve, [3, 1], {"codec": "int4"}, ddp_options)


def join_early(num_steps: list[int]) -> bool:
    """Return whether the residuals of the rank that joins first are those of its last step."""
    model = DistributedDataParallel(mlp())
    # Each rank encodes its own gradients only: one that has none leaves nothing out.
    state = fastcomm.register(model, "topk:0.05", algorithm="gather", warmup_steps=0)
    with model.join():
        for step in range(num_steps[dist.get_rank()]):
            backward(model, step)
            held = residuals(state)
    after = residuals(state)
    return all(torch.equal(after[name], held[name]) for name in held)


def test_rank_that_has_joined_keeps_the_residuals_of_its_last_step() -> None:
    assert all(ranks.run(2, join_early, [3, 6]))
    assert all(ranks.run(3, join_early, [5, 2, 3]))


def flush_while_joined() -> bool:
    """Return whether residuals are left after a flush in a step in which one rank has no data."""
    model = DistributedDataParallel(mlp())
    state = fastcomm.register(model, "int4")
    for step in range(2):
        backward(model, step)
    state.flush()
    with model.join():
        for step in range(dist.get_rank()):
            backward(model, step)
    return any(residual.any() for residual in residuals(state).values())


def test_flush_delivers_what_a_joined_rank_has_too() -> None:
    assert ranks.run(2, flush_while_joined) == [False, False]
