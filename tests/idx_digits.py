"""Made-up digits in MNIST's files, so that the example can be trained where there is no MNIST."""

import struct
from pathlib import Path

import torch


def write_idx_digits(folder: Path, num_training: int, num_testing: int) -> None:
    """Write IDX files of ten blurred patterns, each sample with much noise, into ``folder``.

    How well a network tells them apart depends on how long it has been trained.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(10, 1, 7, 7, generator=generator)
    patterns = torch.nn.functional.interpolate(coarse, (28, 28), mode="bilinear").squeeze(1)
    for name, count in (("train", num_training), ("t10k", num_testing)):
        labels = torch.randint(10, (count,), generator=generator)
        noise = torch.randn(count, 28, 28, generator=generator)
        images = (255 * (0.4 * patterns[labels] + 0.3 + 0.5 * noise)).clamp(0, 255)
        _write(folder / f"{name}-images-idx3-ubyte", images)
        _write(folder / f"{name}-labels-idx1-ubyte", labels)


def _write(path: Path, values: torch.Tensor) -> None:
    header = struct.pack(f">HBB{values.dim()}I", 0, 8, values.dim(), *values.shape)
    path.write_bytes(header + values.to(torch.uint8).numpy().tobytes())
