"""Calls that wait run on the caller's thread where they can; all calls keep their order."""

import threading

import pytest
import torch
import torch.distributed as dist

import fastcomm
import ranks

# In the opening message, in slices, and one after the other on the same lane.
SIZES = [1, 300, 1_000_000, 300, 70_000, 1_000_000, 5, 70_000, 300]


def mixed_calls(codec: str) -> bool:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(rank)
    tensors = [torch.randn(n, generator=generator) for n in SIZES * 3]
    copies = [tensor.clone() for tensor in tensors]
    pending = []
    for index, tensor in enumerate(tensors):
        # Now and then several are under way when one is called that waits.
        if index % 4 != 3:
            pending.append(fastcomm.all_reduce(tensor, codec=codec, async_op=True))
        else:
            fastcomm.all_reduce(tensor, codec=codec)
    for work in pending:
        assert work is not None
        work.wait()
    for tensor, copy in zip(tensors, copies, strict=True):
        expected = copy.clone()
        dist.all_reduce(expected)
        error = (tensor - expected).norm() / copy.norm()
        assert error < (1e-5 if codec == "fp32" else 0.03 * world_size), (tensor.numel(), error)
        mine = tensor.clone()
        dist.broadcast(mine, 0)
        assert torch.equal(mine, tensor)
    return True


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_calls_that_wait_and_calls_that_do_not_keep_their_order(codec: str, num_ranks: int) -> None:
    assert all(ranks.run(num_ranks, mixed_calls, codec))


def calls_of_threads() -> bool:
    groups = [dist.new_group() for _ in range(3)]
    tensors = [torch.full((50_000,), float(dist.get_rank() + index)) for index in range(3)]

    def reduce(index: int) -> None:
        for _ in range(20):
            fastcomm.all_reduce(tensors[index], dist.ReduceOp.AVG, groups[index], codec="fp32")

    threads = [threading.Thread(target=reduce, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, tensor in enumerate(tensors):
        assert torch.equal(tensor, torch.full((50_000,), 0.5 + index))
    return True


def test_threads_with_groups_of_their_own_do_not_disturb_each_other() -> None:
    assert all(ranks.run(2, calls_of_threads))
