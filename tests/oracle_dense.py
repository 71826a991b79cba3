"""The dense codecs in plain numpy, for the oracle: sections 2 of docs/wire_format.md."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oracle_numbers import (
    BF16_NAN,
    F32,
    U32,
    bf16_nearest,
    bf16_not_below,
    bf16_to_float32,
    e4m3_to_float32,
    float32_to_bf16,
    float32_to_e4m3,
    float32_to_fp16,
    fp16_to_float32,
    pad,
)
from oracle_rotation import mean_magnitude, philox, rotated, rotated_back

F = np.float32
ONE = F(1)


@dataclass(frozen=True)
class Options:
    """What follows the colon of a codec's name, and who draws the random numbers."""

    seed: int = 0
    is_stochastic: bool = False
    rank: int = 0
    step: int = 0
    bucket: int = 0

    def noise(self, first_element: int, block: int) -> npt.NDArray[np.int32]:
        """Return 15 random bits for each element of the block that begins at an element."""
        elements = first_element + np.arange(block // 4)
        counter = (elements & 0xFFFFFFFF, elements >> 32, self.step, self.bucket)
        words = philox(counter, (self.seed, self.rank))
        return np.asarray(words.reshape(-1) >> np.uint32(17), np.int32)


@dataclass(frozen=True)
class Format:
    """A codec: how a block's values become codes, and how codes become values."""

    wire_id: int
    block: int
    unit: type[np.unsignedinteger]
    codes_per_unit: int
    quantize: Callable[[F32, np.float32], U32]
    dequantize: Callable[[U32, np.float32], F32]
    # The bf16 scale of the largest magnitude, or of the mean magnitude if the codec is rotated.
    scale: Callable[[np.float32], int] | None = None
    is_rotated: bool = False
    levels: int = 0  # of integers, which have stochastic rounding

    @property
    def code_bits(self) -> int:
        """Return how many bits of a unit a code has."""
        return 8 * np.dtype(self.unit).itemsize // self.codes_per_unit

    def parameter(self, options: Options) -> int:
        """Return what the header says of a payload besides its codec."""
        return options.seed if self.is_rotated else self.block

    def pack(self, codes: U32) -> bytes:
        """Plane p of a unit holds the codes of the p-th part of the block."""
        num_units = math.ceil(codes.size / self.codes_per_unit)
        planes = np.zeros((self.codes_per_unit, num_units), np.uint32)
        planes.reshape(-1)[: codes.size] = codes
        units = np.zeros(num_units, np.uint32)
        for p, plane in enumerate(planes):
            units |= plane << np.uint32(p * self.code_bits)
        return units.astype(self.unit).tobytes()

    def unpack(self, units: U32, num_elements: int) -> U32:
        """Return the codes of a block."""
        mask = np.uint32(2**self.code_bits - 1)
        planes = [units >> np.uint32(p * self.code_bits) & mask for p in range(self.codes_per_unit)]
        return np.concatenate(planes)[:num_elements]

    def encode(
        self, value: F32, previous: F32, received: Sequence[bytes], options: Options
    ) -> tuple[bytes, F32]:
        """Return a section and the residual afterwards, of value = gradient + residual."""
        scales, units, residual = b"", b"", previous.copy()
        incoming = [self.rotated_values(section, value.size) for section in received]
        for first in range(0, value.size, self.block):
            part = slice(first, first + self.block)
            block = rotated(value[part], options.seed) if self.is_rotated else value[part]
            for other in incoming:
                block = block + other[part]
            scale_bits, codes, left_out = self.encode_block(block, first, options)
            scales += scale_bits
            units += self.pack(codes)
            if left_out is None:
                continue
            if self.is_rotated:
                left_out = rotated_back(left_out, options.seed)
            keeps = ~np.isfinite(block) if self.scale is None else np.zeros(block.size, np.bool_)
            residual[part] = np.where(keeps, previous[part], left_out)
        return pad(scales) + pad(units), residual

    def encode_block(
        self, value: F32, first_element: int, options: Options
    ) -> tuple[bytes, U32, F32 | None]:
        """Return a block's scale, its codes and what they leave out; None: nothing was sent."""
        if self.scale is None:
            codes = self.quantize(value, ONE)
            return b"", codes, value - self.dequantize(codes, ONE)
        zeros = np.zeros(value.size, np.uint32)
        statistic = mean_magnitude(value) if self.is_rotated else np.abs(value).max()
        if not statistic < (2.0**112 if self.is_rotated else 2.0**127):  # NaN too
            return np.uint16(BF16_NAN).tobytes(), zeros, None
        if statistic < 2.0**-100:
            return bytes(2), zeros, value
        scale_bits = np.uint16(self.scale(statistic))
        scale = bf16_to_float32(np.array([scale_bits]))[0]
        if options.is_stochastic:
            noise = options.noise(first_element, self.block)[: value.size]
            codes = twos_complement(
                quantize_stochastic(value, scale, self.levels, noise), self.code_bits
            )
        else:
            codes = self.quantize(value, scale)
        return scale_bits.tobytes(), codes, value - self.dequantize(codes, scale)

    def rotated_values(self, section: bytes, num_elements: int) -> F32:
        """Return what a section holds, without rotating it back."""
        num_blocks = math.ceil(num_elements / self.block)
        scales, units_begin = np.ones(num_blocks, np.float32), 0
        if self.scale is not None:
            scales = bf16_to_float32(np.frombuffer(section, np.uint16, num_blocks))
            units_begin = len(pad(bytes(2 * num_blocks)))
        units = np.frombuffer(section, self.unit, offset=units_begin).astype(np.uint32)
        out = np.empty(num_elements, np.float32)
        for index, scale in enumerate(scales):
            first = index * self.block
            count = min(self.block, num_elements - first)
            begin = first // self.codes_per_unit
            end = begin + math.ceil(count / self.codes_per_unit)
            codes = self.unpack(units[begin:end], count)
            out[first : first + count] = self.dequantize(codes, scale)
        return out

    def decode(self, sections: Sequence[bytes], num_elements: int, options: Options) -> F32:
        """Return the sum of sections, in their order."""
        total = self.rotated_values(sections[0], num_elements)
        for section in sections[1:]:
            total = total + self.rotated_values(section, num_elements)
        if self.is_rotated:
            for first in range(0, num_elements, self.block):
                part = slice(first, first + self.block)
                total[part] = (
                    rotated_back(total[part], options.seed) if np.isfinite(total[first]) else np.nan
                )
        return total


# --- quantization -------------------------------------------------------------------------------


def twos_complement(codes: npt.NDArray[np.int32], bits: int) -> U32:
    return np.asarray(codes.view(np.uint32) & np.uint32(2**bits - 1))


def integers(codes: U32, bits: int) -> F32:
    """Read two's complement of so many bits."""
    unsigned = codes.astype(np.int32)
    return np.asarray(np.where(unsigned < 1 << (bits - 1), unsigned, unsigned - (1 << bits)), F)


def quantize_integer(value: F32, scale: np.float32) -> npt.NDArray[np.int32]:
    return np.asarray(np.rint(value * (ONE / scale)), np.int32)  # half to even


def quantize_stochastic(
    value: F32, scale: np.float32, levels: int, noise: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """Round down after adding a random number in [0, 1), all in multiples of 2^-15."""
    fixed = np.rint(value * (ONE / scale) * F(2**15)).astype(np.int32)
    fixed = np.clip(fixed, -levels << 15, levels << 15)
    return np.asarray((fixed + noise) >> 15)


def integer_format(wire_id: int, block: int, codes_per_unit: int, bits: int) -> Format:
    levels = 2 ** (bits - 1) - 1
    return Format(
        wire_id,
        block,
        np.uint8,
        codes_per_unit,
        quantize=lambda value, scale: twos_complement(quantize_integer(value, scale), bits),
        dequantize=lambda codes, scale: integers(codes, bits) * scale,
        scale=lambda largest: bf16_not_below(largest * (ONE / F(levels))),
        levels=levels,
    )


def quantize_int2(value: F32, scale: np.float32) -> U32:
    is_large = np.abs(value) >= scale + scale
    return np.asarray(np.signbit(value) * 2 + is_large, np.uint32)


def dequantize_int2(codes: U32, scale: np.float32) -> F32:
    magnitude = np.where(codes & 1, F(3) * scale, scale)
    return np.where(codes & 2, -magnitude, magnitude)


INT8 = integer_format(8, 512, 1, bits=8)
INT4 = integer_format(4, 256, 2, bits=4)
FP8 = Format(
    9,
    512,
    np.uint8,
    1,
    quantize=lambda value, scale: float32_to_e4m3(value * (ONE / scale)),
    dequantize=lambda codes, scale: e4m3_to_float32(codes) * scale,
    scale=lambda largest: bf16_not_below(largest * (ONE / F(448))),
)
INT2 = Format(
    2,
    256,
    np.uint8,
    4,
    quantize=quantize_int2,
    dequantize=dequantize_int2,
    scale=lambda mean: bf16_nearest(mean * F(0.624)),
    is_rotated=True,
)
SIGN = Format(
    10,
    256,
    np.uint8,
    8,
    quantize=lambda value, scale: np.signbit(value).astype(np.uint32),
    dequantize=lambda codes, scale: np.where(codes, -scale, scale),
    scale=bf16_nearest,
    is_rotated=True,
)
FP32 = Format(
    32,
    512,
    np.uint32,
    1,
    quantize=lambda value, _: np.where(
        np.isnan(value), np.uint32(0x7FC00000), value.view(np.uint32)
    ),
    dequantize=lambda codes, _: codes.view(np.float32),
)
BF16 = Format(
    16,
    512,
    np.uint16,
    1,
    quantize=lambda value, _: float32_to_bf16(value).astype(np.uint32),
    dequantize=lambda codes, _: bf16_to_float32(codes.astype(np.uint16)),
)
FP16 = Format(
    17,
    512,
    np.uint16,
    1,
    quantize=lambda value, _: float32_to_fp16(value).astype(np.uint32),
    dequantize=lambda codes, _: fp16_to_float32(codes.astype(np.uint16)),
)
FORMATS = {
    "fp32": FP32,
    "bf16": BF16,
    "fp16": FP16,
    "fp8": FP8,
    "int8": INT8,
    "int4": INT4,
    "int2": INT2,
    "sign": SIGN,
}
