"""One rank of bench/ddp.py --memory: the peak memory of a process that trains with one method."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ddp_models import Gradients, model_shapes
from ddp_steps import GivenStep
from launch import write_rows
from rank_checks import slowest

_FIRST_STEPS = 2  # with one bucket for the whole model, and with new buckets
_STEADY_STEPS = 3


def give_back_what_is_freed() -> None:
    """Let glibc map each large tensor by itself, and unmap it when it is freed.

    By default it keeps gradients that were freed in a heap, with gaps that hide what a hook needs.
    """
    mmap_threshold = -3  # M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL("libc.so.6").mallopt(mmap_threshold, 1 << 20)


def reset_peak() -> bool:
    """Let the peak of this process's memory begin anew; return whether the system can do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """Return the peak of this process's resident memory since :func:`reset_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "VmHWM":
            return int(value.removesuffix("kB")) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def peaks(settings: dict[str, Any]) -> list[dict[str, int]]:
    """Return the peaks of the first steps and of later ones; none if they cannot be measured.

    As in training, every gradient is new memory that DDP copies to its bucket.
    """
    if not reset_peak():
        return []
    shapes = model_shapes(settings["model"], settings["megabytes"], settings["parameters"])
    gradients = Gradients(shapes, dist.get_rank(), dist.get_world_size())
    step = GivenStep(settings["method"], shapes, gradients)
    measured = []
    for num_steps in (_FIRST_STEPS, _STEADY_STEPS):
        reset_peak()
        for _ in range(num_steps):
            step.model.zero_grad()
            step.run(0.0)
        measured.append(float(peak_bytes()))
    first, steady = slowest(measured)
    return [{"peak_bytes": int(max(first, steady)), "steady_peak_bytes": int(steady)}]


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    give_back_what_is_freed()
    torch.set_num_threads(given["threads"])
    dist.init_process_group("gloo")
    measured = peaks(given)
    dist.barrier()
    gc.collect()  # DDP models and hook states are cycles; they end before their process group
    dist.destroy_process_group()
    if os.environ["RANK"] == "0":
        write_rows(given, measured)
