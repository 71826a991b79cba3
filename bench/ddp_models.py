"""What bench/ddp.py trains: given gradients with the shapes of real models, and the MNIST CNN.

A model of given gradients computes nothing. Its backward pass hands out the gradients last layer
first, and sleeps until an accelerator would have them: as on an accelerator it takes time, but no
core of the host. How long is chosen, and spread over the parameters in proportion to their sizes.
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
from mnist_data import ShardedBatches, load_mnist
from mnist_download import find_mnist
from mnist_model import MnistCnn
from rank_checks import KnownGradients

Shape = tuple[int, ...]

MODELS = ("mnist", "resnet50", "gpt2", "given")
MNIST_BATCH_SIZE = 64  # per rank, as in examples/mnist_ddp.py
_MNIST_BATCHES = 16  # prepared before the clock runs, and used in turn

# The backward pass of an accelerator that sustains 40 TFLOP/s. ResNet-50, 128 images of 224 x 224:
# 128 * 16.4 GFLOP = 2.1 TFLOP; GPT-2, 8 sequences of 1024 tokens: 8192 * 4 * 124 M parameters =
# 4.1 TFLOP.
BACKWARD_SECONDS = {"resnet50": 0.052, "gpt2": 0.102, "given": 0.0}


def resnet50_shapes() -> list[Shape]:
    """Return the shapes of torchvision's ResNet-50, first layer first: 25,557,032 parameters."""

    def convolution(inputs: int, outputs: int, side: int) -> list[Shape]:
        """Return the shapes of a convolution without bias and its batch normalization."""
        return [(outputs, inputs, side, side), (outputs,), (outputs,)]

    shapes = convolution(3, 64, 7)
    inputs = 64
    for num_blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        outputs = 4 * width
        for block in range(num_blocks):
            shapes += convolution(inputs, width, 1)
            shapes += convolution(width, width, 3)
            shapes += convolution(width, outputs, 1)
            if block == 0:  # the shortcut changes the number of channels
                shapes += convolution(inputs, outputs, 1)
            inputs = outputs
    return [*shapes, (1000, inputs), (1000,)]


def gpt2_shapes() -> list[Shape]:
    """Return the shapes of GPT-2 small, first layer first: 124,439,808 parameters.

    The head is the token embedding, whose gradient is thus the last to be complete.
    """
    width, vocabulary, context, num_blocks = 768, 50257, 1024, 12
    norm: list[Shape] = [(width,), (width,)]

    def projection(inputs: int, outputs: int) -> list[Shape]:
        return [(inputs, outputs), (outputs,)]

    attention = projection(width, 3 * width) + projection(width, width)
    perceptron = projection(width, 4 * width) + projection(4 * width, width)
    blocks = (norm + attention + norm + perceptron) * num_blocks
    return [(vocabulary, width), (context, width), *blocks, *norm]


def mnist_shapes() -> list[Shape]:
    """Return the shapes of the MNIST CNN of examples/mnist_ddp.py, first layer first."""
    return [tuple(parameter.shape) for parameter in MnistCnn().parameters()]


def given_shapes(megabytes: float, parameters: int) -> list[Shape]:
    """Return so many equal matrices of 1000 columns, together of so many megabytes in float32."""
    rows = round(megabytes * 1e6 / 4 / parameters / 1000)
    if rows < 1:
        raise ValueError(f"{megabytes:g} MB are too little for {parameters} parameters")
    return [(rows, 1000)] * parameters


def model_shapes(model: str, megabytes: float, parameters: int) -> list[Shape]:
    """Return the parameter shapes of a model; the sizes are for the model "given"."""
    if model == "given":
        return given_shapes(megabytes, parameters)
    return {"mnist": mnist_shapes, "resnet50": resnet50_shapes, "gpt2": gpt2_shapes}[model]()


class Gradients:
    """Known gradients of every rank, and their exact average.

    Every parameter's gradient is a piece of the same random numbers, scaled: so that the largest
    parameter is all the memory they need, and that parameters differ as those of real models do.
    """

    def __init__(self, shapes: list[Shape], rank: int, world_size: int) -> None:
        self._known = KnownGradients(rank, world_size, max(math.prod(shape) for shape in shapes))
        powers = torch.rand(len(shapes), generator=torch.Generator().manual_seed(1)) * 4 - 2
        self._scales = [float(scale) for scale in powers.exp2()]

    def write(self, index: int, out: torch.Tensor) -> torch.Tensor:
        """Write this rank's gradient of a parameter to ``out``; return it."""
        mine = self._known.mine[: out.numel()].view(out.shape)
        return torch.mul(mine, self._scales[index], out=out)

    def relative_error(self, results: list[torch.Tensor]) -> float:
        """Return the norm of results - averages over the norm of the averages."""
        error = norm = 0.0
        for result, scale in zip(results, self._scales, strict=True):
            of_result = self._known.squared_error(result, scale)
            error += of_result[0]
            norm += of_result[1]
        return math.sqrt(error / norm)


class GivenGradients(nn.Module):
    """A model of the given shapes and gradients, whose backward pass sleeps for a chosen time."""

    def __init__(self, shapes: list[Shape], gradients: Gradients) -> None:
        super().__init__()
        self.gradients = gradients
        self.backward_seconds = 0.0
        self._started = 0.0
        sizes = [math.prod(shape) for shape in shapes]
        # Nobody looks at the weights: they may all lie in the same place.
        zeros = torch.zeros(max(sizes))
        self.weights = nn.ParameterList(
            nn.Parameter(zeros[:size].view(shape))
            for size, shape in zip(sizes, shapes, strict=True)
        )
        done_before = list(itertools.accumulate(reversed(sizes)))
        self._done_shares = [done / done_before[-1] for done in reversed(done_before)]

    def forward(self) -> torch.Tensor:
        """Return a scalar on which all parameters depend, the first layer's first."""
        token = torch.zeros(())
        for index, weight in enumerate(self.weights):
            token = _Layer.apply(token, weight, self, index)  # type: ignore[no-untyped-call]
        return token

    def fill(self) -> None:
        """Write the next pass's gradients to where DDP keeps them, before the clock runs."""
        with torch.no_grad():
            for index, weight in enumerate(self.weights):
                if weight.grad is not None:
                    self.gradients.write(index, weight.grad)

    def layer_backward(self, index: int) -> torch.Tensor | None:
        """Wait until a layer is done; return its gradient unless :meth:`fill` wrote it already."""
        if index == len(self.weights) - 1:
            self._started = time.perf_counter()
        # An accelerator does not wait for the host: what the host does meanwhile (the hooks, say)
        # delays no later layer.
        due = self._started + self._done_shares[index] * self.backward_seconds
        if (seconds := due - time.perf_counter()) > 0:
            time.sleep(seconds)
        weight = self.weights[index]
        if weight.grad is None:
            return self.gradients.write(index, torch.empty_like(weight))
        return None


class _Layer(torch.autograd.Function):
    """One parameter of a model of given gradients."""

    @staticmethod
    def forward(
        context: Any, token: torch.Tensor, weight: torch.Tensor, model: GivenGradients, index: int
    ) -> torch.Tensor:
        """Pass the token on."""
        context.model, context.index = model, index
        return token.view_as(token)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        """Return the token's gradient, and the weight's; DDP then sees that it is ready."""
        return gradients[0], context.model.layer_backward(context.index), None, None


def mnist_batches(
    data_root: str | None, rank: int, world_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield images and labels without end: MNIST from its files, or random numbers.

    Raises:
        FileNotFoundError: if a folder is given, but MNIST is not in it.
    """
    if data_root is None:
        generator = torch.Generator().manual_seed(rank)
        size = (_MNIST_BATCHES, MNIST_BATCH_SIZE)
        images = torch.randn(*size, 1, 28, 28, generator=generator)
        labels = torch.randint(10, size, generator=generator)
        return itertools.cycle(list(zip(images, labels, strict=True)))
    if not find_mnist(Path(data_root)):
        raise FileNotFoundError(f"MNIST's four IDX files are not in {data_root}")
    digits = load_mnist(Path(data_root))
    sharded = ShardedBatches(digits, MNIST_BATCH_SIZE, rank, world_size, seed=0)
    return itertools.cycle(list(sharded.batches(_MNIST_BATCHES)))


def make_mnist() -> nn.Module:
    """Return the MNIST CNN, the same on every rank."""
    torch.manual_seed(0)
    network: nn.Module = MnistCnn()
    # As in the example: this memory format takes a third off the time of the convolutions.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
