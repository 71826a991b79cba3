"""The jobs of bench/accuracy.py: several processes, and a file that survives interruptions."""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import threading
import traceback
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from accuracy_tasks import RECIPES
from accuracy_training import Job, train
from measure import facts
from tables import console

Row = dict[str, Any]

# Of the facts, what every row has; the rows of curves are many, and their runs have the others.
_ORIGIN = ("machine", "cpu_model", "cores", "torch", "commit", "date")
_REPORT_SECONDS = 0.3
_RUN_KINDS = ("accuracy", "accuracy_learning_rate")


class Results:
    """All rows so far; written to a file, if there is one, whenever a job is done."""

    def __init__(self, path: Path | None, resume: bool) -> None:
        self._path = path
        self.rows: list[Row] = []
        if resume and path is not None and path.exists():
            self.rows = json.loads(path.read_text())
        self._done = {
            (row["benchmark"], _job_of(row)) for row in self.rows if row["benchmark"] in _RUN_KINDS
        }

    def has(self, job: Job, is_sweep: bool) -> bool:
        """Return whether the job need not run; a sweep's has no curve, which others need."""
        kinds = _RUN_KINDS if is_sweep else ("accuracy",)
        return any((kind, job) in self._done for kind in kinds)

    def add(self, rows: Iterable[Row]) -> None:
        """Add the rows of a job, and replace the file in one go: no interruption leaves half."""
        self.rows += rows
        if self._path is not None:
            part = self._path.with_name(self._path.name + ".part")
            part.write_text(json.dumps(self.rows, indent=1))
            os.replace(part, self._path)


def _job_of(row: Row) -> Job:
    return Job(**{name: row[name] for name in Job.__dataclass_fields__})


def run_jobs(
    jobs: Sequence[Job], results: Results, processes: int, data_root: Path | None, is_sweep: bool
) -> int:
    """Run the jobs that the results lack; return how many failed."""
    missing = [job for job in jobs if not results.has(job, is_sweep)]
    if len(missing) < len(jobs):
        console.print(f"{len(jobs) - len(missing)} of {len(jobs)} runs are in the file already")
    if not missing:
        return 0
    origin = facts()
    failed = 0
    # A forked process would inherit torch's threads in any state; a fresh one is clean.
    context = multiprocessing.get_context("spawn")
    steps_done: Queue[tuple[int, int]] = context.Queue()
    executor = ProcessPoolExecutor(
        min(processes, len(missing)), context, _start_worker, (steps_done,)
    )
    display = _Display(missing)
    try:
        with display.progress:
            futures: dict[Future[list[Row]], int] = {
                executor.submit(_run, index, job, data_root): index
                for index, job in enumerate(missing)
            }
            pending = set(futures)
            while pending:
                done, pending = wait(pending, _REPORT_SECONDS, FIRST_COMPLETED)
                display.update(steps_done)
                for future in done:
                    index = futures[future]
                    try:
                        rows = future.result()
                    except Exception as error:
                        display.failed(index, error)
                        failed += 1
                        continue
                    results.add(_complete(rows, origin, is_sweep))
                    display.finished(index, rows[-1])
    finally:
        # Also after Ctrl-C: what runs is not waited for, what waits does not start.
        executor.shutdown(wait=False, cancel_futures=True)
    return failed


def _complete(rows: list[Row], origin: dict[str, Any], is_sweep: bool) -> list[Row]:
    """Return the rows with where they come from; of a sweep the run's alone."""
    if is_sweep:
        return [{**rows[-1], "benchmark": "accuracy_learning_rate", **origin}]
    short = {name: origin[name] for name in _ORIGIN}
    return [*({**row, **short} for row in rows[:-1]), {**rows[-1], **origin}]


# Of a worker process: where it reports to.
_steps_done: Queue[tuple[int, int]] | None = None


def _start_worker(steps_done: Queue[tuple[int, int]]) -> None:
    global _steps_done
    _steps_done = steps_done
    # Processes share the cores; and one thread adds in the same order on every machine.
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the one that started it was killed: nobody else would."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(index: int, job: Job, data_root: Path | None) -> list[Row]:
    assert _steps_done is not None
    report_to = _steps_done
    every = max(1, job.steps // 50)

    def report(step: int) -> None:
        if step == 1 or step % every == 0:
            report_to.put((index, step))

    return train(job, data_root, report)


class _Display:
    """Lines on the terminal: all jobs together, those that run, and those that are done."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._lines: dict[int, TaskID] = {}
        self._ended: set[int] = set()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(20),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._total = self.progress.add_task("runs", total=len(jobs))

    def update(self, steps_done: Queue[tuple[int, int]]) -> None:
        """Show the steps that workers have reported."""
        while True:
            try:
                index, step = steps_done.get_nowait()
            except queue.Empty:
                return
            if index in self._ended:  # its last reports came late
                continue
            if index not in self._lines:
                job = self._jobs[index]
                self._lines[index] = self.progress.add_task(_describe(job), total=job.steps)
            self.progress.update(self._lines[index], completed=step)

    def finished(self, index: int, row: Row) -> None:
        """Print how a run ended."""
        metric = RECIPES[row["task"]].metric
        value = row[f"final_{metric.name}"]
        outcome = f"{metric.name} {value:.4g}" if value is not None else "no final figure"
        if row["diverged"]:
            outcome += f", diverged: {row['divergence']}"
        self._end(index, f"{outcome}, {row['seconds']:.1f} s")

    def failed(self, index: int, error: Exception) -> None:
        """Print why a run has no result."""
        trace = "".join(traceback.format_exception(error))
        self._end(index, f"failed:\n{trace}")

    def _end(self, index: int, outcome: str) -> None:
        self._ended.add(index)
        if index in self._lines:
            self.progress.update(self._lines[index], visible=False)
        self.progress.update(self._total, completed=len(self._ended))
        line = f"[{len(self._ended)}/{len(self._jobs)}] {_describe(self._jobs[index])}: {outcome}"
        console.print(line, markup=False, soft_wrap=True)


def _describe(job: Job) -> str:
    return (
        f"{job.task} {job.optimizer} {job.world_size} ranks {job.codec} "
        f"lr {job.learning_rate:g} seed {job.seed}"
    )
