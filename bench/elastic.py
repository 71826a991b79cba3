"""Kills ranks of the MNIST example while it trains; torchrun lets it go on from its checkpoints.

    python bench/elastic.py --codec topk:0.01,int4 --data-root FOLDER --steps 468 --kills 3

Three runs for each codec. Two ranks, killed or not, should end with the same test accuracy, as far
as other seeds do; three ranks see as many samples in fewer steps, which alone can change it:

    undisturbed    two ranks
    killed         two ranks, of which one is killed again and again, at a random step
    fewer ranks    a node of two ranks and one of one rank, which is killed with its torchrun
"""

import argparse
import functools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from demo_extra import check_packages
from launch import free_port

Row = dict[str, Any]

_EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "mnist_ddp.py"
_POLL_SECONDS = 0.02
# Else ranks that restart find the addresses of those before them in the store of torchrun, and
# cannot connect: pytorch issue 135712.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
# A node that sends no heartbeat for 5 s is dead; ranks that are left wait 5 s for others to come.
_RENDEZVOUS = "keep_alive_interval=1,keep_alive_max_attempt=5,last_call_timeout=5"


@dataclass(frozen=True)
class Training:
    """What is trained, and how often it is saved."""

    options: tuple[str, ...]  # of examples/mnist_ddp.py
    steps: int  # with two ranks; three see as many samples in two thirds of them
    checkpoint_every: int
    timeout_seconds: float


class TrainingFailedError(RuntimeError):
    """A run did not end well, or not in time; has the last lines of what it said."""


class Node:
    """A torchrun that started the example with some ranks."""

    def __init__(self, num_ranks: int, torchrun_options: list[str], options: list[str], log: Path):
        torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={num_ranks}"]
        with log.open("w") as output:
            self._agent = subprocess.Popen(
                [*torchrun, "--max-restarts=5", *torchrun_options, str(_EXAMPLE), *options],
                env={**os.environ, **_ENVIRONMENT},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._log = log

    def is_running(self) -> bool:
        """Say whether it runs; raise TrainingFailedError if it failed."""
        if self._agent.poll() in (0, None):
            return self._agent.returncode is None
        raise TrainingFailedError(self.last_lines())

    def last_lines(self) -> str:
        """Return the end of what the torchrun and its ranks have said."""
        return "\n".join(self._log.read_text().splitlines()[-40:])

    def kill_rank(self) -> None:
        """Kill one rank, any of them."""
        os.kill(random.choice(self._ranks()), signal.SIGKILL)

    def kill(self) -> None:
        """Kill the torchrun, so that it cannot restart anything, and its ranks; or nothing."""
        ranks = self._ranks()
        self._agent.kill()
        self._agent.wait()
        for rank in ranks:
            with suppress(ProcessLookupError):  # it ends on its own when its torchrun does
                os.kill(rank, signal.SIGKILL)

    def _ranks(self) -> list[int]:
        """Return the process ids of the ranks; none if the torchrun has ended."""
        if self._agent.poll() is not None:
            return []
        pid = self._agent.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [child for child in map(int, children) if _is_rank(child)]


def undisturbed(training: Training) -> Row:
    """Train with two ranks to the end; return the figures of the run."""
    return _run(training, [2], lambda nodes, folder: None)


def killed(training: Training, num_kills: int) -> Row:
    """Train with two ranks, of which one is killed ``num_kills`` times; return the figures."""

    def kill(nodes: Sequence[Node], folder: Path) -> None:
        for step in _random_steps(training, training.steps, num_kills):
            _wait_for_step(training, nodes, folder, step)
            nodes[0].kill_rank()

    return _run(training, [2], kill)


def fewer_ranks(training: Training) -> Row:
    """Train with nodes of two ranks and of one, of which the latter is killed; return figures."""

    def kill(nodes: Sequence[Node], folder: Path) -> None:
        (step,) = _random_steps(training, training.steps * 2 // 3, 1)
        _wait_for_step(training, nodes, folder, step)
        nodes[1].kill()

    return _run(training, [2, 1], kill)


def _run(
    training: Training, ranks_of_nodes: list[int], disturb: Callable[[Sequence[Node], Path], None]
) -> Row:
    """Train on nodes, the first of which stays; return the "run" of the example's JSON file."""
    with tempfile.TemporaryDirectory(prefix="fastcomm-elastic-") as name, ExitStack() as stack:
        folder, result = Path(name) / "checkpoints", Path(name) / "result.json"
        every = training.checkpoint_every
        options = [*training.options, "--steps", str(training.steps * 2 // sum(ranks_of_nodes))]
        options += ["--checkpoint", str(folder), "--checkpoint-every", str(every)]
        port = free_port()
        nodes: list[Node] = []
        # The first node, which hosts the rendezvous, is started last, when others wait for it.
        for index, num_ranks in reversed(list(enumerate(ranks_of_nodes))):
            torchrun = [f"--nnodes=1:{len(ranks_of_nodes)}", "--rdzv-backend=c10d"]
            torchrun += [f"--rdzv-endpoint=127.0.0.1:{port}", f"--rdzv-id={port}"]
            torchrun += ["--local-addr=127.0.0.1"]
            torchrun += [f"--rdzv-conf=is_host={int(index == 0)},{_RENDEZVOUS}"]
            log = Path(name) / f"node-{index}.txt"
            nodes.insert(0, Node(num_ranks, torchrun, [*options, "--json", str(result)], log))
            stack.callback(nodes[0].kill)
        start = time.monotonic()
        disturb(nodes, folder)
        while nodes[0].is_running():
            _check_time(training, nodes, start)
            time.sleep(_POLL_SECONDS)
        row: Row = json.loads(result.read_text())["run"]
        return row | {"seconds_in_all": time.monotonic() - start}


def _random_steps(training: Training, num_steps: int, count: int) -> list[int]:
    """Return random steps after the first checkpoint, far enough from each other and the end."""
    first = training.checkpoint_every
    part = (num_steps - 2 * first) / count
    if part < 2 * first:
        raise ValueError(f"{num_steps} steps are too few for {count} kills; save more often")
    starts = [first + index * part for index in range(count)]
    return [int(random.uniform(start + first, start + part)) for start in starts]


def _wait_for_step(training: Training, nodes: Sequence[Node], folder: Path, step: int) -> None:
    """Wait for the last checkpoint before ``step``, then as long as the steps after it take."""
    start = time.monotonic()
    saved = step - step % training.checkpoint_every
    checkpoint = folder / f"step-{saved:08}"
    while not checkpoint.exists():
        if not all(node.is_running() for node in nodes):
            raise TrainingFailedError(f"the run ended before step {saved}")
        _check_time(training, nodes, start)
        time.sleep(_POLL_SECONDS)
    progress = torch.load(checkpoint / "shared.pt", weights_only=True)["progress"]
    time.sleep((step - saved) * statistics.median(progress["step_ms"]) / 1e3)


def _check_time(training: Training, nodes: Sequence[Node], start: float) -> None:
    if time.monotonic() - start > training.timeout_seconds:
        said = "\n".join(node.last_lines() for node in nodes)
        raise TrainingFailedError(f"not done within {training.timeout_seconds:g} s:\n{said}")


def _is_rank(pid: int) -> bool:
    try:
        return b"\0RANK=" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has ended
        return False


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--codec", default="topk:0.01,int4", help="default topk:0.01,int4")
    add("--data-root", type=Path, help="folder with MNIST; else scikit-learn's digits")
    add("--steps", type=int, default=468, help="with two ranks; default 468, an epoch of MNIST")
    add("--checkpoint-every", type=int, default=20, metavar="STEPS", help="default 20")
    add("--kills", type=int, default=3, help="default 3")
    add("--seeds", default="0", help="several, as in 0,1,2: how far undisturbed runs differ")
    add("--json", type=Path, help="write the rows here")
    return parser.parse_args()


def main() -> None:
    """Do all runs and print a line for each."""
    arguments = parse_arguments()
    root = arguments.data_root
    # Of the ranks, which torchrun would restart in vain.
    check_packages("numpy", "rich", *(["sklearn"] if root is None else []))
    # Its default action would leave the nodes running.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    data = ["--data", "digits"] if root is None else ["--data-root", str(root.resolve())]
    rows: list[Row] = []
    for codec in arguments.codec.split(","):
        for seed in arguments.seeds.split(","):
            options = (*data, "--codec", codec, "--seed", seed)
            training = Training(options, arguments.steps, arguments.checkpoint_every, 1800)
            for case, train in (
                ("undisturbed", undisturbed),
                ("killed", functools.partial(killed, num_kills=arguments.kills)),
                ("fewer ranks", fewer_ranks),
            ):
                run = train(training)
                rows.append({"benchmark": "elastic", "case": case, **run})
                resumed = ", ".join(
                    f"{r['step']} with {r['world_size']} ranks" for r in run["resumed"]
                )
                print(
                    f"{codec:>10}  seed {seed}  {case:>11}  best accuracy "
                    f"{run['best_test_accuracy_percent']:.2f} %  {run['seconds_in_all']:.0f} s"
                    + (f"  resumed after step {resumed}" if resumed else ""),
                    flush=True,
                )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
