"""Several exchanges at a time, several process groups, and the user's own messages in between."""

import gc
import weakref

import pytest
import torch
import torch.distributed as dist

import fastcomm
import ranks
from ledger import gradient, sum_over_ranks

# (size, codec, algorithm) of exchanges that are in flight together, large and small mixed.
EXCHANGES = (
    (1_500_001, "int8", "ring"),
    (3, "fp32", "ring"),
    (100_003, "topk:0.01", "gather"),
    (0, "int8", "gather"),
    (70_001, "int4", "ring"),
    (70_001, "sign", "scatter_gather"),
    (513, "bf16", "gather"),
    (100_003, "fp32", "ring"),
)


def exchange_synchronously(group: dist.ProcessGroup | None = None) -> list[torch.Tensor]:
    results = []
    for index, (num_elements, codec, algorithm) in enumerate(EXCHANGES):
        tensor = gradient(num_elements, index)
        fastcomm.all_reduce(tensor, group=group, codec=codec, algorithm=algorithm)
        results.append(tensor)
    return results


def start_exchanges(
    group: dist.ProcessGroup | None = None,
) -> tuple[list[torch.Tensor], list[fastcomm.Work]]:
    tensors, works = [], []
    for index, (num_elements, codec, algorithm) in enumerate(EXCHANGES):
        tensor = gradient(num_elements, index)
        work = fastcomm.all_reduce(
            tensor, group=group, async_op=True, codec=codec, algorithm=algorithm
        )
        assert work is not None
        tensors.append(tensor)
        works.append(work)
    return tensors, works


def assert_same_bits(results: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for (num_elements, codec, algorithm), a, b in zip(EXCHANGES, results, expected, strict=True):
        assert torch.equal(a, b), f"{num_elements} elements of {codec} by {algorithm}"


# --- async_op ---------------------------------------------------------------------------------


def wait_backwards() -> None:
    expected = exchange_synchronously()
    tensors, works = start_exchanges()
    # Each rank waits in another order; neither may matter to what is sent when.
    order = range(len(works)) if dist.get_rank() == 0 else reversed(range(len(works)))
    for index in order:
        assert works[index].wait() is True
        assert works[index].is_completed()
        assert torch.equal(tensors[index], expected[index])
    assert_same_bits(tensors, expected)


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_exchanges_in_flight_may_be_waited_for_in_any_order(num_ranks: int) -> None:
    ranks.run(num_ranks, wait_backwards)


def chain_futures() -> None:
    expected = gradient(10_007)
    fastcomm.all_reduce(expected)
    tensor = gradient(10_007)
    work = fastcomm.all_reduce(tensor, async_op=True)
    assert work is not None
    doubled = work.get_future().then(lambda future: 2 * future.value())
    assert torch.equal(doubled.wait(), 2 * expected)
    held = work.get_future().wait()
    assert held.data_ptr() == tensor.data_ptr()
    assert torch.equal(held, expected)
    assert work.get_future().done()


def test_future_of_an_exchange_holds_the_tensor_and_chains() -> None:
    ranks.run(2, chain_futures)


def drop_everything() -> bool:
    for _ in range(20):
        tensor = gradient(10_007)
        reference = weakref.ref(tensor)
        fastcomm.all_reduce(tensor, async_op=True)  # nobody waits
        del tensor
    dist.barrier()
    last = gradient(3)
    fastcomm.all_reduce(last)  # in order behind the last on its lane
    fastcomm.all_reduce(last)  # and behind the one before on the other
    gc.collect()
    return reference() is None


def test_exchange_nobody_waits_for_completes_and_frees_its_tensor() -> None:
    assert ranks.run(2, drop_everything) == [True, True]


# --- other messages of the user ---------------------------------------------------------------


def talk_meanwhile() -> None:
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    expected = exchange_synchronously()
    own = torch.arange(200_003.0) + rank
    own_expected = torch.arange(200_003.0) * num_ranks + num_ranks * (num_ranks - 1) // 2
    for _ in range(5):
        tensors, works = start_exchanges()
        reduced = own.clone()
        dist.all_reduce(reduced)
        assert torch.equal(reduced, own_expected), "the user's all_reduce was disturbed"
        # The same tags as fastcomm's, on the default group.
        incoming = torch.empty(50_001)
        receive = dist.irecv(incoming, (rank - 1) % num_ranks)
        dist.send(torch.full((50_001,), float(rank)), (rank + 1) % num_ranks)
        assert receive is not None
        receive.wait()
        assert (incoming == (rank - 1) % num_ranks).all(), "the user's message was disturbed"
        gathered = [torch.empty_like(own) for _ in range(num_ranks)]
        dist.all_gather(gathered, own)
        assert all(torch.equal(g, torch.arange(200_003.0) + r) for r, g in enumerate(gathered))
        for work in works:
            work.wait()
        assert_same_bits(tensors, expected)


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_exchanges_in_flight_and_messages_of_the_user_do_not_disturb_each_other(
    num_ranks: int,
) -> None:
    ranks.run(num_ranks, talk_meanwhile)


# --- groups -----------------------------------------------------------------------------------


def reduce_in_sub_group(members: list[int]) -> None:
    group = dist.new_group(members)
    if dist.get_rank() not in members:
        return
    results = exchange_synchronously(group)
    for index, (num_elements, codec, _) in enumerate(EXCHANGES):
        if codec == "fp32":
            expected = sum_over_ranks(gradient(num_elements, index), group)
            torch.testing.assert_close(results[index].double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("members", [[0, 1], [0, 2], [1, 2], [2]], ids=str)
def test_sub_group_reduces_among_its_ranks_while_others_do_nothing(members: list[int]) -> None:
    ranks.run(3, reduce_in_sub_group, members)


def reduce_in_two_groups() -> None:
    # Rank 0 knows three groups, ranks 1 and 2 know two: their names must agree all the same.
    pairs = {pair: dist.new_group(list(pair)) for pair in ((0, 1), (0, 2))}
    for pair, group in pairs.items():
        if dist.get_rank() in pair:
            tensor = gradient(1000)
            expected = sum_over_ranks(tensor, group)
            fastcomm.all_reduce(tensor, group=group, codec="fp32")
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-6)


def test_overlapping_groups_can_both_be_used() -> None:
    ranks.run(3, reduce_in_two_groups)


def reduce_in_nested_groups() -> None:
    group = dist.new_group([0, 1])
    expected = exchange_synchronously()
    tensors, works = start_exchanges()
    if dist.get_rank() < 2:
        expected_there = exchange_synchronously(group)
        tensors_there, works_there = start_exchanges(group)
        for work in works_there:
            work.wait()
        assert_same_bits(tensors_there, expected_there)
    for work in works:
        work.wait()
    assert_same_bits(tensors, expected)


def test_exchanges_of_a_group_and_its_sub_group_are_in_flight_together() -> None:
    ranks.run(3, reduce_in_nested_groups)


def reduce_in_equal_groups() -> None:
    groups = [dist.new_group([0, 1]), dist.new_group([0, 1])]
    expected = exchange_synchronously(groups[0])
    started = [start_exchanges(group) for group in groups]
    for tensors, works in started:
        for work in works:
            work.wait()
        assert_same_bits(tensors, expected)


def test_two_groups_of_the_same_ranks_do_not_mix_their_messages() -> None:
    ranks.run(2, reduce_in_equal_groups)
