"""What a training run reports: the bytes it sent, its live progress, the machine it ran on."""

import math
import os
import platform
import statistics
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mnist_requirements import demo_extra

with demo_extra():
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

Row = dict[str, Any]

# How PowerSGD is set up in this example: the rank of its matrices, where "powersgd:RANK" does not
# say it, and how many steps at the start it sends uncompressed.
_POWERSGD_RANK = 2
POWERSGD_PLAIN_STEPS = 10

INTERFACE, FASTCOMM, COMPUTED = "interface", "fastcomm", "computed"


@dataclass
class TrainingProgress:
    """How far a run has come, restarts included; steps that a restart did again count once."""

    total_samples: int  # that all ranks together are to see, each epoch's anew
    samples_seen: int = 0
    step: int = 0
    seconds_training: float = 0.0  # up to the last time the clock was stopped
    step_ms: list[float] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)  # of the evaluations
    resumed: list[Row] = field(default_factory=list)  # from a checkpoint: step and world_size

    @property
    def is_lost(self) -> bool:
        """Whether the loss is not finite, from which no training comes back."""
        return bool(self.rows) and not math.isfinite(self.rows[-1]["loss"])

    def rows_for_json(self) -> list[Row]:
        """Return the rows with null for a loss that is not finite, which JSON has no number for."""
        return [
            row | {"loss": row["loss"] if math.isfinite(row["loss"]) else None} for row in self.rows
        ]

    def summary(self, wire_bytes_source: str, target: float) -> Row:
        """Return the figures of the whole run; ``target`` is a test accuracy in percent."""
        reached = [row for row in self.rows if row["test_accuracy_percent"] >= target]
        return {
            "steps": self.step,
            "final_test_accuracy_percent": self.rows[-1]["test_accuracy_percent"],
            "loss_not_finite_by_step": self.rows[-1]["step"] if self.is_lost else None,
            "best_test_accuracy_percent": max(row["test_accuracy_percent"] for row in self.rows),
            "target_accuracy_percent": target,
            "seconds_to_target": reached[0]["seconds_training"] if reached else None,
            "steps_to_target": reached[0]["step"] if reached else None,
            "step_time_median_ms": statistics.median(self.step_ms),
            "wire_bytes_per_step": self.rows[-1]["wire_bytes"] / self.rows[-1]["step"],
            "wire_bytes_per_step_at_end": self._wire_bytes_per_step_at_end(),
            "wire_bytes_counted_by": wire_bytes_source,
            "seconds_training": self.rows[-1]["seconds_training"],
            "restarts": len(self.resumed),
            "resumed": self.resumed,
        }

    def _wire_bytes_per_step_at_end(self) -> float:
        """Bytes since the evaluation before the last: what warms up sends more before."""
        before, last = [{"step": 0, "wire_bytes": 0.0}, *self.rows][-2:]
        bytes_since, steps_since = (last[key] - before[key] for key in ("wire_bytes", "step"))
        return float(bytes_since / steps_since)


def is_powersgd(codec: str) -> bool:
    """Return whether gradients are synchronized by PyTorch's PowerSGD hook."""
    return codec.partition(":")[0] == "powersgd"


def powersgd_rank(codec: str) -> int:
    """Return the rank of PowerSGD's matrices: that of ``powersgd:RANK``, or 2."""
    _, _, rank = codec.partition(":")
    return int(rank) if rank else _POWERSGD_RANK


class WireMeter:
    """Bytes that this rank has sent for training, by every way of counting that this run allows.

    * interface: the byte counter of the network interface, frame headers included. Only where the
      rank has an interface of its own (GLOO_SOCKET_IFNAME names it), not on a shared loopback.
    * fastcomm: ``state.stats.wire_bytes``.
    * computed: what a ring all-reduce sends, 2 (N - 1) / N of the data, for methods that nobody
      counts for.
    """

    def __init__(
        self, model: nn.Module, codec: str, world_size: int, fastcomm_state: Any | None
    ) -> None:
        interface = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
        counter = Path(f"/sys/class/net/{interface}/statistics/tx_bytes")
        self._counter = counter if interface != "lo" and counter.exists() else None
        self._state = fastcomm_state
        self._codec = codec
        ring_bytes = 4 * 2 * (world_size - 1) / world_size
        self._plain_bytes = ring_bytes * sum(weight.numel() for weight in model.parameters())
        self._powersgd_bytes = 0.0
        if is_powersgd(codec):
            self._powersgd_bytes = ring_bytes * _powersgd_elements(model, powersgd_rank(codec))
        self._paused_at = self._excluded = self._read_counter()
        self._earlier: dict[str, float] = {}
        self._earlier_steps = 0

    @property
    def best_source(self) -> str:
        """Name of the most direct count there is."""
        if self._counter is not None:
            return INTERFACE
        return COMPUTED if self._state is None else FASTCOMM

    def resume_from(self, num_steps: int, sent_bytes: list[dict[str, float]]) -> None:
        """Add the mean of what other processes had sent, up to a checkpoint after ``num_steps``."""
        self._earlier_steps = num_steps
        self._earlier = {
            source: statistics.fmean(sent[source] for sent in sent_bytes)
            for source in sent_bytes[0]
        }

    def pause(self) -> None:
        """Leave out what the interface sends from here on: it is not for training."""
        self._paused_at = self._read_counter()

    def resume(self) -> None:
        """Count again."""
        self._excluded += self._read_counter() - self._paused_at

    def sent_bytes(self, num_steps: int) -> dict[str, float]:
        """Bytes sent in the first ``num_steps`` steps of the run, by way of counting."""
        sent: dict[str, float] = {}
        if self._counter is not None:
            sent[INTERFACE] = self._read_counter() - self._excluded
        if self._state is not None:
            sent[FASTCOMM] = self._state.stats.wire_bytes
        else:
            sent[COMPUTED] = self._computed_bytes(num_steps - self._earlier_steps)
        return {source: self._earlier.get(source, 0.0) + own for source, own in sent.items()}

    def _read_counter(self) -> int:
        return int(self._counter.read_text()) if self._counter is not None else 0

    def _computed_bytes(self, num_steps: int) -> float:
        if self._codec in ("fp16-hook", "bf16-hook"):
            return num_steps * self._plain_bytes / 2
        if is_powersgd(self._codec):
            plain_steps = min(num_steps, POWERSGD_PLAIN_STEPS)
            compressed_steps = num_steps - plain_steps
            return plain_steps * self._plain_bytes + compressed_steps * self._powersgd_bytes
        return num_steps * self._plain_bytes


class TrainingDisplay:
    """Live progress on a terminal; a line for each evaluation where the output is no terminal."""

    def __init__(self, title: str, num_steps: int, shown: bool) -> None:
        self._console = Console()
        self._title, self._num_steps = title, num_steps
        self._lines = shown and not self._console.is_terminal
        figures = "loss {task.fields[loss]:.3f}  accuracy {task.fields[accuracy]}"
        traffic = "{task.fields[step_ms]:.0f} ms/step  {task.fields[megabytes]:.1f} MB sent"
        self._progress = Progress(
            TextColumn("{task.description:>11}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn(f"{figures}  {traffic}"),
            console=self._console,
            disable=not shown or self._lines,
            expand=True,
        )
        self._task = self._progress.add_task(
            title, total=num_steps, loss=float("nan"), accuracy="-", step_ms=0.0, megabytes=0.0
        )

    def __enter__(self) -> "TrainingDisplay":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def step(self, step: int, loss: float, step_ms: float, sent_bytes: float) -> None:
        """Show one step."""
        self._progress.update(
            self._task, completed=step, loss=loss, step_ms=step_ms, megabytes=sent_bytes / 1e6
        )

    def evaluated(self, row: Row) -> None:
        """Show the result of an evaluation."""
        accuracy = f"{row['test_accuracy_percent']:.2f} %"
        self._progress.update(self._task, accuracy=accuracy)
        if self._lines:
            print(
                f"{self._title:>11}  step {row['step']}/{self._num_steps}  "
                f"{row['seconds_training']:.1f} s  loss {row['loss']:.3f}  accuracy {accuracy}  "
                f"{row['wire_bytes'] / 1e6:.1f} MB sent",
                flush=True,
            )


def describe_machine() -> Row:
    """Return where and with what a run was made, for its JSON file."""
    return {
        "machine": f"{_processor_name()}, {os.cpu_count()} cores",
        "system": platform.platform(),
        "python_version": platform.python_version(),
        "torch_version": torch.__version__,
        "git_commit": _git_commit(),
    }


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git_commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _powersgd_elements(model: nn.Module, matrix_rank: int) -> int:
    """Elements that PowerSGD sends: two thin factors of each matrix that they make smaller."""
    elements = 0
    for weight in model.parameters():
        rows = weight.shape[0]
        columns = weight.numel() // rows
        factors = (rows + columns) * matrix_rank
        worth_it = weight.dim() > 1 and 2 * factors < rows * columns
        elements += factors if worth_it else rows * columns
    return elements
