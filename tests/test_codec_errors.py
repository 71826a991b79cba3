"""What goes wrong first with a codec is an error that names the value and the fix."""

import re
from collections.abc import Callable

import pytest
import torch

import fastcomm
import oracle
from fastcomm import _C, ArgumentError, Error, PayloadError
from fastcomm.codecs import codec_names
from oracle_numbers import pad
from promises import FORMATS

NAMES = [*FORMATS, "topk:0.1"]
INT8 = fastcomm.codec("int8")


def encoded(name: str, num_elements: int = 40) -> torch.Tensor:
    return fastcomm.codec(name).encode(torch.linspace(-1, 1, num_elements))


def altered(payload: torch.Tensor, position: int, xor: int) -> torch.Tensor:
    copy = payload.clone()
    copy[position] ^= xor
    return copy


# --- names and parameters -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["int9", "", "INT8", "int8 ", "int9:seed=1", "int8:", ":"])
def test_unknown_codec_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(f"unknown codec {name!r}")) as caught:
        fastcomm.codec(name)
    assert {*FORMATS, "topk:DENSITY"} == set(codec_names())
    assert ", ".join(codec_names()) in str(caught.value)


def test_argument_errors_are_fastcomm_errors_and_value_errors() -> None:
    with pytest.raises(ValueError, match="unknown codec"):
        fastcomm.codec("int9")
    with pytest.raises(RuntimeError, match="unknown codec"):
        fastcomm.codec("int9")
    assert issubclass(ArgumentError, Error)
    assert issubclass(PayloadError, Error)


@pytest.mark.parametrize("density", ["0", "-1", "1.5", "nan", "inf", "-inf", "1.0000001"])
def test_density_outside_its_range_is_named_with_the_range(density: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape("outside (0, 1]")) as caught:
        fastcomm.codec(f"topk:{density}")
    assert f"density {float(density):g}" in str(caught.value)
    assert "topk:0.01" in str(caught.value)
    with pytest.raises(ArgumentError, match=re.escape("outside (0, 1]")):
        fastcomm.TopK(density=float(density))


@pytest.mark.parametrize("name", ["topk", "topk:", "topk:abc", "topk:1%", "topk:0.1:2"])
def test_topk_without_a_number_says_how_to_give_one(name: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(f"{name!r} needs a density")) as caught:
        fastcomm.codec(name)
    assert "for instance topk:0.01" in str(caught.value)


@pytest.mark.parametrize("density", ["1", "1.0", "0.5", "1e-9"])
def test_the_ends_of_the_density_range_are_valid(density: str) -> None:
    codec = fastcomm.codec(f"topk:{density}")
    assert codec.decode(codec.encode(torch.ones(10))).count_nonzero() >= 1


@pytest.mark.parametrize(
    ("make", "block_size", "available"),
    [
        (fastcomm.Int8, 256, 512),
        (fastcomm.Int4, 512, 256),
        (fastcomm.Int4, 0, 256),
        (fastcomm.Sign, 128, 256),
        (fastcomm.Fp8, 1024, 512),
    ],
)
def test_block_size_names_the_available_one(
    make: type[fastcomm.DenseCodec], block_size: int, available: int
) -> None:
    with pytest.raises(ArgumentError, match=f"block_size {block_size} is not available") as caught:
        make(block_size=block_size)
    assert f"use block_size={available}" in str(caught.value)
    assert make(block_size=available) == make()


# --- tensors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.float64, torch.uint8, torch.bool, torch.complex64], ids=str
)
def test_dtype_that_cannot_be_encoded_lists_those_that_can(dtype: torch.dtype) -> None:
    with pytest.raises(ArgumentError, match=re.escape(f"tensor has dtype {dtype}")) as caught:
        INT8.encode(torch.zeros(4, dtype=dtype))
    assert "float32, bfloat16 and float16" in str(caught.value)


def test_not_contiguous_tensor_says_contiguous() -> None:
    with pytest.raises(ArgumentError, match=re.escape("pass tensor.contiguous()")):
        INT8.encode(torch.zeros(4, 6).t())
    with pytest.raises(ArgumentError, match=re.escape("pass out.contiguous()")):
        INT8.decode(encoded("int8", 10), torch.zeros(20)[::2])


def test_sparse_gradient_names_the_layout_and_the_fix() -> None:
    with pytest.raises(ArgumentError, match=r"layout torch\.sparse_coo.*sparse=False"):
        INT8.encode(torch.eye(3).to_sparse())


@pytest.mark.parametrize(
    ("what", "use"),
    [
        ("tensor", lambda foreign: INT8.encode(foreign)),
        ("residual", lambda foreign: INT8.encode(torch.zeros(4), foreign)),
        ("out", lambda foreign: INT8.decode(encoded("int8", 4), foreign)),
    ],
    ids=["tensor", "residual", "out"],
)
def test_tensor_on_another_device_names_the_device_and_the_fix(
    what: str, use: Callable[[torch.Tensor], object]
) -> None:
    foreign = torch.zeros(4, device="meta")  # stands for a GPU
    with pytest.raises(ArgumentError, match=f"{what} is on meta.*built for the CPU") as caught:
        use(foreign)
    assert ("move it to one of them" if _C.has_cuda else "rebuild") in str(caught.value)


def test_payload_on_another_device_is_an_error() -> None:
    with pytest.raises(Error, match="meta"):
        INT8.decode(torch.zeros(64, dtype=torch.uint8, device="meta"))


def test_what_is_no_tensor_is_named_by_its_type() -> None:
    with pytest.raises(ArgumentError, match=r"must be a torch\.Tensor, got list"):
        INT8.encode([1.0, 2.0])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "residual", [torch.zeros(4, dtype=torch.bfloat16), torch.zeros(3), torch.zeros(0)]
)
def test_residual_of_wrong_dtype_or_size_says_what_it_must_be(residual: torch.Tensor) -> None:
    with pytest.raises(ArgumentError, match=r"must have 4 elements of torch\.float32") as caught:
        INT8.encode(torch.zeros(4), residual)
    assert f"residual has {residual.numel()} elements of {residual.dtype}" in str(caught.value)


def test_failed_encode_leaves_the_residual_alone() -> None:
    residual = torch.ones(4)
    with pytest.raises(ArgumentError):
        INT8.encode(torch.ones(4, dtype=torch.float64), residual)
    assert torch.equal(residual, torch.ones(4))


# --- payloads -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_damaged_bit_is_caught(name: str) -> None:
    codec = fastcomm.codec(name)
    payload = encoded(name)
    out = torch.empty(40)
    for position in range(payload.numel()):
        for bit in range(8):
            with pytest.raises(PayloadError, match="received payload"):
                codec.decode(altered(payload, position, 1 << bit))
        with pytest.raises(PayloadError, match="received payload"):
            codec.decode(altered(payload, position, 0xFF), out)


def test_damage_to_the_body_is_blamed_on_the_way() -> None:
    with pytest.raises(PayloadError, match=r"checksum.*damaged on the way"):
        INT8.decode(altered(encoded("int8"), 60, 1))


@pytest.mark.parametrize("name", NAMES)
def test_payload_truncated_at_any_length_is_caught(name: str) -> None:
    codec = fastcomm.codec(name)
    payload = encoded(name)
    for size in range(payload.numel()):
        with pytest.raises(PayloadError, match="truncated"):
            codec.decode(payload[:size].clone())
    with pytest.raises(PayloadError, match="size in bytes"):
        codec.decode(torch.cat([payload, payload.new_zeros(16)]))


def test_empty_payload_is_truncated() -> None:
    with pytest.raises(PayloadError, match=r"0 bytes.*truncated"):
        INT8.decode(torch.empty(0, dtype=torch.uint8))


def test_payload_of_another_wire_version_names_both() -> None:
    body = bytes(16 + 16)
    future = oracle.seal(body, 8, 512, 10, version=oracle.VERSION + 1)
    with pytest.raises(PayloadError, match="wire version 2, this rank expects 1") as caught:
        INT8.decode(torch.tensor(list(future), dtype=torch.uint8))
    assert "same fastcomm version" in str(caught.value)


@pytest.mark.parametrize("theirs", NAMES)
@pytest.mark.parametrize("ours", NAMES)
def test_payload_of_another_codec_is_refused(ours: str, theirs: str) -> None:
    if ours == theirs:
        return
    payload = encoded(theirs)
    with pytest.raises(PayloadError, match=r"codec id.*same codec on every rank"):
        fastcomm.codec(ours).decode(payload)
    with pytest.raises(PayloadError, match=r"codec id.*same codec on every rank"):
        fastcomm.codec(ours).decode(payload, torch.empty(40))


def test_topk_payload_of_another_density_is_refused() -> None:
    with pytest.raises(PayloadError, match="codec parameter 4, this rank expects 2"):
        fastcomm.codec("topk:0.05").decode(encoded("topk:0.1"), torch.empty(40))


@pytest.mark.parametrize("size", [0, 1, 39, 41, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_out_of_the_wrong_size_names_both_sizes(name: str, size: int) -> None:
    with pytest.raises(PayloadError, match=f"number of elements 40.* expects {size}:"):
        fastcomm.codec(name).decode(encoded(name), torch.empty(size))


def test_valid_checksum_on_a_malformed_topk_body_is_refused() -> None:
    """What a checksum cannot catch must not lead out of bounds."""
    codec = fastcomm.codec("topk:0.1")
    num_elements, k = 40, 4
    for counts, offset, complaint in [(5, 0, "counts 5 entries"), (1, 40, "offset 40")]:
        parts = [counts.to_bytes(4, "little"), offset.to_bytes(2, "little") * k, bytes(2 * k)]
        body = b"".join(pad(part) for part in parts)
        payload = torch.tensor(list(oracle.seal(body, 1, k, num_elements)), dtype=torch.uint8)
        with pytest.raises(PayloadError, match=f"{complaint}.*malformed"):
            codec.decode(payload)


@pytest.mark.parametrize("payload", [torch.zeros(64), torch.zeros(128, dtype=torch.uint8)[::2]])
def test_payload_that_is_no_byte_tensor_says_what_to_pass(payload: torch.Tensor) -> None:
    with pytest.raises(ArgumentError, match=r"contiguous uint8 tensor.*encode\(\) returned"):
        INT8.decode(payload)


def test_refused_payload_does_not_touch_out() -> None:
    out = torch.full((40,), 7.0)
    with pytest.raises(PayloadError):
        INT8.decode(altered(encoded("int8"), 60, 1), out)
    assert torch.equal(out, torch.full((40,), 7.0))
