"""The classic MNIST CNN under DistributedDataParallel, its gradients compressed by fastcomm.

    torchrun --nproc-per-node=2 examples/mnist_ddp.py --codec int8 --epochs 4
    python examples/mnist_ddp.py --compare              # methods side by side; --compare --help

--codec takes any fastcomm codec, or what to compare it with: "none" (plain DDP, f32) and PyTorch's
own hooks, "fp16-hook", "bf16-hook" and "powersgd".
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from mnist_data import Digits, ShardedBatches, load_on_every_rank
from mnist_device import describe_device, join_ranks
from mnist_report import (
    POWERSGD_PLAIN_STEPS,
    POWERSGD_RANK,
    Row,
    TrainingDisplay,
    WireMeter,
    describe_machine,
)

TARGET_ACCURACY_PERCENT = 99.0


class MnistCnn(nn.Module):
    """Two convolutions and two linear layers, 1.2 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.MaxPool2d(2), nn.ReLU()
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.1), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.25), nn.Linear(128, 10)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of normalised (samples, 1, 28, 28) images."""
        logits: torch.Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def bf16_hook(
    state: None,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[torch.Tensor]:
    """Run PyTorch's bf16 hook, which by its own name DDP accepts with NCCL only."""
    return default_hooks.bf16_compress_hook(state, bucket)  # type: ignore[arg-type]


def set_gradient_sync(model: DistributedDataParallel, codec: str, algorithm: str) -> Any | None:
    """Choose how the model's gradients are synchronised; return fastcomm's state where it is it."""
    if codec == "none":
        return None
    if codec == "fp16-hook":
        model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif codec == "bf16-hook":
        model.register_comm_hook(None, bf16_hook)
    elif codec == "powersgd":
        state = powerSGD_hook.PowerSGDState(None, POWERSGD_RANK, POWERSGD_PLAIN_STEPS)
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    else:
        import fastcomm

        return fastcomm.register(model, codec=codec, algorithm=algorithm)
    return None


class Trainer:
    """One rank's training. Its clock and its byte count stand still during evaluation."""

    def __init__(self, arguments: argparse.Namespace, device: torch.device, digits: Digits) -> None:
        rank, world_size = dist.get_rank(), dist.get_world_size()
        self.batches = ShardedBatches(
            digits, arguments.batch_size, rank, world_size, arguments.seed
        )
        epoch_steps = self.batches.batches_per_epoch
        self.num_steps = arguments.steps or arguments.epochs * epoch_steps
        num_evaluations = min(max(10 * self.num_steps // epoch_steps, 8), 40)
        self.evaluate_every = arguments.evaluate_every or max(self.num_steps // num_evaluations, 1)
        self.display = TrainingDisplay(arguments.codec, self.num_steps, shown=rank == 0)
        self.device = device
        torch.manual_seed(arguments.seed)
        self.network = MnistCnn().to(device)
        # This memory format takes a third off the time of the convolutions.
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # PowerSGD gets one bucket: over gloo it runs several at once in any order, and crashes.
        bucket_megabytes = 25 if arguments.codec == "powersgd" else None
        self.model = DistributedDataParallel(self.network, bucket_cap_mb=bucket_megabytes)
        self.hook_state = set_gradient_sync(self.model, arguments.codec, arguments.algorithm)
        self.meter = WireMeter(self.network, arguments.codec, world_size, self.hook_state)
        torch.manual_seed(arguments.seed * world_size + rank)  # every rank its own dropout
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), arguments.lr, momentum=0.9, nesterov=True
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._learning_rate_share)
        half = torch.float16 if device.type == "cuda" else torch.bfloat16
        self.autocast = torch.autocast(device.type, half, enabled=arguments.amp)
        scaled = arguments.amp and half is torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)

    def train(self) -> tuple[list[Row], list[float]]:
        """Train to the end; return a row for each evaluation and the milliseconds of each step."""
        rows: list[Row] = []
        step_ms: list[float] = []
        losses: list[float] = []
        seconds_training = 0.0
        with self.display:
            dist.barrier()
            self.meter.resume()
            started = previous = time.perf_counter()
            for step, (images, labels) in enumerate(self.batches.batches(self.num_steps), 1):
                losses.append(self._step(images, labels))
                now = time.perf_counter()
                step_ms.append((now - previous) * 1e3)
                previous = now
                sent = self.meter.sent_bytes(step)[self.meter.best_source]
                self.display.step(step, losses[-1], statistics.median(step_ms[-20:]), sent)
                if step % self.evaluate_every and step != self.num_steps:
                    continue
                dist.barrier()  # what others sent to this rank in this step has been counted
                seconds_training += time.perf_counter() - started
                counted = self.meter.sent_bytes(step)
                self.meter.pause()
                loss = statistics.fmean(losses)
                rows.append(self._evaluation_row(step, seconds_training, loss, counted))
                self.display.evaluated(rows[-1])
                losses.clear()
                dist.barrier()
                self.meter.resume()
                started = previous = time.perf_counter()
        return rows, step_ms

    def _learning_rate_share(self, step: int) -> float:
        """Share of the peak: it rises for a tenth of the run, then falls as a parabola."""
        done: float = (step + 1) / (self.num_steps + 1)
        rising = 0.1
        left = (1 - done) / (1 - rising)
        return done / rising if done < rising else left * left

    def _step(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        self.network.train()
        with self.autocast:
            loss = cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        # Meanwhile DDP synchronises the gradients.
        if self.hook_state is not None:
            self.hook_state.grad_scale(self.scaler)  # what compression left out is scaled, too
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return loss.item()

    @torch.inference_mode()
    def _evaluation_row(
        self, step: int, seconds_training: float, loss: float, sent: dict[str, float]
    ) -> Row:
        """Test on all ranks, each its share; means over the ranks of their own losses and bytes."""
        self.network.eval()
        correct = count = 0
        for images, labels in self.batches.test_batches():
            correct += int((self.network(images).argmax(1) == labels).sum())
            count += len(labels)
        sums = torch.tensor([correct, count, loss, *sent.values()], dtype=torch.float64)
        sums = sums.to(self.device)
        dist.all_reduce(sums)
        all_correct, all_count, loss_sum, *sent_sums = sums.tolist()
        ranks = dist.get_world_size()
        row: Row = {
            "step": step,
            "epoch": step / self.batches.batches_per_epoch,
            "seconds_training": seconds_training,
            "loss": loss_sum / ranks,
            "test_accuracy_percent": 100 * all_correct / all_count,
        }
        means = {source: total / ranks for source, total in zip(sent, sent_sums, strict=True)}
        row["wire_bytes"] = means[self.meter.best_source]
        return row | {f"wire_bytes_{source}": mean for source, mean in means.items()}


def summary(rows: list[Row], step_ms: list[float], source: str) -> Row:
    """Return the figures of the whole run."""
    reached = [row for row in rows if row["test_accuracy_percent"] >= TARGET_ACCURACY_PERCENT]
    return {
        "best_test_accuracy_percent": max(row["test_accuracy_percent"] for row in rows),
        "target_accuracy_percent": TARGET_ACCURACY_PERCENT,
        "seconds_to_target": reached[0]["seconds_training"] if reached else None,
        "steps_to_target": reached[0]["step"] if reached else None,
        "step_time_median_ms": statistics.median(step_ms),
        "wire_bytes_per_step": rows[-1]["wire_bytes"] / rows[-1]["step"],
        "wire_bytes_counted_by": source,
        "seconds_training": rows[-1]["seconds_training"],
    }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--codec", default="int8", help="default int8")
    add("--algorithm", default="auto", help="ring, gather or auto (default)")
    add("--data-root", type=Path, help="folder with the MNIST IDX files, or for the download")
    add("--data", choices=("auto", "digits"), default="auto", help="digits: scikit-learn's")
    add("--epochs", type=int, default=4)
    add("--steps", type=int, help="train for so many steps, not for epochs")
    add("--batch-size", type=int, default=64, help="samples per rank and step (default 64)")
    add("--lr", type=float, default=0.1, help="peak learning rate (default 0.1)")
    add("--seed", type=int, default=0)
    add(
        "--evaluate-every",
        type=int,
        help="steps between tests (default: 10 tests an epoch, but 8 to 40)",
    )
    add("--amp", action="store_true", help="autocast: f16 with GradScaler on cuda, bf16 on cpu")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: ranks may share GPUs")
    add("--link-rate", default="unshaped", help="rate of the link, to be noted in the JSON file")
    add("--quiet", action="store_true", help="do not say which data is used")
    add("--json", type=Path, help="write the result here")
    return parser.parse_args()


def main() -> None:
    """Train as one rank of a group that torchrun (or --compare) started."""
    arguments = parse_arguments()
    if "RANK" not in os.environ:
        sys.exit("start it with: torchrun --nproc-per-node=2 examples/mnist_ddp.py, or --compare")
    device = join_ranks(arguments.device)
    try:
        digits = load_on_every_rank(arguments.data, arguments.data_root, device)
        if dist.get_rank() == 0 and not arguments.quiet:
            print(f"data: {digits.name}, {digits.source}", flush=True)
        trainer = Trainer(arguments, device, digits)
        rows, step_ms = trainer.train()
        if dist.get_rank() == 0 and arguments.json is not None:
            run = {
                "codec": arguments.codec,
                "algorithm": arguments.algorithm,
                "world_size": dist.get_world_size(),
                "link_rate": arguments.link_rate,
                "data_name": digits.name,
                "data_source": digits.source,
                "batch_size_per_rank": arguments.batch_size,
                "peak_learning_rate": arguments.lr,
                "seed": arguments.seed,
                "amp": arguments.amp,
                **describe_device(device),
                **describe_machine(),
                **summary(rows, step_ms, trainer.meter.best_source),
            }
            arguments.json.write_text(json.dumps({"run": run, "rows": rows}, indent=1) + "\n")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    if "--compare" in sys.argv:
        import mnist_compare

        sys.argv.remove("--compare")
        sys.exit(mnist_compare.main())
    main()
