"""Checkpoints of the MNIST example: nothing is lost or seen twice, and only complete ones count."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import ranks
from idx_digits import write_idx_digits

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
from mnist_checkpoint import CheckpointFolder
from mnist_data import Digits, ShardedBatches, load_mnist
from mnist_ddp import Trainer
from mnist_report import Row

CPU = torch.device("cpu")
BATCH_SIZE = 8


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_idx_digits(folder, num_training=200, num_testing=20)
    return folder


def arguments_of(data_root: Path, checkpoint: Path | None, **changed: Any) -> argparse.Namespace:
    given = {"codec": "topk:0.05", "algorithm": "auto", "epochs": 2, "steps": None, "lr": 0.02}
    given |= {"batch_size": BATCH_SIZE, "seed": 0, "amp": False, "evaluate_every": 100}
    given |= {"checkpoint": checkpoint, "checkpoint_every": 3, "until": None}
    return argparse.Namespace(**(given | changed))


# --- the data ---------------------------------------------------------------------------------


def labels_of_all_ranks(digits: Digits, world_size: int, position: dict[str, int]) -> list[int]:
    """Return what the rest of the epoch has, read as labels, which are the samples' numbers."""
    seen = []
    for rank in range(world_size):
        batches = ShardedBatches(digits, BATCH_SIZE, rank, world_size, seed=3)
        batches.load_state_dict(position)
        left = (len(digits.train_labels) - position["position"]) // batches.samples_per_step
        seen += [int(label) for _, labels in batches.batches(left) for label in labels]
    return seen


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_any_number_of_ranks_sees_the_samples_that_are_left(
    data_root: Path, world_size: int
) -> None:
    given = load_mnist(data_root)
    numbers = torch.arange(len(given.train_labels))
    digits = replace(given, train_labels=numbers)
    of_rank = [ShardedBatches(digits, BATCH_SIZE, rank, 3, seed=3) for rank in range(3)]
    before = [int(label) for b in of_rank for _, labels in b.batches(5) for label in labels]
    position = of_rank[0].state_dict()
    assert all(batches.state_dict() == position for batches in of_rank)
    after = labels_of_all_ranks(digits, world_size, position)
    seen = before + after
    assert len(set(seen)) == len(seen), "a sample came twice"
    assert len(digits.train_labels) - len(seen) < world_size * BATCH_SIZE


# --- the run ----------------------------------------------------------------------------------


def make_trainer(data_root: Path, checkpoint: Path | None, **changed: Any) -> Trainer:
    return Trainer(arguments_of(data_root, checkpoint, **changed), CPU, load_mnist(data_root))


def train_as_undisturbed(data_root: Path, folder: Path) -> None:
    def rows(trainer: Trainer) -> list[Row]:
        return [row | {"seconds_training": 0} for row in trainer.train().rows]

    # Without compression, of which blocks depend on DDP's buckets; these are others at first.
    options = {"codec": "none", "steps": 8, "evaluate_every": 2}
    expected = rows(make_trainer(data_root, None, **options))
    stopped = make_trainer(data_root, folder, **options)
    stopped.steps_left = 5
    stopped.train()
    resumed = make_trainer(data_root, folder, **options)
    assert resumed.progress.resumed == [{"step": 3, "world_size": 2}]
    assert rows(resumed) == expected
    assert len(expected) == 4


def test_as_many_ranks_train_as_if_nothing_had_happened(data_root: Path, tmp_path: Path) -> None:
    ranks.run(2, train_as_undisturbed, data_root, tmp_path)


def sum_of_residuals(trainer: Trainer) -> dict[str, torch.Tensor]:
    assert trainer.hook_state is not None
    held = trainer.hook_state.state_dict()["residuals"]
    sums = {}
    for name, parameter in trainer.network.named_parameters():
        sums[name] = held.get(name, torch.zeros(parameter.numel())).double()
        dist.all_reduce(sums[name])
    return sums


Expected = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


def stop_after_three_steps(data_root: Path, folder: Path) -> Expected:
    trainer = make_trainer(data_root, folder, steps=6)
    trainer.steps_left = 3
    trainer.train()
    return trainer.network.state_dict(), sum_of_residuals(trainer)


def go_on(data_root: Path, folder: Path, expected: Expected) -> tuple[int, int]:
    trainer = make_trainer(data_root, folder, steps=6)
    network, residuals = expected
    for name, weight in trainer.network.state_dict().items():
        assert torch.equal(weight, network[name])
    assert residuals["classifier.1.weight"].any(), "nothing was left out"
    for name, total in sum_of_residuals(trainer).items():
        rounding = 1e-6 * float(residuals[name].abs().max())  # of sums in float32, which may cancel
        torch.testing.assert_close(total, residuals[name], rtol=0, atol=rounding)
    progress = trainer.train()
    return progress.step, progress.samples_seen


@pytest.mark.parametrize(("num_ranks", "steps_left"), [(3, 3), (2, 5), (1, 9)])
def test_ranks_that_go_on_share_the_residuals_and_the_samples_that_are_left(
    data_root: Path, tmp_path: Path, num_ranks: int, steps_left: int
) -> None:
    expected = ranks.run(3, stop_after_three_steps, data_root, tmp_path)[0]
    samples_seen = 3 * 3 * BATCH_SIZE + steps_left * num_ranks * BATCH_SIZE
    progress = ranks.run(num_ranks, go_on, data_root, tmp_path, expected)
    assert progress == [(3 + steps_left, samples_seen)] * num_ranks


# --- the folder -------------------------------------------------------------------------------


def save_and_die(folder: Path) -> int:
    """Return the step that is found after rank 1 did not come to write its part of the last."""
    checkpoints = CheckpointFolder(folder, {"codec": "int8"})
    for step in (10, 20, 30):
        checkpoints.save(step, {"step": step}, {"rank": dist.get_rank()})
    if dist.get_rank() == 0:
        partial = folder / "step-00000040.partial"
        partial.mkdir()
        torch.save({"step": 40}, partial / "shared.pt")
    dist.barrier()
    found = CheckpointFolder(folder, {"codec": "int8"}).load_latest(CPU)
    assert found is not None
    assert found.own == {"rank": dist.get_rank()}
    with pytest.raises(ValueError, match="of a run with codec int8, this one has int4; use"):
        CheckpointFolder(folder, {"codec": "int4"}).load_latest(CPU)
    latest: int = found.shared["step"]
    return latest


def test_latest_checkpoint_is_one_that_all_ranks_have_written(tmp_path: Path) -> None:
    assert ranks.run(2, save_and_die, tmp_path) == [30, 30]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000020", "step-00000030"]


def find_nothing(folder: Path) -> None:
    assert CheckpointFolder(folder / "new", {}).load_latest(CPU) is None


def test_run_without_a_checkpoint_starts_anew(tmp_path: Path) -> None:
    ranks.run(2, find_nothing, tmp_path)


# --- damage ---------------------------------------------------------------------------------------


def go_on_after(folder: Path, damaged: list[str], what: str) -> int | str:
    """Return the step of the checkpoint that is loaded when files of the newest are damaged."""
    checkpoints = CheckpointFolder(folder, {"lr": 0.1})
    for step in (3, 6):
        checkpoints.save(step, {"step": step}, {"rank": dist.get_rank()})
    if dist.get_rank() == 0:
        for name in damaged:
            file = folder / name
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            if what == "a file is gone":
                file.unlink()
            else:
                file.write_bytes(content[: len(content) // 3] if what == "cut" else content)
    dist.barrier()
    try:
        found = checkpoints.load_latest(CPU)
    except ValueError as error:
        return str(error)
    assert found is not None
    assert found.own == {"rank": dist.get_rank()}
    return int(found.shared["step"])


@pytest.mark.filterwarnings("ignore:the checkpoint step")
@pytest.mark.parametrize("what", ["a bit", "cut", "a file is gone"])
@pytest.mark.parametrize("file", ["rank-0.pt", "rank-1.pt", "shared.pt", "rank-1.crc32"])
def test_damage_on_any_rank_takes_all_to_the_checkpoint_before(
    what: str, file: str, tmp_path: Path
) -> None:
    damaged = [f"step-00000006/{file}"]
    assert ranks.run(2, go_on_after, tmp_path, damaged, what) == [3, 3]


@pytest.mark.filterwarnings("ignore:the checkpoint step")
def test_damage_of_all_checkpoints_is_said(tmp_path: Path) -> None:
    damaged = ["step-00000003/shared.pt", "step-00000006/rank-1.pt"]
    for message in ranks.run(2, go_on_after, tmp_path, damaged, "a bit"):
        assert "all checkpoints in" in str(message)


def test_what_is_not_damaged_is_the_newest(tmp_path: Path) -> None:
    assert ranks.run(2, go_on_after, tmp_path, [], "a bit") == [6, 6]
