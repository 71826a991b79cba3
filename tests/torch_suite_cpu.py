"""Lets those of PyTorch's DDP tests that ask for a GPU for each rank run without any.

Most of them do, though they test nothing of CUDA: all they do with it is to move models and inputs
there. Here every CUDA device is the CPU, and the demand for GPUs is dropped.
"""

# mypy: allow-untyped-calls
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode
from torch.testing._internal import common_distributed


def drop_demand_for_gpus() -> None:
    """Make the decorators that skip tests do nothing; call it before the tests are imported."""

    def any_number(*args: object, **kwargs: object) -> Callable[[Any], Any]:
        return lambda test: test

    common_distributed.skip_if_lt_x_gpu = any_number
    common_distributed.nccl_skip_if_lt_x_gpu = any_number
    common_distributed.skip_if_no_gpu = lambda test: test
    common_distributed.init_multigpu_helper = lambda world_size, backend: {
        rank: [rank] for rank in range(world_size)
    }


def use_cpu_for_cuda() -> None:
    """Let every CUDA device be the CPU in this process, from now on."""
    _CudaIsCpu().__enter__()
    torch.cuda.set_device = lambda device: None
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.current_device = lambda: 0
    ddp_init = DistributedDataParallel.__init__

    def init(
        ddp: DistributedDataParallel,
        module: torch.nn.Module,
        device_ids: object = None,
        output_device: object = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        ddp_init(ddp, module, None, None, *args, **kwargs)

    mock.patch.object(DistributedDataParallel, "__init__", init).start()


class _CudaIsCpu(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.device:
            return torch.device("cpu")
        if func is torch.Tensor.cuda:
            return args[0]
        kwargs = dict(kwargs or {})
        if "device" in kwargs:
            kwargs["device"] = _on_cpu(kwargs["device"])
        if func in (torch.Tensor.to, torch._C._nn._parse_to):
            args = [_on_cpu(argument) for argument in args]
        return func(*args, **kwargs)


def _on_cpu(device: Any) -> Any:
    is_cuda = isinstance(device, str | torch.device) and str(device).startswith("cuda")
    return "cpu" if is_cuda or type(device) is int else device
