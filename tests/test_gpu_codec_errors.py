"""Damaged payloads and mixed devices on a GPU are clear errors; what the build says of itself."""

import subprocess
import sys

import pytest
import torch

import fastcomm
import on_gpu
from fastcomm import PayloadError, _build_info
from on_gpu import CODECS, GPU

pytestmark = on_gpu.marks()


def damaged(payload: torch.Tensor, position: int, xor: int = 1) -> torch.Tensor:
    """Return a copy on the GPU with some bits of a byte flipped."""
    copy = payload.cpu().clone()
    copy[position] ^= xor
    return copy.to(GPU)


@pytest.mark.parametrize("name", CODECS)
def test_every_damaged_byte_is_caught(name: str) -> None:
    codec = fastcomm.codec(name)
    payload = codec.encode(on_gpu.gaussian(40).to(GPU))
    out = torch.full((40,), 7.0, device=GPU)
    for position in range(payload.numel()):
        with pytest.raises(PayloadError, match="received payload"):
            codec.decode(damaged(payload, position, 0x40), out)
    assert torch.equal(codec.decode(payload, out), codec.decode(payload)), "unusable afterwards"


@pytest.mark.parametrize("name", CODECS)
def test_damage_anywhere_in_a_large_body_is_caught(name: str) -> None:
    """The checksum is put together of parts."""
    codec = fastcomm.codec(name)
    payload = codec.encode(on_gpu.gaussian(2_000_003).to(GPU))
    positions = [32, 4096, payload.numel() // 3, payload.numel() - 17, payload.numel() - 1]
    for position in positions:
        for bit in (1, 0x80):
            with pytest.raises(PayloadError, match="received payload"):
                codec.decode(damaged(payload, position, bit))


def test_damage_is_blamed_on_the_way() -> None:
    codec = fastcomm.codec("int8")
    payload = codec.encode(torch.ones(40, device=GPU))
    with pytest.raises(PayloadError, match=r"checksum.*damaged on the way"):
        codec.decode(damaged(payload, 60))


@pytest.mark.parametrize("name", CODECS)
def test_truncated_payloads_and_those_of_other_codecs_are_refused(name: str) -> None:
    codec = fastcomm.codec(name)
    payload = codec.encode(torch.ones(40, device=GPU))
    for size in (0, 1, 31, 32, payload.numel() - 16, payload.numel() - 1):
        with pytest.raises(PayloadError, match="truncated"):
            codec.decode(payload[:size].clone())
    other = fastcomm.codec("int4" if name != "int4" else "int8")
    with pytest.raises(PayloadError, match=r"codec id.*same codec on every rank"):
        other.decode(payload, torch.empty(40, device=GPU))
    with pytest.raises(PayloadError, match="number of elements 40"):
        codec.decode(payload, torch.empty(41, device=GPU))


def test_tensors_on_several_devices_are_refused() -> None:
    codec = fastcomm.codec("int8")
    gradient, on_gpu = torch.ones(40), torch.ones(40, device=GPU)
    residual = torch.zeros(40)
    with pytest.raises(fastcomm.ArgumentError, match=r"cuda"):
        codec.encode(on_gpu, residual)
    with pytest.raises(fastcomm.ArgumentError, match=r"cuda"):
        codec.encode(gradient, residual.to(GPU))
    payload = codec.encode(on_gpu)
    with pytest.raises(fastcomm.ArgumentError, match=r"cuda"):
        codec.decode(payload, torch.empty(40))
    assert not residual.any(), "a failed call has changed the residual"


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32], ids=str)
def test_dtypes_that_cannot_be_encoded_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(fastcomm.ArgumentError, match="has dtype"):
        fastcomm.codec("int8").encode(torch.ones(40, dtype=dtype, device=GPU))


def test_the_build_says_which_gpus_it_is_for() -> None:
    major, minor = torch.cuda.get_device_capability()
    assert _build_info.CUDA_ARCHITECTURES
    done = subprocess.run(
        [sys.executable, "-m", "fastcomm"], capture_output=True, text=True, check=True, timeout=60
    )
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("CUDA architectures"))
    assert _build_info.CUDA_ARCHITECTURES in line
    # Of this very GPU, or older ones whose PTX the driver compiles.
    numbers = [
        int(word) for word in line.replace(";", " ").replace(",", " ").split() if word.isdigit()
    ]
    assert not numbers or min(numbers) <= 10 * major + minor
