"""All-reduces of one bucket over networks of a rate: fastcomm's codecs, and what PyTorch brings.

    python bench/allreduce.py --world 2,4 --rate 1gbit --sizes 64K:64M --json out.json

Starts the ranks itself, on this host: over loopback, or (as root) over links of a rate. Under
torchrun it measures the cluster that it was started on, unshaped. README.md defines the words.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
from pathlib import Path
from typing import Any

from demo_extra import demo_imports

with demo_imports():
    import allreduce_ranks
    import fastcomm
    from allreduce_tables import print_crash, print_scaling, print_table
    from fastcomm import _C
    from launch import Loopback, RanksFailedError, is_rank, network, parse_rates, run_ranks
    from measure import facts
    from methods import FRAGILE, PEER_GROUPS, PEERS
    from shaped_link import ShapedLink
    from tables import note

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def parse_size(text: str) -> int:
    """Return the bytes of "64K", "256M" or "100000000", a multiple of 4."""
    match = re.fullmatch(r"(\d+)([KMG]?)", text)
    size = int(match[1]) * _UNITS[match[2]] if match else 0
    if size < 4 or size % 4:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size of whole float32 elements, such as 64K, 256M or 100000000"
        )
    return size


def parse_sizes(text: str) -> list[int]:
    """Return the sizes of "64K:256M" (each four times the one before) or "1K,64K,100000000"."""
    sizes = []
    for part in text.split(","):
        first, colon, last = part.partition(":")
        size = parse_size(first)
        end = parse_size(last) if colon else size
        while size <= end:
            sizes.append(size)
            size *= 4
    return sizes


def parse_codecs(text: str) -> list[str]:
    """Return the codecs of a list, all of which exist."""
    for name in text.split(","):
        try:
            fastcomm.codec(name)
        except fastcomm.Error as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return text.split(",")


def parse_peers(text: str) -> list[str]:
    """Return the names of peers; "none" is no peer."""
    names: list[str] = []
    for name in filter(None, "" if text == "none" else text.split(",")):
        names += PEER_GROUPS.get(name, [name]) if name != "all" else list(PEERS)
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"unknown peer {unknown[0]!r}; known: all, none, {', '.join([*PEERS, *PEER_GROUPS])}"
        )
    return names


def groups_of_processes(methods: list[str]) -> list[list[str]]:
    """Return which methods share processes, and take turns in them.

    Methods that can end their process get one of their own, with gloo for comparison.
    """
    sound = [name for name in methods if name not in FRAGILE]
    baseline = ["gloo"] if "gloo" in methods else []
    return [sound, *([*baseline, name] for name in methods if name in FRAGILE)]


def measure_network(
    link: ShapedLink | Loopback, methods: list[str], settings: dict[str, Any], timeout: float
) -> list[dict[str, Any]]:
    """Measure all methods over one network; those that fail get rows that say how."""
    rows: list[dict[str, Any]] = []
    waiting = groups_of_processes(methods)
    while waiting:
        group = waiting.pop(0)
        try:
            rows += [
                row
                for row in run_ranks(
                    link, "allreduce_ranks.py", {**settings, "methods": group}, timeout
                )
                if row["method"] not in {done["method"] for done in rows} or row["method"] != "gloo"
            ]
        except RanksFailedError as failure:
            others = [name for name in group if name != "gloo"]
            if len(others) > 1:  # find out which one it is
                baseline = ["gloo"] if "gloo" in group else []
                waiting = [[*baseline, name] for name in others] + waiting
                continue
            name = (others or group)[0]
            print_crash(name, str(failure))
            rows.append(
                {
                    "benchmark": "allreduce_failure",
                    "method": name,
                    "world_size": link.world_size,
                    "rate_bits_per_second": link.bits_per_second,
                    "failure": str(failure),
                }
            )
    return rows


def settings_of(arguments: argparse.Namespace, bits_per_second: int | None) -> dict[str, Any]:
    """Return what the ranks need to know, but for the methods."""
    return {
        "sizes": arguments.sizes,
        "algorithm": arguments.algorithm,
        "bits_per_second": bits_per_second,
        "seconds_per_size": arguments.seconds,
        "fewest": arguments.fewest,
        "most": arguments.most,
    }


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every number of ranks over every network."""
    methods = [*arguments.peers, *arguments.codec]
    rows: list[dict[str, Any]] = []
    for rate, world_size in itertools.product(arguments.rate, arguments.world):
        with network(world_size, rate) as link:
            measured = "over loopback"
            if isinstance(link, ShapedLink):
                stream = link.measure_rate() / 1e6
                control = link.congestion_control()
                measured = f"a plain stream ({control}) reaches {stream:.1f} Mbit/s"
            note(f"\n{world_size} ranks, {rate or 'unshaped'}: {measured}")
            settings = settings_of(arguments, link.bits_per_second)
            found = measure_network(link, methods, settings, arguments.timeout)
        print_table([row for row in found if row["benchmark"] == "allreduce"])
        rows += found
    print_scaling([row for row in rows if row["benchmark"] == "allreduce"])
    return rows


def run_under_torchrun(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure as one of the ranks that torchrun started; only rank 0 returns rows."""
    methods = [*arguments.peers, *arguments.codec]
    rows = allreduce_ranks.measure({**settings_of(arguments, None), "methods": methods})
    if os.environ["RANK"] != "0":
        return []
    print_table(rows)
    print_scaling(rows)
    return rows


def parse_arguments() -> argparse.Namespace:
    """Return the command line's settings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--world", type=lambda t: [int(n) for n in t.split(",")], default=[2], help="e.g. 2,4,8"
    )
    parser.add_argument(
        "--rate", type=parse_rates, default=[None], help="e.g. none,100mbit,1gbit,10gbit; as root"
    )
    parser.add_argument(
        "--sizes", type=parse_sizes, default=parse_sizes("64K:256M"), help="e.g. 64K:256M or 1K,1M"
    )
    parser.add_argument("--codec", type=parse_codecs, default="fp32,int8,int4,topk:0.01")
    parser.add_argument(
        "--peers",
        type=parse_peers,
        default=parse_peers("gloo,fp16,bf16,powersgd"),
        help=f"all, none or some of {', '.join([*PEERS, *PEER_GROUPS])}",
    )
    parser.add_argument(
        "--algorithm", choices=["auto", *_C.algorithm_names()], default="auto", help="of fastcomm"
    )
    parser.add_argument(
        "--seconds", type=float, default=10, help="of measuring, for each size and group of methods"
    )
    parser.add_argument("--fewest", type=int, default=3, help="repetitions, however long they take")
    parser.add_argument("--most", type=int, default=25, help="repetitions, however short they are")
    parser.add_argument(
        "--timeout", type=float, default=1800, help="seconds until ranks count as hanging"
    )
    parser.add_argument("--quick", action="store_true", help="few and small sizes: two minutes")
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.sizes, arguments.seconds = parse_sizes("64K:16M"), 1.5
        arguments.peers = [name for name in arguments.peers if name not in FRAGILE]
    return arguments


def main() -> None:
    """Measure, print tables, write the rows."""
    arguments = parse_arguments()
    rows = run_under_torchrun(arguments) if is_rank() else run(arguments)
    if arguments.json and rows:
        arguments.json.write_text(json.dumps([{**row, **facts()} for row in rows], indent=1))
    if any(row.get("identical") is False for row in rows):
        raise SystemExit("WRONG: the ranks do not hold the same bits")


if __name__ == "__main__":
    main()
