"""The gradients that codecs are tried on: ordinary ones, and those where something changes."""

from collections.abc import Callable

import numpy as np
import torch

from oracle_numbers import E4M3, F32

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Around the block sizes (256, 512) and the chunk of the top-k loops (512); ragged everywhere.
SIZES = [0, 1, 2, 3, 17, 255, 256, 257, 511, 512, 513, 1000]
# Top-k: above 2^15 elements the selection samples; above 2^16 there are two sub-blocks.
SPARSE_SIZES = [*SIZES, 32768, 70000]
FLT_MAX = float(np.finfo(np.float32).max)


def gaussian(random: np.random.Generator, size: int) -> F32:
    return random.standard_normal(size).astype(np.float32)


def wide_range(random: np.random.Generator, size: int) -> F32:
    return (random.standard_normal(size) * 10.0 ** random.uniform(-30, 30, size)).astype(np.float32)


def zeros(random: np.random.Generator, size: int) -> F32:
    return np.zeros(size, np.float32)


def negative_zeros(random: np.random.Generator, size: int) -> F32:
    values = np.full(size, -0.0, np.float32)
    values[1::2] = random.choice(np.array([0.0, -0.0, 1.0], np.float32), size // 2)
    return values


def denormals(random: np.random.Generator, size: int) -> F32:
    sign = random.choice([-1, 1], size)
    return np.asarray(sign * random.integers(0, 1 << 23, size) * 2.0**-149, np.float32)


def near_the_smallest_scale(random: np.random.Generator, size: int) -> F32:
    return (random.standard_normal(size) * 2.0**-101).astype(np.float32)


def constant(random: np.random.Generator, size: int) -> F32:
    return np.full(size, -0.7, np.float32)


def ties(random: np.random.Generator, size: int) -> F32:
    """Few distinct magnitudes, and multiples of half a code."""
    return np.asarray(random.integers(-8, 9, size) / 2, np.float32)


def halfway_between_codes(random: np.random.Generator, size: int) -> F32:
    """Blocks whose scale is 1, of what is halfway between two codes of int8, int4 or fp8."""
    top = [126.75, 6.875, 447.0][size % 3]
    middles = np.arange(0.5, top) if top < 447 else (E4M3[1:] + E4M3[:-1]) / 2
    values = random.choice([-1, 1], size) * random.choice(middles, size)
    values[::200] = top
    return np.asarray(values, np.float32)


def halfway_between_halves(random: np.random.Generator, size: int) -> F32:
    """What is halfway between two numbers of fp16 or bf16, subnormal and too large ones too."""
    exponents = random.integers(127 - 26, 127 + 18, size)
    digits = random.integers(0, 1 << 11, size) << 12 | random.choice([0, 1 << 11, 1], size)
    signs = random.integers(0, 2, size) << 31
    bits = np.asarray(signs | exponents << 23 | digits & 0x7FFFFF, np.uint32)
    return bits.view(np.float32)


def outlier(random: np.random.Generator, size: int) -> F32:
    values = gaussian(random, size)
    values[size // 2 : size // 2 + 1] = 3e7
    return values


def non_finite(random: np.random.Generator, size: int) -> F32:
    values = gaussian(random, size)
    values[size // 3 :: 300] = np.inf
    values[size // 2 :: 400] = np.nan
    values[size - 1 :] = -np.inf
    return values


def all_non_finite(random: np.random.Generator, size: int) -> F32:
    return random.choice(np.array([np.inf, -np.inf, np.nan], np.float32), size)


def largest(random: np.random.Generator, size: int) -> F32:
    return (random.uniform(-1, 1, size) * FLT_MAX).astype(np.float32)


def largest_ties(random: np.random.Generator, size: int) -> F32:
    """All of one magnitude: top-k cannot tell them apart by a sample."""
    return np.full(size, 0.75 * FLT_MAX, np.float32)


def largest_and_nan(random: np.random.Generator, size: int) -> F32:
    values = largest(random, size)
    values[size // 2 : size // 2 + 1] = np.nan
    return values


def large(random: np.random.Generator, size: int) -> F32:
    """Around the largest values that a rotation can sum."""
    return (random.uniform(-1, 1, size) * 2.0 ** random.integers(115, 127)).astype(np.float32)


_ALL: list[Callable[[np.random.Generator, int], F32]] = [
    gaussian,
    wide_range,
    zeros,
    negative_zeros,
    denormals,
    near_the_smallest_scale,
    constant,
    ties,
    halfway_between_codes,
    halfway_between_halves,
    outlier,
    non_finite,
    all_non_finite,
    largest,
    largest_ties,
    largest_and_nan,
    large,
]
INPUTS = {make.__name__: make for make in _ALL}


def residual_for(values: F32, random: np.random.Generator) -> F32:
    """Return a residual at most half as large as the gradients that it came from."""
    finite = np.where(np.isfinite(values), values, np.float32(1))
    return finite * random.uniform(-0.5, 0.5, values.size).astype(np.float32)
