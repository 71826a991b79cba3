"""Number formats in plain numpy, for the oracle: how each is rounded to, and read."""

import numpy as np
import numpy.typing as npt
import torch

F32 = npt.NDArray[np.float32]
U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]

BF16_NAN = 0x7FC0
FP16_NAN = 0x7E00
FP16_MAX = np.float32(65504)
# The value of each e4m3 code without its sign, but for 127, which is a NaN there: code >> 3 is the
# exponent, and exponent 0 holds the subnormal numbers.
E4M3 = np.array(
    [
        (code & 7) * 2.0**-9 if code < 8 else (8 + (code & 7)) * 2.0 ** ((code >> 3) - 10)
        for code in range(127)
    ],
    np.float32,
)


def to_float32(tensor: torch.Tensor) -> F32:
    """Read the elements of a float32, bfloat16 or float16 tensor as f32."""
    flat = tensor.detach().reshape(-1)
    if tensor.dtype == torch.bfloat16:
        return bf16_to_float32(flat.view(torch.int16).numpy().view(np.uint16))
    # Not astype for f32: it is a copy of the bits that is wanted.
    array: F32 = flat.numpy().copy()
    return array if tensor.dtype == torch.float32 else array.astype(np.float32)


def bf16_to_float32(bits: U16) -> F32:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float32_to_bf16(value: F32) -> U16:
    """Round half to even; a finite value never becomes Inf, and every NaN is 0x7fc0."""
    bits = value.view(np.uint32)
    upper, lower = bits >> 16, bits & 0xFFFF
    goes_up = (lower > 0x8000) | ((lower == 0x8000) & (upper % 2 == 1))
    rounded = upper + goes_up
    sign = upper & 0x8000
    overflows = np.isfinite(value) & (rounded & 0x7FFF == 0x7F80)
    rounded = np.where(overflows, sign | 0x7F7F, rounded)
    rounded = np.where(np.isinf(value), upper, rounded)
    rounded = np.where(np.isnan(value), BF16_NAN, rounded)
    return rounded.astype(np.uint16)


def bf16_not_below(value: np.float32) -> int:
    """Return the bits of the smallest bf16 that is not below the positive ``value``."""
    bits = int(value.view(np.uint32))
    return (bits >> 16) + (1 if bits & 0xFFFF else 0)


def bf16_nearest(value: np.float32) -> int:
    return int(float32_to_bf16(np.array([value], np.float32))[0])


def float32_to_fp16(value: F32) -> U16:
    """Round half to even; a finite value never becomes Inf, and every NaN is 0x7e00."""
    finite = np.isfinite(value)
    within = np.where(finite, np.clip(value, -FP16_MAX, FP16_MAX), value)
    return np.where(np.isnan(value), FP16_NAN, within.astype(np.float16).view(np.uint16)).astype(
        np.uint16
    )


def fp16_to_float32(bits: U16) -> F32:
    return bits.view(np.float16).astype(np.float32)


def float32_to_e4m3(value: F32) -> U32:
    """Round half to the even code; what exceeds 448 becomes 448."""
    magnitude = np.minimum(np.abs(value), E4M3[-1])
    above = np.searchsorted(E4M3, magnitude)  # the first number that is not below
    below = np.maximum(above - 1, 0)
    middle = (E4M3[below].astype(np.float64) + E4M3[above]) / 2
    goes_up = (magnitude > middle) | ((magnitude == middle) & (above % 2 == 0))
    code = np.where(goes_up, above, below)
    return np.asarray(np.where(np.signbit(value), code | 0x80, code), np.uint32)


def e4m3_to_float32(codes: U32) -> F32:
    magnitude = E4M3[codes & 0x7F]
    return np.asarray(np.where(codes & 0x80, -magnitude, magnitude))


def pad(part: bytes) -> bytes:
    """Fill up with zeros to a multiple of 16 bytes."""
    return part + bytes(-len(part) % 16)
