"""Trains the MNIST CNN once per method, one after another, and shows the results side by side.

    python examples/mnist_ddp.py --compare                  # a short run of the usual methods
    python examples/mnist_ddp.py --compare --epochs 4 --seeds 0,1,2 --rate 1gbit

As root every rank gets a network namespace with a link of the given rate; without, the ranks talk
over the unshaped loopback. Other options go to every run: see mnist_ddp.py --help.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

import mnist_recipe
from mnist_download import default_folder, prepare_mnist
from mnist_picture import draw_picture
from mnist_recipe import Recipe
from mnist_report import Row
from mnist_requirements import demo_extra
from mnist_table import print_table

with demo_extra():
    from rich.console import Console
    from rich.markup import escape

# The link belongs to the benchmarks, which are scripts and no package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))
from launch import free_port
from shaped_link import ShapedLink, ShapeSupport, can_shape, parse_rate

SHORT_METHODS = "none,fp16-hook,int8,int4,topk:0.01"
FULL_METHODS = f"{SHORT_METHODS},powersgd"
_TRAINING_SCRIPT = Path(__file__).resolve().parent / "mnist_ddp.py"
_console = Console()


@dataclass(frozen=True)
class RankProcess:
    """A running rank and the file that takes what only matters when it fails."""

    process: subprocess.Popen[bytes]
    log: IO[bytes]

    def last_lines(self, count: int = 15) -> list[str]:
        """Return the end of the log."""
        self.log.seek(0)
        return self.log.read().decode(errors="replace").rstrip().splitlines()[-count:]


class MethodFailedError(RuntimeError):
    """A rank of a run ended with an error."""


@contextmanager
def rank_processes(
    link: ShapedLink | None, world_size: int, options: list[str]
) -> Iterator[list[RankProcess]]:
    """Start the training script once per rank; whatever still runs at the end is killed."""
    ranks: list[RankProcess] = []
    local = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    local["GLOO_SOCKET_IFNAME"] = "lo"
    with ExitStack() as stack:
        for rank in range(world_size):
            place = {"RANK": rank, "LOCAL_RANK": rank}
            size = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
            environment = {name: str(value) for name, value in (place | size).items()}
            environment |= local if link is None else link.environment(rank)
            prefix = [] if link is None else link.command_prefix(rank)
            log = stack.enter_context(tempfile.TemporaryFile())
            process = subprocess.Popen(
                [*prefix, sys.executable, str(_TRAINING_SCRIPT), *options],
                env=os.environ | environment,
                stdout=None if rank == 0 else log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches this process only, which then ends them
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            ranks.append(RankProcess(process, log))
        yield ranks


def train(link: ShapedLink | None, world_size: int, options: list[str]) -> tuple[Row, list[Row]]:
    """Train once; return the run's summary and its rows, or raise MethodFailedError."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        with rank_processes(link, world_size, [*options, "--json", str(result)]) as ranks:
            _wait_for_all(ranks)
        content = json.loads(result.read_text())
        return content["run"], content["rows"]


def _wait_for_all(ranks: list[RankProcess]) -> None:
    running = dict(enumerate(ranks))
    while running:
        time.sleep(0.05)
        ended = {
            rank: code for rank, it in running.items() if (code := it.process.poll()) is not None
        }
        for rank, code in ended.items():
            if code != 0:
                lines = running[rank].last_lines()
                print(*lines, sep="\n", file=sys.stderr)
                raise MethodFailedError(
                    f"rank {rank}: {lines[-1] if lines else f'exit code {code}'}"
                )
            del running[rank]


def describe_link(link: ShapedLink | None, obstacle: str) -> str:
    """Check the link's real rate and say what the ranks talk over."""
    if link is None:
        return f"[yellow]NOT a shaped link[/]: {escape(obstacle)}; the ranks share the loopback"
    if link.world_size < 2:
        return f"{link.rate} each way (one rank: nothing to measure)"
    measured, asked = link.measure_rate() / 1e6, (link.bits_per_second or 0) / 1e6
    text = f"{asked:g} Mbit/s each way per rank, measured {measured:.1f} Mbit/s"
    accurate = abs(measured - asked) <= 0.05 * asked
    return text if accurate else f"{text} [yellow](more than 5 % off: a busy machine?)[/]"


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Read the command line; what is not for the comparison goes to the training script."""
    parser = argparse.ArgumentParser(
        "mnist_ddp.py --compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--methods", help=f"default {SHORT_METHODS}; with --epochs also powersgd")
    add("--world", type=int, default=2, help="ranks (default 2)")
    add("--rate", default="100mbit", help="100mbit (default), 1gbit, ...; none: unshaped")
    add("--epochs", type=int, help="the full run, for so many epochs")
    add("--steps", type=int, help="where there is no --epochs; the default goes by the data")
    add("--lr", type=float, help="peak learning rate; the default goes by data and length")
    add("--seeds", default="0", help="several, as in 0,1,2: mean and range are shown")
    add("--data-root", type=Path, help="folder with the MNIST IDX files, or for the download")
    add("--data", choices=("auto", "digits"), default="auto", help="digits: scikit-learn's")
    add("--output", type=Path, default=Path("demo.png"), help="the picture (default demo.png)")
    add("--json", type=Path, help="write all results here")
    arguments, other_options = parser.parse_known_args()
    if arguments.rate != "none":
        try:
            parse_rate(arguments.rate)
        except ValueError as error:
            parser.error(str(error))
    return arguments, other_options


def _data_options(arguments: argparse.Namespace) -> tuple[list[str], Recipe]:
    # Here and not in the ranks, because a shaped link leads nowhere else.
    folder = arguments.data_root if arguments.data_root is not None else default_folder()
    if arguments.data == "auto" and prepare_mnist(folder):
        _console.print(f"data: MNIST, {folder}", markup=False, highlight=False)
        return ["--data-root", str(folder.resolve())], mnist_recipe.MNIST
    with demo_extra():
        import sklearn  # type: ignore[import-untyped]  # noqa: F401  # ranks would fail one by one
    _console.print("data: scikit-learn's digits, [yellow]NOT MNIST[/]", highlight=False)
    return ["--data", "digits"], mnist_recipe.SMALL_DIGITS


def schedule_options(arguments: argparse.Namespace, recipe: Recipe) -> list[str]:
    """Return for how long and at which peak learning rate the ranks are to train."""
    if arguments.epochs is not None and arguments.steps is None:
        length, rate = ["--epochs", str(arguments.epochs)], arguments.lr
    else:
        length = ["--steps", str(arguments.steps or recipe.comparison_steps)]
        rate = arguments.lr or recipe.comparison_learning_rate
    return length if rate is None else [*length, "--lr", str(rate)]


def _end_by_exception(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _run_all(
    link: ShapedLink | None, arguments: argparse.Namespace, options: list[str]
) -> tuple[list[Row], list[Row], dict[str, str]]:
    """Train with every method and seed; return summaries, rows, and what failed with its reason."""
    methods = arguments.methods or (FULL_METHODS if arguments.epochs else SHORT_METHODS)
    runs: list[Row] = []
    rows: list[Row] = []
    failed: dict[str, str] = {}
    for seed in arguments.seeds.split(","):
        for method in methods.split(","):
            own = ["--codec", method, "--seed", seed]
            try:
                run, its_rows = train(link, arguments.world, [*own, *options])
            except MethodFailedError as error:
                failed[method] = f"{error} (seed {seed})"
                continue
            runs.append(run)
            rows += [{"codec": method, "seed": run["seed"]} | row for row in its_rows]
    return runs, rows, failed


def main() -> int:
    """Run the comparison; return the exit code, 1 when a method failed."""
    arguments, other_options = parse_arguments()
    signal.signal(signal.SIGTERM, _end_by_exception)
    wanted = arguments.rate != "none"
    shaped, obstacle = can_shape() if wanted else ShapeSupport(False, "asked for with --rate none")
    data_options, recipe = _data_options(arguments)
    options = [*data_options, *schedule_options(arguments, recipe), *other_options]
    options += ["--link-rate", arguments.rate if shaped else "unshaped", "--quiet"]
    try:
        with ShapedLink(arguments.world, arguments.rate) if shaped else nullcontext() as link:
            _console.print(f"link: {describe_link(link, obstacle)}", highlight=False)
            runs, rows, failed = _run_all(link, arguments, options)
    except KeyboardInterrupt:
        _console.print("interrupted: ranks and link are gone", style="yellow")
        return 130
    print_table(_console, runs, failed)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"runs": runs, "rows": rows}, indent=1) + "\n")
    if runs:
        draw_picture(runs, rows, arguments.output)
        _console.print(f"picture: {arguments.output}")
    return 1 if failed else 0
