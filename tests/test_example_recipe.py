"""The MNIST example trains each data set by its own recipe, and by what the user gave instead."""

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ranks

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
import mnist_arguments
import mnist_compare
import mnist_recipe
from idx_digits import write_idx_digits
from mnist_data import load_mnist, load_small_digits
from mnist_ddp import Trainer


def parse(monkeypatch: pytest.MonkeyPatch, *options: str) -> argparse.Namespace:
    monkeypatch.setattr(sys, "argv", ["mnist_ddp.py", *options])
    return mnist_arguments.parse_command_line(None)


def test_each_data_set_brings_its_recipe(tmp_path: Path) -> None:
    write_idx_digits(tmp_path, num_training=20, num_testing=10)
    assert load_mnist(tmp_path).recipe is mnist_recipe.MNIST
    assert load_small_digits().recipe is mnist_recipe.SMALL_DIGITS


def test_recipe_decides_what_the_user_did_not(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = parse(monkeypatch)
    mnist_recipe.SMALL_DIGITS.complete(arguments)
    chosen = (arguments.lr, arguments.batch_size, arguments.epochs)
    small = mnist_recipe.SMALL_DIGITS
    assert chosen == (small.learning_rate, small.batch_size, small.epochs)
    assert arguments.lr != mnist_recipe.MNIST.learning_rate


def test_what_the_user_gave_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = parse(monkeypatch, "--lr", "0.1", "--batch-size", "64", "--epochs", "3")
    mnist_recipe.SMALL_DIGITS.complete(arguments)
    assert (arguments.lr, arguments.batch_size, arguments.epochs) == (0.1, 64, 3)


@pytest.mark.parametrize(
    ("options", "peak"),
    [
        ((), "0.05"),
        (("--steps", "30"), "0.05"),
        (("--lr", "0.3"), "0.3"),
        (("--epochs", "4"), None),
    ],
)
def test_short_comparison_has_a_peak_of_its_own(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], peak: str | None
) -> None:
    monkeypatch.setattr(sys, "argv", ["mnist_ddp.py", *options])
    arguments, _ = mnist_compare.parse_arguments()
    passed_on = mnist_compare.schedule_options(arguments, mnist_recipe.MNIST)
    assert ("--lr" in passed_on) == (peak is not None)
    assert peak is None or passed_on[passed_on.index("--lr") + 1] == peak


def test_what_a_run_is_to_reach_goes_by_its_length() -> None:
    assert mnist_recipe.MNIST.target(num_steps=150, epoch_steps=468) == 95
    assert mnist_recipe.MNIST.target(num_steps=468, epoch_steps=468) == 99


def test_many_digits_are_for_testing() -> None:
    # One point of accuracy is then about nine images, more than chance moves between methods.
    assert len(load_small_digits().test_labels) >= 800


def accuracy_early_in_a_comparison(codec: str) -> float:
    """Train as a comparison does, to a little behind the learning rate's peak."""
    digits = load_small_digits()
    recipe = digits.recipe
    given: dict[str, Any] = {"codec": codec, "algorithm": "auto", "lr": None, "batch_size": None}
    given |= {
        "epochs": None,
        "steps": recipe.comparison_steps,
        "seed": 0,
        "amp": False,
        "until": None,
    }
    given |= {"evaluate_every": 30, "checkpoint": None, "checkpoint_every": 1}
    arguments = argparse.Namespace(**given)
    recipe.complete(arguments)
    trainer = Trainer(arguments, torch.device("cpu"), digits)
    trainer.steps_left = 30
    accuracy: float = trainer.train().rows[-1]["test_accuracy_percent"]
    return accuracy


# With MNIST's learning rate even plain DDP's loss rises here: 40 %.
@pytest.mark.parametrize("codec", ["none", "int4"])
def test_small_digits_train(codec: str) -> None:
    accuracies = ranks.run_for(240, 2, accuracy_early_in_a_comparison, codec)
    assert min(accuracies) > 75
