"""What bench/accuracy.py trains: digits, MNIST, and characters of text; each with its defaults."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from accuracy_text import CharacterTransformer, Text, load_text

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
from mnist_data import Normalization, load_mnist
from mnist_model import MnistCnn

Batch = tuple[torch.Tensor, torch.Tensor]

OPTIMIZERS = ("sgd", "adamw")
_TEST_BATCH_SIZE = 500


@dataclass(frozen=True)
class Metric:
    """What a task is judged by.

    Attributes:
        name: the key of its rows, with the unit.
        label: for people.
        is_accuracy: in percent, higher is better; else a loss in nats, lower is better.
        target_margin: the target is so much worse than what fp32 reaches in the mean.
        workable_margin: a learning rate works where the metric is at most so much worse than at
            fp32's best one.
    """

    name: str
    label: str
    is_accuracy: bool
    target_margin: float
    workable_margin: float

    def is_as_good(self, value: float, target: float) -> bool:
        """Return whether a value reaches the target."""
        return value >= target if self.is_accuracy else value <= target

    def worse_by(self, value: float, margin: float) -> float:
        """Return the value that is worse by a margin."""
        return value - margin if self.is_accuracy else value + margin


_ACCURACY = Metric("accuracy_percent", "test accuracy, %", True, 0.2, 1.0)
_LOSS = Metric("loss_nats", "held-out loss, nats per character", False, 0.02, 0.1)


@dataclass(frozen=True)
class Recipe:
    """The defaults of a task, which need no data.

    Attributes:
        samples_per_step: of all ranks together, so that with fp32 any number of ranks computes the
            same: what differs between numbers of ranks is due to the codec.
        learning_rates: by optimizer, tuned with fp32.
    """

    metric: Metric
    samples_per_step: int
    steps: int
    evaluations: int
    learning_rates: dict[str, float]


RECIPES = {
    "mnist": Recipe(_ACCURACY, 256, 468, 5, {"sgd": 0.1, "adamw": 0.004}),
    "digits": Recipe(_ACCURACY, 64, 660, 20, {"sgd": 0.1, "adamw": 0.006}),
    "text": Recipe(_LOSS, 32, 400, 8, {"sgd": 0.2, "adamw": 0.006}),
}


@dataclass(frozen=True)
class Task:
    """A loaded task.

    Attributes:
        batch: returns inputs and targets of the samples with these indices.
        chance: the metric's value that untrained guessing has, or nearly: a run that ends there has
            learned nothing.
    """

    build_model: Callable[[], nn.Module]
    num_samples: int
    batch: Callable[[torch.Tensor], Batch]
    test_batches: list[Batch]
    chance: float


@functools.cache
def load_task(name: str, data_root: Path | None) -> Task:
    """Load a task, once in each process; ``data_root`` has MNIST's files."""
    if name == "mnist":
        assert data_root is not None
        return _load_mnist(data_root)
    return {"digits": _load_digits, "text": _load_text}[name]()


def _load_mnist(folder: Path) -> Task:
    digits = load_mnist(folder)
    normalize = Normalization.of(digits.train_images)

    def build() -> nn.Module:
        # This memory format takes a third off the time of the convolutions.
        return MnistCnn().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    return Task(
        build_model=build,
        num_samples=len(digits.train_labels),
        batch=lambda chosen: (normalize(digits.train_images[chosen]), digits.train_labels[chosen]),
        test_batches=_batches(normalize(digits.test_images), digits.test_labels),
        chance=50.0,
    )


def _load_digits() -> Task:
    """Load scikit-learn's 1797 digits as they are; every fifth of them is for testing."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    pixels, classes = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float() / 8 - 1  # from 0 ... 16
    labels = torch.from_numpy(classes).long()
    testing = torch.arange(len(labels)) % 5 == 0
    train_images, train_labels = images[~testing], labels[~testing]
    return Task(
        build_model=_digits_model,
        num_samples=len(train_labels),
        batch=lambda chosen: (train_images[chosen], train_labels[chosen]),
        test_batches=_batches(images[testing], labels[testing]),
        chance=50.0,
    )


def _digits_model() -> nn.Module:
    """Return a perceptron whose three matrices are all large enough to be compressed."""
    return nn.Sequential(
        *(nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.1)),
        *(nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.1)),
        nn.Linear(256, 10),
    )


def _load_text() -> Task:
    text: Text = load_text()
    return Task(
        build_model=lambda: CharacterTransformer(text.num_characters),
        num_samples=text.num_windows,
        batch=text.windows,
        test_batches=_batches(*text.held_out_windows(), size=64),
        chance=text.unigram_loss_nats(),
    )


def _batches(
    inputs: torch.Tensor, targets: torch.Tensor, size: int = _TEST_BATCH_SIZE
) -> list[Batch]:
    starts = range(0, len(inputs), size)
    return [(inputs[start : start + size], targets[start : start + size]) for start in starts]
