"""bench/gpu.py without a GPU: its parts, and the time that each may take."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
from gpu_parts import OutOfTimeError, PartFailedError, Report, rows_of_lines, run_command

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "bench" / "gpu.py"
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@without_gpu
def test_without_a_gpu_it_says_so_and_does_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), "--json", str(tmp_path / "folder" / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "no GPU" in done.stderr
    assert not done.stdout
    assert not list(tmp_path.iterdir())


@without_gpu
def test_the_example_says_that_there_is_no_gpu() -> None:
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "mnist_ddp.py"), "--device", "cuda"],
        env={**os.environ, **ranks},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "--device cuda" in done.stderr
    assert "sees no GPU" in done.stderr
    assert "Traceback" not in done.stderr


# --- parts and their time -----------------------------------------------------------------------


def report_in(folder: Path, seconds: float = 100) -> Report:
    return Report(folder / "out.json", {"gpu": "none", "commit": "abc"}, seconds)


def written(report: Report) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(report.path.read_text())
    return rows


def measure_and(error: Exception | None) -> Any:
    def part(seconds: float, rows: list[dict[str, Any]]) -> None:
        rows.append({"benchmark": "measured", "correct": True})
        if error is not None:
            raise error

    return part


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (None, "ok", ""),
        (PartFailedError("3 tests failed"), "failed", "3 tests failed"),
        (OutOfTimeError("after 5 s"), "out of time", "after 5 s"),
        (ZeroDivisionError("by zero"), "failed", "ZeroDivisionError: by zero"),
    ],
)
def test_what_becomes_of_a_part_is_written_and_the_rest_goes_on(
    tmp_path: Path, error: Exception | None, status: str, message: str
) -> None:
    report = report_in(tmp_path)
    assert report.run("first", 50, measure_and(error)) == (status == "ok")
    measured, part = written(report)
    assert measured == {"benchmark": "measured", "correct": True, "gpu": "none", "commit": "abc"}
    assert (part["part"], part["status"]) == ("first", status)
    assert message in part["message"]
    assert part["seconds_allowed"] == pytest.approx(50)
    assert report.run("second", 50, measure_and(None))
    assert [row["status"] for row in written(report) if "status" in row] == [status, "ok"]
    assert report.is_ok() == (error is None)


def test_a_part_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    mark = tmp_path / "too late"
    script = f"(sleep 2; touch '{mark}') & echo begun; sleep 60"

    def part(seconds: float, rows: list[dict[str, Any]]) -> None:
        done = run_command(["sh", "-c", script], 0.5, tmp_path / "log")
        assert done.out_of_time
        assert done.output == "begun\n"
        done.check("the script")

    report = report_in(tmp_path)
    begin = time.monotonic()
    assert not report.run("slow", 20, part)
    assert time.monotonic() - begin < 2
    assert written(report)[0]["status"] == "out of time"
    time.sleep(2)
    assert not mark.exists()


def test_a_part_is_not_begun_when_no_time_is_left(tmp_path: Path) -> None:
    report = report_in(tmp_path, seconds=1)
    assert not report.run("late", 50, measure_and(None))
    (row,) = written(report)
    assert (row["status"], row["message"]) == ("not begun", "no time was left")
    assert not report.is_ok()


def test_rows_that_are_not_correct_fail_their_part(tmp_path: Path) -> None:
    def part(seconds: float, rows: list[dict[str, Any]]) -> None:
        rows += [{"benchmark": "x", "correct": True}, {"benchmark": "x", "correct": False}]

    report = report_in(tmp_path)
    assert not report.run("wrong", 50, part)
    assert written(report)[-1]["message"] == "1 rows are not correct"


def test_a_command_that_fails_is_named_with_its_error(tmp_path: Path) -> None:
    done = run_command(["sh", "-c", "echo fatal error: no; exit 3"], 10, tmp_path / "log")
    with pytest.raises(PartFailedError, match="the build: exit code 3: fatal error: no"):
        done.check("the build")
    assert "fatal error" in (tmp_path / "log").read_text()


def test_rows_of_a_program_that_was_ended_are_read_up_to_the_last_whole_one(tmp_path: Path) -> None:
    lines = tmp_path / "rows.jsonl"
    assert rows_of_lines(lines) == []
    lines.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert rows_of_lines(lines) == [{"a": 1}, {"a": 2}]
