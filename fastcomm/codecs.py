"""The codecs, as small frozen objects that name a wire format and its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fastcomm import _C
from fastcomm._arguments import check_residual, check_tensor
from fastcomm.errors import ArgumentError


@dataclass(frozen=True)
class Codec:
    """Turns float32, bfloat16 or float16 elements into a payload and back.

    Subclasses are frozen and comparable; ``str(codec)`` is the name that :func:`codec` takes.
    """

    name: ClassVar[str]

    def __str__(self) -> str:
        return self.name

    @property
    def spec(self) -> _C.CodecSpec:
        """What the native layer needs to know of this codec."""
        return _C.CodecSpec(self.name)

    @property
    def loses_bits(self) -> bool:
        """Whether anything is left out of a payload, so that error feedback matters."""
        return True

    def at_warmup(self, progress: float) -> Codec:
        """Return the codec to use at ``progress`` (0 <= progress < 1) of a warm-up."""
        return Fp32()

    def wire_bytes(self, num_elements: int) -> int:
        """Return the size in bytes of a payload of ``num_elements`` elements, header included."""
        if num_elements < 0:
            raise ArgumentError(f"num_elements {num_elements} is negative; pass tensor.numel()")
        return _C.payload_bytes(self.spec, num_elements)

    def encode(self, tensor: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Encode ``tensor + residual`` and leave in ``residual`` what the payload leaves out.

        Args:
            tensor: contiguous CPU tensor of float32, bfloat16 or float16, of any shape.
            residual: contiguous float32 CPU tensor of as many elements, updated in place;
                None: what is left out is lost.

        Returns:
            The payload, a uint8 tensor of shape (``wire_bytes(tensor.numel())``,).

        Raises:
            ArgumentError: for a dtype, device or size that cannot be encoded.
        """
        check_tensor(tensor, "tensor")
        check_residual(residual, tensor)
        return _C.encode(self.spec, tensor.detach(), residual)

    def decode(self, payload: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Decode a payload of this codec.

        Args:
            payload: uint8 tensor, as :meth:`encode` returns it.
            out: where to write, a contiguous float32, bfloat16 or float16 CPU tensor of as many
                elements as were encoded; None: a new float32 tensor of shape (num_elements,).

        Returns:
            ``out``.

        Raises:
            PayloadError: if the payload is damaged, truncated, or of another codec or size.
        """
        is_tensor = isinstance(payload, torch.Tensor)
        if not is_tensor or payload.dtype != torch.uint8 or not payload.is_contiguous():
            raise ArgumentError(
                "payload must be a contiguous uint8 tensor, got "
                f"{payload.dtype if is_tensor else type(payload).__name__}; "
                "pass what encode() returned"
            )
        if out is None:
            num_elements = _C.payload_num_elements(payload)
            # The claim of a damaged header must not decide how much memory is allocated.
            if self.wire_bytes(num_elements) != payload.numel():
                num_elements = 0
            out = torch.empty(num_elements, dtype=torch.float32)
        check_tensor(out, "out")
        if payload.data_ptr() % _C.PAYLOAD_ALIGNMENT:
            payload = payload.clone()
        _C.decode(self.spec, payload, out.detach())
        return out


def _check_block_size(codec_object: Int8 | Int4) -> None:
    expected = _C.block_elements(codec_object.name)
    if codec_object.block_size != expected:
        raise ArgumentError(
            f"block_size {codec_object.block_size} is not available for {codec_object.name}; "
            f"use block_size={expected}"
        )


@dataclass(frozen=True)
class Fp32(Codec):
    """The values themselves in float32: 4 bytes per element, nothing left out."""

    name: ClassVar[str] = "fp32"

    @property
    def loses_bits(self) -> bool:  # noqa: D102
        return False


@dataclass(frozen=True)
class Bf16(Codec):
    """bfloat16, rounded half to even: 2 bytes per element."""

    name: ClassVar[str] = "bf16"


@dataclass(frozen=True)
class Int8(Codec):
    """Symmetric 8-bit integers with one bf16 scale per block: 1.004 bytes per element."""

    name: ClassVar[str] = "int8"
    block_size: int = 512

    def __post_init__(self) -> None:
        _check_block_size(self)


@dataclass(frozen=True)
class Int4(Codec):
    """Symmetric 4-bit integers with one bf16 scale per block: 0.508 bytes per element."""

    name: ClassVar[str] = "int4"
    block_size: int = 256

    def __post_init__(self) -> None:
        _check_block_size(self)


@dataclass(frozen=True)
class TopK(Codec):
    """The ``density * num_elements`` largest magnitudes of a bucket: 4 bytes for each of them.

    Error feedback with global selection as in "Deep Gradient Compression", Lin et al., ICLR 2018,
    section 3. Values are sent as bfloat16; their rounding errors stay in the residual. Above a
    density of 0.12 the payload is int4, which then is smaller and keeps every element.
    """

    name: ClassVar[str] = "topk"
    density: float = 0.01

    def __post_init__(self) -> None:
        if not 0.0 < self.density <= 1.0:
            raise ArgumentError(
                f"density {self.density:g} is outside (0, 1]; "
                "use for instance topk:0.01 to send 1 % of the elements"
            )

    def __str__(self) -> str:
        return f"topk:{self.density!r}"

    @property
    def spec(self) -> _C.CodecSpec:  # noqa: D102
        if self.density > _C.TOPK_LARGEST_SPARSE_DENSITY:
            return Int4().spec
        return _C.CodecSpec("topk", self.density)

    def at_warmup(self, progress: float) -> Codec:
        """Ramp the density exponentially from 1 down to its target (the paper's section 3.3)."""
        return TopK(density=self.density**progress)


_CODECS: dict[str, type[Codec]] = {c.name: c for c in (Fp32, Bf16, Int8, Int4)}


def codec(name: str | Codec) -> Codec:
    """Return the codec of a name: ``fp32``, ``bf16``, ``int8``, ``int4`` or ``topk:DENSITY``.

    Raises:
        ArgumentError: for an unknown name (lists the known ones) or a density outside (0, 1].
    """
    if isinstance(name, Codec):
        return name
    if not isinstance(name, str):
        raise ArgumentError(
            f"codec must be a name or a fastcomm.Codec, got {type(name).__name__}; "
            'use for instance codec="int8"'
        )
    base, colon, parameter = name.partition(":")
    if base == TopK.name:
        try:
            density = float(parameter)
        except ValueError:
            raise ArgumentError(
                f"codec {name!r} needs a density, a number in (0, 1]: for instance topk:0.01"
            ) from None
        return TopK(density=density)
    if base not in _CODECS or colon:
        known = ", ".join([*_CODECS, "topk:DENSITY"])
        raise ArgumentError(f"unknown codec {name!r}; known codecs: {known}")
    return _CODECS[base]()
