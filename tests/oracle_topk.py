"""The top-k codec in plain numpy, for the oracle: section 3 of docs/wire_format.md."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from oracle_numbers import F32, bf16_to_float32, float32_to_bf16, pad

SUB_BLOCK = 65536


def topk_count(density: float, num_elements: int) -> int:
    """Round density * num_elements half up, but send at least one element of a bucket."""
    if num_elements == 0:
        return 0
    exact = density * num_elements
    rounded = math.floor(exact) + (1 if exact - math.floor(exact) >= 0.5 else 0)
    return min(max(rounded, 1), num_elements)


def topk_select(value: F32, k: int) -> npt.NDArray[np.int64]:
    """Return the indices of the k largest magnitudes, ascending; ties go to the lowest index."""
    # As integers the magnitudes are in the order of |x|, with Inf and then NaN on top.
    magnitude = (value.view(np.uint32) & 0x7FFFFFFF).astype(np.int64)
    largest_first = np.argsort(-magnitude, kind="stable")[:k]
    return np.sort(largest_first[magnitude[largest_first] > 0])


def encode_topk(
    gradient: F32, residual: F32 | None, received: Sequence[bytes], k: int
) -> tuple[bytes, F32]:
    """Return the section of gradient + (residual + received), and the residual afterwards."""
    held = np.zeros(gradient.size, np.float32) if residual is None else residual.copy()
    overflows = np.zeros(gradient.size, np.bool_)
    for section in received:
        indices, values = entries_of(section, gradient.size, k)
        for index, sent in zip(indices, values, strict=True):
            total = held[index] + sent
            if overflows[index] or not np.isfinite(total + gradient[index]):
                overflows[index] = True  # from here on a NaN; the residual stays
            else:
                held[index] = total
    value = np.where(overflows, np.float32(np.nan), gradient + held)
    value = np.where(np.isnan(value), np.float32(np.nan), value)  # the one NaN
    return encode_entries(value, held, k)


def encode_entries(value: F32, previous: F32, k: int) -> tuple[bytes, F32]:
    selected = topk_select(value, k)
    sent = float32_to_bf16(value[selected])
    counts = np.bincount(selected // SUB_BLOCK, minlength=math.ceil(value.size / SUB_BLOCK))
    offsets = (selected % SUB_BLOCK).astype(np.uint16)
    unused = bytes(2 * (k - selected.size))
    left_out = value.copy()
    left_out[selected] = value[selected] - bf16_to_float32(sent)
    residual = np.where(np.isfinite(value), left_out, previous)
    parts = [counts.astype(np.uint32).tobytes(), offsets.tobytes() + unused]
    return b"".join(pad(part) for part in [*parts, sent.tobytes() + unused]), residual


def entries_of(section: bytes, num_elements: int, k: int) -> tuple[npt.NDArray[np.int64], F32]:
    """Return the indices and the values of the entries of a section."""
    num_sub_blocks = math.ceil(num_elements / SUB_BLOCK)
    offsets_begin = len(pad(bytes(4 * num_sub_blocks)))
    values_begin = offsets_begin + len(pad(bytes(2 * k)))
    counts = np.frombuffer(section, np.uint32, num_sub_blocks)
    first_index = np.repeat(np.arange(num_sub_blocks) * SUB_BLOCK, counts)
    num_sent = int(counts.sum())
    offsets = np.frombuffer(section, np.uint16, num_sent, offsets_begin)
    values = bf16_to_float32(np.frombuffer(section, np.uint16, num_sent, values_begin))
    return first_index + offsets, values


def decode_topk(sections: Sequence[bytes], num_elements: int, k: int) -> F32:
    out = np.zeros(num_elements, np.float32)
    for section in sections:
        indices, values = entries_of(section, num_elements, k)
        out[indices] += values  # a sum that starts at zero: -0 arrives as +0
    return out
