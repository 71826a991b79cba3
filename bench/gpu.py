"""Everything that is to be seen on a machine with a GPU, in one command of a few minutes.

    python bench/gpu.py --json bench/results/h200.json

Builds fastcomm with CUDA for the present GPU, measures kernels, runs the tests, builds the C++
tests and runs them under compute-sanitizer, measures all-reduces of ranks that share the GPU, and
trains the MNIST example. Each part has its time; what fails or takes longer is noted, and the rest
goes on. The JSON file is written after every part. Exits with 1 if anything was not as it should
be.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from demo_extra import check_packages, demo_imports

with demo_imports():
    from gpu_builds import build_cpp_tests, build_fastcomm, run_cpp_tests, run_gpu_tests
    from gpu_environment import architecture, facts, obstacle
    from gpu_parts import Finished, Report
    from gpu_programs import measure_kernels, measure_rings, train_mnist
    from gpu_tables import print_results
    from tables import note

# All ranks are on this machine, whose name need not lead to it.
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
PARTS = ["build", "kernels", "tests", "sanitizer", "rings", "mnist"]


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--json", type=Path, required=True, help="where to write the results")
    add("--seconds", type=float, default=480, help="of all parts together (default 480)")
    add(
        "--parts",
        type=lambda text: text.split(","),
        default=PARTS,
        help=f"some of {','.join(PARTS)}; all but build need one that was done before",
    )
    add("--logs", type=Path, help="folder for what the commands print (default: beside the JSON)")
    add("--commit", help="to be noted, where there is no git")
    add("--data-root", type=Path, help="folder with the MNIST IDX files; else digits are trained")
    add("--world", type=int, default=2, help="ranks of the all-reduces (default 2)")
    add("--sanitizer-filter", default="", help="names of C++ tests for compute-sanitizer, with *")
    add("--pytest", default="", help="further arguments, such as \"-k bytes -m 'not gpu_large'\"")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {sorted(unknown)[0]!r}; known: {','.join(PARTS)}")
    return arguments


def run_parts(report: Report, arguments: argparse.Namespace, logs: Path) -> None:
    """Run what was asked for, what matters most first."""
    wanted, target = arguments.parts, architecture()

    def log(part: str) -> Path:
        return logs / f"{part}.log"

    if "build" in wanted and not report.run(
        "build", 240, partial(build_fastcomm, target, log("build"))
    ):
        wanted = [part for part in wanted if part == "sanitizer"]  # which needs no Python
    if "kernels" in wanted:
        report.run("kernels", 120, partial(measure_kernels, log("kernels")))
    with ThreadPoolExecutor(1) as background:
        # Compiled while the tests run, not while something is timed.
        built: Future[Finished] | None = None
        if "sanitizer" in wanted:
            seconds = min(180, report.seconds_left())
            built = background.submit(build_cpp_tests, target, log("sanitizer"), seconds)
        if "tests" in wanted:
            extra = shlex.split(arguments.pytest)
            report.run("tests", 200, partial(run_gpu_tests, extra, log("tests")))
        if built is not None:
            name_filter = arguments.sanitizer_filter
            part = partial(run_cpp_tests, built, name_filter, log("sanitizer"))
            report.run("sanitizer", 120, part)
    if "rings" in wanted:
        report.run("rings", 75, partial(measure_rings, arguments.world))
    if "mnist" in wanted:
        report.run("mnist", 75, partial(train_mnist, arguments.data_root, log("mnist")))


def main() -> None:
    """Do what the command line says."""
    arguments = parse_arguments()
    # Of its programs, which would be late to say so.
    check_packages("numpy", *(["sklearn"] if arguments.data_root is None else []))
    missing = obstacle()
    if missing:
        sys.exit(f"{missing}; run bench/gpu.py where an NVIDIA GPU and a CUDA torch are")
    os.environ.update(LOOPBACK)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    output: Path = arguments.json
    logs: Path = arguments.logs or output.with_suffix(".logs")
    for folder in (output.parent, logs):
        folder.mkdir(parents=True, exist_ok=True)
    for old in logs.glob("*.log"):
        old.unlink()
    report = Report(output, facts(arguments.commit), arguments.seconds)
    note(f"{report.facts['gpu']}, torch {report.facts['torch']}, commit {report.facts['commit']}")
    run_parts(report, arguments, logs)
    print_results([{**row, **report.facts} for row in report.rows])
    if not report.is_ok():
        sys.exit(f"not everything is as it should be; the rows are in {output}, logs in {logs}")


if __name__ == "__main__":
    main()
