"""Runs PyTorch's own DDP tests at one number of ranks; tests/torch_suite.py starts it.

The tests read the number of ranks from the environment when they are imported: a process serves one
number only. It imports torch once and forks the ranks of each test; with interpreters of their own
the tests would take ten times as long.
"""

# mypy: allow-untyped-calls
from __future__ import annotations

import inspect
import json
import multiprocessing
import os
import sys
import types
import unittest
from collections.abc import Iterator
from multiprocessing.context import ForkProcess
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed import GradBucket  # type: ignore[attr-defined]  # torch's stubs lack it
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

import fastcomm
from fastcomm.hook import HookState

# torch's test cases derive from those of this package, for assertions that no DDP test uses.
_expecttest = types.ModuleType("expecttest")
_expecttest.TestCase = unittest.TestCase  # type: ignore[attr-defined]
_expecttest.ACCEPT = False  # type: ignore[attr-defined]
sys.modules["expecttest"] = _expecttest

from torch_suite_cpu import drop_demand_for_gpus, use_cpu_for_cuda  # noqa: E402

drop_demand_for_gpus()

from torch.testing._internal import common_distributed  # noqa: E402
from torch.testing._internal.distributed.distributed_test import (  # noqa: E402
    DistributedTest,
    TestDistBackend,
)

TEST_SECONDS = 150

_num_buckets = multiprocessing.get_context("fork").Value("q", 0)  # that fastcomm synchronized


class WithoutHook(TestDistBackend, DistributedTest._DistTestBase):
    """PyTorch's tests, on the CPU."""

    def setUp(self) -> None:
        """Fork the ranks of the test."""
        super().setUp()
        self._start_processes(ForkProcess)

    @classmethod
    def _run(cls, *args: Any, **kwargs: Any) -> None:
        use_cpu_for_cuda()
        cls.prepare()
        super()._run(*args, **kwargs)

    @classmethod
    def prepare(cls) -> None:
        """Do what a kind of tests needs, in each rank."""

    def _run_uneven_inputs_test(self, test_case: Any, *args: Any, **kwargs: Any) -> None:
        # Images of 1000 x 1000 pixels take minutes on a CPU; the size of the gradients is the same.
        if test_case.name == "large_conv_model":
            test_case = test_case._replace(inp=test_case.inp[..., :32, :32])
        super()._run_uneven_inputs_test(test_case, *args, **kwargs)


class WithHook(WithoutHook):
    """The tests with a hook on every DDP model that has none at its first forward or join()."""

    @classmethod
    def register(cls, ddp: DistributedDataParallel) -> None:
        """Register the hook."""
        raise NotImplementedError

    @classmethod
    def prepare(cls) -> None:
        """Let the first forward pass, and join() before it, register the hook."""
        pre_forward = DistributedDataParallel._pre_forward
        join_hook = DistributedDataParallel.join_hook

        def register_if_none(ddp: DistributedDataParallel) -> None:
            if "comm_hook" not in ddp._get_ddp_logging_data():
                cls.register(ddp)

        # A compiled forward pass is not to have the registration in it.
        register_once = torch.compiler.disable(register_if_none)

        def registering_pre_forward(ddp: DistributedDataParallel, *args: Any, **kwargs: Any) -> Any:
            inputs = pre_forward(ddp, *args, **kwargs)  # where DDP itself may register one
            register_once(ddp)
            return inputs

        def registering_join_hook(ddp: DistributedDataParallel, **kwargs: Any) -> Any:
            register_once(ddp)
            return join_hook(ddp, **kwargs)

        ddp_class = DistributedDataParallel
        mock.patch.object(ddp_class, "_pre_forward", registering_pre_forward).start()
        mock.patch.object(ddp_class, "join_hook", registering_join_hook).start()


class WithFastcomm(WithHook):
    """With fastcomm's hook."""

    @classmethod
    def register(cls, ddp: DistributedDataParallel) -> None:
        """Register fastcomm."""
        fastcomm.register(ddp, "fp32")


class WithAllReduce(WithHook):
    """With PyTorch's own hook that does what DDP does without one."""

    @classmethod
    def register(cls, ddp: DistributedDataParallel) -> None:
        """Register torch's all-reduce."""
        ddp.register_comm_hook(_picklable_group(ddp), default_hooks.allreduce_hook)


class WithAllGather(WithHook):
    """With a hook that averages in plain torch, but not by an all-reduce."""

    @classmethod
    def register(cls, ddp: DistributedDataParallel) -> None:
        """Register an all-gather and mean."""
        ddp.register_comm_hook(_picklable_group(ddp), _all_gather_hook)


def _picklable_group(ddp: DistributedDataParallel) -> dist.ProcessGroup | None:
    """Return the model's group as a state; tests save models, and with them their hooks' states."""
    is_default: bool = ddp.process_group == dist.group.WORLD
    return None if is_default else ddp.process_group


def _all_gather_hook(group, bucket):  # type: ignore[no-untyped-def]  # DDP inspects annotations
    gradients = [torch.empty_like(bucket.buffer()) for _ in range(dist.get_world_size(group))]
    gathering = dist.all_gather(gradients, bucket.buffer(), group=group, async_op=True)
    return gathering.get_future().then(lambda _: torch.stack(gradients).mean(0))


_synchronize = HookState.synchronize


def _counting_synchronize(
    state: HookState, bucket: GradBucket
) -> torch.futures.Future[torch.Tensor]:
    with _num_buckets.get_lock():
        _num_buckets.value += 1
    return _synchronize(state, bucket)


mock.patch.object(HookState, "synchronize", _counting_synchronize).start()


def ddp_tests() -> list[str]:
    """Return the tests that use DistributedDataParallel, themselves or through a method."""
    return [name for name in dir(WithoutHook) if name.startswith("test") and _uses_ddp(name, set())]


def _uses_ddp(method: str, seen: set[str]) -> bool:
    seen.add(method)
    code = getattr(inspect.unwrap(getattr(WithoutHook, method)), "__code__", None)
    names = set(_names_in(code)) if code else set()
    return "DistributedDataParallel" in names or any(
        _uses_ddp(name, seen) for name in names - seen if hasattr(WithoutHook, name)
    )


def _names_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)


def run(case: type[WithoutHook], test: str) -> tuple[str, str]:
    """Run a test; return ``passed``, ``skipped`` or ``failed``, and why."""
    result = unittest.TestResult()
    case(test).run(result)
    if problems := result.errors + result.failures:
        return "failed", problems[0][1]
    if result.skipped:
        return "skipped", result.skipped[0][1]
    return "passed", ""


def main() -> None:
    """Run the tests named in the first argument, else all; print a line of JSON for each.

    The tests in the second argument run with the hooks of plain torch too, as do all that fail
    with fastcomm's.
    """
    chosen, listed = (argument.split() for argument in sys.argv[1:])
    results = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what tests print
    common_distributed.TIMEOUT_DEFAULT = TEST_SECONDS
    common_distributed.TIMEOUT_OVERRIDE.clear()
    for test in chosen or ddp_tests():
        _num_buckets.value = 0
        outcomes = {"without hook": run(WithoutHook, test)}
        if outcomes["without hook"][0] == "passed":
            outcomes["fastcomm"] = run(WithFastcomm, test)
            if test in listed or outcomes["fastcomm"][0] != "passed":
                outcomes["all-reduce"] = run(WithAllReduce, test)
                outcomes["all-gather"] = run(WithAllGather, test)
        row = {"test": test, "num_buckets": _num_buckets.value, "outcomes": outcomes}
        print(json.dumps(row), file=results, flush=True)


if __name__ == "__main__":
    main()
