"""bench/gpu.py without a GPU: the bytes that it counts, and how it reads what others print."""

import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
import gpu_builds
from codec_speed import moved_bytes
from fastcomm import _C
from gpu_parts import Finished, OutOfTimeError, PartFailedError
from gpu_tables import print_results
from gpu_timing import relative_error
from tables import console


@pytest.mark.parametrize(
    ("codec", "bits"),
    [("fp32", 32), ("bf16", 16), ("int8", 8.03), ("int4", 4.06), ("int2", 2.06), ("sign", 1.06)],
)
def test_bytes_that_operations_must_move(codec: str, bits: float) -> None:
    size = 25_000_000
    payload = _C.payload_bytes([_C.CodecSpec(codec)], size)
    codes = bits / 8
    per_element = {
        operation: moved_bytes(operation, size, 4, payload) / size
        for operation in ("encode", "hop", "decode")
    }
    assert per_element["encode"] == pytest.approx(4 + 4 + 4 + codes, rel=1e-3)
    assert per_element["hop"] == pytest.approx(4 + 4 + 4 + 2 * codes, rel=1e-3)
    assert per_element["decode"] == pytest.approx(4 + codes, rel=2e-3)


def test_conservation_is_measured_relative_to_what_went_in() -> None:
    total = torch.tensor([3.0, 4.0])
    assert relative_error(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 0.0]), total) == 0
    assert relative_error(torch.tensor([3.0, 4.5]), torch.zeros(2), total) == pytest.approx(0.1)
    assert relative_error(torch.zeros(2), torch.zeros(2), torch.zeros(2)) == 0
    assert relative_error(torch.ones(2), torch.zeros(2), torch.zeros(2)) == 1
    assert not relative_error(torch.full((2,), torch.nan), torch.zeros(2), total) <= 1


PYTEST_SUMMARY = """\
SKIPPED [2] tests/test_gpu_nccl.py:47: NCCL refuses 2 ranks on one GPU: Duplicate GPU detected
FAILED tests/test_gpu_hook.py::test_b[from the GPU] - AssertionError: 3 residuals differ
ERROR tests/test_gpu_hook.py::test_c - Failed: Timeout (>120.0s) from pytest-timeout.
"""
PYTEST_ONE = """\
tests/test_gpu_codec_bytes.py::test_a[int8-torch.float32] PASSED         [  1%]
tests/test_gpu_hook.py::test_b[from the GPU] FAILED                      [ 50%]
tests/test_gpu_hook.py::test_c ERROR                                     [ 60%]
tests/test_gpu_nccl.py::test_d[1] SKIPPED (NCCL refuses 2 ranks...)      [ 99%]
tests/test_gpu_nccl.py::test_d[2] SKIPPED (NCCL refuses 2 ranks...)      [100%]
"""
PYTEST_SEVERAL = """\
tests/test_gpu_codec_bytes.py::test_a[int8-torch.float32]
[gw0] [  1%] PASSED tests/test_gpu_codec_bytes.py::test_a[int8-torch.float32]
[gw1] [ 50%] FAILED tests/test_gpu_hook.py::test_b[from the GPU]
[gw1] [ 60%] ERROR tests/test_gpu_hook.py::test_c
[gw2] [ 99%] SKIPPED tests/test_gpu_nccl.py::test_d[1]
[gw2] [100%] SKIPPED tests/test_gpu_nccl.py::test_d[2]
"""


@pytest.mark.parametrize("lines", [PYTEST_ONE, PYTEST_SEVERAL], ids=["one", "several"])
def test_outcomes_of_tests_are_counted_and_named(lines: str) -> None:
    counts, *others = gpu_builds.rows_of_tests(lines + PYTEST_SUMMARY, 12.0)
    assert (counts["passed"], counts["failed"], counts["skipped"]) == (1, 2, 2)
    assert not counts["correct"]
    failed, erred, skipped = others
    assert failed["name"] == "tests/test_gpu_hook.py::test_b[from the GPU]"
    assert failed["reason"] == "AssertionError: 3 residuals differ"
    assert "Timeout" in erred["reason"]
    assert (skipped["count"], skipped["outcome"]) == (2, "SKIPPED")
    assert "Duplicate GPU" in skipped["reason"]


def test_a_run_of_tests_in_which_none_passed_is_not_correct() -> None:
    assert not gpu_builds.rows_of_tests("no tests ran", 1.0)[0]["correct"]
    (only,) = gpu_builds.rows_of_tests(PYTEST_ONE.splitlines()[0] + "\n", 1.0)
    assert only["correct"]


def test_warnings_of_compilers_are_found() -> None:
    output = """\
a.cu(3): warning #177-D: variable "x" was declared but never referenced
b.cpp:1:2: warning: unused parameter
c++ -Wall -Wno-warning b.cpp
WARNING: Running pip as the 'root' user
CMake Warning (dev) at CMakeLists.txt:3
"""
    assert len(gpu_builds.warnings_in(output)) == 3


@pytest.mark.parametrize(
    ("output", "num_errors", "correct"),
    [
        ("========= ERROR SUMMARY: 0 errors", 0, True),
        ("========= ERROR SUMMARY: 2 errors", 2, False),
        ("========= Device not supported.", None, False),
    ],
)
def test_summaries_of_the_sanitizer(output: str, num_errors: int | None, correct: bool) -> None:
    done = Finished(output, 99 if num_errors else 0, 3.0, out_of_time=False)
    row = gpu_builds.sanitizer_row(gpu_builds.SANITIZER_RUNS[0], done)
    assert (row["num_errors"], row["correct"]) == (num_errors, correct)


def test_a_build_that_fails_ends_the_part_of_the_sanitizer(tmp_path: Path) -> None:
    built: Future[Finished] = Future()
    built.set_result(Finished("x.cu(1): error: no\nx.cu(2): warning #1: w", 1, 9.0, False))
    rows: list[dict[str, Any]] = []
    with pytest.raises(PartFailedError, match=r"x.cu\(1\): error: no"):
        gpu_builds.run_cpp_tests(built, "", tmp_path / "log", 10, rows)
    assert (rows[0]["num_warnings"], rows[0]["correct"]) == (1, False)
    with pytest.raises(OutOfTimeError, match="still being built"):
        gpu_builds.run_cpp_tests(Future(), "", tmp_path / "log", 0.1, rows)


def recorded_rows() -> list[dict[str, Any]]:
    """Return a row of each kind, as a run writes them."""
    facts = {"gpu": "NVIDIA H200", "torch": "2.11.0+cu130", "commit": "abc"}
    speed = {
        "num_elements": 25_000_000,
        "seconds_median": 80e-6,
        "ratio_to_copy": 0.93,
        "copy_bytes_per_second": 4.2e12,
        "correct": True,
    }
    codec = {"benchmark": "gpu_codec", "codec": "int8", "variant": "kernel", **speed}
    rows: list[dict[str, Any]] = [
        *({**codec, "operation": operation} for operation in ("encode", "hop", "decode")),
        {**codec, "codec": "sign", "operation": "encode", "correct": False},
        {
            "benchmark": "gpu_topk",
            "codec": "topk:0.01",
            "seconds_torch_topk": 3e-3,
            "speedup_over_torch_topk": 30.0,
            **speed,
        },
        {"benchmark": "gpu_int8", "method": "Triton", "seconds_ratio_to_fastcomm": 1.2, **speed},
        {
            "benchmark": "gpu_allreduce",
            "backend": "gloo",
            "method": "int8",
            "world_size": 2,
            "num_gpus": 1,
            "size_bytes": 10**8,
            "seconds_median": 0.05,
            "algbw_bytes_per_second": 2e9,
            "wire_bytes": None,
            "relative_error": 0.005,
            "identical": True,
            "correct": True,
        },
        {
            "benchmark": "gpu_allreduce_failure",
            "backend": "nccl",
            "way": "distinct NCCL_HOSTID",
            "failure": "Duplicate GPU detected",
        },
        {"benchmark": "gpu_build", "seconds": 90.0, "num_warnings": 2, "correct": True},
        *gpu_builds.rows_of_tests(PYTEST_ONE + PYTEST_SUMMARY, 60.0),
        {
            "benchmark": "gpu_sanitizer",
            "tool": "racecheck",
            "num_errors": None,
            "seconds": 30.0,
            "correct": False,
        },
        {
            "benchmark": "gpu_mnist",
            "data_name": "MNIST",
            "codec": "int8",
            "best_test_accuracy_percent": 98.7,
            "seconds_training": 9.0,
            "step_time_median_ms": 4.0,
        },
        {
            "benchmark": "gpu_part",
            "part": "sanitizer",
            "status": "out of time",
            "message": "Traceback\nended after 120 s",
            "seconds": 120.0,
        },
    ]
    return [{**row, **facts} for row in rows]


def test_recorded_rows_become_tables() -> None:
    with console.capture() as captured:
        print_results(recorded_rows())
        print_results([])
    text = captured.get()
    for expected in (
        "25 M elements of float32; copy 4.20 TB/s",
        "TB/s",
        "WRONG",
        "int8 in Triton",
        "30.0",
        "All-reduce, 2 ranks on 1 GPU",
        "nccl (distinct NCCL_HOSTID): Duplicate GPU detected",
        "1 passed, 2 failed, 2 skipped",
        "racecheck: did not finish",
        "MNIST, int8: 98.70 %",
        "ended after 120 s",
        "NVIDIA H200, torch 2.11.0+cu130, commit abc",
    ):
        assert expected in text, expected
