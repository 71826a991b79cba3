"""A GPU makes the bytes, the residuals and the results of the CPU, bit by bit."""

import pytest
import torch

import fastcomm
import on_gpu
from fastcomm import _C
from inputs import DTYPES
from on_gpu import CODECS, CPU, ENCODERS, GPU, assert_same_output, decode, encode, same_bits

pytestmark = on_gpu.marks()

FEEDBACK = [(name, feedback) for name in ENCODERS for feedback in on_gpu.feedbacks_of(name)]
# Several slices of each kind, the last one odd.
SEVERAL_SLICES = {"fp32": 2_500_001, "int8": 9_000_001, "sign": 40_000_001, "topk:0.01": 9_000_001}


def differing(name: str, payload: torch.Tensor, size: int, offset: int = 0) -> list[str]:
    """Return the dtypes to which CPU and GPU decode a payload differently."""
    return [
        str(dtype)
        for dtype in DTYPES
        if not same_bits(
            decode(name, payload, size, dtype, GPU, offset=offset),
            decode(name, payload, size, dtype, CPU),
        )
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "feedback"), FEEDBACK)
def test_payload_and_residual_are_the_cpus(name: str, feedback: bool, dtype: torch.dtype) -> None:
    for given in on_gpu.inputs_of(name, dtype, feedback, num_received=0):
        assert_same_output(encode(name, given, GPU), encode(name, given, CPU), given.what)


@pytest.mark.parametrize("name", CODECS)
def test_decoded_elements_are_the_cpus(name: str) -> None:
    for given in on_gpu.inputs_of(name, torch.float32, feedback=False, num_received=0):
        payload = encode(name, given, CPU).payload
        assert not differing(name, payload, given.gradient.numel()), given.what


@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("name", CODECS)
def test_tensors_need_no_alignment(name: str, offset: int) -> None:
    for size in (5, 1000, 65536 + 3):
        for dtype in DTYPES:
            given = on_gpu.make_input(name, "gaussian", size, dtype, feedback=True, num_received=1)
            expected = encode(name, given, CPU)
            assert_same_output(encode(name, given, GPU, offset=offset), expected, given.what)
        assert not differing(name, expected.payload, size, offset), given.what


@pytest.mark.parametrize("name", CODECS)
def test_a_payload_may_stand_anywhere_in_a_message(name: str) -> None:
    codec = fastcomm.codec(name)
    gradient = on_gpu.gaussian(1000)
    expected = codec.encode(gradient)
    for offset in (1, 4, 8):
        payload = on_gpu.shifted(expected, GPU, offset)
        assert same_bits(codec.decode(payload).cpu(), codec.decode(expected))


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "unsealed"])
@pytest.mark.parametrize("name", SEVERAL_SLICES)
def test_buckets_cut_in_slices_are_the_cpus(name: str, sealed: bool) -> None:
    size = SEVERAL_SLICES[name]
    spec = fastcomm.codec(name).spec
    other = torch.empty(_C.payload_bytes([spec], size, sliced=True), dtype=torch.uint8)
    _C.encode(spec, on_gpu.gaussian(size, 1), None, [], other, _C.CodecWorkspace(), sliced=True)
    given = on_gpu.Input(on_gpu.gaussian(size), 0.1 * on_gpu.gaussian(size, 2), [other], name)
    found, expected = (
        encode(name, given, device, sliced=True, sealed=sealed) for device in (GPU, CPU)
    )
    assert_same_output(found, expected, f"{size} elements in slices")
    decoded, wanted = (
        decode(name, other, size, torch.float32, device, sliced=True) for device in (GPU, CPU)
    )
    assert same_bits(decoded, wanted)


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 0, 4)])
def test_tensors_of_any_shape_are_encoded_in_memory_order(shape: tuple[int, ...]) -> None:
    codec = fastcomm.codec("int8")
    tensor = torch.arange(1.0, 1.0 + torch.Size(shape).numel()).reshape(shape)
    residual = torch.zeros(shape, device=GPU)
    payload = codec.encode(tensor.to(GPU), residual)
    assert payload.device.type == GPU.type
    assert torch.equal(payload.cpu(), codec.encode(tensor))
    out = torch.empty(shape, device=GPU)
    assert codec.decode(payload, out) is out
    assert torch.equal(out.cpu().reshape(-1), codec.decode(payload.cpu()))


@pytest.mark.parametrize("name", ENCODERS)
def test_same_input_gives_same_bytes_run_after_run(name: str) -> None:
    feedback = on_gpu.feedbacks_of(name)[-1]
    for size in (513, 65536 + 3, 1_000_003):
        given = on_gpu.make_input(name, "gaussian", size, torch.float32, feedback, num_received=1)
        first = encode(name, given, GPU)
        for _ in range(5):
            assert_same_output(encode(name, given, GPU), first, given.what)


@pytest.mark.parametrize("name", CODECS)
def test_calls_that_share_a_workspace_do_not_disturb_each_other(name: str) -> None:
    """From large to small and back: what a workspace keeps from one call is not in the next."""
    spec, workspace = fastcomm.codec(name).spec, _C.CodecWorkspace()
    for size in (1_000_003, 700, 70_000, 1, 0, 1_000_003):
        gradient = on_gpu.gaussian(size)
        payload = torch.empty(_C.payload_bytes([spec], size), dtype=torch.uint8, device=GPU)
        _C.encode(spec, gradient.to(GPU), None, [], payload, workspace)
        expected = fastcomm.codec(name).encode(gradient)
        assert torch.equal(payload.cpu(), expected), f"{size} elements"
        out = torch.empty(size, device=GPU)
        _C.decode(spec, payload, out, workspace)
        assert same_bits(out.cpu(), fastcomm.codec(name).decode(expected)), f"{size} elements"


# --- more elements than an int counts -----------------------------------------------------------

_BILLIONS = 2**31 + 4 * 512 + 77
_BYTES_NEEDED = 40 << 30


@pytest.mark.gpu_large
@pytest.mark.timeout(280)
def test_more_elements_than_an_int_counts() -> None:
    if torch.cuda.mem_get_info()[0] < _BYTES_NEEDED:
        pytest.skip(f"less than {_BYTES_NEEDED >> 30} GiB of the GPU's memory are free")
    codec = fastcomm.codec("int8")
    gradient = torch.empty(_BILLIONS, dtype=torch.bfloat16, device=GPU)
    period = on_gpu.gaussian(1_000_003).to(torch.bfloat16).to(GPU)
    for piece in torch.split(gradient, period.numel()):
        piece.copy_(period[: piece.numel()])
    residual = torch.full((_BILLIONS,), 0.01, device=GPU)
    out = torch.full((_BILLIONS,), 7.0, dtype=torch.bfloat16, device=GPU)
    codec.decode(codec.encode(gradient, residual), out)
    # Blocks are independent: some of them on the CPU must be the same.
    last = (_BILLIONS // 512 - 6) * 512
    for begin in (0, 2**30 - 1024, 2**31 - 1024, last):
        part = slice(begin, min(begin + 4096, _BILLIONS))
        mine = torch.full((part.stop - part.start,), 0.01)
        decoded = torch.empty(part.stop - part.start, dtype=torch.bfloat16)
        codec.decode(codec.encode(gradient[part].cpu(), mine), decoded)
        assert same_bits(out[part].cpu(), decoded), f"elements from {begin} on"
        assert torch.equal(residual[part].cpu(), mine), f"residuals from {begin} on"
