"""Every codec on every instruction set gives the bytes and the residual of the oracle."""

from functools import cache
from itertools import product

import numpy as np
import pytest
import torch

import fastcomm
import oracle
from fastcomm import _C
from inputs import DTYPES, INPUTS, SIZES, SPARSE_SIZES, residual_for
from oracle_numbers import F32, to_float32
from oracle_rotation import philox
from oracle_topk import SUB_BLOCK

CODECS = oracle.CODECS
# The same bytes on the wire; what is in them depends on random numbers.
ENCODERS = [*CODECS, *oracle.STOCHASTIC_CODECS, "int2:seed=4294967295", "sign:seed=1"]


class Case:
    """A gradient, a residual, received payloads, and what the oracle makes of them."""

    def __init__(
        self,
        name: str,
        dtype: torch.dtype,
        make: str,
        size: int,
        feedback: bool = False,
        num_received: int = 0,
    ):
        random = np.random.default_rng(size)
        values = INPUTS[make](random, size)
        self.gradient = torch.from_numpy(values).to(dtype)
        self.residual = residual_for(values, random) if feedback else None
        others = [torch.from_numpy(INPUTS[make](random, size)) for _ in range(num_received)]
        self.received = [oracle.encode(name, other, None)[0] for other in others]
        self.payload, self.left_out = oracle.encode(
            name, self.gradient, self.residual, self.received
        )
        self.decoded = oracle.decode(name, self.payload)


# The oracle is slow and does not depend on the instruction set.
case = cache(Case)


def sizes_of(name: str) -> list[int]:
    return SPARSE_SIZES if name.startswith("topk") else SIZES


def feedbacks_of(name: str) -> list[bool]:
    return [False] if fastcomm.codec(name).is_stochastic else [False, True]


def tensor_of(payload: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(payload, np.uint8).copy())


def same_bits(actual: F32, expected: F32) -> bool:
    """Compare bit for bit, but any NaN with any NaN."""
    same = actual.view(np.uint32) == expected.view(np.uint32)
    return bool(np.all(same | (np.isnan(actual) & np.isnan(expected))))


def assert_encodes_as(expected: Case, name: str, threads: _C.ThreadPool | None = None) -> None:
    spec = fastcomm.codec(name).spec
    residual = None if expected.residual is None else torch.from_numpy(expected.residual.copy())
    payload = torch.empty(len(expected.payload), dtype=torch.uint8)
    received = [tensor_of(other) for other in expected.received]
    workspace = _C.CodecWorkspace(threads)
    _C.encode(spec, expected.gradient, residual, received, payload, workspace)
    gradient = expected.gradient
    what = f"of {gradient.numel()} elements of {gradient.dtype}, {len(received)} received"
    assert payload.numpy().tobytes() == expected.payload, f"payload {what}"
    if residual is not None:
        assert expected.left_out is not None
        assert residual.numpy().tobytes() == expected.left_out.tobytes(), f"residual {what}"


def converted(decoded: F32, dtype: torch.dtype) -> torch.Tensor:
    """Convert as torch does, but to the largest bf16 where torch overflows a finite value."""
    result = torch.from_numpy(decoded.copy()).to(dtype)
    if dtype == torch.bfloat16:
        overflows = result.isinf() & torch.from_numpy(np.isfinite(decoded))
        limit = torch.finfo(dtype).max
        result = torch.where(overflows, result.clamp(-limit, limit), result)
    return result


@pytest.mark.parametrize("make", INPUTS)
@pytest.mark.parametrize("name", ENCODERS)
def test_payload_and_residual_are_the_oracles(isa: str, name: str, make: str) -> None:
    for size, dtype, feedback in product(sizes_of(name), DTYPES, feedbacks_of(name)):
        assert_encodes_as(case(name, dtype, make, size, feedback), name)


@pytest.mark.parametrize("make", INPUTS)
@pytest.mark.parametrize("name", ENCODERS)
def test_received_payloads_are_added_before_encoding(isa: str, name: str, make: str) -> None:
    for index, feedback, num_received in product(range(len(SIZES)), feedbacks_of(name), (1, 2)):
        dtype = DTYPES[(index + num_received) % len(DTYPES)]
        assert_encodes_as(case(name, dtype, make, SIZES[index], feedback, num_received), name)


@pytest.mark.parametrize("make", INPUTS)
@pytest.mark.parametrize("name", CODECS)
def test_decoded_elements_are_the_oracles(isa: str, name: str, make: str) -> None:
    for size, dtype in product(sizes_of(name), DTYPES):
        expected = case(name, torch.float32, make, size)
        out = torch.full((size,), 7.0, dtype=dtype)
        result = fastcomm.codec(name).decode(tensor_of(expected.payload), out)
        assert result is out
        wanted = to_float32(converted(expected.decoded, dtype))
        assert same_bits(to_float32(out), wanted), f"{size} elements of {dtype}"


@pytest.mark.parametrize("num_received", [0, 1])
@pytest.mark.parametrize("name", ENCODERS)
def test_large_buckets_match_the_oracle(isa: str, name: str, num_received: int) -> None:
    feedback = feedbacks_of(name)[-1]
    expected = case(name, torch.float32, "gaussian", 3 * SUB_BLOCK + 77, feedback, num_received)
    for threads in (None, _C.ThreadPool(3)):
        assert_encodes_as(expected, name, threads)
        for offset in (0, 1):  # large results are written past the cache, by whole vectors
            out = torch.empty(expected.gradient.numel() + offset)[offset:]
            workspace = _C.CodecWorkspace(threads)
            _C.decode(fastcomm.codec(name).spec, tensor_of(expected.payload), out, workspace)
            assert same_bits(out.numpy(), expected.decoded)


@pytest.mark.parametrize("name", ENCODERS)
def test_wire_bytes_is_the_size_of_the_payload(name: str) -> None:
    codec = fastcomm.codec(name)
    for size in SPARSE_SIZES:
        assert codec.wire_bytes(size) == codec.encode(torch.ones(size)).numel()


@pytest.mark.parametrize("name", ENCODERS)
def test_same_input_gives_same_bytes_whatever_was_in_memory(isa: str, name: str) -> None:
    codec = fastcomm.codec(name)
    for size in sizes_of(name):
        gradient = case(name, torch.float32, "gaussian", size).gradient
        payloads = []
        for garbage in (0x00, 0xA5, 0xFF):
            payload = torch.full((codec.wire_bytes(size),), garbage, dtype=torch.uint8)
            _C.encode(codec.spec, gradient, None, [], payload, _C.CodecWorkspace())
            payloads.append(payload.numpy().tobytes())
        assert payloads[0] == payloads[1] == payloads[2], f"{size} elements"


@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("name", CODECS)
def test_tensors_and_payloads_need_no_alignment(isa: str, name: str, offset: int) -> None:
    """Views of a bucket start anywhere, and a payload may stand inside a larger message."""
    expected = case(name, torch.float32, "gaussian", 1000)
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


# --- the oracle itself --------------------------------------------------------------------------


def test_the_oracle_knows_every_codec_of_the_repository() -> None:
    classes = [getattr(fastcomm, name) for name in fastcomm.__all__]
    names = {c.name for c in classes if isinstance(c, type) and hasattr(c, "name")}
    assert names == {name.partition(":")[0] for name in CODECS}, "see oracle_dense.py"


def test_the_oracles_checksum_is_crc32c() -> None:
    assert oracle.crc32c(b"123456789") == 0xE3069283  # the check value of the CRC catalogue


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF, 0xFFFFFFFF),
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_oracles_random_numbers_are_philox_4x32_10(
    counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    assert tuple(philox(counter, key).tolist()) == words  # the test vectors of Random123
