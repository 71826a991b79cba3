"""The command line of bench/accuracy.py, and the jobs that it asks for."""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

import fastcomm
from accuracy_tasks import OPTIMIZERS, RECIPES, load_task
from accuracy_training import Job, parse_codec, simulate, split_commas
from mnist_download import default_folder, find_mnist, prepare_mnist

T = TypeVar("T")

# A learning rate of the command line: the number, and whether it is a multiple of the default.
Rate = tuple[float, bool]

_CODECS = "fp32,bf16,fp16,fp8,int8,int4,int2,sign,topk:0.01,topk:0.001"
_QUICK = ["--task=digits", "--world=2", "--optimizer=sgd", "--codec=fp32,int8,topk:0.01"]
_QUICK += ["--seeds=0,1", "--steps=200"]


def parse_codecs(text: str) -> list[str]:
    """Return the codecs of a list; what has the form name=value goes on with the one before."""
    codecs: list[str] = []
    for piece in split_commas(text):
        if codecs and re.match(r"[a-z_]+=", piece):
            codecs[-1] += f",{piece}"
        else:
            codecs.append(piece)
    return codecs


def check_codecs(codecs: Sequence[str], model: torch.nn.Module) -> None:
    """Find out whether the hook takes the codecs.

    Raises:
        ArgumentTypeError: if it does not, for this model.
    """
    for codec in codecs:
        try:
            simulate(model, 2, codec)
        except (fastcomm.Error, TypeError, ValueError) as error:
            raise argparse.ArgumentTypeError(f"codec {codec!r}: {error}") from None


def parse_rate(text: str) -> Rate:
    """Return a learning rate; 0.5x is half of the default."""
    is_multiple = text.endswith("x")
    try:
        value = float(text.removesuffix("x"))
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no learning rate: a positive number, or a multiple of the default: 0.5x"
        )
    return value, is_multiple


def _list_of(parse: Callable[[str], T]) -> Callable[[str], list[T]]:
    def parse_list(text: str) -> list[T]:
        return [parse(part) for part in text.split(",")]

    return parse_list


def _choice(names: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(names)}")
        return text

    return parse


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least {least}")
        return int(text)

    return parse


def parse_arguments(
    description: str | None = None, given: list[str] | None = None
) -> argparse.Namespace:
    """Read the command line: that of the process, unless another is given."""
    given = sys.argv[1:] if given is None else given
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--task", type=_list_of(_choice(list(RECIPES))), default=list(RECIPES), help="default all")
    add("--world", type=_list_of(_at_least(2)), default=[2, 4, 8], help="default 2,4,8")
    add("--optimizer", type=_list_of(_choice(OPTIMIZERS)), default=list(OPTIMIZERS))
    add(
        "--codec",
        type=parse_codecs,
        default=_CODECS,
        help="name or name@option=value,... with options of fastcomm.HookState; with momentum=0.9 "
        "SGD has none of its own; follow_learning_rate=True calls that method "
        f"(default {_CODECS})",
    )
    add("--seeds", type=_list_of(_at_least(0)), default=list(range(5)), help="default 0,1,2,3,4")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=_at_least(1), help="default by the task")
    length.add_argument("--epochs", type=float, help="instead of steps")
    add("--batch-size", type=_at_least(1), help="samples of a rank (default: by task and ranks)")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--lr", type=parse_rate, help="peak; 0.5x: half of the task's (default 1x)")
    rate.add_argument(
        "--lr-sweep",
        type=_list_of(parse_rate),
        help="instead: the largest of these learning rates that works, for each codec",
    )
    add("--amp", action="store_true", help="bf16 autocast")
    add("--data-root", type=Path, help="folder with MNIST's IDX files, or for the download")
    add("--jobs", type=_at_least(1), default=len(os.sched_getaffinity(0)), help="processes")
    add("--quick", action="store_true", help="digits, 2 ranks, sgd, 3 codecs, 2 seeds: a minute")
    add("--json", type=Path, help="write the results here, whenever a run is done")
    add("--resume", action="store_true", help="leave out the runs that the JSON file has")
    add("-o", "--output", type=Path, help="write the figure here: .png, .svg or .pdf")
    quick = "--quick" in given
    arguments = parser.parse_args([*_QUICK, *given] if quick else given)
    try:
        with_momentum = [c for c in arguments.codec if parse_codec(c)[1].get("momentum")]
    except ValueError as error:
        parser.error(str(error))
    if with_momentum and "adamw" in arguments.optimizer:
        parser.error(f"{with_momentum[0]}: momentum in the hook is for --optimizer sgd")
    return arguments


def prepare(arguments: argparse.Namespace) -> None:
    """Find MNIST if it is needed; refuse now what would fail after hours of other runs.

    Raises:
        SystemExit: if a file is in the way, or missing, or a codec does not fit a task's model.
    """
    if arguments.json is not None and arguments.json.exists() and not arguments.resume:
        sys.exit(f"{arguments.json} exists: continue it with --resume, or remove it")
    if "mnist" in arguments.task:
        arguments.data_root = (arguments.data_root or default_folder()).resolve()
        if not find_mnist(arguments.data_root) and not prepare_mnist(arguments.data_root):
            sys.exit(f"there is no MNIST in {arguments.data_root}; see --data-root, --task")
    for task in arguments.task:
        try:
            check_codecs(arguments.codec, load_task(task, arguments.data_root).build_model())
        except argparse.ArgumentTypeError as error:
            sys.exit(f"{task}: {error}")


def jobs_of(arguments: argparse.Namespace) -> list[Job]:
    """Return the runs that the command line asks for.

    Seed by seed: an interrupted run has figures of everything.
    """
    choices = itertools.product(
        arguments.seeds,
        arguments.task,
        arguments.world,
        arguments.optimizer,
        arguments.lr_sweep or [arguments.lr or (1.0, True)],
        arguments.codec,
    )
    jobs = []
    for seed, task, world_size, optimizer, (value, is_multiple), codec in choices:
        recipe = RECIPES[task]
        batch_size = arguments.batch_size or max(1, recipe.samples_per_step // world_size)
        steps = arguments.steps or recipe.steps
        if arguments.epochs:
            num_samples = load_task(task, arguments.data_root).num_samples
            steps = max(1, round(arguments.epochs * num_samples / (batch_size * world_size)))
        jobs.append(
            Job(
                task=task,
                optimizer=optimizer,
                world_size=world_size,
                codec=codec,
                learning_rate=value * recipe.learning_rates[optimizer] if is_multiple else value,
                seed=seed,
                steps=steps,
                batch_size_per_rank=batch_size,
                amp=arguments.amp,
            )
        )
    return list(dict.fromkeys(jobs))
