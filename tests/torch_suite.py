"""Runs PyTorch's own DDP tests with fastcomm: those that pass without a hook must pass with it.

PyTorch ships the tests, in torch.testing._internal.distributed. Each runs at 2 and at 3 ranks, as
it is and with ``fastcomm.register(model, "fp32")`` on every DDP model that brings no hook of its
own. Some can pass with no hook at all, or with none that does not call torch's all-reduce: they are
listed here, and must then fail with a hook of plain torch as well.

    python tests/torch_suite.py                                 # all; exits with 1 if any is wrong
    python tests/torch_suite.py test_ddp_uneven_inputs [...]    # these, with what they said
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

NUM_RANKS = (2, 3)
# Fewer of them, and the tests have moved or cannot start: then nothing was shown.
FEWEST_TESTS = 60
FEWEST_SYNCHRONIZED_TESTS = 40

KINDS = ("without hook", "all-reduce", "all-gather", "fastcomm")
COLUMNS = "{:<66} {:>5}  {:<13} {:<11} {:<11} {:<9} {:>7}"


class Exempt(NamedTuple):
    """A test that no hook, or none of a kind, can pass."""

    also_fails_with: str  # the hook of plain torch that shows it
    reason: str


EXEMPT = {
    "test_ddp_comm_hook_logging": Exempt(
        "all-reduce", "asserts that a model without a hook logs no name of one"
    ),
    "test_ddp_grad_div_uneven_inputs": Exempt(
        "all-reduce",
        "join(divide_by_initial_world_size=False) changes the divisor of DDP's own all-reduce; "
        "hooks divide by themselves and are not told",
    ),
    "test_ddp_profiling_torch_profiler": Exempt(
        "all-gather", "counts the profiler's events of torch's all-reduce"
    ),
}


class Outcome(NamedTuple):
    """What became of a test: ``passed``, ``skipped`` or ``failed``, and why."""

    result: str = "-"
    why: str = ""

    def summary(self) -> str:
        """Return the line that names the error."""
        errors = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception)\b.*$", self.why, re.MULTILINE)
        own = [error for error in errors if "exited with error code" not in error]
        return str((own or errors or [self.why])[0])


@dataclass(frozen=True)
class Row:
    """One test at one number of ranks."""

    test: str
    num_ranks: int
    num_buckets: int  # that fastcomm synchronized, over all ranks
    outcomes: dict[str, Outcome]  # by kind

    def outcome(self, kind: str) -> Outcome:
        """Return the outcome of a kind of run; "-" if there was none."""
        return self.outcomes.get(kind, Outcome())

    def problem(self) -> str:
        """Return what breaks the rule, or nothing."""
        if self.outcome("without hook").result != "passed":
            return ""
        passes = self.outcome("fastcomm").result == "passed"
        exempt = EXEMPT.get(self.test)
        if exempt is None and not passes:
            return "passes without a hook, but not with fastcomm: " + self.outcome("fastcomm").why
        if exempt is not None and passes:
            return "is listed as exempt, but passes with fastcomm"
        if exempt is not None and self.outcome(exempt.also_fails_with).result == "passed":
            return f"is listed as exempt, but passes with {exempt.also_fails_with}"
        return ""

    def __str__(self) -> str:
        results = [self.outcome(kind).result for kind in KINDS]
        return COLUMNS.format(self.test, self.num_ranks, *results, self.num_buckets or "")


def run_tests(num_ranks: int, tests: list[str]) -> Iterator[Row]:
    """Run tests at a number of ranks, all if none are named, one after the other."""
    script = Path(__file__).with_name("torch_suite_ranks.py")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        environment = {
            "BACKEND": "gloo",
            "WORLD_SIZE": str(num_ranks),
            "OMP_NUM_THREADS": "1",
            "TMPDIR": folder,  # the tests leave files behind
        }
        process = subprocess.Popen(
            [sys.executable, str(script), " ".join(tests), " ".join(EXEMPT)],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            row = json.loads(line)
            outcomes = {kind: Outcome(*outcome) for kind, outcome in row["outcomes"].items()}
            yield Row(row["test"], num_ranks, row["num_buckets"], outcomes)
        if process.wait() != 0:
            log.seek(0)
            raise RuntimeError(f"{script.name} failed at {num_ranks} ranks:\n{log.read()[-5000:]}")


def run_and_print(num_ranks: int, tests: list[str]) -> list[Row]:
    """Run tests at a number of ranks, and print each that is not skipped."""
    rows = []
    for row in run_tests(num_ranks, tests):
        rows.append(row)
        if row.outcome("without hook").result != "skipped":
            print(row, flush=True)
    return rows


def problems_of(rows: list[Row], are_all: bool) -> list[str]:
    """Return what breaks the rule, and what makes it say too little."""
    problems = [
        f"{row.test} at {row.num_ranks} ranks {row.problem()}" for row in rows if row.problem()
    ]
    if not are_all:
        return problems
    for num_ranks in NUM_RANKS:
        passed = passed_without_hook(rows, num_ranks)
        num_synchronized = sum(row.num_buckets > 0 for row in passed)
        if len(passed) < FEWEST_TESTS or num_synchronized < FEWEST_SYNCHRONIZED_TESTS:
            problems.append(
                f"only {len(passed)} tests pass without a hook at {num_ranks} ranks, and fastcomm "
                f"synchronized gradients in {num_synchronized} of them; expected are "
                f"{FEWEST_TESTS} and {FEWEST_SYNCHRONIZED_TESTS}"
            )
    run = {row.test for row in rows if row.outcome("without hook").result == "passed"}
    problems += [f"{test} is listed as exempt, but did not run" for test in EXEMPT.keys() - run]
    return problems


def passed_without_hook(rows: list[Row], num_ranks: int) -> list[Row]:
    """Return the tests to which the rule applies."""
    return [
        row
        for row in rows
        if row.num_ranks == num_ranks and row.outcome("without hook").result == "passed"
    ]


def print_summary(rows: list[Row]) -> None:
    """Print what did not count, and why, and what did."""
    for test, exempt in EXEMPT.items():
        if any(row.test == test for row in rows):
            print(f"exempt: {test} fails with {exempt.also_fails_with} too: {exempt.reason}")
    failed = [row for row in rows if row.outcome("without hook").result == "failed"]
    for said, number in Counter(row.outcome("without hook").summary() for row in failed).items():
        print(f"{number:>3} fail without a hook: {said[:100]}")
    for num_ranks in NUM_RANKS:
        here = [row for row in rows if row.num_ranks == num_ranks]
        passed = passed_without_hook(rows, num_ranks)
        with_fastcomm = [row for row in passed if row.outcome("fastcomm").result == "passed"]
        print(
            f"{num_ranks} ranks: {len(passed)} tests pass without a hook, "
            f"{len(with_fastcomm)} of them with fastcomm, which synchronized "
            f"{sum(row.num_buckets for row in with_fastcomm)} buckets in "
            f"{sum(row.num_buckets > 0 for row in with_fastcomm)} tests; "
            f"{sum(row.test in EXEMPT for row in passed)} are exempt, "
            f"{sum(row in failed for row in here)} fail and "
            f"{sum(row.outcome('without hook').result == 'skipped' for row in here)} skip "
            "themselves without a hook"
        )


def main() -> int:
    """Run the tests and judge them."""
    parser = argparse.ArgumentParser(description="PyTorch's own DDP tests with fastcomm's hook")
    parser.add_argument("tests", nargs="*", help="only these, with what they said where they fail")
    tests = parser.parse_args().tests
    start = time.monotonic()
    print(COLUMNS.format("test", "ranks", *KINDS, "buckets"))
    with ThreadPoolExecutor() as pool:
        both = pool.map(lambda num_ranks: run_and_print(num_ranks, tests), NUM_RANKS)
        rows = [row for rows in both for row in rows]
    if tests:
        for row in rows:
            for kind, outcome in row.outcomes.items():
                if outcome.why:
                    print(f"\n{row.test} at {row.num_ranks} ranks, {kind}: {outcome.why}")
    print_summary(rows)
    problems = problems_of(rows, are_all=not tests)
    for problem in problems:
        print(f"WRONG: {problem}")
    print(f"{'WRONG' if problems else 'right'} after {time.monotonic() - start:.0f} s")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
