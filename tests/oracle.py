"""The codecs in plain numpy: slow, obviously right, and what the tests compare fastcomm with.

Written from docs/wire_format.md, not from the loops in C++.
Everything is f32 arithmetic, rounded after each operation; a payload is complete, header included.
"""

import struct
from collections.abc import Sequence

import numpy as np
import torch

from oracle_dense import FORMATS, Options
from oracle_numbers import F32, to_float32
from oracle_topk import decode_topk, encode_topk, topk_count

HEADER = struct.Struct("<HBBIIHHIII")  # all fields but the checksum, which follows
HEADER_BYTES = HEADER.size + 4
MAGIC = 0x4346
VERSION = 1
TOPK = 1

CODECS = [*FORMATS, "topk:0.01", "topk:0.1"]
STOCHASTIC_CODECS = [
    f"{name}:stochastic,seed={7 * form.wire_id}" for name, form in FORMATS.items() if form.levels
]


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


def options_of(name: str, rank: int = 0, step: int = 0, bucket: int = 0) -> Options:
    """Read what follows the colon in the name of a dense codec."""
    words = name.partition(":")[2].split(",")
    seeds = [int(word.removeprefix("seed=")) for word in words if word.startswith("seed=")]
    return Options(sum(seeds), "stochastic" in words, rank, step, bucket)


def encode(
    name: str,
    gradient: torch.Tensor,
    residual: F32 | None,
    received: Sequence[bytes] = (),
    rank: int = 0,
    step: int = 0,
    bucket: int = 0,
) -> tuple[bytes, F32 | None]:
    """Return the payload of ``gradient + residual + received``, and the residual afterwards.

    ``rank``, ``step`` and ``bucket`` are those of stochastic rounding.
    """
    value = to_float32(gradient)
    num_elements = value.size
    bodies = [payload[HEADER_BYTES:] for payload in received]
    with np.errstate(over="ignore", invalid="ignore"):
        if name.startswith("topk:"):
            k = topk_count(float(name.removeprefix("topk:")), num_elements)
            body, left_out = encode_topk(value, residual, bodies, k)
            payload = seal(body, TOPK, k, num_elements)
        else:
            dense = FORMATS[name.partition(":")[0]]
            options = options_of(name, rank, step, bucket)
            previous = np.zeros(num_elements, np.float32)
            if residual is not None:
                value, previous = value + residual, residual
            body, left_out = dense.encode(value, previous, bodies, options)
            payload = seal(body, dense.wire_id, dense.parameter(options), num_elements)
    return payload, None if residual is None else left_out


def decode(name: str, *payloads: bytes) -> F32:
    """Return the sum of payloads that are trusted to be of codec ``name``."""
    fields = HEADER.unpack_from(payloads[0])
    num_elements, parameter = fields[3], fields[8]
    bodies = [payload[HEADER_BYTES:] for payload in payloads]
    with np.errstate(over="ignore", invalid="ignore"):
        if name.startswith("topk:"):
            return decode_topk(bodies, num_elements, parameter)
        return FORMATS[name.partition(":")[0]].decode(bodies, num_elements, options_of(name))
