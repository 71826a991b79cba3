"""The classic MNIST CNN under DistributedDataParallel, its gradients compressed by fastcomm.

    torchrun --nproc-per-node=2 examples/mnist_ddp.py --codec int8 --epochs 4
    python examples/mnist_ddp.py --compare              # methods side by side; --compare --help

--codec takes any fastcomm codec, or what to compare it with: "none" (plain DDP, f32) and PyTorch's
own hooks, "fp16-hook", "bf16-hook" and "powersgd" ("powersgd:4": of rank 4, not 2).
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from dataclasses import asdict

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from mnist_arguments import parse_command_line
from mnist_checkpoint import Checkpoint, CheckpointFolder
from mnist_data import Digits, ShardedBatches, load_on_every_rank
from mnist_device import describe_device, get_random_state, join_ranks, set_random_state
from mnist_model import MnistCnn, set_gradient_sync
from mnist_report import (
    Row,
    TrainingDisplay,
    TrainingProgress,
    WireMeter,
    describe_machine,
    is_powersgd,
)


class Trainer:
    """One rank's training. Its clock and its byte count stand still during evaluation."""

    def __init__(self, arguments: argparse.Namespace, device: torch.device, digits: Digits) -> None:
        rank, world_size = dist.get_rank(), dist.get_world_size()
        self.batches = ShardedBatches(
            digits, arguments.batch_size, rank, world_size, arguments.seed
        )
        epoch_steps = self.batches.batches_per_epoch
        num_steps = arguments.steps or arguments.epochs * epoch_steps
        self.progress = TrainingProgress(total_samples=num_steps * self.batches.samples_per_step)
        self.warmup_share = digits.recipe.warmup_share
        self.losses: list[float] = []  # since the last evaluation
        self.device = device
        torch.manual_seed(arguments.seed)
        self.network = MnistCnn().to(device)
        # This memory format takes a third off the time of the convolutions.
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # PowerSGD gets one bucket: over gloo it runs several at once in any order, and crashes.
        bucket_megabytes = 25 if is_powersgd(arguments.codec) else None
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
        self.until: float | None = arguments.until
        self.checkpoint_every = arguments.checkpoint_every
        self.checkpoints: CheckpointFolder | None = None
        if arguments.checkpoint is not None:
            names = ("codec", "epochs", "steps", "batch_size", "lr", "seed", "amp")
            settings = {name: getattr(arguments, name) for name in names} | {"data": digits.name}
            self.checkpoints = CheckpointFolder(arguments.checkpoint, settings)
            saved = self.checkpoints.load_latest(device)
            if saved is not None:
                self._resume(saved)
        samples_left = self.progress.total_samples - self.progress.samples_seen
        self.steps_left = math.ceil(samples_left / self.batches.samples_per_step)
        self.num_steps = self.progress.step + self.steps_left
        self.evaluate_every = arguments.evaluate_every or digits.recipe.evaluate_every(
            self.num_steps, epoch_steps
        )
        self.target_percent = digits.recipe.target(self.num_steps, epoch_steps)
        self.display = TrainingDisplay(arguments.codec, self.num_steps, shown=rank == 0)

    def train(self) -> TrainingProgress:
        """Train to the end; return the rows of all evaluations and the times of all steps."""
        progress = self.progress
        with self.display:
            dist.barrier()
            self.meter.resume()
            started = previous = time.perf_counter()
            for images, labels in self.batches.batches(self.steps_left):
                self.losses.append(self._step(images, labels))
                now = time.perf_counter()
                progress.step_ms.append((now - previous) * 1e3)
                previous = now
                step = progress.step
                sent = self.meter.sent_bytes(step)[self.meter.best_source]
                median_ms = statistics.median(progress.step_ms[-20:])
                self.display.step(step, self.losses[-1], median_ms, sent)
                evaluates = step % self.evaluate_every == 0 or step == self.num_steps
                saves = self.checkpoints is not None and step % self.checkpoint_every == 0
                if not evaluates and not saves:
                    continue
                dist.barrier()  # what others sent to this rank in this step has been counted
                progress.seconds_training += time.perf_counter() - started
                counted = self.meter.sent_bytes(step)
                self.meter.pause()
                if evaluates:
                    progress.rows.append(self._evaluation_row(counted))
                    self.display.evaluated(progress.rows[-1])
                    self.losses.clear()
                if saves:
                    self._save(counted)
                if evaluates and (progress.is_lost or self._is_good_enough()):
                    break
                dist.barrier()
                self.meter.resume()
                started = previous = time.perf_counter()
        return progress

    def _is_good_enough(self) -> bool:
        """Return whether to stop: all ranks have the same figures, and decide alike."""
        accuracy = self.progress.rows[-1]["test_accuracy_percent"]
        return self.until is not None and accuracy >= self.until

    def _save(self, sent: dict[str, float]) -> None:
        assert self.checkpoints is not None
        shared = {
            "progress": asdict(self.progress),
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "batches": self.batches.state_dict(),
        }
        own = {
            "hook": None if self.hook_state is None else self.hook_state.state_dict(),
            "random_state": get_random_state(self.device),
            "losses": self.losses,
            "sent_bytes": sent,
        }
        self.checkpoints.save(self.progress.step, shared, own)

    def _resume(self, saved: Checkpoint) -> None:
        """Go on after the saved step.

        As many ranks as before see what they would have seen. Another number of ranks shares the
        samples that are left, and the residuals; the learning rate goes by samples, not by steps.
        """
        shared, own, of_ranks = saved.shared, saved.own, saved.of_ranks
        self.progress = TrainingProgress(**shared["progress"])
        self.network.load_state_dict(shared["model"])
        self.optimizer.load_state_dict(shared["optimizer"])
        self.schedule.load_state_dict(shared["schedule"])
        self.scaler.load_state_dict(shared["scaler"])
        self.batches.load_state_dict(shared["batches"])
        if self.hook_state is not None:
            hooks = [part["hook"] for part in of_ranks]
            self.hook_state.load_state_dict(hooks if own is None else own["hook"])
        self.meter.resume_from(self.progress.step, [part["sent_bytes"] for part in of_ranks])
        if own is not None:
            set_random_state(self.device, own["random_state"])
            self.losses = own["losses"]
        resumed: Row = {"step": self.progress.step, "world_size": dist.get_world_size()}
        self.progress.resumed.append(resumed)

    def _learning_rate_share(self, _: int) -> float:
        """Share of the peak: it rises in the warm-up of the run, then falls as a parabola."""
        step_samples = self.batches.samples_per_step
        samples = self.progress.samples_seen + step_samples
        done = samples / (self.progress.total_samples + step_samples)
        rising = self.warmup_share
        left = (1 - done) / (1 - rising)
        return done / rising if done < rising else left * left

    def _step(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        self.network.train()
        with self.autocast:
            loss = cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        # Meanwhile DDP synchronizes the gradients.
        if self.hook_state is not None:
            self.hook_state.grad_scale(self.scaler)  # what compression left out is scaled, too
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.progress.step += 1
        self.progress.samples_seen += self.batches.samples_per_step
        self.schedule.step()
        return loss.item()

    @torch.inference_mode()
    def _evaluation_row(self, sent: dict[str, float]) -> Row:
        """Test on all ranks, each its share; means over the ranks of their own losses and bytes."""
        self.network.eval()
        correct = count = 0
        for images, labels in self.batches.test_batches():
            correct += int((self.network(images).argmax(1) == labels).sum())
            count += len(labels)
        loss = statistics.fmean(self.losses)
        sums = torch.tensor([correct, count, loss, *sent.values()], dtype=torch.float64)
        sums = sums.to(self.device)
        dist.all_reduce(sums)
        all_correct, all_count, loss_sum, *sent_sums = sums.tolist()
        ranks = dist.get_world_size()
        row: Row = {
            "step": self.progress.step,
            "epoch": self.progress.samples_seen / self.batches.samples_per_epoch,
            "seconds_training": self.progress.seconds_training,
            "loss": loss_sum / ranks,
            "test_accuracy_percent": 100 * all_correct / all_count,
        }
        means = {source: total / ranks for source, total in zip(sent, sent_sums, strict=True)}
        row["wire_bytes"] = means[self.meter.best_source]
        return row | {f"wire_bytes_{source}": mean for source, mean in means.items()}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    return parse_command_line(__doc__)


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
        digits.recipe.complete(arguments)
        trainer = Trainer(arguments, device, digits)
        if dist.get_rank() == 0 and trainer.progress.resumed:
            print(f"resumed after step {trainer.progress.step}", flush=True)
        progress = trainer.train()
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
                "recipe_learning_rate": digits.recipe.learning_rate,
                "seed": arguments.seed,
                "amp": arguments.amp,
                **describe_device(device),
                **describe_machine(),
                **progress.summary(trainer.meter.best_source, trainer.target_percent),
            }
            content = {"run": run, "rows": progress.rows_for_json()}
            arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    if "--compare" in sys.argv:
        import mnist_compare

        sys.argv.remove("--compare")
        sys.exit(mnist_compare.main())
    main()
