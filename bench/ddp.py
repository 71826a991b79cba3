"""Seconds per training step under DDP, and how much of the communication hides behind backward.

    python bench/ddp.py --model resnet50,gpt2 --rate 1gbit,10gbit,none --json out.json
    python bench/ddp.py --memory                 # instead: the memory that the hooks take
    torchrun --nproc-per-node=1 --nnodes=... bench/ddp.py    # on the cluster that is there

Starts the ranks itself, on this host, with a network interface of the given rate each. Models:

  mnist     the CNN of examples/mnist_ddp.py, trained
  resnet50  the parameter shapes of torchvision's ResNet-50, 25.6 M parameters
  gpt2      those of GPT-2 small, 124 M parameters
  given     --parameters equal parameters, together of --megabytes

All but the first have given gradients, and a backward pass that sleeps, as the host does while an
accelerator computes: by default for as long as one of 40 TFLOP/s takes (resnet50 with 128 images 52
ms, gpt2 with 8 sequences of 1024 tokens 102 ms; given: 0). --backward-ms 0 measures synchronization
alone. Methods: "none" (plain DDP), fastcomm's codecs, and PyTorch's hooks: fp16, bf16, powersgd,
quantization. Those that run in the same processes take turns. The gradients of the timed steps are
checked; a run with a wrong result, or in which a rank fails, exits with 1.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path

from demo_extra import demo_imports

with demo_imports():
    import torch.distributed as dist

    from ddp_arguments import Settings, choose_rates, parse_arguments, settings_of
    from ddp_models import model_shapes
    from ddp_ranks import measure
    from ddp_results import (
        DdpRow,
        MemoryRow,
        is_wrong,
        print_memory,
        print_steps,
        print_when_it_pays,
    )
    from launch import Loopback, RanksFailedError, is_rank, network, run_ranks
    from measure import facts
    from methods import FRAGILE, PEERS
    from shaped_link import ShapedLink

Link = ShapedLink | Loopback


def gradient_bytes(settings: Settings) -> int:
    """Return the bytes of all gradients of one rank."""
    shapes = model_shapes(settings["model"], settings["megabytes"], settings["parameters"])
    return 4 * sum(math.prod(shape) for shape in shapes)


def timeout_seconds(settings: Settings, link: Link) -> float:
    """Return more time than the ranks can need unless they hang."""
    size = gradient_bytes(settings)
    step = (settings["backward_seconds"] or 0.1) + size * (
        1e-8 + 16 / (link.bits_per_second or 1e9)
    )
    steps = 3 * (settings["fewest"] + 5) * len(settings.get("methods", "1"))
    return float(120 + 3 * (settings["seconds_per_model"] + steps * step))


def missing_memory(settings: Settings, link: Link) -> str | None:
    """Return why the ranks cannot run on this host for lack of memory; None if they can."""
    # Each method has buckets of its own, and a residual or a copy in half precision; the given
    # gradients and DDP's rebuilding of buckets come on top, and what Python and torch take.
    copies = 2 * len(settings["methods"]) + 1
    needed = link.world_size * (copies * gradient_bytes(settings) + 500e6)
    for line in Path("/proc/meminfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "MemAvailable" and int(value.removesuffix("kB")) * 1024 < needed:
            return f"about {needed / 1e9:.0f} GB of free memory are needed; try fewer methods"
    return None


def measure_model(link: Link, methods: list[str], settings: Settings) -> list[DdpRow]:
    """Measure one model on ``link``: fragile methods alone with plain DDP, the others together."""
    sturdy = [method for method in methods if method not in FRAGILE]
    groups = [sturdy] if sturdy else []
    groups += [["none", method] for method in methods if method in FRAGILE]
    rows: list[DdpRow] = []
    for group in groups:
        wanted = group if group is sturdy else group[1:]
        task = {**settings, "methods": group, "bits_per_second": link.bits_per_second}
        failure = missing_memory(task, link)
        if failure is None:
            try:
                found = run_ranks(link, "ddp_ranks.py", task, timeout_seconds(task, link))
                rows += [DdpRow(**row) for row in found if row["method"] in wanted]
                continue
            except RanksFailedError as error:
                failure = str(error)
        rows += [
            DdpRow(
                model=settings["model"],
                method=method,
                world_size=link.world_size,
                rate_bits_per_second=link.bits_per_second,
                gradient_bytes=gradient_bytes(settings),
                backward_seconds=settings["backward_seconds"],
                failure=failure,
            )
            for method in wanted
        ]
    return rows


def measure_memory(link: Link, methods: list[str], settings: Settings) -> list[MemoryRow]:
    """Measure the peak memory of one model with each of fastcomm's codecs, and without a hook."""
    size = gradient_bytes(settings)
    codecs = [method for method in methods if method != "none" and method not in PEERS]
    plain: dict[str, int] | None = None
    rows = []
    for method in ["none", *codecs]:
        task = {**settings, "method": method}
        row = MemoryRow(settings["model"], method, link.world_size, size)
        try:
            found = run_ranks(link, "ddp_memory.py", task, timeout_seconds(task, link))
        except RanksFailedError as error:
            rows.append(replace(row, failure=str(error)))
            continue
        peaks = found[0] if found else None
        if method == "none":
            plain = peaks
        elif peaks is None or plain is None:
            rows.append(row)
        else:
            extra = peaks["peak_bytes"] - plain["peak_bytes"]
            steady = peaks["steady_peak_bytes"] - plain["steady_peak_bytes"]
            rows.append(
                replace(
                    row,
                    plain_peak_bytes=plain["peak_bytes"],
                    extra_peak_bytes=extra,
                    extra_steady_bytes=steady,
                    extra_peak_ratio=extra / size,
                    extra_steady_ratio=steady / size,
                )
            )
    return rows


def run_as_rank(arguments: argparse.Namespace) -> list[DdpRow]:
    """Measure as one of the ranks that torchrun started; rank 0 prints."""
    dist.init_process_group("gloo")
    rows: list[DdpRow] = []
    for model in arguments.model:
        task = {**settings_of(model, arguments), "methods": arguments.methods}
        found = [DdpRow(**row) for row in measure({**task, "bits_per_second": None})]
        if dist.get_rank() == 0:
            print_steps(found)
            rows += found
    dist.barrier()
    gc.collect()  # DDP models and hook states are cycles; they end before their process group
    dist.destroy_process_group()
    return rows


def run_all(arguments: argparse.Namespace) -> list[DdpRow | MemoryRow]:
    """Start ranks for every rate and model, and print what they measured."""
    rows: list[DdpRow | MemoryRow] = []
    for rate in arguments.rate:
        with network(arguments.world, rate) as link:
            for model in arguments.model:
                settings = settings_of(model, arguments)
                if arguments.memory:
                    taken = measure_memory(link, arguments.methods, settings)
                    print_memory(taken)
                    rows += taken
                else:
                    timed = measure_model(link, arguments.methods, settings)
                    print_steps(timed)
                    rows += timed
    return rows


def main() -> None:
    """Measure what the command line asks for."""
    arguments = parse_arguments(__doc__)
    choose_rates(arguments)
    rows = run_as_rank(arguments) if is_rank() else run_all(arguments)
    steps = [row for row in rows if isinstance(row, DdpRow)]
    print_when_it_pays(steps)
    if arguments.json and rows:
        origin = facts()
        arguments.json.write_text(json.dumps([asdict(row) | origin for row in rows], indent=1))
    broken = [row for row in rows if row.failure is not None and row.method not in FRAGILE]
    if broken or any(map(is_wrong, steps)):
        sys.exit(1)


if __name__ == "__main__":
    main()
