"""Every codec on every instruction set gives the bytes and the residual of the oracle."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch

import fastcomm
import oracle
from fastcomm import _C
from oracle import F32

CODECS = ["fp32", "bf16", "int8", "int4", "topk:0.01", "topk:0.1"]
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


INPUTS: list[Callable[[np.random.Generator, int], F32]] = [
    gaussian,
    wide_range,
    zeros,
    negative_zeros,
    denormals,
    near_the_smallest_scale,
    constant,
    ties,
    outlier,
    non_finite,
    all_non_finite,
    largest,
    largest_ties,
    largest_and_nan,
]


class Case:
    """A gradient, a residual, and what the oracle makes of them."""

    def __init__(self, name: str, dtype: torch.dtype, make: str, size: int, feedback: bool):
        random = np.random.default_rng(size)
        values = globals()[make](random, size)
        self.gradient = torch.from_numpy(values).to(dtype)
        self.residual: F32 | None = None
        if feedback:
            # A residual is at most as large as the gradients it came from.
            finite = np.where(np.isfinite(values), values, np.float32(1))
            self.residual = finite * random.uniform(-0.5, 0.5, size).astype(np.float32)
        self.payload, self.left_out = oracle.encode(name, self.gradient, self.residual)
        self.decoded = oracle.decode(name, self.payload)


# The oracle is slow and does not depend on the instruction set.
case = cache(Case)


def sizes_of(name: str) -> list[int]:
    return SPARSE_SIZES if name.startswith("topk") else SIZES


def encode(name: str, tensor: torch.Tensor, residual: F32 | None) -> tuple[bytes, F32 | None]:
    left_out = None if residual is None else torch.from_numpy(residual.copy())
    payload = fastcomm.codec(name).encode(tensor, left_out)
    return payload.numpy().tobytes(), None if left_out is None else left_out.numpy()


def tensor_of(payload: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(payload, np.uint8).copy())


def same_bits(actual: F32, expected: F32) -> bool:
    """Compare bit for bit, but any NaN with any NaN."""
    same = actual.view(np.uint32) == expected.view(np.uint32)
    return bool(np.all(same | (np.isnan(actual) & np.isnan(expected))))


def converted(decoded: F32, dtype: torch.dtype) -> torch.Tensor:
    """Convert as torch does, but to the largest bf16 where torch overflows a finite value."""
    result = torch.from_numpy(decoded.copy()).to(dtype)
    if dtype == torch.bfloat16:
        overflows = result.isinf() & torch.from_numpy(np.isfinite(decoded))
        limit = torch.finfo(dtype).max
        result = torch.where(overflows, result.clamp(-limit, limit), result)
    return result


@pytest.mark.parametrize("feedback", [False, True], ids=["no-residual", "residual"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", [make.__name__ for make in INPUTS])
@pytest.mark.parametrize("name", CODECS)
def test_payload_and_residual_are_the_oracles(
    isa: str, name: str, make: str, dtype: torch.dtype, feedback: bool
) -> None:
    for size in sizes_of(name):
        expected = case(name, dtype, make, size, feedback)
        payload, left_out = encode(name, expected.gradient, expected.residual)
        assert payload == expected.payload, f"payload of {size} elements"
        if left_out is not None:
            assert expected.left_out is not None
            assert left_out.tobytes() == expected.left_out.tobytes(), f"residual of {size} elements"


@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", [make.__name__ for make in INPUTS])
@pytest.mark.parametrize("name", CODECS)
def test_decoded_elements_are_the_oracles(
    isa: str, name: str, make: str, out_dtype: torch.dtype
) -> None:
    for size in sizes_of(name):
        expected = case(name, torch.float32, make, size, False)
        out = torch.full((size,), 7.0, dtype=out_dtype)
        result = fastcomm.codec(name).decode(tensor_of(expected.payload), out)
        assert result is out
        wanted = oracle.to_float32(converted(expected.decoded, out_dtype))
        assert same_bits(oracle.to_float32(out), wanted), f"{size} elements"


@pytest.mark.parametrize("make", [make.__name__ for make in INPUTS])
@pytest.mark.parametrize("name", CODECS)
def test_decoded_payload_plus_residual_is_the_gradient_exactly(name: str, make: str) -> None:
    for size in sizes_of(name):
        expected = case(name, torch.float32, make, size, False)
        gradient = expected.gradient
        left_out = torch.zeros(size)
        codec = fastcomm.codec(name)
        decoded = codec.decode(codec.encode(gradient, left_out))
        # The rest is announced as non-finite, or could not be: top-k that has no room for it.
        finite = torch.isfinite(gradient) & torch.from_numpy(np.isfinite(expected.decoded))
        total = decoded.double() + left_out.double()
        assert torch.equal(total[finite], gradient.double()[finite]), f"{size} elements"


@pytest.mark.parametrize("name", CODECS)
def test_large_buckets_match_the_oracle(isa: str, name: str) -> None:
    expected = case(name, torch.float32, "gaussian", 3 * oracle.SUB_BLOCK + 77, True)
    payload, left_out = encode(name, expected.gradient, expected.residual)
    assert payload == expected.payload
    assert left_out is not None
    assert expected.left_out is not None
    assert left_out.tobytes() == expected.left_out.tobytes()


@pytest.mark.parametrize("name", CODECS)
def test_wire_bytes_is_the_size_of_the_payload(name: str) -> None:
    codec = fastcomm.codec(name)
    for size in SPARSE_SIZES:
        assert codec.wire_bytes(size) == codec.encode(torch.ones(size)).numel()


@pytest.mark.parametrize("name", CODECS)
def test_same_input_gives_same_bytes_whatever_was_in_memory(isa: str, name: str) -> None:
    codec = fastcomm.codec(name)
    for size in sizes_of(name):
        gradient = case(name, torch.float32, "gaussian", size, False).gradient
        payloads = []
        for garbage in (0x00, 0xA5, 0xFF):
            # Freed at once: the allocator hands this memory to the payload.
            shape = (codec.wire_bytes(size),)
            dirty = [torch.full(shape, garbage, dtype=torch.uint8) for _ in range(8)]
            del dirty
            payloads.append(codec.encode(gradient).numpy().tobytes())
        assert payloads[0] == payloads[1] == payloads[2], f"{size} elements"


@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("name", CODECS)
def test_tensors_and_payloads_need_no_alignment(isa: str, name: str, offset: int) -> None:
    """Views of a bucket start anywhere, and a payload may stand inside a larger message."""
    expected = case(name, torch.float32, "gaussian", 1000, False)
    gradient = torch.empty(1000 + offset)[offset:].copy_(expected.gradient)
    left_out = torch.zeros(1000 + offset)[offset:]
    codec = fastcomm.codec(name)
    assert codec.encode(gradient, left_out).numpy().tobytes() == expected.payload
    message = torch.empty(len(expected.payload) + offset, dtype=torch.uint8)
    payload = message[offset:].copy_(tensor_of(expected.payload))
    out = torch.empty(1000 + offset)[offset:]
    assert same_bits(codec.decode(payload, out).numpy(), expected.decoded)


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 0, 4)])
def test_tensors_of_any_shape_are_encoded_in_memory_order(shape: tuple[int, ...]) -> None:
    codec = fastcomm.codec("int8")
    tensor = torch.arange(1.0, 1.0 + torch.Size(shape).numel()).reshape(shape)
    payload = codec.encode(tensor, torch.zeros(shape))
    assert torch.equal(payload, codec.encode(tensor.reshape(-1)))
    out = torch.empty(shape)
    assert codec.decode(payload, out).shape == torch.Size(shape)
    assert torch.equal(out.reshape(-1), codec.decode(payload))


def test_dense_topk_is_sent_as_int4() -> None:
    gradient = torch.randn(1000)
    assert torch.equal(
        fastcomm.codec("topk:0.5").encode(gradient), fastcomm.codec("int4").encode(gradient)
    )
    densest_sparse = f"topk:{_C.TOPK_LARGEST_SPARSE_DENSITY}"
    assert (
        fastcomm.codec(densest_sparse).encode(gradient).numpy().tobytes()
        == (oracle.encode(densest_sparse, gradient, None)[0])
    )


def test_the_oracles_checksum_is_crc32c() -> None:
    assert oracle.crc32c(b"123456789") == 0xE3069283  # the check value of the CRC catalogue
