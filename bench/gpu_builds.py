"""Parts of bench/gpu.py that build and test: fastcomm with CUDA, its tests, compute-sanitizer."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import time
from collections import Counter
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path

from gpu_parts import REPOSITORY, Finished, OutOfTimeError, PartFailedError, Row, run_command

_WARNING = re.compile(r"^.*\bwarning(?::| #).*$|^.*CMake Warning.*$", re.MULTILINE)
_OUTCOME = "(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)"
# As pytest says it with -v, in one process or in several.
_LINE = re.compile(rf"^(tests/.*?) {_OUTCOME}(?: \(.*\))?\s+\[ *\d+%\]\s*$", re.MULTILINE)
_WORKER_LINE = re.compile(rf"^\[gw\d+\] \[ *\d+%\] {_OUTCOME} (tests/.*?)\s*$", re.MULTILINE)
_REASON = re.compile(r"^(FAILED|ERROR) (tests/.*?) - (.*)$", re.MULTILINE)
_SKIP_REASON = re.compile(r"^SKIPPED \[(\d+)\] (\S+?): (.*)$", re.MULTILINE)
_MEMCHECK = re.compile(r"ERROR SUMMARY: (\d+) error")
_RACECHECK = re.compile(r"RACECHECK SUMMARY: (\d+) hazards? displayed")
_MOST_WARNINGS = 10
_TEST_PROCESSES = 4
CPP_BUILD = REPOSITORY / "build" / "cuda"
CPP_TESTS = CPP_BUILD / "tests" / "cpp" / "fastcomm_cuda_tests"


def warnings_in(output: str) -> list[str]:
    """Return the lines in which a compiler warns."""
    return [line.strip() for line in _WARNING.findall(output)]


def build_fastcomm(architecture: str, log: Path, seconds: float, rows: list[Row]) -> None:
    """Build and install fastcomm for one architecture: with pip, else with CMake by hand."""
    defines = {"FASTCOMM_CUDA": "ON", "CMAKE_CUDA_ARCHITECTURES": architecture}
    pip = [sys.executable, "-m", "pip", "install", "-v", "--no-build-isolation", "--no-deps"]
    settings = [f"--config-settings=cmake.define.{k}={v}" for k, v in defines.items()]
    done = run_command([*pip, *settings, "--editable", "."], seconds, log)
    way = "pip"
    if done.returncode and not done.out_of_time:
        way = "cmake"
        configure = ["cmake", "-S", ".", "-B", "build/gpu", "-G", "Ninja"]
        configure += [f"-D{k}={v}" for k, v in defines.items()]
        configure += [f"-DPython_EXECUTABLE={sys.executable}"]
        build_and_install = "cmake --build build/gpu && cmake --install build/gpu --prefix ."
        done = run_command(
            ["sh", "-c", f'"$@" && {build_and_install}', "sh", *configure],
            seconds - done.seconds,
            log,
        )
    warnings = warnings_in(done.output)
    rows.append(
        {
            "benchmark": "gpu_build",
            "way": way,
            "architecture": architecture,
            "seconds": done.seconds,
            "num_warnings": len(warnings),
            "warnings": warnings[:_MOST_WARNINGS],
            "correct": done.returncode == 0,
        }
    )
    done.check("the build")
    report = run_command([sys.executable, "-m", "fastcomm"], 60, log)
    report.check("python -m fastcomm")
    rows[-1]["report"] = report.output.strip().splitlines()
    line = next((li for li in rows[-1]["report"] if li.startswith("CUDA architectures")), "")
    if architecture not in line:
        rows[-1]["correct"] = False
        raise PartFailedError(f"the build is not for architecture {architecture}: {line}")


# --- Python tests ---------------------------------------------------------------------------------


def rows_of_tests(output: str, seconds: float) -> list[Row]:
    """Return what pytest -v -ra says: a row of counts, then one for each that did not pass."""
    outcomes = dict(_LINE.findall(output))
    outcomes |= {name: outcome for outcome, name in _WORKER_LINE.findall(output)}
    counts = Counter(outcomes.values())
    num_failed = counts["FAILED"] + counts["ERROR"]
    rows: list[Row] = [
        {
            "benchmark": "gpu_tests",
            "passed": counts["PASSED"],
            "failed": num_failed,
            "skipped": counts["SKIPPED"],
            "seconds": seconds,
            "correct": num_failed == 0 and counts["PASSED"] > 0,
        }
    ]
    reasons = {name: reason for _, name, reason in _REASON.findall(output)}
    rows += [
        {
            "benchmark": "gpu_test",
            "name": name,
            "outcome": outcome,
            "count": 1,
            "reason": reasons.get(name, ""),
        }
        for name, outcome in outcomes.items()
        if outcome in ("FAILED", "ERROR")
    ]
    rows += [
        {
            "benchmark": "gpu_test",
            "name": place,
            "outcome": "SKIPPED",
            "count": int(count),
            "reason": reason,
        }
        for count, place, reason in _SKIP_REASON.findall(output)
    ]
    return rows


def run_gpu_tests(extra: list[str], log: Path, seconds: float, rows: list[Row]) -> None:
    """Run the Python tests that are marked as tests on a GPU."""
    files = sorted(str(p.relative_to(REPOSITORY)) for p in REPOSITORY.glob("tests/test_gpu_*.py"))
    options = ["-v", "-ra", "--tb=short", "-p", "no:cacheprovider", "-m", "gpu", *extra]
    if importlib.util.find_spec("xdist") is not None:
        options += ["-n", str(_TEST_PROCESSES), "--dist", "loadfile"]
    variables = {"OMP_NUM_THREADS": "4", "COLUMNS": "250"}  # so that reasons are not cut
    pytest = [sys.executable, "-m", "pytest"]
    done = run_command([*pytest, *options, *files], seconds, log, variables)
    counts, *others = rows_of_tests(done.output, done.seconds)
    rows += [counts, *others]
    if done.out_of_time:
        passed, failed = counts["passed"], counts["failed"]
        raise OutOfTimeError(
            f"ended after {done.seconds:.0f} s: {passed} passed, {failed} failed so far"
        )
    if counts["failed"]:
        raise PartFailedError(f"{counts['failed']} tests failed")
    done.check("pytest")


# --- C++ tests, and the sanitizer -----------------------------------------------------------------


@dataclass(frozen=True)
class SanitizerRun:
    """A tool of compute-sanitizer, and how its summary counts what it found."""

    tool: str
    summary: re.Pattern[str]


SANITIZER_RUNS = [SanitizerRun("memcheck", _MEMCHECK), SanitizerRun("racecheck", _RACECHECK)]


def build_cpp_tests(architecture: str, log: Path, seconds: float) -> Finished:
    """Configure and build the C++ tests of the kernels."""
    configure = ["cmake", "-S", ".", "-B", str(CPP_BUILD), "-G", "Ninja", "-DFASTCOMM_PYTHON=OFF"]
    configure += ["-DFASTCOMM_TESTS=ON", "-DFASTCOMM_CUDA=ON"]
    configure += [f"-DCMAKE_CUDA_ARCHITECTURES={architecture}"]
    build = f"cmake --build {CPP_BUILD} --target fastcomm_cuda_tests"
    return run_command(["sh", "-c", f'"$@" && {build}', "sh", *configure], seconds, log)


def sanitizer_row(run: SanitizerRun, done: Finished) -> Row:
    """Return what a run of the sanitizer found; None errors: it did not come to an end."""
    summaries = run.summary.findall(done.output)
    num_errors = int(summaries[-1]) if summaries else None
    return {
        "benchmark": "gpu_sanitizer",
        "tool": run.tool,
        "num_errors": num_errors,
        "out_of_time": done.out_of_time,
        "seconds": done.seconds,
        "returncode": done.returncode,
        "correct": num_errors == 0 and done.returncode == 0,
    }


def run_cpp_tests(
    built: Future[Finished], sanitizer_filter: str, log: Path, seconds: float, rows: list[Row]
) -> None:
    """Wait for the build, run the tests, then run them under each tool of the sanitizer."""
    end = time.monotonic() + seconds
    try:
        build = built.result(timeout=seconds)
    except FutureTimeoutError:
        raise OutOfTimeError("the C++ tests are still being built") from None
    warnings = warnings_in(build.output)
    rows.append(
        {
            "benchmark": "gpu_cpp_build",
            "seconds": build.seconds,
            "num_warnings": len(warnings),
            "warnings": warnings[:_MOST_WARNINGS],
            "correct": build.returncode == 0,
        }
    )
    build.check("the build of the C++ tests")
    done = run_command([str(CPP_TESTS)], end - time.monotonic(), log)
    summary = [line for line in done.output.splitlines() if line.startswith("[doctest] test cases")]
    rows.append(
        {
            "benchmark": "gpu_cpp_tests",
            "summary": summary[-1] if summary else "",
            "seconds": done.seconds,
            "correct": done.returncode == 0,
        }
    )
    done.check("fastcomm_cuda_tests")
    if shutil.which("compute-sanitizer") is None:
        raise PartFailedError("there is no compute-sanitizer")
    filters = [f"--test-case={sanitizer_filter}"] if sanitizer_filter else []
    for index, run in enumerate(SANITIZER_RUNS):
        share = (end - time.monotonic()) / (len(SANITIZER_RUNS) - index)
        tool = ["compute-sanitizer", "--tool", run.tool, "--error-exitcode", "99"]
        done = run_command([*tool, str(CPP_TESTS), *filters], share, log)
        rows.append(sanitizer_row(run, done))
