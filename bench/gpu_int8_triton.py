"""int8 with error feedback as a simple Triton kernel; importing it needs Triton."""

from typing import Any

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

_BLOCK = 512
_BLOCKS_PER_PROGRAM = 4


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _encode_kernel(  # type: ignore[no-untyped-def]
    gradient,
    residual,
    codes,
    scales,
    num_blocks,
    block_elements: tl.constexpr,
    blocks_per_program: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64) * blocks_per_program + tl.arange(0, blocks_per_program)
    is_block = block < num_blocks
    element = block[:, None] * block_elements + tl.arange(0, block_elements)[None, :]
    mask = is_block[:, None]
    value = tl.load(gradient + element, mask=mask, other=0.0)
    value += tl.load(residual + element, mask=mask, other=0.0)
    scale = tl.maximum(tl.max(tl.abs(value), axis=1) / 127.0, 7.888609052210118e-31)
    code = tl.floor(value / scale[:, None] + 0.5)
    tl.store(codes + element, code.to(tl.int8), mask=mask)
    tl.store(scales + block, scale, mask=is_block)
    tl.store(residual + element, value - code * scale[:, None], mask=mask)


def triton_encode(
    gradient: torch.Tensor, residual: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor
) -> None:
    """Encode rows of 512 elements; without header, checksum and care for NaN and Inf."""
    num_blocks = gradient.shape[0]
    grid: Any = (triton.cdiv(num_blocks, _BLOCKS_PER_PROGRAM),)
    _encode_kernel[grid](
        gradient, residual, codes, scales, num_blocks, _BLOCK, _BLOCKS_PER_PROGRAM, num_warps=4
    )
