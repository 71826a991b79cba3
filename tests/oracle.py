"""The codecs in plain numpy: slow, obviously right, and what the tests compare fastcomm with.

Written from docs/wire_format.md, not from the loops in C++.
Everything is f32 arithmetic, rounded after each operation; a payload is complete, header included.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

F32 = npt.NDArray[np.float32]
U16 = npt.NDArray[np.uint16]

HEADER = struct.Struct("<HBBIIHHIII")  # all fields but the checksum, which follows
HEADER_BYTES = HEADER.size + 4
MAGIC = 0x4346
VERSION = 1
BF16_NAN = 0x7FC0
SUB_BLOCK = 65536


# --- number formats -----------------------------------------------------------------------------


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


# --- dense codecs -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """An encoded block, and what it leaves out; None: the residual stays as it was."""

    scale: int
    codes: npt.NDArray[np.int32]
    left_out: F32 | None


def quantize_block(value: F32, levels: int) -> Block:
    absmax = np.abs(value).max()
    zeros = np.zeros(value.size, np.int32)
    if not absmax < 2.0**127:  # NaN too
        return Block(BF16_NAN, zeros, None)
    if absmax < 2.0**-100:
        return Block(0, zeros, value)
    one = np.float32(1)
    wire_scale = bf16_not_below(absmax * (one / np.float32(levels)))
    scale = bf16_to_float32(np.array([wire_scale], np.uint16))[0]
    codes = np.rint(value * (one / scale)).astype(np.int32)  # rint rounds half to even
    return Block(wire_scale, codes, value - codes.astype(np.float32) * scale)


def pack_int8(codes: npt.NDArray[np.int32]) -> bytes:
    return codes.astype(np.int8).tobytes()


def unpack_int8(units: npt.NDArray[np.uint8], num_elements: int) -> npt.NDArray[np.int32]:
    return units.view(np.int8)[:num_elements].astype(np.int32)


def pack_int4(codes: npt.NDArray[np.int32]) -> bytes:
    """Two planes: the first half of the block in the low nibbles, the second in the high ones."""
    units = (codes.size + 1) // 2
    padded = np.zeros(2 * units, np.int32)
    padded[: codes.size] = codes
    nibbles = padded & 0xF
    return (nibbles[:units] | nibbles[units:] << 4).astype(np.uint8).tobytes()


def unpack_int4(units: npt.NDArray[np.uint8], num_elements: int) -> npt.NDArray[np.int32]:
    nibbles = np.concatenate([units & 0xF, units >> 4]).astype(np.int32)[:num_elements]
    return np.where(nibbles < 8, nibbles, nibbles - 16)


@dataclass(frozen=True)
class Symmetric:
    """Symmetric integers with one bf16 scale per block."""

    wire_id: int
    block: int
    levels: int
    elements_per_byte: int
    pack: Callable[[npt.NDArray[np.int32]], bytes]
    unpack: Callable[[npt.NDArray[np.uint8], int], npt.NDArray[np.int32]]

    def encode(self, value: F32, previous: F32) -> tuple[bytes, F32]:
        """Return the body of a payload, and the residual afterwards."""
        scales, codes, residual = b"", b"", previous.copy()
        for first in range(0, value.size, self.block):
            elements = slice(first, first + self.block)
            block = quantize_block(value[elements], self.levels)
            scales += struct.pack("<H", block.scale)
            codes += self.pack(block.codes)
            if block.left_out is not None:
                residual[elements] = block.left_out
        return pad(scales) + pad(codes), residual

    def decode(self, body: bytes, num_elements: int) -> F32:
        """Return the elements of a body."""
        num_blocks = math.ceil(num_elements / self.block)
        scales = bf16_to_float32(np.frombuffer(body, np.uint16, num_blocks))
        units = np.frombuffer(body, np.uint8, offset=len(pad(bytes(2 * num_blocks))))
        out = np.empty(num_elements, np.float32)
        for block, scale in enumerate(scales):
            first = block * self.block
            count = min(self.block, num_elements - first)
            begin = first // self.elements_per_byte
            num_units = math.ceil(count / self.elements_per_byte)
            codes = self.unpack(units[begin : begin + num_units], count)
            out[first : first + count] = codes.astype(np.float32) * scale
        return out


SYMMETRIC = {
    "int8": Symmetric(8, 512, 127, 1, pack_int8, unpack_int8),
    "int4": Symmetric(4, 256, 7, 2, pack_int4, unpack_int4),
}


def encode_fp32(value: F32, previous: F32) -> tuple[bytes, F32]:
    codes = np.where(np.isnan(value), np.uint32(0x7FC00000), value.view(np.uint32))
    return pad(codes.tobytes()), np.where(np.isfinite(value), np.float32(0), previous)


def encode_bf16(value: F32, previous: F32) -> tuple[bytes, F32]:
    codes = float32_to_bf16(value)
    residual = np.where(np.isfinite(value), value - bf16_to_float32(codes), previous)
    return pad(codes.tobytes()), residual


# --- top-k --------------------------------------------------------------------------------------


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


def encode_topk(value: F32, previous: F32, k: int) -> tuple[bytes, F32]:
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


def decode_topk(body: bytes, num_elements: int, k: int) -> F32:
    num_sub_blocks = math.ceil(num_elements / SUB_BLOCK)
    offsets_begin = len(pad(bytes(4 * num_sub_blocks)))
    values_begin = offsets_begin + len(pad(bytes(2 * k)))
    counts = np.frombuffer(body, np.uint32, num_sub_blocks)
    first_index = np.repeat(np.arange(num_sub_blocks) * SUB_BLOCK, counts)
    num_sent = int(counts.sum())
    offsets = np.frombuffer(body, np.uint16, num_sent, offsets_begin)
    values = bf16_to_float32(np.frombuffer(body, np.uint16, num_sent, values_begin))
    out = np.zeros(num_elements, np.float32)
    out[first_index + offsets] += values  # a sum that starts at zero: -0 arrives as +0
    return out


# --- payloads -----------------------------------------------------------------------------------


def pad(part: bytes) -> bytes:
    """Fill up with zeros to a multiple of 16 bytes."""
    return part + bytes(-len(part) % 16)


def _crc_table_entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC_TABLE = [_crc_table_entry(byte) for byte in range(256)]


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def seal(
    body: bytes, codec_id: int, parameter: int, num_elements: int, version: int = VERSION
) -> bytes:
    """Put the header of a payload with an all-zero label in front of ``body``."""
    size = HEADER_BYTES + len(body)
    header = HEADER.pack(
        MAGIC, version, codec_id, num_elements, 0, 0, 0, 0, parameter, size
    )  # the zeros: step, bucket, segment, slice
    return header + struct.pack("<I", crc32c(header + body)) + body


def encode(name: str, gradient: torch.Tensor, residual: F32 | None) -> tuple[bytes, F32 | None]:
    """Return the payload of ``gradient + residual``, and the residual afterwards."""
    value = to_float32(gradient)
    previous = np.zeros(value.size, np.float32) if residual is None else residual
    num_elements = value.size
    with np.errstate(over="ignore", invalid="ignore"):
        if residual is not None:
            value = value + residual
        if name.startswith("topk:"):
            k = topk_count(float(name.removeprefix("topk:")), num_elements)
            body, left_out = encode_topk(value, previous, k)
            payload = seal(body, 1, k, num_elements)
        elif name in SYMMETRIC:
            body, left_out = SYMMETRIC[name].encode(value, previous)
            payload = seal(body, SYMMETRIC[name].wire_id, SYMMETRIC[name].block, num_elements)
        else:
            wire_id, encode_values = {"fp32": (32, encode_fp32), "bf16": (16, encode_bf16)}[name]
            body, left_out = encode_values(value, previous)
            payload = seal(body, wire_id, 512, num_elements)
    return payload, None if residual is None else left_out


def decode(name: str, payload: bytes) -> F32:
    """Return the elements of a payload that is trusted to be one of codec ``name``."""
    fields = HEADER.unpack_from(payload)
    num_elements, parameter = fields[3], fields[8]
    body = payload[HEADER_BYTES:]
    if name.startswith("topk:"):
        return decode_topk(body, num_elements, parameter)
    if name in SYMMETRIC:
        return SYMMETRIC[name].decode(body, num_elements)
    if name == "bf16":
        return bf16_to_float32(np.frombuffer(body, np.uint16, num_elements))
    return np.frombuffer(body, np.float32, num_elements)
