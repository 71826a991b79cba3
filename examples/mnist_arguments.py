"""The command line of the training script."""

import argparse
from pathlib import Path

import mnist_recipe
from mnist_report import is_powersgd


def parse_command_line(description: str | None) -> argparse.Namespace:
    """Read the command line; what is left open there, the data's recipe decides."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--codec", default="int8", help="default int8")
    add("--algorithm", default="auto", help="ring, gather, scatter_gather or auto (default)")
    add("--data-root", type=Path, help="folder with the MNIST IDX files, or for the download")
    add("--data", choices=("auto", "digits"), default="auto", help="digits: scikit-learn's")
    mnist, small = mnist_recipe.MNIST, mnist_recipe.SMALL_DIGITS
    by_data = "default {:g} for MNIST, {:g} for scikit-learn's digits"
    add("--epochs", type=int, help=by_data.format(mnist.epochs, small.epochs))
    add("--steps", type=int, help="train for so many steps, not for epochs")
    add(
        "--batch-size",
        type=int,
        help=f"samples per rank and step ({by_data.format(mnist.batch_size, small.batch_size)})",
    )
    add(
        "--lr",
        type=float,
        help=f"peak learning rate ({by_data.format(mnist.learning_rate, small.learning_rate)})",
    )
    add("--seed", type=int, default=0)
    add("--evaluate-every", type=int, help="steps between tests (default: 5 to 40 tests in all)")
    add("--until", type=float, metavar="PERCENT", help="stop at this test accuracy")
    add("--amp", action="store_true", help="autocast: f16 with GradScaler on cuda, bf16 on cpu")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: ranks may share GPUs")
    add("--link-rate", default="unshaped", help="rate of the link, to be noted in the JSON file")
    add("--quiet", action="store_true", help="do not say which data is used")
    add("--json", type=Path, help="write the result here")
    add(
        "--checkpoint",
        type=Path,
        metavar="FOLDER",
        help="save checkpoints here and go on from the latest one, with any number of ranks; all "
        "hosts must see the folder",
    )
    add("--checkpoint-every", type=int, default=100, metavar="STEPS", help="default 100")
    arguments = parser.parse_args()
    if arguments.checkpoint is not None and is_powersgd(arguments.codec):
        parser.error("--checkpoint: what PowerSGD keeps would be lost")
    return arguments
