"""The command line of bench/ddp.py, and what it means for the ranks."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import fastcomm
from ddp_models import BACKWARD_SECONDS, MODELS
from launch import is_rank, parse_rates
from methods import FRAGILE, PEER_GROUPS, PEERS
from shaped_link import can_shape
from tables import note

Settings = dict[str, Any]

# Models and rates.
_DEFAULTS = ("mnist,resnet50,gpt2", "1gbit,10gbit,none")
_QUICK = ("resnet50", "1gbit,none")
_FEWEST_REPETITIONS, _MOST_REPETITIONS = 3, 50


def parse_methods(text: str) -> list[str]:
    """Return the names of methods that a list on the command line stands for."""
    methods: list[str] = []
    for name in text.split(","):
        names = PEER_GROUPS.get(name, [name])
        if name != "none" and (name == "gloo" or names[0] not in PEERS):
            try:
                fastcomm.codec(name)
            except fastcomm.Error as error:
                raise argparse.ArgumentTypeError(str(error)) from None
        methods += names
    return methods


def parse_models(text: str) -> list[str]:
    """Return the models of a list on the command line."""
    for model in text.split(","):
        if model not in MODELS:
            raise argparse.ArgumentTypeError(f"no model {model!r}; there are {', '.join(MODELS)}")
    return text.split(",")


def parse_arguments(description: str | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=parse_models, help=f"default {_DEFAULTS[0]}")
    add("--world", type=int, default=2, help="number of ranks (default 2)")
    add(
        "--rate",
        type=parse_rates,
        help="of each rank's interface, or none: loopback; all but none need root "
        f"(default {_DEFAULTS[1]}, or none without root)",
    )
    add("--methods", type=parse_methods, default="none,fp16,bf16,int8,int4,topk:0.01")
    add("--backward-ms", type=float, help="of all models but mnist (default: by the model)")
    add("--megabytes", type=float, default=100, help="of the model given (default 100)")
    add("--parameters", type=int, default=5, help="of the model given (default 5)")
    add("--data-root", help="folder with MNIST's IDX files (default: random images)")
    add("--seconds", type=float, default=15, help="about so long for each model and rate")
    add("--repetitions", type=int, help="instead of as many as --seconds allows, 3 at least")
    add("--memory", action="store_true", help="measure the memory that the hooks take, not time")
    add("--quick", action="store_true", help="resnet50 at 1gbit and none, 3 s each")
    add("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds = 3
    models = (_QUICK if arguments.quick else _DEFAULTS)[0]
    arguments.model = arguments.model or parse_models(models)
    if arguments.world < 2:
        parser.error(f"--world must be at least 2, not {arguments.world}")
    return arguments


def choose_rates(arguments: argparse.Namespace) -> None:
    """Set the rates to those that this process can have; say so if the default ones are not.

    Raises:
        SystemExit: if the command line asks for what this process cannot do.
    """
    if is_rank() and (arguments.memory or set(arguments.methods) & set(FRAGILE)):
        sys.exit(f"--memory, {', '.join(FRAGILE)} need processes of their own: no torchrun")
    if is_rank() or arguments.memory:
        arguments.rate = [None]
    elif arguments.rate is None or any(arguments.rate):
        support = can_shape()
        if arguments.rate is None:
            rates = (_QUICK if arguments.quick else _DEFAULTS)[1]
            arguments.rate = parse_rates(rates if support.possible else "none")
            if not support.possible:
                note(f"over loopback only: {support.reason}")
        elif not support.possible:
            sys.exit(f"cannot limit the rate: {support.reason}; use --rate none")


def settings_of(model: str, arguments: argparse.Namespace) -> Settings:
    """Return what the ranks need to know, but for methods and rate."""
    backward_ms = arguments.backward_ms
    seconds = BACKWARD_SECONDS.get(model) if backward_ms is None else backward_ms / 1e3
    cores = len(os.sched_getaffinity(0))
    return {
        "model": model,
        "backward_seconds": None if model == "mnist" else seconds,
        "megabytes": arguments.megabytes,
        "parameters": arguments.parameters,
        "data_root": arguments.data_root,
        "seconds_per_model": arguments.seconds,
        "fewest": arguments.repetitions or _FEWEST_REPETITIONS,
        "most": arguments.repetitions or _MOST_REPETITIONS,
        # As many as there are cores for the model that computes, else one as under torchrun.
        "threads": max(1, cores // arguments.world) if model == "mnist" else 1,
    }
