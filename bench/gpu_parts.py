"""The parts of bench/gpu.py: each has so much time, and what becomes of it is a row of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]
REPOSITORY = Path(__file__).resolve().parent.parent
# With less time left, a part is not begun.
_FEWEST_SECONDS = 5.0


class PartFailedError(RuntimeError):
    """A part found something wrong; says what."""


class OutOfTimeError(PartFailedError):
    """A part took longer than it may."""


@dataclass(frozen=True)
class Finished:
    """A command that ended, or was ended."""

    output: str
    returncode: int
    seconds: float
    out_of_time: bool

    def check(self, what: str) -> None:
        """Raise :class:`PartFailedError` unless the command succeeded."""
        if self.out_of_time:
            raise OutOfTimeError(f"{what}: ended after {self.seconds:.0f} s")
        if self.returncode:
            lines = [line for line in self.output.splitlines() if line.strip()]
            telling = [line for line in lines if "error" in line.lower()] or lines[-1:]
            last = telling[-1].strip()[:300] if telling else "no message"
            raise PartFailedError(f"{what}: exit code {self.returncode}: {last}")


def run_command(
    command: list[str],
    seconds: float,
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run a command in the repository for at most ``seconds``; its output goes to ``log``, too."""
    start = time.monotonic()
    with log.open("a") as file:
        print(f"\n$ {' '.join(command)}", file=file, flush=True)
        begin = file.tell()
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # with all that it starts
        )
        out_of_time = False
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            out_of_time = True
        finally:
            _end(process)
    with log.open(errors="replace") as file:
        file.seek(begin)
        output = file.read()
    return Finished(output, process.returncode, time.monotonic() - start, out_of_time)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command, and what it left behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        process.wait()


@dataclass
class Report:
    """Rows of all parts, in a file that is written anew after each of them."""

    path: Path
    facts: Row
    seconds: float
    rows: list[Row] = field(default_factory=list)
    start: float = field(default_factory=time.monotonic)

    def seconds_left(self) -> float:
        """Return how long the parts that are left may take."""
        return self.seconds - (time.monotonic() - self.start)

    def run(self, name: str, most_seconds: float, part: Callable[[float, list[Row]], None]) -> bool:
        """Run a part for at most so long; it appends to the rows that it is given.

        What it has measured is kept, even if it raises.

        Returns:
            Whether the part succeeded.
        """
        allowed = min(most_seconds, self.seconds_left())
        found: list[Row] = []
        status, message, begin = "ok", "", time.monotonic()
        print(f"{name}: at most {max(allowed, 0):.0f} s", flush=True)
        if allowed < _FEWEST_SECONDS:
            status, message = "not begun", "no time was left"
        else:
            try:
                part(allowed, found)
            except OutOfTimeError as error:
                status, message = "out of time", str(error)
            except PartFailedError as error:
                status, message = "failed", str(error)
            except Exception:
                status, message = "failed", traceback.format_exc(limit=-3)
        wrong = [row for row in found if row.get("correct") is False]
        if status == "ok" and wrong:
            status, message = "failed", f"{len(wrong)} rows are not correct"
        self.rows += found
        self.rows.append(
            {
                "benchmark": "gpu_part",
                "part": name,
                "status": status,
                "message": message,
                "seconds": time.monotonic() - begin,
                "seconds_allowed": allowed,
            }
        )
        self.write()
        print(f"{name}: {status} {message}".rstrip(), flush=True)
        return status == "ok"

    def write(self) -> None:
        """Write what there is so far, whole or not at all."""
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps([{**row, **self.facts} for row in self.rows], indent=1))
        unfinished.rename(self.path)

    def is_ok(self) -> bool:
        """Return whether every part so far succeeded."""
        parts = [row for row in self.rows if row["benchmark"] == "gpu_part"]
        return all(row["status"] == "ok" for row in parts)


def rows_of_lines(path: Path) -> list[Row]:
    """Return the rows that a program has written, one a line; a last line may be cut off."""
    rows: list[Row] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
