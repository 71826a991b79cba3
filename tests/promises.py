"""What the documentation says of a codec, for the tests of every codec that there is."""

import numpy as np
import numpy.typing as npt
import torch

import fastcomm
from fastcomm import _C
from fastcomm.codecs import codec_names
from oracle_numbers import F32
from oracle_topk import topk_count, topk_select

BOOLS = npt.NDArray[np.bool_]
F64 = npt.NDArray[np.float64]

FORMATS = {native.name: native for native in _C.dense_formats()}
# All that can have error feedback. Dense ones that are added to the native module are among them.
TOPK_CODECS = ["topk:0.02", "topk:0.12"]
CODECS = [*(name for name in codec_names() if name in FORMATS), *TOPK_CODECS]
STOCHASTIC_CODECS = [
    f"{name}:stochastic" for name in FORMATS if FORMATS[name].has_stochastic_rounding
]
# Below this magnitude, what these leave out is a float32, so that nothing at all is lost. Others
# may round it.
EXACT_BELOW = dict.fromkeys(["fp32", "bf16", "fp8", "int8", "int4", *TOPK_CODECS], np.inf)
EXACT_BELOW["fp16"] = 2.0**29
TOLERANCE = 1e-6
# What a rotation makes of numbers near the smallest one is rounded to multiples of that.
ROTATED_FLOOR = 64 * 2.0**-149
# A block with a larger magnitude has no scale and is sent as non-finite; a rotated one may be so
# from a smaller magnitude on.
LARGEST_SCALABLE = 2.0**127
LARGEST_ROTATABLE = 2.0**112


def is_rotated(name: str) -> bool:
    return name in FORMATS and FORMATS[name].is_rotated


def block_of(name: str) -> int:
    """Return how many elements share one fate: those of a block with a scale, else each its own."""
    base = name.partition(":")[0]
    return FORMATS[base].block_elements if base in FORMATS and FORMATS[base].has_scale else 1


def largest_in_block(magnitude: npt.NDArray[np.floating], block: int) -> F64:
    """Return for each element the largest magnitude in its block."""
    padded = np.zeros(-(-magnitude.size // block) * block)
    padded[: magnitude.size] = magnitude
    return np.repeat(padded.reshape(-1, block).max(axis=1), block)[: magnitude.size]


def tolerances(name: str, magnitude: npt.NDArray[np.floating]) -> F64:
    """Return how far delivered + residual may be from values of a magnitude, element by element."""
    if is_rotated(name):
        return TOLERANCE * largest_in_block(magnitude, block_of(name)) + ROTATED_FLOOR
    is_exact = magnitude < EXACT_BELOW.get(name, 0)
    return np.where(is_exact, 0, TOLERANCE * magnitude.astype(np.float64))


def announced_as_non_finite(name: str, value: F32) -> tuple[BOOLS, BOOLS]:
    """Return which elements must arrive as non-finite, and which ones may."""
    non_finite = ~np.isfinite(value)
    if name.startswith("topk"):
        # No more than k elements have room, NaN before Inf.
        selected = np.zeros(value.size, np.bool_)
        k = topk_count(float(name.removeprefix("topk:")), value.size)
        selected[topk_select(value, k)] = True
        return non_finite & selected, non_finite & selected
    if block_of(name) == 1:
        return non_finite, non_finite
    magnitude = np.where(non_finite, np.inf, np.abs(value))
    largest = largest_in_block(magnitude, block_of(name))
    if is_rotated(name):
        return largest == np.inf, largest >= LARGEST_ROTATABLE
    return largest >= LARGEST_SCALABLE, largest >= LARGEST_SCALABLE


def accumulated(gradient: F32, residual: F32) -> F32:
    with np.errstate(over="ignore", invalid="ignore"):
        return gradient + residual


def round_trip(
    name: str, gradient: F32, residual: F32 | None, received: list[bytes] | None = None
) -> tuple[bytes, F32, F32 | None]:
    """Return payload, decoded elements, and the residual afterwards."""
    codec = fastcomm.codec(name)
    left_out = None if residual is None else torch.from_numpy(residual.copy())
    payload = torch.empty(codec.wire_bytes(gradient.size), dtype=torch.uint8)
    others = [torch.frombuffer(bytearray(other), dtype=torch.uint8) for other in received or []]
    tensor = torch.from_numpy(gradient)
    _C.encode(codec.spec, tensor, left_out, others, payload, _C.CodecWorkspace())
    decoded: F32 = codec.decode(payload).numpy()
    return payload.numpy().tobytes(), decoded, None if left_out is None else left_out.numpy()
