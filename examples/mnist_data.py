"""Handwritten digits for the example: real MNIST where it can be had, else scikit-learn's digits.

Looked for in this order: IDX files (plain or .gz) in the data folder, a download whose checksums
are verified, the 8x8 digits that scikit-learn carries, upscaled so that the same network runs.
Each comes with the recipe by which it is trained.
"""

import gzip
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

import mnist_recipe
from mnist_download import MNIST_FILES, default_folder, existing_file, find_mnist, prepare_mnist
from mnist_recipe import Recipe
from mnist_requirements import demo_extra

with demo_extra():
    import numpy as np

_IMAGE_SIDE = 28


@dataclass(frozen=True)
class Digits:
    """Images (uint8, samples x 28 x 28) with their labels, in memory.

    Attributes:
        name: of the data set, for people.
        source: where it is from.
        recipe: how it is best trained.
    """

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    name: str
    source: str
    recipe: Recipe

    def to(self, device: torch.device) -> "Digits":
        """Return the same data on ``device``."""
        return replace(
            self,
            train_images=self.train_images.to(device),
            train_labels=self.train_labels.to(device),
            test_images=self.test_images.to(device),
            test_labels=self.test_labels.to(device),
        )


def load_on_every_rank(choice: str, data_root: Path | None, device: torch.device) -> Digits:
    """Load the same data on every rank ("auto" or "digits"); one rank a machine downloads it."""
    if choice == "digits":
        return load_small_digits().to(device)
    folder = data_root if data_root is not None else default_folder()
    if int(os.environ["LOCAL_RANK"]) == 0:
        prepare_mnist(folder)
    dist.barrier()
    missing = torch.tensor(not find_mnist(folder), dtype=torch.int32, device=device)
    dist.all_reduce(missing)  # one rank that has no MNIST is enough
    return (load_small_digits() if missing.item() else load_mnist(folder)).to(device)


def load_mnist(folder: Path) -> Digits:
    """Read the four IDX files in ``folder``."""
    train_images, train_labels, test_images, test_labels = (
        _read_idx(folder, name) for name in MNIST_FILES
    )
    return Digits(
        train_images,
        train_labels,
        test_images,
        test_labels,
        name="MNIST",
        source=str(folder),
        recipe=mnist_recipe.MNIST,
    )


def load_small_digits() -> Digits:
    """Return scikit-learn's 1797 digits, upscaled to 28 x 28, every other one for testing.

    So many for testing, because of fewer a percent would be a handful, and chance.
    """
    with demo_extra():
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    pixels, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) * (255 / 16)
    side = (_IMAGE_SIDE, _IMAGE_SIDE)
    images = torch.nn.functional.interpolate(small, side, mode="bilinear").squeeze(1)
    images = images.round().to(torch.uint8)
    classes = torch.from_numpy(labels).long()
    testing = torch.arange(len(classes)) % 2 == 0
    return Digits(
        images[~testing],
        classes[~testing],
        images[testing],
        classes[testing],
        name="scikit-learn's digits (not MNIST)",
        source="scikit-learn, 8 x 8 pixels, upscaled",
        recipe=mnist_recipe.SMALL_DIGITS,
    )


class ShardedBatches:
    """One rank's share of the training set: other samples on every rank, shuffled anew each epoch.

    Every rank makes as many batches of the same size; what is left over waits for another epoch.
    """

    def __init__(
        self, digits: Digits, batch_size: int, rank: int, world_size: int, seed: int
    ) -> None:
        self._digits = digits
        self._rank = rank
        self._world_size = world_size
        self._seed = seed
        self._epoch = 0
        self._position = 0  # how many samples of the epoch all ranks together have had
        self._normalize = Normalization.of(digits.train_images)
        self.samples_per_step = batch_size * world_size
        self.batches_per_epoch = len(digits.train_labels) // self.samples_per_step
        self.samples_per_epoch = self.batches_per_epoch * self.samples_per_step
        if self.batches_per_epoch == 0:
            raise ValueError(
                f"{world_size} ranks with batches of {batch_size} need more than the "
                f"{len(digits.train_labels)} training samples there are"
            )

    def batches(self, num_steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield ``num_steps`` more batches of (normalised images, labels), epoch after epoch."""
        order = self._order(self._epoch)
        for _ in range(num_steps):
            if self._position + self.samples_per_step > len(order):
                self._epoch, self._position = self._epoch + 1, 0
                order = self._order(self._epoch)
            step = order[self._position : self._position + self.samples_per_step]
            self._position += self.samples_per_step
            chosen = step[self._rank :: self._world_size]
            images = self._digits.train_images[chosen]
            yield self._normalize(images), self._digits.train_labels[chosen]

    def state_dict(self) -> dict[str, int]:
        """Return where all ranks together are: behind the batch that was yielded last."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from there, with any number of ranks: no sample of the epoch comes twice."""
        self._epoch, self._position = state_dict["epoch"], state_dict["position"]

    def test_batches(self, batch_size: int = 50) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield this rank's part of the test set, every sample on exactly one rank."""
        images = self._digits.test_images[self._rank :: self._world_size]
        labels = self._digits.test_labels[self._rank :: self._world_size]
        for start in range(0, len(labels), batch_size):
            part = slice(start, start + batch_size)
            yield self._normalize(images[part]), labels[part]

    def _order(self, epoch: int) -> torch.Tensor:
        # The same order on every rank, from which each takes its turn, as DistributedSampler does.
        generator = torch.Generator().manual_seed(1_000_003 * self._seed + epoch)
        order = torch.randperm(len(self._digits.train_labels), generator=generator)
        return order.to(self._digits.train_labels.device)


@dataclass(frozen=True)
class Normalization:
    """Scales pixels so that the training set has mean 0 and standard deviation 1."""

    mean: float
    std: float

    @classmethod
    def of(cls, images: torch.Tensor) -> "Normalization":
        """Measure mean and standard deviation of uint8 images, without a copy in floats."""
        counts = torch.bincount(images.flatten().cpu(), minlength=256).double()
        values = torch.arange(256).double()
        mean = (counts @ values) / counts.sum()
        variance = (counts @ (values - mean).square()) / counts.sum()
        return cls(mean.item(), variance.sqrt().item())

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return (samples, 1, 28, 28) floats."""
        return ((images.float() - self.mean) / self.std).unsqueeze(1)


def _read_idx(folder: Path, name: str) -> torch.Tensor:
    path = existing_file(folder, name)
    if path is None:
        raise FileNotFoundError(f"{folder / name} is missing")
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    # The format: two zero bytes, type code (8 = unsigned byte), number of dimensions, then each
    # dimension as a big-endian 32-bit number, then the elements.
    zeros, type_code, num_dimensions = struct.unpack_from(">HBB", content)
    if zeros != 0 or type_code != 8:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    shape = struct.unpack_from(f">{num_dimensions}I", content, 4)
    data = np.frombuffer(content, np.uint8, offset=4 + 4 * num_dimensions).reshape(shape)
    tensor = torch.from_numpy(data.copy())
    return tensor.long() if num_dimensions == 1 else tensor
