"""Whether what was timed is right: nothing lost, and the bytes of the oracle of the tests."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass

import numpy as np
import torch

from buffers import Buffers
from fastcomm import _C
from measure import REPOSITORY, forced_isa

sys.path.append(str(REPOSITORY / "tests"))
import oracle

SAME, DIFFERENT, NO_ORACLE = "same bytes", "DIFFERENT", "no oracle"
_SUB_BLOCK = 65536  # of a top-k payload; docs/wire_format.md
# Digests of what the oracle makes of what has this digest. It is slow, and gets the same input for
# every instruction set and number of threads.
_known: dict[tuple[str, bytes], bytes] = {}


@dataclass(frozen=True)
class Candidate:
    """A codec to measure."""

    label: str
    spec: _C.CodecSpec
    # Of |delivered + residual - value| / |value| (norms); 0: bit-exact.
    conservation_tolerance: float
    has_oracle: bool
    is_sparse: bool


@dataclass(frozen=True)
class Check:
    """The result of a check."""

    correct: bool
    conservation_error: float | None
    oracle: str


def has_oracle(name: str) -> bool:
    """Return whether the tests' oracle knows a codec."""
    try:
        oracle.encode(name, torch.zeros(1), None)
    except KeyError:
        return False
    return True


def slices_of(payload: torch.Tensor) -> list[tuple[slice, slice]]:
    """Return the elements and the bytes of the first and the last slice of a bucket."""
    slices, element, byte, data = [], 0, 0, payload.numpy().data
    while byte < payload.numel():
        fields = oracle.HEADER.unpack_from(data, byte)
        num_elements, num_bytes = fields[3], fields[9]
        slices.append((slice(element, element + num_elements), slice(byte, byte + num_bytes)))
        element += num_elements
        byte += -(-num_bytes // _C.PAYLOAD_ALIGNMENT) * _C.PAYLOAD_ALIGNMENT
    return slices[:1] if len(slices) == 1 else [slices[0], slices[-1]]


def num_entries(payload: torch.Tensor, num_elements: int) -> int:
    """Return how many elements a top-k payload holds: the sum of the counts of its sub-blocks."""
    num_sub_blocks = -(-num_elements // _SUB_BLOCK)
    counts = np.frombuffer(payload.numpy().data, np.uint32, num_sub_blocks, oracle.HEADER_BYTES)
    return int(counts.sum())


def _digest(*tensors: torch.Tensor) -> bytes:
    digest = hashlib.blake2b()
    for tensor in tensors:
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.digest()


def _bytes(payload: torch.Tensor) -> bytes:
    return payload.numpy().tobytes()


def _encoded_by_oracle(
    name: str, gradient: torch.Tensor, residual: torch.Tensor, received: list[torch.Tensor]
) -> bytes:
    """Return the digest of the payload and the residual that the oracle makes."""
    key = name, _digest(gradient, residual, *received)
    if key not in _known:
        others = [_bytes(payload) for payload in received]
        payload, left_out = oracle.encode(name, gradient, residual.numpy(), others)
        assert left_out is not None
        _known[key] = _digest(
            torch.frombuffer(bytearray(payload), dtype=torch.uint8), torch.from_numpy(left_out)
        )
    return _known[key]


def _decoded_by_oracle(name: str, payload: torch.Tensor, dtype: torch.dtype) -> bytes:
    """Return the digest of the elements that the oracle reads."""
    key = f"{name} to {dtype}", _digest(payload)
    if key not in _known:
        decoded = torch.from_numpy(oracle.decode(name, _bytes(payload)).copy())
        _known[key] = _digest(decoded.to(dtype))
    return _known[key]


def check_encoding(
    candidate: Candidate, buffers: Buffers, previous: torch.Tensor, has_received: bool
) -> Check:
    """Check the payload and the residual that the residual ``previous`` has led to."""
    spec, workspace = candidate.spec, _C.CodecWorkspace()
    delivered, arrived = torch.empty_like(previous), torch.zeros_like(previous)
    _C.decode(spec, buffers.payload, delivered, workspace, sliced=True)
    if has_received:
        _C.decode(spec, buffers.received, arrived, workspace, sliced=True)
    # Sums of f32 depend on their order. Top-k adds what it receives to the residual.
    gradient = buffers.gradient.float()
    total = (
        gradient + (previous + arrived) if candidate.is_sparse else gradient + previous + arrived
    )
    left_over = delivered.double().add_(buffers.residual).sub_(total)
    error = (left_over.norm() / total.double().norm()).item()
    verdict = NO_ORACLE
    if candidate.has_oracle:
        verdict = SAME
        for elements, part in slices_of(buffers.payload):
            expected = _encoded_by_oracle(
                candidate.label,
                buffers.gradient[elements],
                previous[elements],
                [buffers.received[part]] if has_received else [],
            )
            if _digest(buffers.payload[part], buffers.residual[elements]) != expected:
                verdict = DIFFERENT
    is_right = error <= candidate.conservation_tolerance and verdict != DIFFERENT
    return Check(is_right, error, verdict)


def check_decoding(candidate: Candidate, buffers: Buffers) -> Check:
    """Check decoded elements."""
    out, again = buffers.out, torch.empty_like(buffers.out)
    with forced_isa("baseline"):
        _C.decode(candidate.spec, buffers.payload, again, _C.CodecWorkspace(), sliced=True)
    verdict = NO_ORACLE
    if candidate.has_oracle:
        verdict = SAME
        for elements, part in slices_of(buffers.payload):
            expected = _decoded_by_oracle(candidate.label, buffers.payload[part], out.dtype)
            if _digest(out[elements]) != expected:
                verdict = DIFFERENT
    return Check(torch.equal(out, again) and verdict != DIFFERENT, None, verdict)
