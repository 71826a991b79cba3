"""What goes wrong between ranks is a clear error on every rank; none hangs, none is poisoned."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks
from training import backward, mlp


def caught(error: type[BaseException], function: Callable[[], object]) -> str:
    """Return the message of the error of exactly this type that ``function`` must raise."""
    with pytest.raises(error) as info:
        function()
    assert info.type is error, f"raised {info.type.__name__}: {info.value}"
    return str(info.value)


# --- without a process group ------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [lambda: fastcomm.all_reduce(torch.ones(3)), lambda: fastcomm.HookState().connect()],
    ids=["reduce", "hook"],
)
def test_missing_process_group_names_the_call_and_torchrun(use: Callable[[], object]) -> None:
    message = caught(fastcomm.Error, use)
    assert 'torch.distributed.init_process_group("gloo")' in message
    assert "torchrun" in message


# --- ranks that disagree ----------------------------------------------------------------------


def differ_in_register(option: str, values: list[Any]) -> str:
    model = DistributedDataParallel(mlp())
    mine = {option: values[dist.get_rank()]}
    message = caught(fastcomm.MismatchError, lambda: fastcomm.register(model, **mine))
    # No hook was registered: the model goes on as plain DDP, and can be registered properly.
    plain, expected = backward(model, 0), backward(DistributedDataParallel(mlp()), 0)
    assert all(torch.equal(plain[name], expected[name]) for name in expected)
    fastcomm.register(model, "fp32")
    found = backward(model, 0)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-7)
    return message


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("codec", ["int8", "int4"]),
        ("codec", ["topk:0.01", "topk:0.02"]),
        ("codec", ["sign:seed=1", "sign:seed=2"]),
        ("algorithm", ["ring", "scatter_gather"]),
        ("min_compress_elements", [1024, 2048]),
        ("warmup_steps", [None, 10]),
        ("error_feedback", [True, False]),
        ("momentum", [0.5, 0.9]),
        ("max_norm", [1.0, 2.0]),
        ("residual_decay", [1.0, 0.5]),
        ("guard", ["warn", "adapt"]),
    ],
)
def test_register_with_different_settings_raises_the_same_table_on_all_ranks(
    option: str, values: list[Any]
) -> None:
    first, second = ranks.run(2, differ_in_register, option, values)
    assert first == second
    assert f"the ranks disagree on {option};" in first
    for rank, value in enumerate(values):
        shown = 0 if value is None else value
        assert f"rank {rank}: {option}={shown}" in first


def differ_in_version() -> str:
    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank() == 1:
            patch.setattr(fastcomm, "__version__", "0.0.9")
        return caught(fastcomm.MismatchError, lambda: fastcomm.all_reduce(torch.ones(3)))


def test_ranks_of_different_versions_of_fastcomm_are_told_so() -> None:
    first, second = ranks.run(2, differ_in_version)
    assert first == second
    assert f"rank 0: fastcomm={fastcomm.__version__}" in first
    assert "rank 1: fastcomm=0.0.9" in first


def differ_in_dtype() -> str:
    dtype = torch.bfloat16 if dist.get_rank() == 1 else torch.float32
    return caught(fastcomm.MismatchError, lambda: fastcomm.all_reduce(torch.ones(3, dtype=dtype)))


def test_ranks_with_tensors_of_different_dtypes_are_told_so() -> None:
    first, second = ranks.run(2, differ_in_dtype)
    assert first == second
    assert "rank 0: tensor=3 elements of torch.float32" in first
    assert "rank 1: tensor=3 elements of torch.bfloat16" in first


def differ_in_hook() -> list[str]:
    model = DistributedDataParallel(mlp())
    state = fastcomm.HookState("int8" if dist.get_rank() == 0 else "int4")
    model.register_comm_hook(state, fastcomm.compress_hook)
    # Not poisoned: the second step says the same, instead of an error from inside of DDP.
    messages = [caught(fastcomm.MismatchError, lambda: backward(model, 0)) for _ in range(2)]
    other = DistributedDataParallel(mlp())
    fastcomm.register(other, "int8")
    backward(other, 0)
    return messages


def test_hook_with_different_codecs_makes_every_backward_raise_on_all_ranks() -> None:
    first, second = ranks.run(2, differ_in_hook)
    assert first == second
    assert first[0] == first[1]
    assert "rank 0: codec=int8" in first[0]
    assert "rank 1: codec=int4" in first[0]


def differ_in_layout() -> str:
    # As many elements, cut differently: DDP itself compares nothing but shapes of parameters.
    model = DistributedDataParallel(mlp())
    state = fastcomm.register(model, "int8")
    state.policy.min_compress_elements = 1024 if dist.get_rank() == 0 else 10
    return caught(fastcomm.MismatchError, lambda: backward(model, 0))


def test_buckets_cut_differently_are_noticed_before_data_flows() -> None:
    first, second = ranks.run(2, differ_in_layout)
    assert first == second
    assert "the ranks disagree on bucket" in first
    assert "rank 0: bucket=6 parameters of torch.float32" in first


def differ_in_all_reduce(options: list[dict[str, Any]], sizes: list[int]) -> str:
    rank = dist.get_rank()
    tensor = torch.ones(sizes[rank])
    message = caught(fastcomm.MismatchError, lambda: fastcomm.all_reduce(tensor, **options[rank]))
    assert torch.equal(tensor, torch.ones(sizes[rank])), "data has flowed"
    good = torch.ones(1000)
    fastcomm.all_reduce(good)
    assert torch.allclose(good, torch.tensor(2.0), rtol=0.01)
    return message


@pytest.mark.parametrize(
    ("options", "sizes", "words"),
    [
        ([{"codec": "int8"}, {"codec": "int4"}], [9, 9], ["codec=int8", "codec=int4"]),
        ([{"codec": "int2"}, {"codec": "int2:seed=7"}], [9, 9], ["=int2", "=int2:seed=7"]),
        (
            [{"codec": "int8"}, {"codec": "int8:stochastic"}],
            [9, 9],
            ["codec=int8", "codec=int8:stochastic"],
        ),
        ([{"algorithm": "ring"}, {"algorithm": "gather"}], [9, 9], ["=ring", "=gather"]),
        ([{}, {}], [5000, 8000], ["5000 elements", "8000 elements"]),
    ],
    ids=["codec", "seed", "rounding", "algorithm", "size"],
)
def test_all_reduce_that_differs_raises_the_same_table_on_all_ranks(
    options: list[dict[str, Any]], sizes: list[int], words: list[str]
) -> None:
    first, second = ranks.run(2, differ_in_all_reduce, options, sizes)
    assert first == second
    for rank, word in enumerate(words):
        assert word in first.splitlines()[1 + rank]


# --- arguments --------------------------------------------------------------------------------


def bad_arguments() -> list[str]:
    """Rank 0 alone makes the mistakes: if any sent something, the last call would not work."""
    messages = []
    if dist.get_rank() == 0:
        tensor, good = torch.arange(6), torch.ones(6)
        for attempt in (
            lambda: fastcomm.all_reduce(tensor),
            lambda: fastcomm.all_reduce(good, op=dist.ReduceOp.MAX),
            lambda: fastcomm.all_reduce(good, algorithm="tree"),
            lambda: fastcomm.all_reduce(good, codec="int9"),
            lambda: fastcomm.all_reduce(good, residual=torch.zeros(5)),
            lambda: fastcomm.all_reduce(torch.ones(4, 4).t()[1:]),
        ):
            messages.append(caught(fastcomm.ArgumentError, attempt))
    last = torch.ones(6)
    fastcomm.all_reduce(last, codec="fp32")
    assert torch.equal(last, torch.full((6,), 2.0))
    return messages


def test_arguments_that_cannot_work_are_refused_before_anything_is_sent() -> None:
    messages, _ = ranks.run(2, bad_arguments)
    for message, words in zip(
        messages,
        [
            ["torch.int64", "float32, bfloat16 and float16"],
            ["MAX", "ReduceOp.SUM or ReduceOp.AVG"],
            ["'tree'", "auto, ring, gather, scatter_gather"],
            ["'int9'", "fp32, bf16, fp16, fp8, int8"],
            ["5 elements", "6 elements"],
            ["not contiguous", "contiguous()"],
        ],
        strict=True,
    ):
        assert all(word in message for word in words), message


def use_foreign_group() -> list[str]:
    group = dist.new_group([0, 1])
    if dist.get_rank() < 2:
        tensor = torch.ones(3)
        fastcomm.all_reduce(tensor, group=group, codec="fp32")
        assert torch.equal(tensor, torch.full((3,), 2.0))
        return []
    return [
        caught(fastcomm.ArgumentError, lambda: fastcomm.all_reduce(torch.ones(3), group=group)),
        caught(fastcomm.ArgumentError, lambda: fastcomm.HookState(process_group=group)),
    ]


def test_rank_outside_of_the_group_is_told_so() -> None:
    for message in ranks.run(3, use_foreign_group)[2]:
        assert "rank 2 is not in the given process group" in message


def train_sparse_embedding() -> list[str]:
    model = DistributedDataParallel(nn.Embedding(1000, 16, sparse=True))
    fastcomm.register(model)

    def step() -> None:
        model(torch.tensor([1, 2])).sum().backward()

    return [caught(fastcomm.ArgumentError, step) for _ in range(2)]


def test_sparse_gradients_are_refused_with_the_way_out() -> None:
    for messages in ranks.run(2, train_sparse_embedding):
        for message in messages:
            assert "torch.sparse_coo" in message
            assert "sparse=False" in message


# --- the end of the interpreter ---------------------------------------------------------------

PREAMBLE = """
import torch, torch.distributed as dist, fastcomm
from torch.nn.parallel import DistributedDataParallel
dist.init_process_group("gloo")
model = DistributedDataParallel(torch.nn.Linear(300, 300))
"""
TRAIN = """
state = fastcomm.register(model, codec="int8")
for _ in range(3):
    model(torch.randn(4, 300)).sum().backward()
assert state.stats.steps == 3 and state.stats.wire_bytes > 0
"""
LEAVE_IN_FLIGHT = """
tensor = torch.ones(100_000)
work = fastcomm.all_reduce(tensor, async_op=True, codec_threads=3)
"""
DISAGREE = """
state = fastcomm.HookState(["int8", "int4"][dist.get_rank()])
model.register_comm_hook(state, fastcomm.compress_hook)
for attempt in range(2):
    try:
        model(torch.randn(4, 300)).sum().backward()
    except fastcomm.MismatchError as error:
        print("caught", flush=True)
"""
DESTROY = "dist.destroy_process_group()\n"


@pytest.mark.parametrize(
    "script",
    [TRAIN + DESTROY, TRAIN, TRAIN + LEAVE_IN_FLIGHT, DISAGREE, DISAGREE + DESTROY],
    ids=["destroy", "no_destroy", "in_flight", "mismatch", "mismatch_destroy"],
)
def test_interpreter_exits_cleanly_under_torchrun(script: str, tmp_path: Path) -> None:
    ended = ranks.run_script(PREAMBLE + script, tmp_path, num_ranks=2)
    assert ended.returncode == 0, ended.stderr
    for sign in ("Traceback", "terminate called", "Fatal Python", "SIG", "Exception ignored"):
        assert sign not in ended.stderr, ended.stderr
    assert ended.stdout.count("caught") == (4 if DISAGREE in script else 0)
