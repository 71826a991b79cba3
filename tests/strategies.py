"""Gradients as hypothesis draws them: any bit pattern, and those where something changes."""

import hypothesis.strategies as st
import numpy as np

from oracle_numbers import F32

# Bit patterns where something changes: zeros, denormals, the smallest and the largest block that
# has a scale, ties of the rounding to bf16, the largest bf16 and f32, Inf, quiet NaNs.
SPECIAL_BITS = [
    *(0x00000000, 0x00000001, 0x00007FFF, 0x00008000, 0x007FFFFF, 0x00800000),
    *(0x0D7FFFFF, 0x0D800000, 0x3F800000, 0x3F808000, 0x3F818000, 0x7EFFFFFF, 0x7F000000),
    *(0x7F7F0000, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF, 0x7F800000, 0x7FC00000, 0x7FC12345),
    # The same of fp16: its smallest number and half of it, its largest, and what rounds to Inf.
    *(0x33000000, 0x33000001, 0x33800000, 0x387FE000, 0x38800000, 0x477FE000, 0x477FF000),
]
SIGN = 0x80000000
STYLES = ["bits", "gaussian", "wide", "multiples", "flat", "zeros"]


def array_of(style: str, random: np.random.Generator, size: int, exponent: int) -> F32:
    """Return random floats of one style, of about the magnitude 2 ** exponent."""
    with np.errstate(over="ignore"):
        if style == "bits":
            return random.integers(0, 2**32, size, np.uint32).view(np.float32)
        if style == "gaussian":
            return np.asarray(random.standard_normal(size) * 2.0**exponent, np.float32)
        if style == "wide":  # 1e-30 to 1e30 in one block
            wide = random.standard_normal(size) * 10.0 ** random.uniform(-30, 30, size)
            return np.asarray(wide, np.float32)
        if style == "multiples":  # ties among magnitudes, and values between two codes
            return np.asarray(random.integers(-14, 15, size) / 2 * 2.0**exponent, np.float32)
        if style == "flat":  # what a rotation may turn into a single value
            return np.asarray(random.choice([-1, 1], size) * 2.0**exponent, np.float32)
    return np.zeros(size, np.float32)


def place_specials(values: F32, specials: list[int]) -> None:
    """Write special bit patterns to some places; each integer says which one and where."""
    bits = values.view(np.uint32)
    for special in specials if values.size else []:
        which, where = special % (2 * len(SPECIAL_BITS)), special // (2 * len(SPECIAL_BITS))
        bits[where % values.size] = SPECIAL_BITS[which // 2] | (SIGN if which % 2 else 0)


specials_of_array = st.lists(st.integers(0, 2**20), max_size=8)
any_exponent = st.integers(-149, 126)


@st.composite
def float_arrays(
    draw: st.DrawFn,
    finite: bool = False,
    exponents: st.SearchStrategy[int] = any_exponent,
) -> F32:
    """Arrays of one style, with special bit patterns at some places."""
    size = draw(st.integers(0, 1100))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = array_of(draw(st.sampled_from(STYLES)), random, size, draw(exponents))
    place_specials(values, draw(specials_of_array))
    if finite:
        values[~np.isfinite(values)] = 0
    return values


gradients = float_arrays()


@st.composite
def gradients_and_residuals(draw: st.DrawFn) -> tuple[F32, F32]:
    """Also a residual, as made-up as the gradient, but finite."""
    gradient = draw(gradients)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    exponent = int(random.integers(-149, 127))
    residual = array_of(str(random.choice(STYLES)), random, gradient.size, exponent)
    place_specials(residual, random.integers(0, 2**20, random.integers(0, 9)).tolist())
    residual[~np.isfinite(residual)] = 0
    return gradient, residual
