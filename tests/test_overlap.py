"""Communication goes on during backward, without the GIL: shown by the order of events."""

import ctypes
import sys
import threading

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks
from ledger import gradient
from training import Recorder, loss_of, mlp, register_recorded

# Only a failing test waits so long.
PATIENCE_SECONDS = 40.0


def model_of_several_buckets(codec: str) -> tuple[DistributedDataParallel, Recorder]:
    """Return a model whose buckets have been rebuilt: more than one from now on."""
    model = DistributedDataParallel(mlp(width=6001), bucket_cap_mb=1)
    recorder = register_recorded(model, codec)
    for step in range(2):
        loss_of(model, step).backward()  # type: ignore[no-untyped-call]
    assert len(recorder.steps[1]) >= 2
    return model, recorder


def wait_inside_backward(codec: str) -> list[str]:
    model, recorder = model_of_several_buckets(codec)
    events: list[str] = []

    def before_last_gradient(_: torch.Tensor) -> None:
        # The first layer's gradient is the last of backward. Its bucket cannot have been given to
        # the hook yet; the first bucket must be able to arrive nevertheless.
        events.append(f"{len(recorder.futures)} of {len(recorder.steps[1])} buckets started")
        arrived = threading.Event()
        recorder.futures[0].then(lambda _: arrived.set())
        assert arrived.wait(PATIENCE_SECONDS), "the first bucket waits for the end of backward"
        events.append("first bucket arrived")

    model.module[0].weight.register_hook(before_last_gradient)
    loss_of(model, 2).backward()  # type: ignore[no-untyped-call]
    events.append("backward ended")
    return events


@pytest.mark.parametrize("codec", ["fp32", "int8", "topk:0.01"])
def test_first_bucket_arrives_before_backward_computes_the_last_gradient(codec: str) -> None:
    for events in ranks.run(2, wait_inside_backward, codec):
        assert events == ["1 of 2 buckets started", "first bucket arrived", "backward ended"]


def start_alone() -> list[bool]:
    """Rank 0 gives all buckets to the hook before rank 1 begins: none may wait for its arrival."""
    model, recorder = model_of_several_buckets("int8")
    done: list[bool] = []

    def after_last_bucket(_: torch.Tensor) -> None:
        done.extend(future.done() for future in recorder.futures)
        dist.send(torch.zeros(1), 1)

    if dist.get_rank() == 0:
        # The hook of the last parameter runs when all buckets but its own have been started.
        model.module[0].weight.register_hook(after_last_bucket)
    else:
        dist.recv(torch.zeros(1), 0)
    loss_of(model, 2).backward()  # type: ignore[no-untyped-call]
    assert all(future.done() for future in recorder.futures)
    return done


def test_hook_does_not_wait_for_a_slower_rank() -> None:
    assert ranks.run(2, start_alone) == [[False], []]


def start_many_alone() -> list[bool]:
    expected = gradient(100_003)
    fastcomm.all_reduce(expected)
    tensors = [gradient(100_003) for _ in range(6)]
    if dist.get_rank() == 1:
        dist.recv(torch.zeros(1), 0)
    works = []
    for tensor in tensors:
        work = fastcomm.all_reduce(tensor, async_op=True)
        assert work is not None
        works.append(work)
    done = [work.is_completed() for work in works]
    if dist.get_rank() == 0:
        dist.send(torch.zeros(1), 1)
    for work, tensor in zip(works, tensors, strict=True):
        work.wait()
        assert torch.equal(tensor, expected)
    return done


def test_many_exchanges_are_in_flight_before_the_other_rank_starts_one() -> None:
    assert ranks.run(2, start_many_alone)[0] == [False] * 6


def hold_the_gil(codec: str, algorithm: str) -> tuple[bool, bool]:
    """Return whether the exchange completed, and whether the GIL was free in the meantime."""
    expected = gradient(1_000_003)
    fastcomm.all_reduce(expected, codec=codec, algorithm=algorithm)  # connects the ranks
    tensor = gradient(1_000_003)

    # A thread that would run at the first moment at which this one lets go of the GIL.
    gate = threading.Lock()
    others_ran: list[bool] = []

    def witness() -> None:
        with gate:
            others_ran.append(True)

    # PyDLL calls keep the GIL, and nobody asks for it within this interval.
    usleep = ctypes.PyDLL(None).usleep
    interval = sys.getswitchinterval()
    dist.barrier()
    gate.acquire()
    thread = threading.Thread(target=witness)
    thread.start()
    try:
        sys.setswitchinterval(10 * PATIENCE_SECONDS)
        work = fastcomm.all_reduce(tensor, async_op=True, codec=codec, algorithm=algorithm)
        assert work is not None
        future = work.get_future()
        gate.release()
        done = False
        for _ in range(int(PATIENCE_SECONDS * 1000)):
            usleep(1000)
            done = future.done()  # keeps the GIL, too
            if done:
                break
        gil_was_free = bool(others_ran)
    finally:
        sys.setswitchinterval(interval)
        thread.join()
    assert torch.equal(future.wait(), expected)
    return done, gil_was_free


@pytest.mark.parametrize(
    ("codec", "algorithm"), [("int8", "ring"), ("fp32", "ring"), ("topk:0.01", "gather")]
)
def test_exchange_completes_while_python_holds_the_gil(codec: str, algorithm: str) -> None:
    for done, gil_was_free in ranks.run(2, hold_the_gil, codec, algorithm):
        assert done
        assert not gil_was_free, "the GIL was released: this tests nothing"
